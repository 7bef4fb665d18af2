"""Parts of a model with some of their methods exchanged."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

P = TypeVar("P")


def changed(part: P, **methods: Callable[..., Any] | None) -> P:
    """The part with functions in place of methods; they are called without it."""
    kind = type(part)
    own = {name: staticmethod(f) if callable(f) else f for name, f in methods.items()}
    other = copy.copy(part)
    object.__setattr__(other, "__class__", type(f"Changed{kind.__name__}", (kind,), own))
    return other
