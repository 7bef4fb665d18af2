"""Models with a code (:mod:`purevdm.codes`): the code of data, and the model given codes, an ordinary conditional one.

What has no function here goes by :func:`conditional`: trajectories, inversion and whatever else takes a model and a
condition works on p(x given c).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm.model import Model, batch_axes
from purevdm.types import Key, Params

__all__ = ["joined"]


class Coded(NamedTuple):
    """A batch's condition with its codes, and the code's terms of the bound, (B, ...), nats; None without a code."""

    cond: Any
    terms: Tensor | None = None


def joined(code: Tensor, cond: Tensor | None) -> Tensor:
    """Gives what a network and a schedule are given under a code: the code, (B, m), behind the numbers of the condition,
    (B, d), if there are any.

    Raises:
        TypeError, ValueError: another condition than numbers.
    """
    if cond is None:
        return code
    batch_axes(cond, len(code))
    if _checks.floating("cond", cond).ndim != 2:
        raise ValueError(f"cond: expected numbers (B, d) or None beside a code, got {_checks.describe(cond)}")
    return torch.cat([cond.to(code.dtype), code], 1)


def of_data(model: Model, params: Params, x: Tensor, noise: Any, cond: Any) -> Coded:
    """Draws the codes of a batch with its noise, behind the door; without a code, the condition is what it was."""
    code = model.code
    if code is None:
        return Coded(cond)
    f = model.decoder.encode(params.get("decoder", {}), x, cond, model.dtype)
    keys = None if noise.key is None else torch.func.vmap(lambda k: random.fold_in(k, 2))(noise.key)
    out = code.encode(params["code"], f, keys)
    return Coded(joined(code.draw(out, noise.code), cond), code.kl(out))


def of_prior(model: Model, key: Key, n: int, cond: Any) -> Any:
    """Gives the condition of n samples, with codes drawn from their prior where the model has one."""
    code = model.code
    if code is None:
        return cond
    keys = random.split(random.fold_in(key, 4), _checks.integer("n", n, 1, 2**31 - 1))  # the sampler splits the key in four
    return joined(torch.func.vmap(lambda k: code.prior(k, model.dtype))(keys), cond)
