"""Laws of score networks."""

from functools import partial
from typing import Any

import optree
import torch
from torch import Tensor

from purevdm import _checks, denoiser, random
from purevdm.networks import Network
from purevdm.testing._law import copied, equal, initialised, off, require, slopes, trying, wave, way, wide
from purevdm.types import Key, Params, Shape

__all__ = ["check_network"]

EXAMPLES = 3


def check_network(
    network: Network,
    event_shape: Shape,
    *,
    params: Params | None = None,
    cond: Any = None,
    gamma: tuple[float, float] | None = None,
    key: Key | None = None,
    stochastic: bool | None = None,
    compile: bool = False,
) -> None:
    """Holds a network against the laws that losses, samplers and likelihoods rest on.

    ``init`` is a function of its key. ``apply`` gives finite numbers of the latent's shape. It is pure: it leaves parameters
    alone, draws nothing without a key, and gives the same for the same key. Each example's output depends on that example
    and its condition alone, whether by ``vmap`` or batched. Its gradients are finite, and have the strides of their
    parameters. Its derivative in the latent, as the divergence of a likelihood takes it, and the derivative of that are
    those of differences, where PyTorch has them.

    Args:
        network: the network.
        event_shape: of one latent.
        params: its parameters; where left out ``init``'s, a little moved, so that no layer is zero.
        cond: conditions for three examples, as the network takes them; they must differ, and must matter.
        gamma: the range of gamma to try; the network's endpoints where it has some, or else the paper's.
        key: a key.
        stochastic: whether training draws from the key (dropout): keys must then matter, or must not. None tests neither.
        compile: whether the compiled network must give the same, too.

    Raises:
        LawError: a law does not hold; the message says which, by how much, and how to see it.

    >>> from purevdm import networks, testing
    >>> testing.check_network(networks.mlp(16), (3,), stochastic=False)
    """
    _checks.instance("network", network, Network, "a Network such as purevdm.networks.mlp()")
    key = random.key(0) if key is None else key
    k_init, k_move, k_z, k_network, k_other = random.split(key, 5).unbind(0)
    start = initialised("network", lambda k: network.init(k, tuple(event_shape)), k_init)
    params = _moved(start, k_move) if params is None else params
    before = copied(params)
    low, high = gamma or network.endpoints or (-13.3, 5.0)
    z = random.normal(k_z, (EXAMPLES, *event_shape))
    levels = torch.linspace(low, high, EXAMPLES)
    keys = random.split(k_network, EXAMPLES)

    def run(p: Params = params, index: Any = slice(None), key: Tensor | None = None, cond: Any = cond) -> Tensor:
        some = None if cond is None else optree.tree_map(lambda leaf: leaf[index], cond)  # type: ignore[arg-type]
        return denoiser.output(network, p, z[index], levels[index], some, None if key is None else key[index])

    see = "denoiser.output(network, params, z, gamma, cond)"
    found = trying("apply must give a number for each of the latent's", see, run)
    require(found.isfinite().all(), "apply must be finite", f"{int((~found.isfinite()).sum())} numbers are not", see)
    _pure(run, found, keys, before, params, see)

    for i in range(EXAMPLES):
        law = "an example's output must depend on that example alone"
        alone = trying(law, see + ", of one example", partial(run, index=slice(i, i + 1)))
        missed = off(alone, found[i : i + 1])
        told = f"example {i} of {EXAMPLES} differs by {missed:.2g} of its norm from the same one by itself"
        require(missed <= 1e-4, law, told, see + "[i], and of z[i:i + 1] alone")
    if cond is not None:
        other = optree.tree_map(lambda leaf: leaf.roll(1, 0), cond)  # type: ignore[arg-type]
        told = "the same output under another condition"
        require(off(run(cond=other), found) > 1e-6, "the condition must matter", told, see + ", and of another cond")

    if stochastic is not None:
        first, *rest = (run(key=random.split(random.fold_in(k_other, i), EXAMPLES)) for i in range(8))
        differ = any(off(other, first) > 1e-6 for other in rest)
        law = f"keys must {'' if stochastic else 'not '}matter, as stochastic={stochastic} says"
        told = f"{'different' if differ else 'the same'} outputs under eight sets of keys"
        require(differ == stochastic, law, told, see[:-1] + ", keys), under several sets of keys")

    _gradients(run, params)
    _derivatives(network, params, z, levels, cond, see)
    if compile:
        compiled = torch.compile(run, fullgraph=True)
        missed = off(trying("apply must compile", see, compiled), found)
        require(missed <= 1e-4, "the compiled network must equal eager", f"off by {missed:.2g} of its norm", see)


def _moved(params: Params, key: Key) -> Params:
    """Every floating-point leaf a little larger, so that nothing is zero and what is positive stays so."""
    leaves, spec = optree.tree_flatten(params)  # type: ignore[arg-type, var-annotated]
    keys = random.split(key, max(len(leaves), 1))
    moved = [
        leaf + 0.05 * random.uniform(k, leaf.shape).to(leaf) if leaf.is_floating_point() else leaf
        for k, leaf in zip(keys, leaves, strict=False)
    ]
    return optree.tree_unflatten(spec, moved)  # type: ignore[return-value]


def _pure(run: Any, found: Tensor, keys: Tensor, before: Params, params: Params, see: str) -> None:
    """Twice the same, without a key and with one, wherever torch's generator stands."""
    for name, key, first in (("without a key", None, found), ("for the same key", keys, run(key=keys))):
        torch_state = torch.get_rng_state()
        torch.rand(7)
        again = run(key=key)
        drawn = not torch.equal(torch.get_rng_state(), _after_seven(torch_state))
        torch.set_rng_state(torch_state)
        law = f"apply must give the same {name}"
        told = f"off by {off(again, first):.2g} of its norm in a second call"
        told += "; it draws from torch's own generator" if drawn else ""
        require(off(again, first) <= 1e-6, law, told, f"{see}, twice" if key is None else f"{see[:-1]}, keys), twice")
    require(equal(before, params), "apply must leave its parameters alone", "other parameters after a call", see)


def _after_seven(state: Tensor) -> Tensor:
    torch.set_rng_state(state)
    torch.rand(7)
    return torch.get_rng_state()


def _gradients(run: Any, params: Params) -> None:
    leaves, spec = optree.tree_flatten(params)  # type: ignore[arg-type, var-annotated]
    floating = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]

    def loss(some: list[Tensor]) -> Tensor:
        whole = list(leaves)
        for i, leaf in zip(floating, some, strict=True):
            whole[i] = leaf
        return run(optree.tree_unflatten(spec, whole)).square().mean()

    see = "torch.func.grad(lambda p: denoiser.output(network, p, z, gamma, cond).square().mean())(params)"
    if floating:
        grads = trying("gradients must pass", see, lambda: torch.func.grad(loss)([leaves[i] for i in floating]))
        paths = optree.tree_paths(params)  # type: ignore[arg-type]
        bad = [".".join(map(str, paths[i])) for i, g in zip(floating, grads, strict=True) if not g.isfinite().all()]
        require(not bad, "gradients must be finite", f"NaN or infinity in {', '.join(bad[:3])}", see)
        law = "gradients must lie in memory as their parameters do, as fused optimisers go by memory order"
        bad = [
            ".".join(map(str, paths[i])) for i, g in zip(floating, grads, strict=True) if g.stride() != leaves[i].stride()
        ]
        require(not bad, law, f"other strides in {', '.join(bad[:3])}", see)


def _derivatives(network: Network, params: Params, z: Tensor, gamma: Tensor, cond: Any, see: str) -> None:
    """The derivative of the output in the latent, and that of it in latent and parameters, against differences."""
    leaves, spec = optree.tree_flatten(wide(params))  # type: ignore[arg-type, var-annotated]
    floating = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]
    some = wide(cond) if cond is not None else None

    def output(z: Tensor, moved: list[Tensor]) -> Tensor:
        whole = list(leaves)
        for i, leaf in zip(floating, moved, strict=True):
            whole[i] = leaf
        return denoiser.output(network, optree.tree_unflatten(spec, whole), z, gamma.double(), some)  # type: ignore[arg-type]

    held, v = [leaves[i] for i in floating], wave(z, 0.3)

    def product(at: tuple[Tensor, list[Tensor]]) -> Tensor:
        """A derivative of the output in the latent, as the divergence takes it."""
        return (torch.func.vjp(partial(output, moved=at[1]), at[0])[1](v)[0] * v).sum()  # type: ignore[misc]

    z = z.double()
    ways = [("z", (wave(z, 0.9), [torch.zeros_like(leaf) for leaf in held]))]
    ways.append(("params", (torch.zeros_like(z), [way(leaf) for leaf in held])))
    try:
        if (output(z + 1e-8, held) == output(z, held)).double().mean() > 0.5:
            return  # a network that rounds has no differences
        first = slopes(lambda z: (output(z, held) * v).sum(), z, v)
        second = {name: slopes(product, (z, held), along) for name, along in ways}
    except (RuntimeError, NotImplementedError, TypeError):  # an operation without a second derivative, or without float64
        return
    pairs = {"derivative in z": first} | {f"derivative of that in {name}": pair for name, pair in second.items()}
    for what, (got, want) in pairs.items():
        told = f"{got:.6g}, and {want:.6g} by differences"
        law = f"the output's {what} must be that of differences"
        require((got - want).abs() <= 1e-2 * want.abs() + 1e-4 * first[1].abs() + 1e-6, law, told, see)
