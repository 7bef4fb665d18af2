"""Operations with batching rules of our own for ``torch.func.vmap``: mapped over a batch, each is PyTorch's own operation on
that batch, with its derivatives.

PyTorch's rules for convolutions and concatenations fix the batch's size, so that a compiled graph would serve only one size,
and insert views that keep a compiler from choosing a layout. Its rule for group norms leaves scale and bias to operations of
their own.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm._compile import in_front

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: list[int]) -> Tensor:
    if x.ndim == kernel.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        # Once, and not again in the backward pass. A compiler does it anyway.
        kernel = kernel.contiguous(memory_format=torch.channels_last)
    return _CONVOLUTIONS[kernel.ndim - 2](x, kernel, bias, stride=stride, padding=padding)  # type: ignore[operator]


def _convolve_batch(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: list[int]
) -> tuple[Tensor, int]:
    axis, kernel_axis, bias_axis = in_dims[:3]
    n = info.batch_size
    one = x.ndim - (axis is not None) < kernel.ndim - (kernel_axis is not None)
    if kernel_axis is None and bias_axis is None:
        x = x.movedim(axis, 0)
        if one:
            return _CONVOLVE(x, kernel, bias, stride, padding), 0
        y = _CONVOLVE(x.flatten(0, 1), kernel, bias, stride, padding)  # a batch of batches
        return y.unflatten(0, (n, -1)), 0

    # A batch of kernels: as many groups of channels.
    x, kernel = in_front(x, axis, n), in_front(kernel, kernel_axis, n)
    x = (x.unsqueeze(1) if one else x).movedim(0, 1).flatten(1, 2)
    bias = None if bias is None else in_front(bias, bias_axis, n).flatten()
    convolution = _CONVOLUTIONS[kernel.ndim - 3]
    y = convolution(x, kernel.flatten(0, 1), bias, stride=stride, padding=padding, groups=n)  # type: ignore[operator]
    y = y.unflatten(1, (n, -1)).movedim(0, 1)
    return (y.squeeze(1) if one else y), 0


def _concatenate(xs: list[Tensor], axis: int) -> Tensor:
    return torch.cat(xs, axis)


def _concatenate_batch(info: Any, in_dims: tuple[Any, ...], xs: list[Tensor], axis: int) -> tuple[Tensor, int]:
    n = info.batch_size
    whole = [in_front(x, at, n) for x, at in zip(xs, in_dims[0], strict=True)]
    return _CONCATENATE(whole, axis + 1 if axis >= 0 else axis), 0


def _group_norm(x: Tensor, groups: int, scale: Tensor, bias: Tensor, eps: float) -> Tensor:
    if x.is_cpu and x.dtype in (torch.float16, torch.bfloat16):  # whose own kernels take three times as long as float32's
        return F.group_norm(x.float(), groups, scale.float(), bias.float(), eps).to(x.dtype)
    return F.group_norm(x, groups, scale, bias, eps)


def _group_norm_batch(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, groups: int, scale: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, int]:
    axis, scale_axis, bias_axis = in_dims[0], in_dims[2], in_dims[3]
    n = info.batch_size
    x = in_front(x, axis, n)
    if scale_axis is None and bias_axis is None:
        return _GROUP_NORM(x.flatten(0, 1), groups, scale, bias, eps).unflatten(0, (n, -1)), 0
    one = scale.new_ones(x.shape[2])
    y = _GROUP_NORM(x.flatten(0, 1), groups, one, torch.zeros_like(one), eps).unflatten(0, (n, -1))

    def spread(s: Tensor, axis: int | None) -> Tensor:
        s = s if axis is None else s.movedim(axis, 0)
        return s.reshape(-1, 1, x.shape[2], *(1 for _ in x.shape[3:]))

    return y * spread(scale, scale_axis) + spread(bias, bias_axis), 0


_library = torch.library.Library("purevdm", "FRAGMENT")
_library.define("convolve(Tensor x, Tensor kernel, Tensor? bias, int stride, int[] padding) -> Tensor")
_library.define("concatenate(Tensor[] xs, int axis) -> Tensor")
_library.define("group_norm(Tensor x, int groups, Tensor scale, Tensor bias, float eps) -> Tensor")
_library.impl("convolve", _convolve, "CompositeImplicitAutograd")
_library.impl("concatenate", _concatenate, "CompositeImplicitAutograd")
_library.impl("group_norm", _group_norm, "CompositeImplicitAutograd")
torch.library.register_vmap("purevdm::convolve", _convolve_batch, lib=_library)
torch.library.register_vmap("purevdm::concatenate", _concatenate_batch, lib=_library)
torch.library.register_vmap("purevdm::group_norm", _group_norm_batch, lib=_library)

_CONVOLVE, _CONCATENATE = torch.ops.purevdm.convolve.default, torch.ops.purevdm.concatenate.default
_GROUP_NORM = torch.ops.purevdm.group_norm.default


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: Sequence[int]) -> Tensor:
    """Applies F.conv1d, F.conv2d or F.conv3d, by the kernel's rank, to one example (n_in, *space), or to a batch."""
    return _CONVOLVE(x, kernel, bias, stride, list(padding))  # type: ignore[no-any-return]


def concatenate(xs: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Joins tensors along an axis, as ``torch.cat``."""
    return _CONCATENATE(list(xs), axis)  # type: ignore[no-any-return]


def group_norm(x: Tensor, groups: int, scale: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Applies F.group_norm to a batch (N, channels, *space)."""
    return _GROUP_NORM(x, groups, scale, bias, eps)  # type: ignore[no-any-return]
