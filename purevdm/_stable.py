"""exp(x) - 1 and erf that are right for small arguments in compiled graphs, too.

Inductor's vector code for CPUs takes exp(x) - 1 for ``expm1`` and, in float32, 1 minus a number near 1 for ``erf`` (torch
2.13 to 2.15; ``expm1`` in 2.13 only): at 1e-6 they are some per cent off, and 0 at 1e-8. So every room takes these two,
which are torch's own in eager mode and on other devices, and have derivatives in both modes and batching rules everywhere.
``atanh``, which nothing here needs, cancels as well; ``log1p``, ``sinh``, ``asinh``, ``tanh``, ``erfc`` and ``softplus`` do
not.
"""

import torch
from torch import Tensor


def expm1(x: Tensor) -> Tensor:
    """Computes exp(x) - 1, to two units in the last place."""
    if not (torch.compiler.is_compiling() and x.is_cpu):
        return torch.expm1(x)
    # Near 0, 2 t / (1 - t) with t = tanh(x / 2). Each branch is finite where the other is taken, and so are its derivatives.
    t = torch.tanh(0.5 * x.clamp(-1.0, 1.0))
    return torch.where(x.abs() < 1.0, 2.0 * t / (1.0 - t), torch.exp(x) - 1.0)


def erf(x: Tensor) -> Tensor:
    """Computes erf, to a unit in the last place: float64's does not cancel."""
    if not (torch.compiler.is_compiling() and x.is_cpu):
        return torch.erf(x)
    return torch.erf(x.double()).to(x.dtype)
