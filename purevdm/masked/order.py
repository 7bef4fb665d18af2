"""Any-order autoregressive models (Uria, Murray, Larochelle 2014; Hoogeboom et al. 2021, arXiv 2110.02037): masked diffusion
token by token.

The network that says what stands behind masks codes the tokens of an example one after another in any order, each given
those before it. The mean over orders bounds -log p(x), and is the bound of masked diffusion in continuous time, from alpha =
1 to 0, where the network takes no heed of its level. Here the level that it is given is that of so many hidden tokens, m of
n: gamma = log(m / (n - m)), within the schedule's ends.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap

from purevdm import _checks, random, schedules
from purevdm._door import parse, seeded
from purevdm.bound import NLLBound, summed
from purevdm.masked import corruptions
from purevdm.masked.bound import log_probs, within
from purevdm.noise import Seeds
from purevdm.types import Key, Params

if TYPE_CHECKING:
    from purevdm.masked.model import MaskedDiffusion

__all__ = ["nll_bound", "terms"]


def nll_bound(
    model: "MaskedDiffusion",
    params: Params,
    x: Tensor,
    key: Key | Seeds,
    cond: Any = None,
    *,
    mask: Tensor | None = None,
) -> NLLBound:
    """Estimates the mean over orders of -log p(x given an order), an upper bound on -log p(x) without regard to the order:
    :func:`terms`, summed, each (B,), nats. ``evaluation.evaluate`` takes it as ``method=partial(order.nll_bound, model)``.

    >>> from purevdm import masked, networks, random
    >>> model = masked.diffusion(networks.transformer(16, 1, positions=True), None, (12,), 27, classes_last=True)
    >>> params, x = model.init(random.key(0)), random.randint(random.key(1), (4, 12), 0, 27)
    >>> masked.order.nll_bound(model, params, x, random.key(2)).total.shape
    torch.Size([4])
    """
    return summed(terms(model, params, x, key, cond, mask=mask))


def terms(
    model: "MaskedDiffusion",
    params: Params,
    x: Tensor,
    key: Key | Seeds,
    cond: Any = None,
    *,
    mask: Tensor | None = None,
) -> NLLBound:
    """Estimates the bound in any order, of each token, (B, *event_shape), nats: ``diffusion``; the other two are 0.

    Of an example's n tokens the first i of a random order show, for i drawn evenly from 0, ..., n - 1 (evenly spread over
    the batch, where the model's times are). Each of the n - i others adds n / (n - i) times -log p.

    Raises:
        TypeError, ValueError: bad arguments, as the model's methods raise them; a model without masks.
    """
    model = masking(model)._replace(timesteps=0)
    batch = parse(model, params, x, key, cond, mask=mask)
    params, seeds, x = batch.params, seeded(model, key, batch.n), batch.x.to(torch.int64)
    u = vmap(lambda key: random.uniform(key, tuple(x.shape[1:]), model.dtype))(seeds.key)
    u = u if batch.mask is None else torch.where(batch.mask, u, 2.0)  # what does not exist comes last
    n = torch.as_tensor(batch.dims, dtype=model.dtype, device=x.device).expand(batch.n)
    shown = (seeds.t * n).floor().minimum(n - 1.0)
    rank = u.reshape(batch.n, -1).argsort(dim=1, stable=True).argsort(dim=1).reshape(x.shape)
    hidden = rank >= shown.reshape(-1, *[1] * (x.ndim - 1))
    z = torch.where(hidden, model.corruption.classes, x)
    log_p = log_probs(model, params["network"], z, level(model, params, n - shown, n, cond), cond, mask=batch.mask)
    weight = (n / (n - shown)).reshape(-1, *[1] * (x.ndim - 1))
    loss = within(torch.where(hidden, -weight * corruptions.of(x, log_p), 0.0), batch.mask)
    return NLLBound(torch.zeros_like(loss), torch.zeros_like(loss), loss)


def masking(model: Any) -> "MaskedDiffusion":
    """Refuses a model without masks."""
    corruption = getattr(model, "corruption", None)
    if not isinstance(corruption, corruptions.Masking):
        raise TypeError(f"model: expected a MaskedDiffusion with masks, got {_checks.describe(model)}")
    return model  # type: ignore[no-any-return]


def level(model: "MaskedDiffusion", params: Params, hidden: Tensor, n: Tensor, cond: Any = None) -> Tensor:
    """Gives the level of so many hidden tokens of n, each (B,): (B,)."""

    def end(t: Tensor) -> Tensor:
        return schedules.gamma(model.schedule, params["schedule"], t, cond).reshape(len(n), -1).mean(1)

    return torch.log(hidden / (n - hidden)).clamp(end(torch.zeros_like(n)), end(torch.ones_like(n)))
