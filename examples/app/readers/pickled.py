"""The pickles that data sets were published in, read without running anything that they name: arrays, and dicts and lists of
plain values.

NumPy's own objects trust the bytes that they are restored from. So here they are restored as records of what the file says,
and an array is made of a record once its shape, its dtype and its bytes fit together.
"""

import io
import math
import pickle
from typing import Any

import numpy as np

from readers._common import DataError

DTYPES = {kind: np.dtype(f"<{kind}") for kind in ("u1", "i1", "u2", "i2", "i4", "i8", "f4", "f8")}
ORDERS = ("|", "<", "=")
DEEPEST = 8  # levels of dicts and lists in each other


def unpickled(content: bytes) -> Any:
    """Reads what a pickle holds."""
    file = io.BytesIO(content)
    entries = _Plain(file, encoding="bytes").load()
    if file.read(1):
        raise DataError("expected one pickle, found more behind it")
    return _made(entries, 0)


class _Record:
    """What a file says of an object."""

    def __init__(self, *arguments: Any):
        self.arguments, self.state = arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Record):
    pass


class _Dtype(_Record):
    pass


def _encoded(text: Any, encoding: Any) -> bytes:
    """Makes bytes, as Python 3 writes them in protocol 2."""
    if not isinstance(text, str) or _text(encoding) != "latin1":
        raise DataError(f"expected text in latin1, found {type(text).__name__} in {encoding!r:.20}")
    return text.encode("latin1")


def _text(x: Any) -> Any:
    """Makes text, which Python 2 wrote as bytes."""
    return x.decode("latin1") if isinstance(x, bytes) else x


class _Plain(pickle._Unpickler):
    """By pickle's own Python: its C code makes room for as much as the file says, before it reads any."""

    KNOWN = {("numpy", "_reconstruct"): _Array, ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype}  # noqa: RUF012
    KNOWN |= {("_codecs", "encode"): _encoded}

    def find_class(self, module: str, name: str) -> object:
        known = self.KNOWN.get((module.split(".")[0], name))
        if known is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return known


def _made(x: Any, depth: int) -> Any:
    """Makes arrays of their records."""
    if depth > DEEPEST:
        raise DataError(f"expected at most {DEEPEST} levels, found more")
    if isinstance(x, dict):
        return {name: _made(value, depth + 1) for name, value in x.items()}
    if isinstance(x, _Array):
        return _array(x)
    return x


def _array(record: _Array) -> np.ndarray:
    state = record.state
    if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _Dtype)):
        raise DataError("expected the shape, the dtype and the bytes of an array, found something else")
    _, shape, dtype, fortran, raw = state
    kind = _text(dtype.arguments[0]) if dtype.arguments else None
    order = _text(dtype.state[1]) if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else None
    if not isinstance(kind, str) or kind not in DTYPES or not isinstance(order, str) or order not in ORDERS:
        raise DataError(f"expected numbers of a plain dtype, found {kind!r:.20} in the order {order!r:.20}")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 8:
        raise DataError(f"expected the shape of an array, found {shape!r:.40}")
    if fortran is not False and fortran != 0:
        raise DataError("expected an array by rows, found one by columns")
    size = math.prod(shape) * DTYPES[kind].itemsize
    if not isinstance(raw, bytes) or len(raw) != size:
        given = len(raw) if isinstance(raw, bytes) else f"a {type(raw).__name__}"
        raise DataError(f"expected {size} bytes for {kind} of shape {shape}, found {given}")
    return np.frombuffer(raw, DTYPES[kind]).reshape(shape)
