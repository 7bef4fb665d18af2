"""What a model may be given besides a network, a schedule and a decoder: a subspace that its latents lie in, the variance of
its reverse process, a weighting of its training loss, an encoder whose means move with time.

Each is a value with one or two methods. To make one of your own, derive from its class.
"""

from purevdm.parts._encoder import Encoder
from purevdm.parts._reverse import Reverse, learned_range, posterior, upper
from purevdm.parts._subspace import Subspace, zero_centre
from purevdm.parts._weighting import Weighting, edm, monotone, sigmoid, truncated_snr

__all__ = [
    "Encoder",
    "Reverse",
    "Subspace",
    "Weighting",
    "edm",
    "learned_range",
    "monotone",
    "posterior",
    "sigmoid",
    "truncated_snr",
    "upper",
    "zero_centre",
]
