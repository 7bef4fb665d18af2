"""Layers as functions of a dict of parameters, one example at a time, and their initialisers.

Each layer is a pair: ``LAYER_init(key, ...)`` makes its parameters (float32), ``LAYER(params, x, ...)`` applies it to one
example, channels first, without a batch axis; ``torch.func.vmap`` batches it. Those of feature maps take a batch as well,
``group_norm`` and ``pointwise`` with ``rank``, the number of axes of space. Defaults are Flax's: LeCun-normal kernels, zero
biases, group norms with epsilon 1e-6. Both raise TypeError or ValueError for a size that does not fit, and name it.

>>> from purevdm import nn, random
>>> params = nn.dense_init(random.key(0), 3, 5)
>>> nn.dense(params, random.normal(random.key(1), (3,))).shape
torch.Size([5])
"""

from purevdm.nn._batching import concatenate
from purevdm.nn._initialisers import Initialiser, constant, lecun_normal, normal, zeros
from purevdm.nn._layers import (
    attention,
    conv,
    conv_init,
    dense,
    dense_init,
    dropout,
    embedding,
    embedding_init,
    fourier_features,
    group_norm,
    group_norm_init,
    over_space,
    paddings,
    pointwise,
    swish,
    timestep_embedding,
    upsample,
)
from purevdm.nn._monotone import CONVEX, monotone_activation, monotone_dense

__all__ = [
    "CONVEX",
    "Initialiser",
    "attention",
    "concatenate",
    "constant",
    "conv",
    "conv_init",
    "dense",
    "dense_init",
    "dropout",
    "embedding",
    "embedding_init",
    "fourier_features",
    "group_norm",
    "group_norm_init",
    "lecun_normal",
    "monotone_activation",
    "monotone_dense",
    "normal",
    "over_space",
    "paddings",
    "pointwise",
    "swish",
    "timestep_embedding",
    "upsample",
    "zeros",
]
