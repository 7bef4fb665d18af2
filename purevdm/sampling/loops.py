"""The loop that takes steps, in eager mode and compiled."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import exporting, while_loop

__all__ = ["loop"]

State: TypeAlias = tuple[Tensor, ...]


def loop(
    step: Callable[..., State],
    state: State,
    steps: int | Tensor,
    *,
    trajectory: bool = False,
    callback: Callable[[int, Tensor], None] | None = None,
    unroll: bool = False,
) -> State:
    """Applies ``state = step(i, *state)`` for i = 0, ..., steps - 1.

    In eager mode this is a Python loop. Under ``torch.compile`` it is one ``torch.while_loop``, whose graph does not depend
    on the number of steps where that is a tensor. ``torch.export`` unrolls it: it loses a ``vmap`` inside a ``while_loop``.

    Args:
        step: ``step(i, *state) -> state``, with i an int32 tensor of shape () on the state's device.
        state: the start: the latents z, and whatever else steps hand on.
        steps: how many, an integer >= 1, or an integer tensor of shape () (on the CPU: a loop's end is tested there).
        trajectory: whether to return, in place of the last z, all of them, from the start on, stacked: (steps + 1,
            *z.shape). Takes an integer.
        callback: in eager mode, ``callback(i, z)`` after each step, for a progress bar.
        unroll: whether a compiled graph holds every step, so that derivatives and transforms pass. Takes an integer.

    Raises:
        RuntimeError: a compiled loop that is not unrolled, of tensors that require gradients; nothing under
            ``torch.no_grad()``.
    """
    steps = step_count(steps, trajectory)
    if torch.compiler.is_compiling():
        if callback is not None:
            raise ValueError("callback: a compiled loop calls nothing; leave it out, or sample in eager mode")
        exported = exporting()
        if not unroll and not exported:
            return _compiled(step, state, steps, trajectory)
        if isinstance(steps, Tensor):
            wanted = "an exported program has its own number of steps" if exported else "compiled derivatives unroll them"
            raise TypeError(f"steps: {wanted}; give a Python integer, not a tensor")

    latents = [state[0]]
    for i in range(int(steps)):
        state = step(torch.tensor(i, dtype=torch.int32, device=state[0].device), *state)
        if trajectory:
            latents.append(state[0])
        if callback is not None:
            callback(i, state[0])
    return (torch.stack(latents), *state[1:]) if trajectory else state


def step_count(steps: int | Tensor, trajectory: bool) -> int | Tensor:
    """Gives the number of steps, an integer for a trajectory."""
    steps = _checks.count("steps", steps)
    if trajectory and isinstance(steps, Tensor):
        raise TypeError("steps: a trajectory has as many latents as steps; give a Python integer, not a tensor")
    return steps


def _compiled(step: Callable[..., State], state: State, steps: int | Tensor, trajectory: bool) -> State:
    # Two counters: the loop's end is tested on the CPU without waiting for the device, the step counts on z's device.
    end = torch.as_tensor(steps, dtype=torch.int32, device=None if isinstance(steps, Tensor) else "cpu")
    host = torch.zeros((), dtype=torch.int32, device="cpu")
    here = torch.zeros((), dtype=torch.int32, device=state[0].device)
    kept: State = ()
    if trajectory:
        kept = (torch.cat([state[0][None], state[0].new_zeros((steps, *state[0].shape))]),)  # type: ignore[arg-type]
    n = len(kept)

    def unfinished(host: Tensor, *state: Tensor) -> Tensor:
        return host < end

    def body(host: Tensor, here: Tensor, *state: Tensor) -> State:
        kept, state = state[:n], step(here, *state[n:])
        index = (here + 1).to(torch.int64)[None]
        return host + 1, here + 1, *(latents.index_copy(0, index, state[0][None]) for latents in kept), *state

    _, _, *done = while_loop(unfinished, body, (host, here, *kept, *state), "loop")
    return (done[0], *done[2:]) if trajectory else tuple(done)
