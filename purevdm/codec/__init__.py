"""Lossless compression by bits-back coding with a model (Kingma et al. 2021, sec. 6.3): files about as small as the bound.

:func:`encode` and :func:`decode` go from data to bytes and back, :func:`write` and :func:`read` to files block by block, and
:func:`info` tells what a file holds. Imported by name, ``from purevdm import codec``: it needs NumPy and constriction (extra
``codec``).
"""

from purevdm.codec.coding import Block, CodecError, Info, decode, encode, info, read, write

__all__ = ["Block", "CodecError", "Info", "decode", "encode", "info", "read", "write"]
