"""Latents from one time to another, by the steps of any of :mod:`purevdm.solvers`; and the way back, from a key to data.

A hook between the steps may change the latents: :func:`inpaint` makes one that fills in what is not known of data.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import optree
import torch
from torch import Tensor

from purevdm import _checks, denoiser, process, random, schedules
from purevdm._compile import fixed, transformed
from purevdm.denoiser import Prediction
from purevdm.elbo import Model
from purevdm.solvers import Solver
from purevdm.types import Key, Params

__all__ = ["Sample", "Walk", "inpaint", "level", "loop", "sample", "times", "walk"]

State: TypeAlias = tuple[Tensor, ...]


class Sample(NamedTuple):
    """What sampling gives when the trajectory is asked for.

    Attributes:
        x: data, (n, *event_shape); None where sampling stops at latents.
        z: the latents from the first to the last, (steps + 1, n, *event_shape).
    """

    x: Tensor | None
    z: Tensor


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


def sample(
    model: Model,
    params: Params,
    key: Key,
    n: int,
    how: Walk,
    *,
    z: Tensor | None = None,
    start: float | Tensor = 1.0,
    until: float | Tensor | None = None,
    decode: str = "argmax",
) -> Any:
    """See :meth:`purevdm.VDM.sample`, which checks the parameters first.

    The sampling key is split in four: the first draws z_1, step i draws from ``fold_in`` of the second and i, the third
    decodes, and the hook after step i gets ``fold_in`` of the fourth and i.
    """
    k_z, k_steps, k_decode, k_project = random.split(_checks.key("key", key), 4).unbind(0)
    shape = (_checks.integer("n", n, 1), *model.event_shape)
    _checks.choice("decode", decode, ("argmax", "sample"))
    if how.differentiable and until is None and not how.trajectory and model.decoder.vocab_size is not None:
        raise ValueError("differentiable: data that are integers have no gradient; ask for latents, by until or trajectory")
    if z is not None:
        _checks.verify(_checks.finite("z", {(): _checks.alike("z", z, shape, model.dtype)}))
    elif isinstance(start, Tensor) or start != 1.0:
        raise ValueError("z: expected the latents at the time start, as it is given, got None")
    else:
        z = random.normal(k_z, shape, model.dtype)
    end, begin = times("until", 0.0 if until is None else until, "start", start, z)
    # A copy, as a compiled loop may not take two views of one tensor.
    latents, gamma = walk(model, params, z, begin, end, how, k_steps, k_project.clone())
    if until is not None:
        return Sample(None, latents) if how.trajectory else latents
    z_0 = (latents[-1] if how.trajectory else latents) / process.alpha(gamma)
    x = model.decoder.mode(z_0) if decode == "argmax" else model.decoder.sample(k_decode, z_0, gamma)
    return Sample(x, latents) if how.trajectory else x


def inpaint(x: Tensor, known: Tensor) -> Callable[[Tensor, Tensor, Tensor, Key], Tensor]:
    """A hook for ``sample(project=...)`` that draws what is not known of data given the rest, by replacement (Song et al.
    2021, arXiv 2011.13456, app. I.2): after each step the known dimensions become a draw of q(z_s given x).

    The last latents are still those of noisy data: take the known part of the result from x.

    Args:
        x: the encoded data, (n, *event_shape), of the latents' dtype; what is not known may hold any finite number.
        known: which are known, bool, of x's shape.

    Raises:
        TypeError, ValueError: tensors of another form.

    >>> import torch, purevdm
    >>> from purevdm import networks, random, sampling, schedules
    >>> model = purevdm.vdm(networks.mlp(hidden=8), schedules.learned_linear(), event_shape=(4,))
    >>> params = model.init(random.key(0))
    >>> x, known = torch.tensor([[10, 200, 0, 0]] * 3), torch.tensor([[True, True, False, False]] * 3)
    >>> hook = sampling.inpaint(model.decoder.encode(x), known)
    >>> drawn = model.sample(params, random.key(1), 3, steps=20, project=hook)
    >>> (drawn - x)[:, :2].abs().max() <= 1
    tensor(True)
    """
    shape = _checks.floating("x", x).shape
    return partial(_replace, x, _checks.alike("known", known, shape, torch.bool))


def _replace(x: Tensor, known: Tensor, i: Tensor, z: Tensor, gamma: Tensor, key: Key) -> Tensor:
    _checks.alike("x", x, z.shape, z.dtype)
    return torch.where(known, process.diffuse(x, gamma, random.normal(key, z.shape, z.dtype)), z)


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
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        if _checks.readable(a, b):
            _checks.verify([_checks.Fact((a >= 0.0) & (a < b) & (b <= 1.0), error)])
    elif not 0.0 <= low < high <= 1.0:
        raise error()
    return a, b


def level(model: Model, params: Params, t: Tensor, z: Tensor, cond: Any = None) -> Tensor:
    """gamma of latents z, (n, *event_shape), at one time t, (): of shape (n, 1, ..., 1) or (n, *event_shape)."""
    n = len(z)
    if model.schedule.contextual:
        denoiser.batch_axes(cond, n)
        found = schedules.gamma(model.schedule, params["schedule"], t.expand(n), cond)
    else:
        found = schedules.gamma(model.schedule, params["schedule"], t)
        found = found.expand(n, *found.shape)
    return process.align(found, z)


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
    _refuse_lost_gradients(how, (params, z, start, until, how.cond, how.guidance))
    with torch.set_grad_enabled(how.differentiable and torch.is_grad_enabled()):
        return _walk(model, params, z, start, until, how, k_steps, k_project)


def _refuse_lost_gradients(how: Walk, inputs: Any) -> None:
    if how.differentiable:
        return
    wanted = "expected True under torch.func.grad, vjp and jvp, which would find zero derivatives, got False"
    if torch.compiler.is_compiling():
        if transformed():
            raise ValueError(f"differentiable: {wanted}; a compiled loop passes no transform, and True unrolls it")
    elif any(_checks.differentiated(t) for t in optree.tree_leaves(inputs) if isinstance(t, Tensor)):
        raise ValueError(f"differentiable: {wanted}; or detach the inputs")


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
    n, network, solver, steps = len(z), model.network, how.solver, _count(how.steps, how.trajectory)
    _checks.choice("grid", how.grid, ("time", "gamma"))
    if not isinstance(solver, Solver):
        raise TypeError(f"solver: expected a Solver such as purevdm.solvers.ddim(), got {_checks.describe(solver)}")
    weight = _weight(how, z)
    if how.clip and model.decoder.bounds is None:
        raise ValueError("clip: expected False, as these data have no bounds")
    limits = None if model.decoder.bounds is None else model.decoder.bounds(z[0])
    total = torch.as_tensor(steps, device=z.device).to(z.dtype)

    def gamma(t: Tensor) -> Tensor:
        return level(model, params, t, z, how.cond)

    first, last = gamma(start), gamma(until)
    univariate = first[0].numel() == 1

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

        gamma_s = after(i + 1)
        key = None if k_steps is None else random.fold_in(k_steps, i)
        z, x_hat, carry = solver.step(denoise, z, after(i), gamma_s, key, carry)
        if how.project is not None:
            moved = how.project(i, z, gamma_s, None if k_project is None else random.fold_in(k_project, i))
            z = _checks.alike("project", moved, z.shape, z.dtype)
        # A copy, as a loop may not hand on one tensor twice, and a solver may carry its estimate, too.
        return (z, x_hat.clone(), *carry) if network.self_condition else (z, *carry)

    estimate = (torch.zeros_like(z),) if network.self_condition else ()
    state = (z, *estimate, *solver.init(z, first))
    found = loop(step, state, steps, trajectory=how.trajectory, callback=how.callback, unroll=how.differentiable)
    return found[0], last


def _weight(how: Walk, z: Tensor) -> float | Tensor | None:
    """The weight of the condition, or None where it is 1 and the condition's own prediction serves."""
    weight = how.guidance
    if isinstance(weight, Tensor):
        if _checks.floating("guidance", weight).ndim:
            _checks.shaped("guidance", weight, z.shape[:1])
        _checks.verify(_checks.finite("guidance", {(): weight}))
        weight = weight.to(z)
    elif (weight := fixed(_checks.real("guidance", weight))) == 1.0:
        return None
    if how.cond is None:
        raise ValueError("cond: expected the condition that guidance strengthens, got None")
    return weight


def _count(steps: int | Tensor, trajectory: bool) -> int | Tensor:
    if not isinstance(steps, Tensor):
        return _checks.integer("steps", steps, 1)
    _checks.shaped("steps", steps, ())
    if steps.is_floating_point() or steps.dtype == torch.bool:
        raise TypeError(f"steps: expected an integer tensor, got {_checks.describe(steps)}")
    if trajectory:
        raise TypeError("steps: a trajectory has as many latents as steps; give a Python integer, not a tensor")
    _checks.within("steps", steps, 1, 2**31 - 1)
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
    the number of steps where that is a tensor.

    Args:
        step: ``step(i, *state) -> state``, with i an int32 tensor of shape () on the state's device.
        state: the start: the latents z, and whatever else steps hand on.
        steps: how many, an integer >= 1, or an integer tensor of shape () (on the CPU: a loop's end is tested there).
        trajectory: whether to return, in place of the last z, all of them, from the start on, stacked: (steps + 1,
            *z.shape). Takes an integer.
        callback: in eager, ``callback(i, z)`` after each step, for a progress bar.
        unroll: whether a compiled graph holds every step, so that derivatives and transforms pass. Takes an integer.

    Raises:
        TypeError, ValueError: steps below 1 or of the wrong form; a trajectory of a tensor of steps, or, under compile,
            such steps unrolled; a callback under compile.
    """
    steps = _count(steps, trajectory)
    if torch.compiler.is_compiling():
        if callback is not None:
            raise ValueError("callback: a compiled loop calls nothing; leave it out, or sample in eager")
        if not unroll:
            return _compiled(step, state, steps, trajectory)
        if isinstance(steps, Tensor):
            raise TypeError("steps: compiled derivatives want the steps unrolled; give a Python integer, not a tensor")

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
