"""The parts of a model as values: settings, and methods that read them."""

import dataclasses
from typing import Any, TypeVar

__all__ = ["Same", "Value"]

V = TypeVar("V", bound="Value")


class Value:
    """The base of networks, schedules, decoders, solvers and integrators: frozen dataclasses of settings, with methods.

    So they compare, hash, print and pickle by their settings, and ``part._replace(setting=...)`` is the same part with
    another setting, as it is for a NamedTuple.
    """

    def _replace(self: V, **changes: Any) -> V:
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


class Same:
    """A value as a cache's key: equal only to itself, whatever it holds."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
