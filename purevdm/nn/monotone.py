"""Layers that are monotone for any parameters: Constrained Monotonic Neural Networks (Runje & Shankaranarayana 2023,
arXiv 2205.11775).

A kernel's sign is constrained by a function of it, not by a change in place, so gradients flow to the free kernel. Since
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
from purevdm.nn.layers import dense
from purevdm.types import Params

__all__ = ["CONVEX", "monotone_activation", "monotone_dense"]


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

_UNFIT = {"gelu": "it falls before it rises", "silu": "it falls before it rises", "tanh": "it is not convex"}


def monotone_activation(x: Tensor, base: str = "elu", weights: Sequence[float] = (7, 7, 2)) -> Tensor:
    """An increasing activation of the last axis, convex in its first part, concave in the second, saturated in the third.

    With the base f, the concave one is -f(-x), and the saturated one f(x + 1) - f(1) below zero and f(1) - f(1 - x) above
    (sec. 3.2 of the paper).

    Args:
        x: (..., units).
        base: one of ``CONVEX``.
        weights: how many units each of the three groups takes, relative to one another.

    Raises:
        ValueError: a base that is not increasing and convex, or weights that are not three numbers of at least 0, not all 0.
    """
    if isinstance(base, str) and base in _UNFIT:
        raise ValueError(f"base: expected one of {', '.join(map(repr, CONVEX))}, got {base!r}: {_UNFIT[base]}")
    f = CONVEX[_checks.choice("base", base, tuple(CONVEX))]
    weights = [_checks.real(f"weights[{i}]", w) for i, w in enumerate(weights)]
    if len(weights) != 3 or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"weights: expected three numbers of at least 0, not all 0, got {tuple(weights)}")
    units = x.shape[-1]
    first = round(units * weights[0] / sum(weights))
    second = round(units * (weights[0] + weights[1]) / sum(weights))
    convex, concave, saturated = x.split([first, second - first, units - second], -1)
    top = f(torch.ones((), dtype=x.dtype, device=x.device))
    # Each branch sees only its own side of zero, so that neither overflows where the other is taken.
    below, above = f(saturated.clamp(max=0.0) + 1.0) - top, top - f(1.0 - saturated.clamp(min=0.0))
    return concatenate([f(convex), -f(-concave), torch.where(saturated < 0.0, below, above)], -1)


def monotone_dense(
    params: Params,
    x: Tensor,
    direction: int | Sequence[int] = 1,
    activation: str | None = "elu",
    weights: Sequence[float] = (7, 7, 2),
) -> Tensor:
    """An affine map of the last axis, monotone in each input for any parameters, and an increasing activation.

    Args:
        params: of ``dense_init``.
        x: (..., n_in).
        direction: for each input, or for all: 1 if outputs must not fall as it rises, -1 if they must not rise, 0 where
            nothing is asked. Layers after the first keep directions with 1.
        activation: the base of :func:`monotone_activation`, or None for a linear layer.
        weights: the sizes of its three groups.

    Returns:
        (..., n_out).

    Raises:
        TypeError, ValueError: directions other than 1, 0, -1 or not one for each input; see :func:`monotone_activation`.

    >>> import torch
    >>> from purevdm import nn, random
    >>> params = nn.dense_init(random.key(0), 2, 8)
    >>> rising = nn.monotone_dense(params, torch.tensor([[0.0, 0.0], [1.0, 0.0]]), direction=(1, -1)).diff(dim=0)
    >>> bool((rising >= 0).all())
    True
    """
    kernel = params["kernel"]
    n_in = kernel.shape[0]
    given = [direction] * n_in if isinstance(direction, int) else list(direction)
    signs = [_checks.integer("direction", d, -1, 1) for d in given]
    if len(signs) != n_in:
        raise ValueError(f"direction: expected one for each of the {n_in} inputs, got {len(signs)}")
    size = kernel.abs()
    rows = [size[i] if sign > 0 else -size[i] if sign < 0 else kernel[i] for i, sign in enumerate(signs)]
    constrained = size if all(sign > 0 for sign in signs) else torch.stack(rows)
    y = dense(params | {"kernel": constrained}, x)
    return y if activation is None else monotone_activation(y, activation, weights)
