"""The form of a score network."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from purevdm.nn import Params


class Network(NamedTuple):
    """A score network, for one example.

    Attributes:
        init: ``init(key, event_shape) -> params``.
        apply: ``apply(params, z, gamma, cond=None, key=None) -> eps_hat``: the noise in the latent z (``event_shape``) at
            noise level gamma (shape ()), given a condition. A key switches on what is random in training (dropout of
            features and of the condition); without one the network is deterministic.
        self_condition: whether ``apply`` also takes ``x_hat``, an earlier estimate of the data (``event_shape``) or None
            for none (Chen, Zhang, Hinton 2022, arXiv 2208.04202).
    """

    init: Callable[[Tensor, Sequence[int]], Params]
    apply: Callable[..., Tensor]
    self_condition: bool = False
