"""Subspaces that data and latents lie in."""

from dataclasses import dataclass

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import fixed
from purevdm._values import Value


class Subspace(Value):
    """A linear subspace that data and latents lie in. Noise, prior, samples and the count of dimensions follow it."""

    def project(self, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Projects latents, (B, *latent_shape), orthogonally. ``mask`` is bool, broadcasts to v, and says what exists."""
        raise NotImplementedError

    def rank(self, mask: Tensor) -> Tensor:
        """Counts the dimensions of each example's subspace, (B,), floating-point or integer, of a mask of v's shape."""
        raise NotImplementedError

    def share(self, mask: Tensor) -> Tensor:
        """Computes each element's share of the rank, of the mask's shape, float64: over what exists they add up to it."""
        count = mask.reshape(mask.shape[0], -1).sum(1).clamp(min=1)
        return (self.rank(mask).double() / count).reshape(-1, *(1 for _ in mask.shape[1:])).expand(mask.shape)


@dataclass(frozen=True)
class ZeroCentre(Subspace):
    """The subspace of :func:`zero_centre`."""

    axis: int
    columns: int | None = None

    def _inside(self, like: Tensor) -> Tensor:
        """Says which of the last axis's entries have a mean of 0."""
        entries = torch.arange(like.shape[-1], device=like.device)
        return entries < (like.shape[-1] if self.columns is None else fixed(self.columns))

    def project(self, v: Tensor, mask: Tensor | None = None) -> Tensor:
        axis = self.axis + 1
        if mask is None:
            mean = v.mean(axis, keepdim=True)
        else:
            mask = mask.expand_as(v)
            v = torch.where(mask, v, 0.0)
            mean = v.sum(axis, keepdim=True) / mask.sum(axis, keepdim=True).clamp(min=1)
        inside = self._inside(v) if mask is None else mask & self._inside(v)
        return torch.where(inside, v - mean, v)

    def rank(self, mask: Tensor) -> Tensor:
        there = mask.any(self.axis + 1, keepdim=True) & self._inside(mask)  # each of these loses one dimension
        return mask.reshape(mask.shape[0], -1).sum(1) - there.reshape(mask.shape[0], -1).sum(1)

    def share(self, mask: Tensor) -> Tensor:
        lost = self._inside(mask).double() / mask.sum(self.axis + 1, keepdim=True).clamp(min=1)
        return (1.0 - lost).expand(mask.shape)


def zero_centre(axis: int = 0, columns: int | None = None) -> Subspace:
    """Makes the subspace of latents whose mean over one axis of an event is 0, such as positions of atoms (points, 3) whose
    centre of mass is at the origin (Hoogeboom et al. 2022, arXiv 2203.17003): n points in d coordinates have (n - 1) d
    dimensions.

    Data are refused that are not in the subspace; ``zero_centre(...).project(x, mask)`` puts them there.

    Args:
        axis: of the points, counted in an event.
        columns: how many entries of the last axis, from the first, are coordinates; the others, such as features of atoms,
            are free. None for all.

    Raises:
        TypeError, ValueError: no integer, or one out of range.
    """
    return ZeroCentre(_checks.integer("axis", axis, 0), None if columns is None else _checks.integer("columns", columns, 1))
