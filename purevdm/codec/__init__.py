"""Lossless compression by bits-back coding with a model (Kingma et al. 2021, sec. 6.3): files about as small as the bound.

:func:`encode` and :func:`decode` go from data to bytes and back, :func:`write` and :func:`read` to files block by block, and
:func:`info` says what a file holds. :func:`curve` reads the bound step by step, as rate and distortion.
:func:`encode_tokens` and :func:`decode_tokens` code text and other tokens by a masked diffusion, without latents. Imported
by name, ``from purevdm import codec``: it needs NumPy and constriction (extra ``codec``).

**Files decode on every machine.** The network runs in float64, and all around it is integers and exactly rounded operations.
The means that it gives are rounded, to a 128th of a standard deviation, with one of 64 dithers, which is chosen so that no
mean lies within 2**-20 of such a part from a boundary, and coded at the cost of a bit or less a step; the deviations of a
learned range likewise, to a 256th, and what a decoder takes of the network's estimate. Between instruction sets, numbers of
threads and pieces of a batch, a U-Net's means differ by 1e-11 of a part. So nothing changes unless noise is 1e5 times as
large. Without dithers, noise of 1e-11 would change a number in one of fifty files of 2e9 numbers. A file whose noise is
larger is refused by the checksum of its data, never decoded wrongly.
"""

from purevdm.codec._container import Block, CodecError, Info, info
from purevdm.codec._curve import Curve, curve
from purevdm.codec._reading import decode, read
from purevdm.codec._tokens import decode_tokens, encode_tokens
from purevdm.codec._writing import encode, write

__all__ = [
    "Block",
    "CodecError",
    "Curve",
    "Info",
    "curve",
    "decode",
    "decode_tokens",
    "encode",
    "encode_tokens",
    "info",
    "read",
    "write",
]
