"""Models with a code (:mod:`purevdm.codes`): the code of data, and the model given codes, an ordinary conditional one.

What has no function here goes by :func:`conditional`: trajectories, inversion and whatever else takes a model and a
condition works on p(x given c).
"""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm._door import batch_axes, parse
from purevdm.codes import Code
from purevdm.model import Model
from purevdm.types import Key, Params

M = TypeVar("M")

__all__ = ["conditional", "joined", "posterior"]


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
    keys = None if noise.key is None else torch.func.vmap(lambda k: random.fold_in(k, 2))(noise.key)
    out = _encoded(model, code, params, x, cond, keys)
    return Coded(joined(code.draw(out, noise.code), cond), code.kl(out))


def _encoded(model: Model, code: Code, params: Params, x: Tensor, cond: Any, keys: Tensor | None = None) -> Tensor:
    """Computes what q(c given x) is made of."""
    return code.encode(params["code"], model.decoder.encode(params.get("decoder", {}), x, cond, model.dtype), keys)


def of_prior(model: Model, key: Key, n: int, cond: Any) -> Any:
    """Gives the condition of n samples, with codes drawn from their prior where the model has one."""
    code = model.code
    if code is None:
        return cond
    keys = random.split(random.fold_in(key, 4), _checks.integer("n", n, 1, 2**31 - 1))  # the sampler splits the key in four
    return joined(torch.func.vmap(lambda k: code.prior(k, model.dtype))(keys), cond)


def conditional(model: M, params: Params) -> tuple[M, Params]:
    """Gives the model given codes, p(x given c), and its parameters: an ordinary conditional one, whose condition is the
    numbers (B, d + m) that a network and a schedule are given under a code, or the codes themselves, (B, m), without others.

    >>> import torch, purevdm
    >>> from purevdm import coded, codes, decoders, networks, random, sampling, schedules
    >>> code = codes.one_hot(decoders.perceptron((2,), (16,), (4,)), 4)
    >>> model = purevdm.vdm(networks.mlp(16, cond_dim=4), schedules.polynomial((2,), 4), event_shape=(2,), code=code)
    >>> params, x = model.init(random.key(0)), random.randint(random.key(1), (3, 2), 0, 256)
    >>> c = coded.posterior(model, params, x, random.key(2))
    >>> given, its = coded.conditional(model, params)
    >>> given.sample(its, random.key(3), 3, cond=c, steps=5).shape, sampling.invert(given, its, x, c, steps=5).shape
    (torch.Size([3, 2]), torch.Size([3, 2]))

    Raises:
        TypeError, ValueError: a model without a code, parameters of another structure.
    """
    _having(model)
    parse(model, params)
    return given_codes(model, params)


def given_codes(model: Any, params: Params) -> Any:
    """Does :func:`conditional` behind the door; a model without a code stays as it is."""
    if model.code is None:
        return model, params
    return model._replace(code=None), {name: branch for name, branch in params.items() if name != "code"}


def posterior(model: Any, params: Params, x: Tensor, key: Key, cond: Any = None) -> Tensor:
    """Draws a code of each example from q(c given x), and gives it behind the numbers of the condition, (B, d + m), as
    networks and schedules are given it.

    Args:
        model, params, x, key, cond: as in ``model.nll_bound``, of a model with a code.

    Raises:
        TypeError, ValueError: bad input, as ``model.nll_bound`` says it; a model without a code.
    """
    _having(model)
    batch = parse(model, params, x, _checks.key("key", key), cond)
    return weighted(model, batch.params, batch.x, random.split(key, batch.n), cond)[0]  # type: ignore[no-any-return]


def weighted(model: Any, params: Params, x: Tensor, keys: Tensor, cond: Any) -> tuple[Any, Tensor | float]:
    """Draws the codes of a batch by keys (B, 2), behind the door: the condition with them, and log p(c) - log q(c given x),
    (B,), nats; without a code, the condition as it was, and 0."""
    code = model.code
    if code is None:
        return cond, 0.0
    out = _encoded(model, code, params, x, cond)
    drawn = code.draw(out, torch.func.vmap(lambda k: code.noise(random.fold_in(k, 2), model.dtype))(keys))
    return joined(drawn, cond), code.log_ratio(out, drawn)


def _having(model: Any) -> None:
    if getattr(model, "code", None) is None:
        raise ValueError(f"model: expected one with a code, got {_checks.describe(model)}")
