"""Tables of betas, as the code of DDPMs names them, in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._stable import expm1

__all__ = ["betas"]

KINDS = ("linear", "scaled_linear", "cosine", "sigmoid")
# What gamma is above the level before, for zero SNR: 2e-9 of one term of a bound, and within 39, for float32.
BEYOND, MOST = 20.0, 39.0


def betas(
    kind: str = "linear",
    T: int = 1000,  # noqa: N803
    start: float = 1e-4,
    end: float = 0.02,
    *,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """Makes a table of T betas, float64 (T,).

    Args:
        kind: "linear" between start and end; "scaled_linear", linear in sqrt(beta), of latent diffusion; "cosine" (Nichol &
            Dhariwal 2021, eq. 17; ``squaredcos_cap_v2`` in diffusers), capped at 0.999, without a range; "sigmoid", start +
            (end - start) sigmoid of -6 to 6 (diffusers).
        T: how many.
        start, end: the range. For T steps the linear table of improved-diffusion is from 0.1 / T to 20 / T.
        zero_terminal_snr: whether sqrt(abar) is shifted and scaled to end in 0 and start as it did (Lin et al. 2024, arXiv
            2305.08891). The last beta is then 1.

    Raises:
        TypeError, ValueError: another kind, or numbers out of range.

    >>> from purevdm import interop
    >>> interop.betas("linear", 5)
    tensor([0.0001, 0.0051, 0.0100, 0.0150, 0.0200], dtype=torch.float64)
    """
    _checks.choice("kind", kind, KINDS)
    n, start, end = _checks.integer("T", T, 2), _checks.positive("start", start), _checks.positive("end", end)

    def line(low: float, high: float) -> Tensor:
        return torch.linspace(low, high, n, dtype=torch.float64, device="cpu")

    if kind == "linear":
        made = line(start, end)
    elif kind == "scaled_linear":
        made = line(math.sqrt(start), math.sqrt(end)).square()
    elif kind == "sigmoid":
        made = start + (end - start) * torch.sigmoid(line(-6.0, 6.0))
    else:
        at = torch.arange(n + 1, dtype=torch.float64, device="cpu") / n
        bar = torch.cos((at + 0.008) / 1.008 * (math.pi / 2)).square()
        made = (1.0 - bar[1:] / bar[:-1]).clamp(max=0.999)
    if _checks.boolean("zero_terminal_snr", zero_terminal_snr):
        root = torch.cumprod(1.0 - made, 0).sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        root[-1] = 0.0
        made = torch.cat([made[:1], 1.0 - (root[1:] / root[:-1]).square()])
    return made


def levels_of(given: Tensor | Sequence[float]) -> tuple[float, ...]:
    """Gives gamma at each level of a table of betas, or refuses it."""
    table = torch.as_tensor(given, device="cpu").to(torch.float64).reshape(-1)
    if len(table) < 2:
        raise ValueError(f"betas: expected at least two, got {len(table)}")
    for i, beta in enumerate(table.tolist()):
        if not 0.0 < beta < 1.0 and not (beta == 1.0 and i == len(table) - 1):
            wanted = "numbers above 0 and below 1 (the last may be 1)"
            raise ValueError(f"betas: expected {wanted}, got {beta:g} at {i}")
    # log(abar) by log1p, as 1 - abar of a product of numbers near 1 cancels
    log_bar = torch.log1p(-table).cumsum(0)
    levels = torch.log(expm1(-log_bar)).tolist()
    if not math.isfinite(levels[-1]):
        levels[-1] = max(min(levels[-2] + BEYOND, MOST), levels[-2] + BEYOND / 2)
    return tuple(levels)
