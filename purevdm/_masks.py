"""Masks: what exists of data and latents, its dimensions, and latents that must lie within it."""

import math
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import OLD
from purevdm._facts import Fact, readable, verify


def near(name: str, f: Tensor, wanted: Tensor, text: str, mask: Tensor | None = None) -> Fact:
    """Makes the fact that latents are what they ought to be, up to rounding."""
    size = 1.0 + f.abs().amax(tuple(range(1, f.ndim)), keepdim=True)
    close = (f - wanted).abs() <= 1e-4 * size
    told = f"{name}: expected {text}, got some that are not"
    return Fact(close if mask is None else close | ~mask, lambda: ValueError(told))


def inside(name: str, z: Tensor, within: Tensor) -> Tensor:
    """Gives latents within the model's subspace and the mask; in eager mode, all must be."""
    if within is not z and readable(z):
        verify([near(name, z, within, "latents in the model's subspace, and 0 where nothing exists")])
    return within


def mask_of(mask: Any, shape: tuple[int, ...]) -> Tensor:
    """Checks a mask of a batch of this shape."""
    if _checks.broadcasting("mask", mask, shape).dtype != torch.bool or mask.ndim != len(shape):
        wanted = f"a bool tensor that broadcasts to {shape}, with as many axes"
        raise TypeError(f"mask: expected {wanted}, got {_checks.describe(mask)}")
    return mask  # type: ignore[no-any-return]


def something(mask: Tensor) -> list[Fact]:
    """Makes the fact that something exists in every example."""
    nothing = "mask: expected something in every example, got none"
    some = mask.reshape(mask.shape[0], -1).any(1)
    return [Fact(some, lambda: ValueError(nothing))] if readable(mask) else []


def of_events(model: Any, mask: Any, n: int, device: torch.device) -> Tensor | None:
    """Checks a mask of n events, and gives that of their latents."""
    if mask is None:
        return None
    verify(something(_checks.together("mask", mask_of(mask, (n, *model.event_shape)), device)))
    return model.decoder.latent_mask(mask)  # type: ignore[no-any-return]


def zeroed(x: Tensor, mask: Tensor | None) -> Tensor:
    """Gives the data with zeros where nothing exists."""
    if mask is None:
        return x
    if OLD and x.dtype in _checks.WIDE_UNSIGNED:  # for which it has no `where`
        return zeroed(x.to(torch.int64), mask).to(x.dtype)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def dims(model: Any, n: int, mask: Tensor | None, device: torch.device) -> Tensor | float:
    """Counts the dimensions of each of n examples: a number, or (n,) where they differ. ``mask`` is in the data's shape."""
    subspace = getattr(model, "subspace", None)
    if mask is None and subspace is None:
        return float(math.prod(model.event_shape))
    if mask is None:
        mask = torch.ones((n, *model.event_shape), dtype=torch.bool, device=device)
    return mask.reshape(n, -1).sum(1) if subspace is None else subspace.rank(mask)  # type: ignore[no-any-return]


def share(model: Any, like: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor | float:
    """Gives each element's share of a dimension, in the shape of ``like``: 1 without a subspace; over what exists they add
    up to the subspace's rank."""
    if model.subspace is None:
        return 1.0
    every = torch.ones_like(like, dtype=torch.bool) if mask is None else mask.expand_as(like)
    return model.subspace.share(every).to(dtype)  # type: ignore[no-any-return]
