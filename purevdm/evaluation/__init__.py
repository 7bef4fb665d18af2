"""The likelihood of a data set: -log p(x) of each example by any method, or the bound on it, its mean with a standard error,
two models or methods paired, and the loss over noise levels.

``batches`` is an iterable: each batch is a tensor x, (B, *event_shape), by itself or in a tuple or list (x,), a pair
(x, cond), with cond as the network takes it or None, or (x, cond, mask), with what exists of padded data. So a
``torch.utils.data.DataLoader`` works.

Batch j draws from ``fold_in(key, j)``, split for its passes. The same batches and key give the same noise, to any model, in
any number of processes. A batch's times are spread evenly over it, so larger ones have less noise; one of another size is
another compilation.

What is compared should be paired: two models, two methods, or one model under several conditions, on the same batches **with
the same key**. To classify by likelihood, bound the same batches under each class. Most of the spread of a bound comes from
its times and noise, and cancels. With another key for each class the noise decides: 0.125 of the digits are then classified
rightly, and 0.845 with one key.

Mutual information and divergence are such differences, too, pointwise and in the mean. The bound without a condition minus
that with it is the mutual information of data and condition. On data of a model p, the bound of q minus that of p is the
divergence KL(p, q). Both are estimates, no bounds, and off by as much as the gaps of the two bounds differ. For Gaussians
under ideal models, one key instead of two leaves a ninth of the first one's variance, and a thirtieth of the second's.

>>> import purevdm, torch
>>> from purevdm import evaluation, networks, random, schedules
>>> model = purevdm.vdm(networks.mlp(16, classes=3, cond_drop=0.1), schedules.fixed_linear(), event_shape=(2,))
>>> params, x = model.init(random.key(0)), random.randint(random.key(1), (8, 2), 0, 256)
>>> labels = [torch.full((8,), c) for c in range(3)]
>>> each = [evaluation.per_example(model, params, [(x, label)], random.key(2), passes=4).nll for label in labels]
>>> torch.stack(each).argmin(0).shape
torch.Size([8])
>>> free, given = (
...     evaluation.per_example(model, params, [(x, cond)], random.key(2), passes=4) for cond in (None, labels[0])
... )
>>> pointwise = free.nll - given.nll  # nats
>>> information = evaluation.compare(free, given).difference  # a mean and its error, bits/dim
"""

from purevdm.evaluation._examples import evaluate, per_example
from purevdm.evaluation._figures import Comparison, Evaluation, Figure, PerExample, bits_per, compare
from purevdm.evaluation._profile import Curve, Profile, profile

__all__ = [
    "Comparison",
    "Curve",
    "Evaluation",
    "Figure",
    "PerExample",
    "Profile",
    "bits_per",
    "compare",
    "evaluate",
    "per_example",
    "profile",
]
