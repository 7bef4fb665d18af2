"""Layers that are monotone for any parameters: Constrained Monotonic Neural Networks (Runje & Shankaranarayana 2023,
arXiv 2205.11775).

Kernels enter by their absolute values, so gradients flow to the free kernel. Since
a non-negative combination of convex functions is convex, units are divided into three groups by their activation: convex,
its mirror image, and a saturated one made of both; together they approximate every monotone function.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks
from purevdm.nn._batching import concatenate
from purevdm.nn._layers import dense
from purevdm.types import Params


def _smoothed_relu(x: Tensor) -> Tensor:
    # E max(0, x + noise) with standard normal noise: what GELU's x Phi(x) lacks to be monotone is the density.
    return x * torch.special.ndtr(x) + torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)


CONVEX: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "elu": F.elu,
    "softplus": lambda x: F.softplus(x) - math.log(2.0),
    "gaussian_relu": lambda x: _smoothed_relu(x) - 1.0 / math.sqrt(2 * math.pi),
}
"""The bases by name, each increasing, convex, bounded below and zero at zero; ``gaussian_relu``, x Phi(x) + phi(x), is the
increasing relative of GELU, a ReLU smoothed by a standard normal."""


def monotone_activation(x: Tensor, base: str = "elu", weights: Sequence[float] = (7, 7, 2)) -> Tensor:
    """Applies an increasing activation to the last axis: a convex one to its first part, a concave, and a saturated one.

    With the base f, the concave one is -f(-x), and the saturated one f(x + 1) - f(1) below zero and f(1) - f(1 - x) above
    (sec. 3.2 of the paper).

    Args:
        x: (..., units).
        base: one of ``CONVEX``.
        weights: how many units each of the three groups takes, relative to one another.

    Raises:
        ValueError: another base, or weights that are not three numbers of at least 0, not all 0.
    """
    f = CONVEX[_checks.choice("base", base, tuple(CONVEX))]
    weights = [_checks.real(f"weights[{i}]", w) for i, w in enumerate(weights)]
    if len(weights) != 3 or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"weights: expected three numbers of at least 0, not all 0, got {tuple(weights)}")
    units = x.shape[-1]
    first = round(units * weights[0] / sum(weights))
    second = round(units * (weights[0] + weights[1]) / sum(weights))
    convex, concave, saturated = x.split([first, second - first, units - second], -1)
    top = f(torch.ones((), dtype=x.dtype, device=x.device))
    # Each branch takes only its own side of zero, so that neither overflows where the other is taken.
    below, above = f(saturated.clamp(max=0.0) + 1.0) - top, top - f(1.0 - saturated.clamp(min=0.0))
    return concatenate([f(convex), -f(-concave), torch.where(saturated < 0.0, below, above)], -1)


def monotone_dense(
    params: Params, x: Tensor, activation: str | None = "elu", weights: Sequence[float] = (7, 7, 2)
) -> Tensor:
    """Maps the last axis affinely, (..., n_in) to (..., n_out), with the kernel's absolute values, and applies an increasing
    activation: no output falls as an input rises.

    Args:
        params: of ``dense_init``.
        x: (..., n_in).
        activation, weights: the base and the groups of :func:`monotone_activation`; None is a linear layer.

    >>> import torch
    >>> from purevdm import nn, random
    >>> params = nn.dense_init(random.key(0), 1, 8)
    >>> rising = nn.monotone_dense(params, torch.tensor([[0.0], [1.0]])).diff(dim=0)
    >>> bool((rising >= 0).all())
    True
    """
    y = dense(params | {"kernel": params["kernel"].abs()}, x)
    return y if activation is None else monotone_activation(y, activation, weights)
