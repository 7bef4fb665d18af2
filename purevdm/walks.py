"""Latents from one time to another, earlier or later, by the steps of any of :mod:`purevdm.solvers`; and the loop that
takes them, in eager and compiled.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from purevdm import _checks, denoiser, random, schedules
from purevdm._compile import fixed, transformed
from purevdm.denoiser import Prediction
from purevdm.model import Model, batch_axes
from purevdm.solvers import Solver
from purevdm.types import Key, Params

__all__ = ["Walk", "guidance_weight", "level", "loop", "refuse_lost_gradients", "step_count", "stepped", "times", "walk"]

State: TypeAlias = tuple[Tensor, ...]


class Walk(NamedTuple):
    """How latents go from one time to another. The fields are arguments of :meth:`purevdm.VDM.sample`."""

    steps: int | Tensor
    solver: Solver
    grid: str
    cond: Any = None
    guidance: float | Tensor = 1.0
    clip: bool = False
    project: Callable[..., Tensor] | None = None
    trajectory: bool = False
    callback: Callable[[int, Tensor], None] | None = None
    differentiable: bool = False


def checked(how: Walk) -> Walk:
    """A walk whose switches are True or False, and whose hooks can be called.

    Raises:
        TypeError: they are not.
    """
    for name in ("clip", "trajectory", "differentiable"):
        _checks.boolean(name, getattr(how, name))
    for name in ("project", "callback"):
        if getattr(how, name) is not None:
            _checks.function(name, getattr(how, name))
    return how


def times(low_name: str, low: float | Tensor, high_name: str, high: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Two times, 0 <= low < high <= 1, numbers or floating-point tensors of shape (), as tensors like ``like``.

    Raises:
        TypeError, ValueError: times of another form, range or order; those in tensors are read in eager alone.
    """

    def time(name: str, t: float | Tensor) -> Tensor:
        if isinstance(t, Tensor):
            return _checks.shaped(name, _checks.floating(name, t), ()).to(like)
        return torch.tensor(fixed(_checks.real(name, t)), dtype=like.dtype, device=like.device)

    def error() -> ValueError:
        found = [_checks.plain(t).item() if isinstance(t, Tensor) else t for t in (low, high)]
        wanted = f"{low_name}, {high_name}: expected 0 <= {low_name} < {high_name} <= 1"
        return ValueError(f"{wanted}, got {found[0]} and {found[1]}")

    a, b = time(low_name, low), time(high_name, high)
    if not isinstance(low, Tensor) and not isinstance(high, Tensor) and not 0.0 <= low < high <= 1.0:
        raise error()
    if _checks.readable(a, b):  # rounded to the dtype, too
        _checks.verify([_checks.Fact((a >= 0.0) & (a < b) & (b <= 1.0), error)])
    return a, b


def level(model: Model, params: Params, t: Tensor, n: int, cond: Any = None) -> Tensor:
    """gamma of n latents at one time t, (), as it broadcasts against them: (n, 1, ..., 1) or (n, *event_shape)."""
    if model.schedule.contextual:
        batch_axes(cond, n)
        found = schedules.gamma(model.schedule, params["schedule"], t.expand(n), cond)
    else:
        found = schedules.gamma(model.schedule, params["schedule"], t)
        found = found.expand(n, *found.shape)
    return found.reshape(found.shape + (1,) * (1 + len(model.event_shape) - found.ndim))


def walk(
    model: Model,
    params: Params,
    z: Tensor,
    start: Tensor,
    until: Tensor,
    how: Walk,
    k_steps: Key | None = None,
    k_project: Key | None = None,
) -> tuple[Tensor, Tensor]:
    """Takes latents z, (n, *event_shape), from the time start to the time until, earlier or later.

    Args:
        model, params: the model.
        z: the latents at start.
        start, until: times, shape ().
        how: the rest.
        k_steps, k_project: the keys that steps and hook draw from; without the first, the solver must be deterministic.

    Returns:
        The latents at until, or all of them for ``how.trajectory``, and gamma at until, which broadcasts against them.

    Raises:
        TypeError, ValueError: bad arguments, named; an input that a ``torch.func`` transform differentiates with respect to,
            where ``how.differentiable`` is False.
    """
    refuse_lost_gradients(how, (params, z, start, until, how.cond, how.guidance))
    recording = how.differentiable and torch.is_grad_enabled()
    # An exported program unrolls the loop, and so can be differentiated whole; torch.export (2.13) fails on the block.
    with nullcontext() if torch.compiler.is_exporting() else torch.set_grad_enabled(recording):
        return _walk(model, params, z, start, until, how, k_steps, k_project)


def refuse_lost_gradients(how: Walk, inputs: Any) -> None:
    """Refuses ``torch.func`` transforms that differentiate with respect to inputs of a walk that lets no derivative pass."""
    if how.differentiable:
        return
    wanted = "expected True under torch.func.grad, vjp and jvp, which would find zero derivatives, got False"
    if torch.compiler.is_compiling():
        if transformed():
            raise ValueError(f"differentiable: {wanted}; a compiled loop passes no transform, and True unrolls it")
    elif any(_checks.differentiated(t) for t in _checks.leaves(inputs, "guidance").values()):
        raise ValueError(f"differentiable: {wanted}; or detach the inputs")


def _moved(how: Walk, i: Tensor, z: Tensor, gamma: Tensor, key: Key | None) -> Tensor:
    """The latents as the hook leaves them. What it holds may be differentiated with respect to, too."""
    if how.project is None:
        return z
    watched = not how.differentiable and not torch.compiler.is_compiling() and transformed()
    with torch.set_grad_enabled(watched or torch.is_grad_enabled()):
        moved = _checks.alike("project", how.project(i, z, gamma, key), z.shape, z.dtype)
    if watched:
        refuse_lost_gradients(how, moved)
    return moved


def _walk(
    model: Model,
    params: Params,
    z: Tensor,
    start: Tensor,
    until: Tensor,
    how: Walk,
    k_steps: Key | None,
    k_project: Key | None,
) -> tuple[Tensor, Tensor]:
    n, network, solver, steps = len(z), model.network, how.solver, step_count(how.steps, how.trajectory)
    _checks.choice("grid", how.grid, ("time", "gamma"))
    if not isinstance(solver, Solver):
        raise TypeError(f"solver: expected a Solver such as purevdm.solvers.ddim(), got {_checks.describe(solver)}")
    weight = guidance_weight(how, z)
    limits = model.decoder.bounds(z[0])
    if how.clip and limits is None:
        raise ValueError("clip: expected False, as these data have no bounds")
    total = torch.as_tensor(steps, device=z.device).to(z.dtype)

    def gamma(t: Tensor) -> Tensor:
        return level(model, params, t, n, how.cond)

    first, last = gamma(start), gamma(until)
    univariate = first[0].numel() == 1
    watched, sense, falls = _checks.readable(z), torch.sign(start - until), [until.new_zeros(())]

    def after(i: Tensor) -> Tensor:
        """gamma after i steps."""
        left = (total - i) / total
        return gamma(torch.lerp(until, start, left)) if how.grid == "time" else last + (first - last) * left

    def step(i: Tensor, z: Tensor, *state: Tensor) -> State:
        # A self-conditioned network sees the last step's estimate.
        x_last, carry = (state[0], state[1:]) if network.self_condition else (None, state)
        if x_last is not None and limits is not None:
            x_last = x_last.clamp(*limits)

        def denoise(z: Tensor, gamma: Tensor) -> Prediction:
            at = gamma.reshape(n) if univariate else gamma
            options = dict(x_hat=x_last, guidance=weight, bounds=limits if how.clip else None)
            return denoiser.predict(network, params["network"], z, at, how.cond, **options)  # type: ignore[arg-type]

        gamma_t, gamma_s = after(i), after(i + 1)
        if watched:
            falls[0] = torch.maximum(falls[0], (sense * (gamma_s - gamma_t)).detach().amax())
        key = None if k_steps is None else random.fold_in(k_steps, i)
        z, x_hat, carry = stepped(solver.step(denoise, z, gamma_t, gamma_s, key, carry), z)
        z = _moved(how, i, z, gamma_s, None if k_project is None else random.fold_in(k_project, i))
        # A copy, as a loop may not hand on one tensor twice, and a solver may carry its estimate, too.
        return (z, x_hat.clone(), *carry) if network.self_condition else (z, *carry)

    estimate = (torch.zeros_like(z),) if network.self_condition else ()
    state = (z, *estimate, *solver.init(z, first))
    found = loop(step, state, steps, trajectory=how.trajectory, callback=how.callback, unroll=how.differentiable)
    if watched:
        _checks.verify([_checks.Fact(falls[0] <= schedules.slack(z.dtype), lambda: _falling(falls[0]))])
    return found[0], last


def _falling(fall: Tensor) -> ValueError:
    by = _checks.plain(fall).max().item()
    wanted = "schedule: expected gamma(t) to be finite and to increase from each step's time to the next"
    return ValueError(f"{wanted}, got one that falls by {by:.4g}")


def stepped(done: Any, like: Tensor) -> tuple[Tensor, Tensor, State]:
    """What a solver's step returned: latents and an estimate, both like the latents before, and what it carries.

    Raises:
        TypeError, ValueError: something else; a tensor of another shape would be broadcast.
    """
    if not isinstance(done, tuple) or len(done) != 3:
        raise TypeError(f"solver: expected a Step from its step, got {_checks.describe(done)}")
    for name, x in zip(("latents", "estimate"), done[:2], strict=True):
        _checks.alike(f"solver: the {name} of its step", x, like.shape, like.dtype)
    return done


def guidance_weight(how: Walk, z: Tensor) -> float | Tensor | None:
    """The weight of the condition, or None where it is 1 and the condition's own prediction serves."""
    weight = how.guidance
    if isinstance(weight, Tensor):
        if _checks.floating("guidance", weight).ndim:
            _checks.shaped("guidance", weight, z.shape[:1])
        _checks.verify(_checks.finite("guidance", {(): weight}, z.dtype))
        weight = weight.to(z)
    elif (weight := fixed(_checks.real("guidance", weight))) == 1.0:
        return None
    if how.cond is None:
        raise ValueError("cond: expected the condition that guidance strengthens, got None")
    return weight


def step_count(steps: int | Tensor, trajectory: bool) -> int | Tensor:
    """A number of steps, checked: an integer of at least 1, or an integer tensor of shape (), not for a trajectory."""
    steps = _checks.count("steps", steps)
    if trajectory and isinstance(steps, Tensor):
        raise TypeError("steps: a trajectory has as many latents as steps; give a Python integer, not a tensor")
    return steps


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

    In eager this is a Python loop. Under ``torch.compile`` it is one ``torch.while_loop``, whose graph does not depend on
    the number of steps where that is a tensor. ``torch.export`` unrolls it, as it loses a ``vmap`` inside a ``while_loop``.

    Args:
        step: ``step(i, *state) -> state``, with i an int32 tensor of shape () on the state's device.
        state: the start: the latents z, and whatever else steps hand on.
        steps: how many, an integer >= 1, or an integer tensor of shape () (on the CPU: a loop's end is tested there).
        trajectory: whether to return, in place of the last z, all of them, from the start on, stacked: (steps + 1,
            *z.shape). Takes an integer.
        callback: in eager, ``callback(i, z)`` after each step, for a progress bar.
        unroll: whether a compiled graph holds every step, so that derivatives and transforms pass. Takes an integer.

    Raises:
        TypeError, ValueError: steps below 1 or of the wrong form; a trajectory of a tensor of steps; such steps unrolled, or
            exported; a callback under compile.
    """
    steps = step_count(steps, trajectory)
    if torch.compiler.is_compiling():
        if callback is not None:
            raise ValueError("callback: a compiled loop calls nothing; leave it out, or sample in eager")
        exporting = torch.compiler.is_exporting()
        if not unroll and not exporting:
            return _compiled(step, state, steps, trajectory)
        if isinstance(steps, Tensor):
            wanted = "an exported program has its own number of steps" if exporting else "compiled derivatives unroll them"
            raise TypeError(f"steps: {wanted}; give a Python integer, not a tensor")

    latents = [state[0]]
    for i in range(int(steps)):
        state = step(torch.tensor(i, dtype=torch.int32, device=state[0].device), *state)
        if trajectory:
            latents.append(state[0])
        if callback is not None:
            callback(i, state[0])
    return (torch.stack(latents), *state[1:]) if trajectory else state


def _compiled(step: Callable[..., State], state: State, steps: int | Tensor, trajectory: bool) -> State:
    # The derivative of torch.while_loop (2.13) lacks what comes by a state that starts without one: hence ``unroll``.
    # Two counters: the loop's end is tested on the CPU without waiting for the device, the step counts on z's device.
    end = torch.as_tensor(steps, dtype=torch.int32, device=None if isinstance(steps, Tensor) else "cpu")
    host = torch.zeros((), dtype=torch.int32, device="cpu")
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
