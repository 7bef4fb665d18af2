"""Rate and distortion as latents arrive, from z_T to z_0, and then the data."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, process, random, schedules
from purevdm._batches import pairs
from purevdm._compile import exact
from purevdm._door import parse
from purevdm._vdm import VDM
from purevdm.bound import latent_loss, prior_loss
from purevdm.codec._model import STEPS
from purevdm.denoiser import last_step, of_model
from purevdm.model import direct
from purevdm.types import Key, Params


class Curve(NamedTuple):
    """Rate and distortion after each step: means over examples with their standard errors. Tensors are float64, (T + 2,),
    on the CPU: after z_T, after z_{T-1}, ..., after z_0, and after the data.

    Attributes:
        rate: what has been spent, in ``unit``. First the prior loss; each step adds its term of the diffusion loss, and the
            data add the reconstruction loss, so that the last rate is the bound in T steps.
        rate_error: its standard error over examples; NaN with a single one.
        mse: the squared error of the network's estimate of the data, the mean over an example's numbers, in squared units of
            the data: of 1 for neighbouring integers, and of pixels in [0, 255] as Ho et al. have it. After the data it is 0.
        mse_error: its standard error.
        examples: how many.
        unit: "bits/dim", or "nats" an example where data are real numbers.
    """

    rate: Tensor
    rate_error: Tensor
    mse: Tensor
    mse_error: Tensor
    examples: int
    unit: str


@torch.no_grad()
def curve(model: VDM, params: Params, batches: Iterable[Any], key: Key, *, timesteps: int | None = None) -> Curve:
    """Computes what a model spends on z_T, ..., z_i, and how far its estimate of the data is then from them: the progressive
    reading of the bound (Ho, Jain, Abbeel 2020, sec. 4.3 and fig. 5).

    Rates are those of a code that sends each latent at the cost of its KL divergence, as the bound counts it. **A file that
    is cut short holds no estimate.** A block is a stack, which is read from its end: without its last words nothing of it
    decodes. Its last words by themselves do hold z_T, ..., z_i, of the round that was encoded last only. They take the rate
    here, and the bits that z_i and z_{i+1} occupy on their lattices, 5 a number at T = 50. Those of z_{i+1} come back with
    z_i, so what is borrowed does not add up over steps; those of z_0 come back with the data, and only then follows an
    earlier round. :func:`purevdm.codec.read` reads whole blocks only.

    Every step is evaluated for every example, so a batch applies the network T + 1 times. Batch j draws its noise, the same
    at all steps, from ``fold_in(key, j)``. Estimates are clamped to the data's range, where they have one, and brought to
    data's units by an affine map, which the library's own encoders of such data are.

    Args:
        model: the model, without a subspace, and with a decoder without parameters, whose latents have the data's shape.
        params, key: its parameters, a key.
        batches: an iterable of x, (x,) or (x, cond), as :func:`purevdm.codec.write` takes it.
        timesteps: T; the model's own where left out, or 250 where that is continuous time.

    Raises:
        TypeError, ValueError: bad input, as ``model.nll_bound`` says it; an item of another form, no batch, no number of
            steps, another kind of model.

    >>> import purevdm
    >>> from purevdm import codec, networks, random, schedules
    >>> model = purevdm.vdm(networks.mlp(16), schedules.fixed_linear(-6.0, 4.0), event_shape=(8,), vocab_size=16)
    >>> x = random.randint(random.key(0), (20, 8), 0, 16)
    >>> found = codec.curve(model, model.init(random.key(1)), [x], random.key(2), timesteps=10)
    >>> bool((found.rate.diff() >= 0).all()), found.mse.shape, found.unit
    (True, torch.Size([12]), 'bits/dim')
    """
    direct(_checks.instance("model", model, VDM, "a purevdm VDM"), "curves of rate and distortion")
    steps = model.timesteps or STEPS if timesteps is None else timesteps
    model = model._replace(timesteps=_checks.integer("timesteps", steps, 1, _checks.most_steps(model.dtype)))
    _checks.key("key", key)
    done = [_of_batch(model, params, x, random.fold_in(key, j), cond) for j, (x, cond) in enumerate(pairs(batches))]
    if not done:
        raise ValueError("batches: expected at least one, got none")
    each = torch.cat(done, 1)
    mean, spread, n = each.mean(1), each.std(1, correction=0), each.shape[1]
    error = spread / math.sqrt(n - 1) if n > 1 else torch.full_like(mean, math.nan)
    return Curve(mean[0], error[0], mean[1], error[1], n, model.decoder.unit)


def _of_batch(model: VDM, params: Params, x: Tensor, key: Key, cond: Any) -> Tensor:
    """Computes rates and squared errors of each of n examples, (2, n, T + 2), float64."""
    batch = parse(model, params, x, key, cond)
    params, decoder, n, steps = batch.params, model.decoder, batch.n, model.timesteps
    noise, denoise = model.draw(key, n, train=False), of_model(model, params, cond)
    f, bounds = decoder.encode({}, x, cond, model.dtype), decoder.bounds(torch.zeros((), device=x.device, dtype=model.dtype))
    one = [decoder.encode({}, torch.full_like(x, value), cond, torch.float64) for value in (0, 1)]

    def mean(values: Tensor) -> Tensor:
        return values.double().reshape(n, -1).mean(1).cpu()

    def error(x_hat: Tensor) -> Tensor:
        x_hat = x_hat if bounds is None else torch.clamp(x_hat, *bounds)
        return mean(((x_hat - f) / (one[1] - one[0])).square())

    costs, errors = [], []
    with exact(x.device):
        for i in range(steps, 0, -1):
            t = torch.full((n,), i / steps, dtype=model.dtype, device=x.device)
            levels = schedules.levels(model.schedule, params["schedule"], t, steps, cond)
            gamma_0, gamma_1, gamma_t, weight = (process.align(level.expand_as(levels.gamma_t), f) for level in levels)
            prediction, v = denoise.prediction_and_range(process.diffuse(f, gamma_t, noise.eps), levels.gamma_t)
            if i == steps:
                costs.append(mean(prior_loss(f, gamma_1)))
            costs.append(mean(latent_loss(model, noise.eps, prediction.eps, gamma_t, weight, v)) / steps)
            errors.append(error(prediction.x))
        z_0 = process.diffuse(f, gamma_0, noise.eps_0)
        level, estimate = last_step(model, denoise, z_0, levels.gamma_0.expand_as(levels.gamma_t))
        errors += [error(estimate), torch.zeros_like(errors[0])]
        given = (level, cond, estimate) if decoder.takes_estimate else (gamma_0, cond)
        costs.append(mean(decoder.reconstruction({}, x, noise.eps_0, *given)))
    per_unit = 1.0 / math.log(2.0) if decoder.unit == "bits/dim" else math.prod(model.event_shape)
    return torch.stack([torch.stack(costs, 1).cumsum(1) * per_unit, torch.stack(errors, 1)])
