"""Values made of functions: networks, schedules, decoders and solvers, compared and printed by content.

Each is a NamedTuple whose fields hold module-level functions, bare or bound to a small NamedTuple of settings by
``functools.partial``. So it pickles. A bound function compares by identity in Python; here it compares by what it holds.
"""

import functools
from typing import Any, TypeVar

__all__ = ["Same", "by_content", "rebound"]

T = TypeVar("T")


def by_content(kind: type[T]) -> type[T]:
    """Gives a NamedTuple class of functions equality, a hash and a text by content.

    In the text a function bound to settings is shown as its settings, each text once, and fields with their defaults are
    left out.
    """
    kind.__eq__, kind.__hash__ = _equal, _hashed  # type: ignore[method-assign, assignment]
    kind.__ne__ = lambda self, other: not _equal(self, other)  # type: ignore[method-assign, assignment]
    kind.__repr__ = _shown  # type: ignore[method-assign, assignment]
    return kind


def _content(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return value.func, value.args, tuple(sorted(value.keywords.items()))
    return value


def _equal(self: Any, other: object) -> bool:
    return type(self) is type(other) and all(_content(a) == _content(b) for a, b in zip(self, other, strict=True))  # type: ignore[call-overload]


def _hashed(self: Any) -> int:
    return hash((type(self), *map(_content, self)))


def _shown(self: Any) -> str:
    parts: list[str] = []
    for name, value in zip(self._fields, self, strict=True):
        if name in self._field_defaults and value == self._field_defaults[name]:
            continue
        if isinstance(value, functools.partial) and value.args:
            text = ", ".join(map(repr, value.args))
        elif callable(value) and hasattr(value, "__qualname__"):
            text = f"{name}={value.__qualname__}"
        else:
            text = f"{name}={value!r}"
        if text not in parts:
            parts.append(text)
    return f"{type(self).__name__}({', '.join(parts)})"


class Same:
    """A value as a cache's key: equal to itself alone, whatever it holds."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def rebound(function: Any, **changes: Any) -> Any:
    """A function bound to settings, bound to the same settings with changes; other functions as they are. A value made of
    functions, such as a network within another, is no settings."""
    if not isinstance(function, functools.partial) or not function.args:
        return function
    settings = function.args[0]
    if not changes.keys() <= set(getattr(settings, "_fields", ())) or type(settings).__repr__ is _shown:
        return function
    return functools.partial(function.func, settings._replace(**changes), *function.args[1:], **function.keywords)
