"""Explicit random keys, with the numbers of ``jax.random``.

A **key** is an int32 tensor of shape (2,): the two 32-bit words of a threefry2x32 key, the same bits that JAX keeps as
uint32 (``key.view(torch.uint32)`` shows them). Every function is a pure function of its key: the same key gives the same
draw on any device, in eager mode, compiled, and under ``torch.func.vmap``. Use a key once; to draw twice, :func:`split` it
first. Results live on the key's device.

Integers and float32 draws are those of ``jax.random`` bit for bit, as it draws on a CPU with fused multiply-adds, and the
same on every CPU here, fused or not: they are made only of operations that IEEE 754 defines to the last bit. In float64,
normals, truncated normals and Gumbels take torch's functions, whose last bits are the machine's. In float16 and bfloat16 a
compiled graph may round less often than eager mode. The draws of JAX 0.12 were compared to those of 0.10 in three dtypes and
are equal, except ``uniform(key, (2, 3, 4, 5), float32, -2, 3)``, which the compiler of 0.12 rounds differently.

A draw depends on its dtype, as in JAX: float64 draws are not float32 draws with more digits. Element i of an array depends
on the key and on i only, so a longer draw begins with the shorter one (JAX's default, ``jax_threefry_partitionable=True``).

Every function raises TypeError or ValueError for a key, shape or dtype of the wrong form, and names it.

>>> from purevdm import random
>>> k_model, k_noise = random.split(random.key(0))
>>> random.normal(k_noise, (3,))
tensor([-2.4425, -2.0357,  0.2055])
"""

from purevdm.random._draws import (
    bernoulli,
    categorical,
    gumbel,
    normal,
    permutation,
    rademacher,
    randint,
    truncated_normal,
    uniform,
)
from purevdm.random._keys import bits, fold_in, key, split

__all__ = [
    "bernoulli",
    "bits",
    "categorical",
    "fold_in",
    "gumbel",
    "key",
    "normal",
    "permutation",
    "rademacher",
    "randint",
    "split",
    "truncated_normal",
    "uniform",
]
