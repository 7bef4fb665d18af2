"""Latents from one time to another, earlier or later, by the steps of any of :mod:`purevdm.solvers`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, _facts, _trees, process, random, schedules
from purevdm._compile import exporting, fixed, transformed
from purevdm._door import batch_axes
from purevdm.denoiser import Prediction, of_model
from purevdm.model import Model, latent_shape
from purevdm.sampling.loops import State, loop, step_count
from purevdm.types import Key, Params

__all__: list[str] = []


class Options(NamedTuple):
    """How latents go from one time to another. The fields are arguments of :meth:`purevdm.VDM.sample`."""

    steps: int | Tensor
    solver: Any
    grid: str
    cond: Any = None
    guidance: float | Tensor = 1.0
    clip: bool = False
    project: Callable[..., Tensor] | None = None
    trajectory: bool = False
    callback: Callable[[int, Tensor], None] | None = None
    differentiable: bool = False
    mask: Tensor | None = None


def checked(options: Options, solver: type, example: str, grids: tuple[str, ...]) -> Options:
    """Refuses options of another type, a solver of another class, and a grid that there is not; tensors are read later."""
    for name in ("clip", "trajectory", "differentiable"):
        _checks.boolean(name, getattr(options, name))
    for name in ("project", "callback"):
        if getattr(options, name) is not None:
            _checks.function(name, getattr(options, name))
    _checks.choice("grid", options.grid, grids)
    _checks.instance("solver", options.solver, solver, f"a Solver such as {example}")
    return options._replace(steps=step_count(options.steps, options.trajectory))


def times(low_name: str, low: float | Tensor, high_name: str, high: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gives two times, numbers or floating-point tensors of shape (), as tensors like ``like``, and refuses them unless
    0 <= low < high <= 1; those in tensors are read in eager mode only."""

    def time(name: str, t: float | Tensor) -> Tensor:
        if isinstance(t, Tensor):
            return _checks.shaped(name, _checks.floating(name, t), ()).to(like)
        return torch.tensor(fixed(_checks.real(name, t)), dtype=like.dtype, device=like.device)

    def error() -> ValueError:
        given = " and ".join(str(_facts.plain(t).item() if isinstance(t, Tensor) else t) for t in (low, high))
        return ValueError(f"{low_name}, {high_name}: expected 0 <= {low_name} < {high_name} <= 1, got {given}")

    a, b = time(low_name, low), time(high_name, high)
    if not isinstance(low, Tensor) and not isinstance(high, Tensor) and not 0.0 <= low < high <= 1.0:
        raise error()
    if _facts.readable(a, b):  # rounded to the dtype, too
        _facts.verify([_facts.Fact((a >= 0.0) & (a < b) & (b <= 1.0), error)])
    return a, b


def started(
    z: Tensor | None, start: float | Tensor, first: float, shape: tuple[int, ...], dtype: torch.dtype, key: Key
) -> Tensor:
    """Gives the latents to start from: z, checked, or standard normal noise where the start is the first time of all."""
    if z is not None:
        _facts.verify(_trees.finite("z", {(): _checks.alike("z", z, shape, dtype)}))
        return _checks.together("z", z, key.device)
    if isinstance(start, Tensor) or start != first:
        raise ValueError("z: expected the latents at the time `start`, because start was given, got None")
    return random.normal(key, shape, dtype)


def level(model: Model, params: Params, t: Tensor, n: int, cond: Any = None) -> Tensor:
    """Gives gamma of n latents at one time t, (), as it broadcasts against them: (n, 1, ..., 1) or (n, *latent_shape)."""
    if model.schedule.contextual:
        batch_axes(cond, n)
        gamma = schedules.gamma(model.schedule, params["schedule"], t.expand(n), cond)
    else:
        gamma = schedules.gamma(model.schedule, params["schedule"], t)
        gamma = gamma.expand(n, *gamma.shape)
    return gamma.reshape(gamma.shape + (1,) * (1 + len(latent_shape(model)) - gamma.ndim))


def recording(options: Options, inputs: Any) -> AbstractContextManager[Any]:
    """Gives the mode of autograd that steps run in. Inputs that a ``torch.func`` transform differentiates with respect to
    are refused where no derivative passes."""
    _refuse_lost_gradients(options, inputs)
    # An exported program unrolls the loop, and so can be differentiated whole; torch.export (2.13) fails on the block.
    if exporting():
        return nullcontext()
    return torch.set_grad_enabled(options.differentiable and torch.is_grad_enabled())


def _refuse_lost_gradients(options: Options, inputs: Any) -> None:
    if options.differentiable:
        return
    wanted = "expected True under torch.func.grad, vjp and jvp, which would find zero derivatives, got False"
    if torch.compiler.is_compiling():
        if transformed():
            raise ValueError(f"differentiable: {wanted}; a compiled loop passes no transform, and True unrolls it")
    elif any(_facts.differentiated(t) for t in _checks.leaves(inputs).values() if isinstance(t, Tensor)):
        raise ValueError(f"differentiable: {wanted}; or detach the inputs")


def _projected(options: Options, i: Tensor, z: Tensor, gamma: Tensor, key: Key | None) -> Tensor:
    """Gives the latents that the hook returns."""
    if options.project is None:
        return z
    # Tensors that the hook closes over may be differentiated with respect to, too.
    watched = not options.differentiable and not torch.compiler.is_compiling() and transformed()
    with torch.set_grad_enabled(watched or torch.is_grad_enabled()):
        moved = _checks.alike("project", options.project(i, z, gamma, key), z.shape, z.dtype)
    if watched:
        _refuse_lost_gradients(options, moved)
    return moved


def solve(
    model: Model,
    params: Params,
    z: Tensor,
    start: Tensor,
    until: Tensor,
    options: Options,
    k_steps: Key | None = None,
    k_project: Key | None = None,
) -> tuple[Tensor, Tensor]:
    """Takes latents z, (n, *latent_shape), from the time start to the time until, earlier or later.

    Args:
        z: the latents at start, within the model's subspace and the mask.
        start, until: times, shape ().
        options: the rest, :func:`checked`.
        k_steps, k_project: the keys that steps and hook draw from; without the first, the solver must be deterministic.

    Returns:
        The latents at until, or all of them for ``options.trajectory``, and gamma at until, which broadcasts against them.
    """
    n, network, steps, cond = len(z), model.network, options.steps, options.cond
    there = None if options.mask is None else model.decoder.latent_mask(options.mask)
    limits = model.decoder.bounds(z[0])
    if options.clip and limits is None:
        raise ValueError("clip: expected False, as these data have no bounds")

    def gamma(t: Tensor) -> Tensor:
        return level(model, params, t, n, cond)

    with recording(options, (params, z, start, until, cond, options.guidance)):
        weight, total = guidance_weight(options, z), torch.as_tensor(steps, device=z.device).to(z.dtype)
        denoiser = of_model(model, params, cond, mask=there)._replace(guidance=weight, clip=options.clip)
        first, last = gamma(start), gamma(until)
        univariate = first[0].numel() == 1
        watched, sense, falls = _facts.readable(z), torch.sign(start - until), [until.new_zeros(())]

        def after(i: Tensor) -> Tensor:
            """Gives gamma after i steps."""
            left = (total - i) / total
            return gamma(torch.lerp(until, start, left)) if options.grid == "time" else last + (first - last) * left

        def step(i: Tensor, z: Tensor, *state: Tensor) -> State:
            # A self-conditioned network takes the last step's estimate.
            x_last, carry = (state[0], state[1:]) if network.self_condition else (None, state)
            if x_last is not None and limits is not None:
                x_last = x_last.clamp(*limits)

            def denoise(z: Tensor, gamma: Tensor) -> Prediction:
                return denoiser(z, gamma.reshape(n) if univariate else gamma, x_last)

            gamma_t, gamma_s = after(i), after(i + 1)
            if watched:
                falls[0] = torch.maximum(falls[0], (sense * (gamma_s - gamma_t)).detach().amax())
            key = None if k_steps is None else random.fold_in(k_steps, i)
            z, x_hat, carry = stepped(options.solver.step(denoise, z, gamma_t, gamma_s, key, carry), z)
            if model.encoder is not None:  # the mean moves as guessed
                z = z + process.alpha(gamma_s) * (gamma_s - gamma_t) * model.encoder.guess(x_hat, gamma_t)
            z = denoiser.within(z)
            z = _projected(options, i, z, gamma_s, None if k_project is None else random.fold_in(k_project, i))
            # A copy, as a loop may not hand on one tensor twice, and a solver may carry its estimate, too.
            return (z, x_hat.clone(), *carry) if network.self_condition else (z, *carry)

        estimate = (torch.zeros_like(z),) if network.self_condition else ()
        state = (z, *estimate, *options.solver.init(z, first))
        how = dict(trajectory=options.trajectory, callback=options.callback, unroll=options.differentiable)
        latents = loop(step, state, steps, **how)[0]  # type: ignore[arg-type]

    def falling() -> ValueError:
        wanted = "schedule: expected gamma(t) to be finite and to increase from each step's time to the next"
        return ValueError(f"{wanted}, got one that falls by {_facts.plain(falls[0]).max().item():.4g}")

    if watched:
        _facts.verify([_facts.Fact(falls[0] <= schedules.slack(z.dtype), falling)])
    return latents, last


def stepped(done: Any, like: Tensor) -> tuple[Tensor, Tensor, State]:
    """Gives what a solver's step returned, and refuses all but latents and an estimate, both like the latents before, and
    what it carries: a tensor of another shape would be broadcast."""
    if not isinstance(done, tuple) or len(done) != 3:
        raise TypeError(f"solver: expected a Step from its step, got {_checks.describe(done)}")
    for name, x in zip(("latents", "estimate"), done[:2], strict=True):
        _checks.alike(f"solver: the {name} of its step", x, like.shape, like.dtype)
    return done


def guidance_weight(options: Options, z: Tensor) -> float | Tensor | None:
    """Gives the weight of the condition, or None where it is 1 and the condition's own prediction serves."""
    weight = options.guidance
    if isinstance(weight, Tensor):
        if _checks.floating("guidance", weight).ndim:
            _checks.shaped("guidance", weight, z.shape[:1])
        _facts.verify(_trees.finite("guidance", {(): weight}, z.dtype))
        weight = weight.to(z)
    elif (weight := fixed(_checks.real("guidance", weight))) == 1.0:
        return None
    if options.cond is None:
        raise ValueError("cond: expected the condition that guidance strengthens, got None")
    return weight
