"""The way back: from a key to data. A hook between the steps may change the latents: :func:`inpaint` makes one that fills in
what is not known of data.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, process, random
from purevdm.elbo import Model
from purevdm.types import Key, Params
from purevdm.walks import Walk, checked, loop, times, walk

__all__ = ["Sample", "inpaint", "loop", "sample"]


class Sample(NamedTuple):
    """What sampling gives when the trajectory is asked for.

    Attributes:
        x: data, (n, *event_shape); None where sampling stops at latents.
        z: the latents from the first to the last, (steps + 1, n, *event_shape).
    """

    x: Tensor | None
    z: Tensor


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
    """See :meth:`purevdm.VDM.sample`, which checks the parameters and the key first.

    The sampling key is split in four: the first draws z_1, step i draws from ``fold_in`` of the second and i, the third
    decodes, and the hook after step i gets ``fold_in`` of the fourth and i.
    """
    checked(how)
    k_z, k_steps, k_decode, k_project = random.split(key, 4).unbind(0)
    shape = (_checks.integer("n", n, 1, 2**31 - 1), *model.event_shape)
    _checks.choice("decode", decode, ("argmax", "sample"))
    if how.differentiable and until is None and not how.trajectory and model.decoder.vocab_size is not None:
        raise ValueError("differentiable: data that are integers have no gradient; ask for latents, by until or trajectory")
    if z is not None:
        _checks.verify(_checks.finite("z", {(): _checks.alike("z", z, shape, model.dtype)}))
        _checks.together("z", z, key.device)
    elif isinstance(start, Tensor) or start != 1.0:
        raise ValueError("z: expected the latents at the time `start`, because start was given, got None")
    else:
        z = random.normal(k_z, shape, model.dtype)
    end, begin = times("until", 0.0 if until is None else until, "start", start, z)
    # A copy, as a compiled loop may not take two views of one tensor.
    latents, gamma = walk(model, params, z, begin, end, how, k_steps, k_project.clone())
    if until is not None:
        _checks.verify(_checks.finite("latents", {(): latents}))
        return Sample(None, latents) if how.trajectory else latents
    z_0 = (latents[-1] if how.trajectory else latents) / process.alpha(gamma)
    x = model.decoder.mode({}, z_0) if decode == "argmax" else model.decoder.sample({}, k_decode, z_0, gamma)
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
    >>> hook = sampling.inpaint(model.decoder.encode({}, x), known)
    >>> drawn = model.sample(params, random.key(1), 3, steps=20, project=hook)
    >>> (drawn - x)[:, :2].abs().max() <= 1
    tensor(True)
    """
    shape = _checks.floating("x", x).shape
    return partial(_replace, x, _checks.alike("known", known, shape, torch.bool))


def _replace(x: Tensor, known: Tensor, i: Tensor, z: Tensor, gamma: Tensor, key: Key) -> Tensor:
    _checks.alike("x", x, z.shape, z.dtype)
    return torch.where(known, process.diffuse(x, gamma, random.normal(key, z.shape, z.dtype)), z)
