"""How a law is stated and broken."""

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor


class LawError(AssertionError):
    """A law that a part of a model breaks. The message says which, by how much, and how to see it."""


def require(holds: bool | Tensor, law: str, found: str, see: str) -> None:
    """A law, what was found where it does not hold, and an expression that shows it."""
    if not bool(holds):
        raise LawError(f"{law}\n  found:     {found}\n  to see it: {see}")


def trying(law: str, see: str, run: Callable[[], Any]) -> Any:
    """What ``run`` gives; an error that it raises breaks the law."""
    try:
        return run()
    except LawError:
        raise
    except Exception as error:
        raise LawError(f"{law}\n  found:     {type(error).__name__}: {error}\n  to see it: {see}") from error


def copied(tree: Any) -> Any:
    """A copy of a tree of tensors."""
    return optree.tree_map(lambda leaf: leaf.clone(), tree)  # type: ignore[arg-type]


def equal(a: Any, b: Any) -> bool:
    """Whether two trees hold the same tensors."""
    x, y = optree.tree_leaves(a), optree.tree_leaves(b)  # type: ignore[arg-type]
    same = optree.tree_structure(a) == optree.tree_structure(b)  # type: ignore[arg-type]
    return same and all(torch.equal(p, q) for p, q in zip(x, y, strict=True))


def wide(tree: Any) -> Any:
    """A tree of tensors with its floating-point leaves in float64."""
    return optree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tree)  # type: ignore[arg-type]


def off(a: Tensor, b: Tensor) -> float:
    """By what part of its norm b is missed."""
    a, b = a.double(), b.double()
    return ((a - b).norm() / (b.norm() + 1e-6)).item()


def initialised(what: str, init: Callable[[Tensor], Any], key: Tensor) -> Any:
    """The parameters that a key gives. They are a function of it: the same twice, whatever torch's generator holds, and
    others for another key where they look random at all."""
    see = f"{what}.init(random.key(0)), twice"
    law = f"{what}.init must be a function of its key"
    torch_state = torch.get_rng_state()
    params = trying(law, see, lambda: init(key))
    torch.rand(())
    require(equal(params, init(key)), law, "other parameters in a second call", see)
    torch.set_rng_state(torch_state)
    leaves = [leaf for leaf in optree.tree_leaves(params) if leaf.is_floating_point() and leaf.numel() > 1]
    random = [leaf for leaf in leaves if leaf.unique().numel() > 2]
    if random:
        other = init(torch.add(key, 1))
        found = "the same parameters for another key"
        require(not equal(params, other), f"{what}.init must use its key", found, f"{what}.init(random.key(1))")
    return params


def slopes(f: Callable[[Any], Tensor], at: Any, along: Any) -> tuple[Tensor, Tensor]:
    """The derivative of f, a number, at a tree of float64 tensors along another: by reverse mode, and by differences."""
    grads, step = torch.func.grad(f)(at), 1e-5

    def moved(by: float) -> Tensor:
        return f(optree.tree_map(lambda x, v: x + by * v, at, along)).detach()

    parts = optree.tree_leaves(optree.tree_map(lambda g, v: (g * v).sum(), grads, along))  # type: ignore[arg-type]
    return torch.stack(parts).sum().detach(), (moved(step) - moved(-step)) / (2.0 * step)


def wave(like: Tensor, phase: float) -> Tensor:
    """Numbers in [-1, 1] that all differ, float64."""
    return torch.sin(phase + 1.7 * torch.arange(like.numel(), dtype=torch.float64)).reshape(like.shape)


def way(leaf: Tensor) -> Tensor:
    """A direction in which a small step changes no sign, as kinks are often at 0."""
    return wave(leaf, 0.9) * torch.where(leaf == 0.0, 1.0, leaf.abs())
