"""The way back: from a key to data, by the steps of any of :mod:`purevdm.solvers`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, denoiser, process, random, schedules, solvers
from purevdm._compile import fixed
from purevdm.denoiser import Prediction
from purevdm.elbo import Model
from purevdm.solvers import Solver
from purevdm.types import Key, Params

__all__ = ["Sample", "loop", "sample"]

State = tuple[Tensor, ...]


class Sample(NamedTuple):
    """What sampling gives when the trajectory is asked for.

    Attributes:
        x: data, (n, *event_shape).
        z: the latents from time 1 to time 0, (steps + 1, n, *event_shape).
    """

    x: Tensor
    z: Tensor


@torch.no_grad()
def sample(
    model: Model,
    params: Params,
    key: Key,
    n: int,
    steps: int | Tensor,
    solver: Solver | None,
    grid: str,
    cond: Any,
    guidance: float | Tensor,
    decode: str,
    clip: bool,
    trajectory: bool,
    callback: Callable[[int, Tensor], None] | None,
) -> Any:
    """See :meth:`purevdm.VDM.sample`, which checks the parameters first.

    The sampling key is split in three: the first draws z_1, step i draws from ``fold_in`` of the second and i, and the
    third decodes.
    """
    k_z, k_steps, k_decode = random.split(_checks.key("key", key), 3).unbind(0)
    n = _checks.integer("n", n, 1)
    _checks.choice("decode", decode, ("argmax", "sample"))
    _checks.choice("grid", grid, ("time", "gamma"))
    solver = solvers.ancestral() if solver is None else solver
    if not isinstance(solver, Solver):
        raise TypeError(f"solver: expected a Solver such as purevdm.solvers.ddim(), got {_checks.describe(solver)}")
    weight = _guidance(guidance, n, key)
    if weight is not None and cond is None:
        raise ValueError("cond: expected the condition that guidance strengthens, got None")
    if clip and model.decoder.bounds is None:
        raise ValueError("clip: expected False, as these data have no bounds")
    if model.schedule.contextual:
        denoiser.batch_axes(cond, n)
    total = torch.as_tensor(steps, device=key.device).to(model.dtype)
    z_1 = random.normal(k_z, (n, *model.event_shape), model.dtype)
    limits = None if model.decoder.bounds is None else model.decoder.bounds(z_1[0])

    def gamma(t: Tensor) -> Tensor:
        """gamma of the batch at one time, shaped to broadcast against the latents."""
        if model.schedule.contextual:
            found = schedules.gamma(model.schedule, params["schedule"], t.expand(n), cond)
        else:
            found = schedules.gamma(model.schedule, params["schedule"], t)
            found = found.expand(n, *found.shape)
        return process.align(found, z_1)

    gamma_0, gamma_1 = (gamma(t) for t in torch.tensor([0.0, 1.0], dtype=model.dtype, device=key.device).unbind(0))
    univariate = gamma_1[0].numel() == 1

    def after(i: Tensor) -> Tensor:
        """gamma after i steps."""
        left = (total - i) / total
        return gamma(left) if grid == "time" else gamma_0 + (gamma_1 - gamma_0) * left

    def step(i: Tensor, z: Tensor, *state: Tensor) -> State:
        # A self-conditioned network sees the last step's estimate.
        x_last, carry = (state[0], state[1:]) if model.network.self_condition else (None, state)
        if x_last is not None and limits is not None:
            x_last = x_last.clamp(*limits)

        def denoise(z: Tensor, gamma: Tensor) -> Prediction:
            at = gamma.reshape(n) if univariate else gamma
            options = dict(x_hat=x_last, guidance=weight, bounds=limits if clip else None)
            return denoiser.predict(model.network, params["network"], z, at, cond, **options)  # type: ignore[arg-type]

        done = solver.step(denoise, z, after(i), after(i + 1), random.fold_in(k_steps, i), carry)
        # A copy, as a loop may not hand on one tensor twice, and a solver may carry its estimate, too.
        return (done.z, done.x_hat.clone(), *done.carry) if model.network.self_condition else (done.z, *done.carry)

    start = (z_1, torch.zeros_like(z_1)) if model.network.self_condition else (z_1,)
    latents = loop(step, (*start, *solver.init(z_1, gamma_1)), steps, trajectory=trajectory, callback=callback)[0]
    z_0 = (latents[-1] if trajectory else latents) / process.alpha(gamma_0)
    x = model.decoder.mode(z_0) if decode == "argmax" else model.decoder.sample(k_decode, z_0, gamma_0)
    return Sample(x, latents) if trajectory else x


def _guidance(guidance: float | Tensor, n: int, key: Key) -> float | Tensor | None:
    """The weight of the condition, or None where it is 1 and the condition's own prediction serves."""
    if not isinstance(guidance, Tensor):
        weight = fixed(_checks.real("guidance", guidance))
        return None if weight == 1.0 else weight
    if _checks.floating("guidance", guidance).ndim:
        _checks.shaped("guidance", guidance, (n,))
    return guidance.to(key.device)


def loop(
    step: Callable[..., State],
    state: State,
    steps: int | Tensor,
    *,
    trajectory: bool = False,
    callback: Callable[[int, Tensor], None] | None = None,
) -> State:
    """Applies ``state = step(i, *state)`` for i = 0, ..., steps - 1.

    In eager this is a Python loop. Under ``torch.compile`` it is one ``torch.while_loop``, whose graph does not depend on
    the number of steps where that is a tensor. ``torch.export`` unrolls it, as it loses a ``vmap`` inside a ``while_loop``.

    Args:
        step: ``step(i, *state) -> state``, with i an int32 tensor of shape () on the state's device.
        state: the start: the latents z, and whatever else steps hand on.
        steps: how many, an integer >= 1, or an integer tensor of shape () (on the CPU: a loop's end is tested there).
        trajectory: whether to return, in place of the last z, all of them, from the start on, stacked: (steps + 1,
            *z.shape). Takes an integer.
        callback: in eager, ``callback(i, z)`` after each step, for a progress bar.

    Raises:
        TypeError, ValueError: steps below 1 or of the wrong form; a trajectory or an export of a tensor of steps; a
            callback under compile.
    """
    if isinstance(steps, Tensor):
        _checks.shaped("steps", steps, ())
        if steps.is_floating_point() or steps.dtype == torch.bool:
            raise TypeError(f"steps: expected an integer tensor, got {_checks.describe(steps)}")
        if trajectory:
            raise TypeError("steps: a trajectory has as many latents as steps; give a Python integer, not a tensor")
        _checks.within("steps", steps, 1, 2**31 - 1)
    else:
        steps = _checks.integer("steps", steps, 1)
    if torch.compiler.is_compiling():
        if callback is not None:
            raise ValueError("callback: a compiled loop calls nothing; leave it out, or sample in eager")
        if not torch.compiler.is_exporting():
            return _compiled(step, state, steps, trajectory)
        if isinstance(steps, Tensor):
            raise TypeError("steps: an exported program has its own number of steps; give a Python integer, not a tensor")

    latents = [state[0]]
    for i in range(int(steps)):
        state = step(torch.tensor(i, dtype=torch.int32, device=state[0].device), *state)
        if trajectory:
            latents.append(state[0])
        if callback is not None:
            callback(i, state[0])
    return (torch.stack(latents), *state[1:]) if trajectory else state


def _compiled(step: Callable[..., State], state: State, steps: int | Tensor, trajectory: bool) -> State:
    # Two counters: the loop's end is tested on the CPU without waiting for the device, the step counts on z's device.
    end = torch.as_tensor(steps, dtype=torch.int32)
    host = torch.zeros((), dtype=torch.int32)
    here = torch.zeros((), dtype=torch.int32, device=state[0].device)

    def unfinished(host: Tensor, here: Tensor, *state: Tensor) -> Tensor:
        return host < end

    def body(host: Tensor, here: Tensor, *state: Tensor) -> State:
        return host + 1, here + 1, *step(here, *state)

    def recording(host: Tensor, here: Tensor, latents: Tensor, *state: Tensor) -> State:
        state = step(here, *state)
        latents = latents.index_copy(0, (here + 1).to(torch.int64)[None], state[0][None])
        return host + 1, here + 1, latents, *state

    if not trajectory:
        return torch.while_loop(unfinished, body, (host, here, *state))[2:]
    latents = torch.cat([state[0][None], state[0].new_zeros((steps, *state[0].shape))])  # type: ignore[arg-type]
    _, _, latents, _, *rest = torch.while_loop(unfinished, recording, (host, here, latents, *state))
    return latents, *rest
