"""Codes: a vector of a few numbers for each example, drawn by an encoder, for a schedule and a network to depend on (MuLAN,
Sahoo et al. 2024, arXiv 2312.13236).

A model with a code is p(c) p(x given c). The code c joins the example's condition, so that gamma(t) may differ from example
to example and from dimension to dimension (:func:`purevdm.schedules.polynomial`), and the bound has a fourth term,
KL(q(c given x) || p(c)).

What there is to learn between fixed endpoints: the diffusion loss of an example is an integral along a path from gamma(0)
to gamma(1). Where dimensions are independent it is the same on every path. So it is for an ideal network, whose bound is
-log p(x) on each. But where dimensions are correlated and the network is not ideal, paths differ, and the best one need not
be the same for all examples. ``tests/test_multivariate.py`` has these cases in numbers.

>>> import torch, purevdm
>>> from purevdm import codes, decoders, networks, random, schedules
>>> code = codes.gaussian(decoders.perceptron((8,), (32,), (2 * 3,)), 3)
>>> schedule = schedules.polynomial((8,), context=3, hidden=16)
>>> model = purevdm.vdm(networks.mlp(32, cond_dim=3), schedule, event_shape=(8,), vocab_size=16, code=code)
>>> params, x = model.init(random.key(0)), random.randint(random.key(1), (4, 8), 0, 16)
>>> bound = model.nll_bound(params, x, random.key(2))
>>> bound.code.shape, model.sample(params, random.key(3), 5, steps=10).shape
(torch.Size([4]), torch.Size([5, 8]))
"""

from purevdm.codes._code import Code
from purevdm.codes._discrete import KHot as KHot  # for the other rooms
from purevdm.codes._discrete import OneHot as OneHot
from purevdm.codes._discrete import k_hot, one_hot
from purevdm.codes._gaussian import Gaussian as Gaussian
from purevdm.codes._gaussian import gaussian

__all__ = ["Code", "gaussian", "k_hot", "one_hot"]
