"""The form of a score network, and what all of them ask of their inputs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from purevdm import _checks
from purevdm.nn import Params


class Network(NamedTuple):
    """A score network, for one example.

    Attributes:
        init: ``init(key, event_shape) -> params``.
        apply: ``apply(params, z, gamma, cond=None, key=None) -> eps_hat``: the noise in the latent z (``event_shape``) at
            noise level gamma (shape ()), given a condition. A key switches on what is random in training (dropout);
            without one the network is deterministic.
    """

    init: Callable[[Tensor, Sequence[int]], Params]
    apply: Callable[..., Tensor]


def condition(cond: Any, cond_dim: int, like: Tensor) -> Tensor | None:
    """The condition as a vector of ``cond_dim`` numbers in z's dtype, or None where the network takes none."""
    if cond_dim == 0:
        if cond is not None:
            raise ValueError(f"cond: this network takes none (cond_dim=0), got {_checks.describe(cond)}")
        return None
    if cond is None:
        raise ValueError(f"cond: expected {cond_dim} numbers an example (cond_dim={cond_dim}), got None")
    cond = _checks.tensor("cond", cond)
    if tuple(cond.shape) != (cond_dim,) and not (cond.ndim == 0 and cond_dim == 1):
        one = " or ()" if cond_dim == 1 else ""
        raise ValueError(f"cond: expected shape ({cond_dim},){one} an example, got {_checks.describe(cond)}")
    return cond.reshape(cond_dim).to(like.dtype)
