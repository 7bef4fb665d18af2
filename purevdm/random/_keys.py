"""Keys, and the bits that they give: threefry2x32 used as JAX does."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from purevdm import _checks
from purevdm.random import _threefry
from purevdm.random._threefry import WORD
from purevdm.types import Key, Shape

_UNSIGNED = {torch.uint8: 8, torch.uint16: 16, torch.uint32: 32, torch.uint64: 64}


def words(key: Key, shape: Shape, width: int) -> Tensor:
    """Draws random bits: int32 holding 32 of them or the low 16 or 8 (the rest zero); int64 holding 64."""
    n = _size(shape)
    if width == 64:
        high, low = _threefry.pairs(key, n).to(torch.int64).unbind(-1)
        return ((high << 32) | (low & WORD)).reshape(shape)
    word = _threefry.mixed(key, n).reshape(shape)
    return word if width == 32 else word & ((1 << width) - 1)


def _size(shape: Shape) -> int:
    n = math.prod(shape)
    if n > _checks.LARGEST:
        raise OverflowError(f"shape: expected at most 2**63 - 1 numbers, got {tuple(shape)}")
    return n


def key(seed: int, *, device: torch.device | str | None = None) -> Tensor:
    """Makes a key from a seed, as ``jax.random.PRNGKey`` does without x64: the words ``[0, seed mod 2**32]``.

    Args:
        seed: any Python integer. Seeds equal modulo 2**32 make the same key, as in JAX.
        device: where the key lives, and with it all that is drawn from it.

    Returns:
        int32, shape (2,).
    """
    low = _checks.integer("seed", seed) & WORD
    device = None if device is None else _checks.device("device", device)
    return torch.tensor([0, low - 2**32 if low >= 2**31 else low], dtype=torch.int32, device=device)


def split(key: Key, num: int | Sequence[int] = 2) -> Tensor:
    """Makes fresh, independent keys from one, which is then used up: shape (num, 2), or (*num, 2) for a shape."""
    _checks.key("key", key)
    shape = _checks.shape("num", num) if isinstance(num, (tuple, list)) else (_checks.integer("num", num, 1),)
    return _threefry.pairs(key, _size(shape)).reshape(*shape, 2)


def fold_in(key: Key, data: int | Tensor) -> Tensor:
    """Makes a fresh key, (2,), from a key and a number, such as a step's index.

    ``data`` is an integer in [0, 2**32), or an int32 or int64 tensor of shape (), so that a compiled loop can fold in its
    counter. A negative int32 stands for the uint32 with the same bits.
    """
    _checks.key("key", key)
    if not isinstance(data, Tensor):
        data = torch.full((), _checks.integer("data", data, 0, WORD), dtype=torch.int64, device=key.device)
    elif _checks.shaped("data", data, ()).dtype not in (torch.int32, torch.int64):
        raise TypeError(f"data: expected an int32 or int64 tensor, got {_checks.describe(data)}")
    elif data.dtype == torch.int64:
        _checks.within("data", data, 0, WORD)
    return _threefry.folded(key, _threefry.low_word(data) if data.dtype == torch.int64 else data)


def bits(key: Key, shape: Shape = (), dtype: torch.dtype = torch.uint32) -> Tensor:
    """Draws random bits as unsigned integers, every value equally likely.

    ``dtype`` is uint8, uint16, uint32 or uint64. (torch computes little with the last three; ``.view`` them as signed.)
    """
    shape = _checks.shape("shape", shape)
    width = _UNSIGNED[_checks.dtype("dtype", dtype, _UNSIGNED)]
    # A conversion keeps the bits, as a view does, and vmap knows it in every version of torch.
    return words(_checks.key("key", key), shape, width).to(dtype)
