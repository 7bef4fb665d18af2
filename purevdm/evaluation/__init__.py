"""The likelihood of a data set: the bound of each example, its mean with a standard error, two models paired, the loss over
noise levels; and log p(x) by any method of :mod:`purevdm.likelihood`, two methods paired.

All functions take ``batches``, an iterable: each batch is a tensor x, (B, *event_shape), alone or in a tuple or list (x,),
or a pair (x, cond), with cond as the network takes it or None. So a ``torch.utils.data.DataLoader`` works.

Batch j draws from ``fold_in(key, j)``, split for its passes. The same batches and key give the same noise, to any model, in
any number of processes. A batch's times are spread evenly over it, so larger ones have less noise; one of another size is
another compilation.
"""

from purevdm.evaluation.bounds import bounds
from purevdm.evaluation.figures import Comparison, Evaluation, Figure, compare, evaluate, summary
from purevdm.evaluation.likelihoods import Measurement, difference, likelihoods, measurement
from purevdm.evaluation.profile import Curve, Profile, profile

__all__ = [
    "Comparison",
    "Curve",
    "Evaluation",
    "Figure",
    "Measurement",
    "Profile",
    "bounds",
    "compare",
    "difference",
    "evaluate",
    "likelihoods",
    "measurement",
    "profile",
    "summary",
]
