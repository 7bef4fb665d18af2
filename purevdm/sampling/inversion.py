"""From data to the noise that they are sampled from, by a deterministic solver run forward; and from one noise to another.

>>> import torch, purevdm
>>> from purevdm import networks, random, sampling, schedules
>>> model = purevdm.vdm(networks.mlp(hidden=8, fourier=()), schedules.learned_linear(), event_shape=(2,))
>>> params, x = model.init(random.key(0)), torch.tensor([[10, 200], [128, 31]])
>>> z_1 = sampling.invert(model, params, x)
>>> model.sample(params, random.key(1), 2, z=z_1)
tensor([[ 10, 200],
        [128,  31]])
>>> between = sampling.interpolate(z_1[0], z_1[1], torch.linspace(0.0, 1.0, 5))
>>> model.sample(params, random.key(1), 5, z=between).shape
torch.Size([5, 2])
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, _facts, _trees, process
from purevdm._door import latents, parse
from purevdm._masks import inside, of_events
from purevdm.denoiser import of_model
from purevdm.model import Model
from purevdm.sampling import trajectory as trajectories
from purevdm.sampling.reverse import Sample
from purevdm.solvers import Solver, dpmpp_2m
from purevdm.types import Params

__all__ = ["interpolate", "invert"]


def invert(
    model: Model,
    params: Params,
    x: Tensor | None = None,
    cond: Any = None,
    *,
    z: Tensor | None = None,
    start: float | Tensor = 0.0,
    until: float | Tensor = 1.0,
    steps: int | Tensor = 250,
    solver: Solver | None = None,
    grid: str = "gamma",
    guidance: float | Tensor = 1.0,
    mask: Tensor | None = None,
    trajectory: bool = False,
    callback: Callable[[int, Tensor], None] | None = None,
    differentiable: bool = False,
) -> Any:
    """Gives the latents at time 1 from which a deterministic solver samples given data, (n, *event_shape): the solver's own
    steps, run from time 0 to time 1 (DDIM inversion, Song, Meng, Ermon 2020, sec. 5.4).

    ``model.sample(z=...)`` with the same solver, grid and steps returns to where this started, up to an error of the
    solver's order in the step.

    Args:
        model, params, cond: a VDM, its parameters, and a condition for each example.
        x: data, (n, *event_shape). Their latents at time 0 are alpha_0 times the encoded data, the mean of q(z_0 given x).
        z: in place of data, latents (n, *event_shape) of the model's dtype. Those of data with their noise
            (:func:`purevdm.process.diffuse`) end like standard normal noise; those of the mean end nearer to zero.
        start, until: the time of z, 0 for data, and the later time to stop at; as :meth:`purevdm.VDM.sample` takes them.
        solver: a deterministic one; ``purevdm.solvers.dpmpp_2m()`` where left out.
        steps, grid, guidance, callback, differentiable: as in :meth:`purevdm.VDM.sample`.
        mask: what exists of the data or of z, as in :meth:`purevdm.VDM.sample`; latents are 0 elsewhere.
        trajectory: whether to return a :class:`~purevdm.Sample` with all latents, and no data.

    Raises:
        TypeError, ValueError: bad arguments; a model with an encoder; both or neither of x and z; data at another start
            than 0; a solver that draws noise.
    """
    if not hasattr(model, "schedule"):
        raise TypeError(f"model: expected a model of purevdm.vdm, got {_checks.describe(model)}")
    if model.encoder is not None:
        raise ValueError(f"model: expected one without an encoder, got {model.encoder!r}")
    if (x is None) == (z is None):
        raise ValueError(f"x, z: expected either data or latents, got {'neither' if x is None else 'both'}")
    if x is not None:
        if not isinstance(start, (int, float)) or start != 0.0:
            raise ValueError(f"start: expected 0, the time of data, got {_checks.describe(start)}; or give latents, as z")
        batch = parse(model, params, x, cond=cond, mask=mask)
        params = batch.params
        f = model.decoder.encode(params.get("decoder", {}), batch.x, cond, model.dtype)
        at = of_model(model, params, mask=batch.there).within(f)
    else:
        at = latents("z", z, model)
        params = parse(model, params, cond=cond, n=len(at), z=at).params
        there = of_events(model, mask, len(at), at.device)
        at = inside("z", at, of_model(model, params, mask=there).within(at))
    begin, end = trajectories.times("start", start, "until", until, at)
    solver = dpmpp_2m() if solver is None else solver
    given = trajectories.Options(
        steps, solver, grid, cond, guidance, False, None, trajectory, callback, differentiable, mask
    )
    options = trajectories.checked(given, Solver, "purevdm.solvers.ddim()", ("time", "gamma"))
    if x is not None:
        at = process.alpha(trajectories.level(model, params, begin, len(at), cond)) * at
    z_1, _ = trajectories.solve(model, params, at, begin, end, options)
    _facts.verify(_trees.finite("latents", {(): z_1}))
    return Sample(None, z_1) if trajectory else z_1


def interpolate(z_a: Tensor, z_b: Tensor, weights: Tensor) -> Tensor:
    """Gives latents on the great circle from z_a to z_b, sin((1 - w) a) / sin(a) z_a + sin(w a) / sin(a) z_b, with a the
    angle between the two (Shoemake 1985; Song, Meng, Ermon 2020, sec. 5.3). Straight lines would leave the sphere that
    standard normal latents lie near.

    Args:
        z_a, z_b: latents at time 1 of one example, of the same shape and floating-point dtype.
        weights: w, (k,), of the same dtype: 0 gives z_a exactly, 1 gives z_b; any finite number goes on along the circle.

    Returns:
        Shape (k, *z_a.shape). Latents of the same direction are interpolated in length only.

    Raises:
        TypeError, ValueError: tensors of another form; in eager mode, values that are not finite, and latents of opposite
            directions or zeros, between which the circle is not defined.
    """
    _checks.alike("z_b", z_b, _checks.floating("z_a", z_a).shape, z_a.dtype)
    _checks.alike("weights", weights, (_checks.tensor("weights", weights).numel(),), z_a.dtype)
    a, b = (z / torch.linalg.vector_norm(z) for z in (z_a, z_b))
    # Of the half angle the sine and the cosine, twice: exact where the latents are close, too.
    sine, cosine = torch.linalg.vector_norm(a - b), torch.linalg.vector_norm(a + b)
    if _facts.readable(z_a, z_b, weights):
        given = (("z_a", z_a), ("z_b", z_b), ("weights", weights))
        facts = [fact for name, value in given for fact in _trees.finite(name, {(): value})]
        apart = ValueError("z_a, z_b: expected directions, neither zero nor opposite, which no one circle joins")
        _facts.verify([*facts, _facts.Fact(cosine > math.sqrt(torch.finfo(z_a.dtype).eps), lambda: apart)])
    parallel, w = sine == 0.0, weights.reshape(-1, *(1,) * z_a.ndim)
    angle = torch.where(parallel, 1.0, 2.0 * torch.atan2(sine, cosine))
    of_a, of_b = (torch.where(parallel, v, torch.sin(v * angle) / torch.sin(angle)) for v in (1.0 - w, w))
    return of_a * z_a + of_b * z_b
