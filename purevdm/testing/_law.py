"""How a law is stated and broken."""

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor


class LawError(AssertionError):
    """A law that a part of a model breaks. The message says which, by how much, and how to see it."""


def require(holds: bool | Tensor, law: str, found: str, see: str) -> None:
    """Checks a law; where it does not hold, the error states it, what was found, and an expression that shows it."""
    if not bool(holds):
        raise LawError(f"{law}\n  found:     {found}\n  to see it: {see}")


def trying(law: str, see: str, run: Callable[[], Any]) -> Any:
    """Returns what ``run`` gives; an error that it raises breaks the law."""
    try:
        return run()
    except Exception as error:
        raise LawError(f"{law}\n  found:     {type(error).__name__}: {error}\n  to see it: {see}") from error


def compiled(what: str, run: Callable[[], Tensor], eager: Tensor, see: str, tolerance: float = 1e-4) -> None:
    """Checks that what is compiled gives what it gives in eager mode."""
    missed = off(trying(f"{what} must compile", see, torch.compile(run, fullgraph=True)), eager)
    require(missed <= tolerance, f"the compiled {what} must equal eager's", f"off by {missed:.2g} of its norm", see)


def equal(a: Any, b: Any) -> bool:
    """Says whether two trees hold the same tensors."""
    x, y = optree.tree_leaves(a), optree.tree_leaves(b)  # type: ignore[arg-type]
    same = optree.tree_structure(a) == optree.tree_structure(b)  # type: ignore[arg-type]
    return same and all(torch.equal(p, q) for p, q in zip(x, y, strict=True))


def wide(tree: Any) -> Any:
    """Casts the floating-point leaves of a tree of tensors to float64."""
    return optree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tree)  # type: ignore[arg-type]


def rows(cond: Any, index: Any) -> Any:
    """Takes the conditions of some examples; None where there are none."""
    return optree.tree_map(lambda leaf: leaf[index], cond)  # type: ignore[arg-type]


def repeated(cond: Any, n: int) -> Any:
    """Repeats one example's condition for n examples; None where there is none."""
    return optree.tree_map(lambda leaf: leaf.expand(n, *leaf.shape), cond)  # type: ignore[arg-type]


def floats(params: Any) -> tuple[dict[str, Tensor], Callable[[dict[str, Tensor]], Any]]:
    """Gives the floating-point leaves of a tree by their paths, and the function that puts others in their place."""
    paths, leaves, spec = optree.tree_flatten_with_path(params)  # type: ignore[arg-type, var-annotated]
    every = dict(zip([".".join(map(str, path)) for path in paths], leaves, strict=True))

    def with_others(others: dict[str, Tensor]) -> Any:
        return optree.tree_unflatten(spec, (every | others).values())

    return {name: leaf for name, leaf in every.items() if leaf.is_floating_point()}, with_others


def off(a: Tensor, b: Tensor) -> float:
    """Says by what part of its norm b is missed."""
    a, b = a.double(), b.double()
    return ((a - b).norm() / (b.norm() + 1e-6)).item()


def initialised(what: str, init: Callable[[Tensor], Any], key: Tensor) -> Any:
    """Draws the parameters that a key gives. They are a function of it: the same twice, whatever torch's generator holds,
    and others for another key where they look random at all."""
    see = f"{what}.init(random.key(0)), twice"
    law = f"{what}.init must be a function of its key"
    with torch.random.fork_rng(devices=[]):
        params = trying(law, see, lambda: init(key))
        torch.rand(())
        require(equal(params, init(key)), law, "other parameters in a second call", see)
    if any(leaf.unique().numel() > 2 for leaf in floats(params)[0].values()):
        law, found = f"{what}.init must use its key", "the same parameters for another key"
        require(not equal(params, init(torch.add(key, 1))), law, found, f"{what}.init(random.key(1))")
    return params


def slopes(f: Callable[[Any], Tensor], at: Any, along: Any) -> tuple[Tensor, Tensor]:
    """Computes the derivative of f, a number, at a tree in float64 along another: by reverse mode, and by differences."""
    grads, step = torch.func.grad(f)(at), 1e-5

    def moved(by: float) -> Tensor:
        return f(optree.tree_map(lambda x, v: x + by * v, at, along)).detach()

    parts = optree.tree_leaves(optree.tree_map(lambda g, v: (g * v).sum(), grads, along))  # type: ignore[arg-type]
    return torch.stack(parts).sum().detach(), (moved(step) - moved(-step)) / (2.0 * step)


def wave(like: Tensor, phase: float) -> Tensor:
    """Makes numbers in [-1, 1] that all differ, float64."""
    return torch.sin(phase + 1.7 * torch.arange(like.numel(), dtype=torch.float64)).reshape(like.shape)


def way(leaf: Tensor) -> Tensor:
    """Gives a direction in which a small step changes no sign, as kinks are often at 0."""
    return wave(leaf, 0.9) * torch.where(leaf == 0.0, 1.0, leaf.abs())
