"""Laws of score networks."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, denoiser, random
from purevdm.networks import Network
from purevdm.testing._law import compiled, equal, floats, initialised, off, require, rows, slopes, trying, wave, way, wide
from purevdm.types import Key, Params, Shape

__all__ = ["check_network"]

EXAMPLES = 3
SEE = "denoiser.output(network, params, z, gamma, cond)"
WITH_KEYS = "denoiser.output(network, params, z, gamma, cond, keys)"


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
    """Checks a network against the laws that losses, samplers and likelihoods rest on.

    ``init`` is a function of its key. ``apply`` gives finite numbers of the latent's shape. It is pure: it leaves parameters
    as they are, draws nothing without a key, and gives the same for the same key. Each example's output depends on that
    example and its condition only. Its gradients are finite, and have the strides of their parameters. Its derivative in the
    latent, as the divergence of a likelihood takes it, and the derivative of that are those of differences, where PyTorch
    has them.

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
    k_init, k_move, k_z, k_network, k_other = random.split(random.key(0) if key is None else key, 5).unbind(0)
    start = initialised("network", lambda k: network.init(k, tuple(event_shape)), k_init)
    params = _moved(start, k_move) if params is None else params
    before = {name: leaf.clone() for name, leaf in floats(params)[0].items()}
    low, high = gamma or network.endpoints or (-13.3, 5.0)
    z, levels = random.normal(k_z, (EXAMPLES, *event_shape)), torch.linspace(low, high, EXAMPLES)

    def run(p: Params = params, index: Any = slice(None), key: Tensor | None = None, cond: Any = cond) -> Tensor:
        return denoiser.output(network, p, z[index], levels[index], rows(cond, index), None if key is None else key[index])

    found = trying("apply must give a number for each of the latent's", SEE, run)
    require(found.isfinite().all(), "apply must be finite", f"{int((~found.isfinite()).sum())} numbers are not", SEE)
    _pure(run, random.split(k_network, EXAMPLES))
    law = "apply must leave its parameters as they are"
    require(equal(before, floats(params)[0]), law, "other parameters after a call", SEE)

    law = "an example's output must depend on that example only"
    for i in range(EXAMPLES):
        one = slice(i, i + 1)
        missed = off(trying(law, f"{SEE}, of one example", partial(run, index=one)), found[one])
        text = f"example {i} of {EXAMPLES} differs by {missed:.2g} of its norm from the same one by itself"
        require(missed <= 1e-4, law, text, f"{SEE}[i], and of only z[i:i + 1]")
    if cond is not None:
        missed = off(run(cond=rows(cond, torch.arange(EXAMPLES).roll(1))), found)
        text = "the same output under another condition"
        require(missed > 1e-6, "the condition must matter", text, f"{SEE}, and of another cond")
    if stochastic is not None:
        first, *rest = (run(key=random.split(random.fold_in(k_other, i), EXAMPLES)) for i in range(8))
        differ = any(off(other, first) > 1e-6 for other in rest)
        law = f"keys must {'' if stochastic else 'not '}matter, as stochastic={stochastic} says"
        text = f"{'different' if differ else 'the same'} outputs under eight sets of keys"
        require(differ == stochastic, law, text, f"{WITH_KEYS}, under several sets of keys")

    _gradients(run, params)
    _derivatives(network, params, z.double(), levels.double(), wide(cond))
    if compile:
        compiled("network", run, found, SEE)


def _moved(params: Params, key: Key) -> Params:
    """Makes every floating-point leaf a little larger, so that nothing is zero and what is positive stays so."""
    leaves, with_others = floats(params)
    keys = zip(leaves.items(), random.split(key, max(len(leaves), 1)), strict=False)
    return with_others({name: leaf + 0.05 * random.uniform(k, leaf.shape).to(leaf) for (name, leaf), k in keys})


def _pure(run: Any, keys: Tensor) -> None:
    """Checks that outputs are the same twice, without a key and with one, wherever torch's generator stands."""
    for name, key, see in (("without a key", None, SEE), ("for the same key", keys, WITH_KEYS)):
        with torch.random.fork_rng(devices=[]):
            first, state = run(key=key), torch.get_rng_state()
            missed = off(run(key=key), first)
            text = f"off by {missed:.2g} of its norm in a second call"
            text += "" if torch.equal(torch.get_rng_state(), state) else "; it draws from torch's own generator"
        require(missed <= 1e-6, f"apply must give the same {name}", text, f"{see}, twice")


def _gradients(run: Any, params: Params) -> None:
    leaves, with_others = floats(params)
    if not leaves:
        return
    see = f"torch.func.grad(lambda p: {SEE.replace('params', 'p')}.square().mean())(params)"
    grads = trying(
        "gradients must pass", see, lambda: torch.func.grad(lambda p: run(with_others(p)).square().mean())(leaves)
    )
    bad = [name for name, grad in grads.items() if not grad.isfinite().all()]
    require(not bad, "gradients must be finite", f"NaN or infinity in {', '.join(bad[:3])}", see)
    law = "gradients must lie in memory as their parameters do, as fused optimisers go by memory order"
    bad = [name for name, grad in grads.items() if grad.stride() != leaves[name].stride()]
    require(not bad, law, f"other strides in {', '.join(bad[:3])}", see)


def _derivatives(network: Network, params: Params, z: Tensor, gamma: Tensor, cond: Any) -> None:
    """Checks the derivative of the output in the latent, and that of it in latent and parameters, against differences."""
    leaves, with_others = floats(wide(params))
    v, still = wave(z, 0.3), {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}

    def output(z: Tensor, p: dict[str, Tensor] = leaves) -> Tensor:
        return denoiser.output(network, with_others(p), z, gamma, cond)

    def product(at: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
        """Computes a derivative of the output in the latent, as the divergence takes it."""
        return (torch.func.vjp(partial(output, p=at[1]), at[0])[1](v)[0] * v).sum()  # type: ignore[misc]

    try:
        if (output(z + 1e-8) == output(z)).double().mean() > 0.5:
            return  # a network that rounds has no differences
        ways = {name: way(leaf) for name, leaf in leaves.items()}
        first = slopes(lambda z: (output(z) * v).sum(), z, v)
        in_z, in_params = (slopes(product, (z, leaves), to) for to in ((wave(z, 0.9), still), (torch.zeros_like(z), ways)))
    except (RuntimeError, NotImplementedError, TypeError):  # an operation without a second derivative, or without float64
        return
    for name, (got, want) in {"": first, " of that in z": in_z, " of that in params": in_params}.items():
        law = f"the output's derivative{name or ' in z'} must be that of differences"
        near = (got - want).abs() <= 1e-2 * want.abs() + 1e-4 * first[1].abs() + 1e-6
        require(near, law, f"{got:.6g}, and {want:.6g} by differences", SEE)
