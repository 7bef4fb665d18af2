"""The types that signatures are written in.

They are aliases: a checker sees tensors and dicts, a reader sees what they mean.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["Key", "Params", "PyTree", "Shape"]

Key: TypeAlias = Tensor
"""A random key: int32, shape (2,). See :mod:`purevdm.random`."""

Params: TypeAlias = dict[str, Any]
"""Parameters: nested dicts of tensors."""

PyTree: TypeAlias = Any
"""Nested dicts, lists, tuples and NamedTuples of tensors, as optree flattens them."""

Shape: TypeAlias = Sequence[int]
"""The size of each axis."""
