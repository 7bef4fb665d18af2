"""The process of EDM, with its preconditionings."""

import itertools
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks
from purevdm._compile import fixed
from purevdm.interop._process import Process, vp_time, wide
from purevdm.schedules import Schedule, karras

__all__ = ["edm"]


@dataclass(frozen=True)
class EDM(Process):
    """The process of :func:`edm`."""

    kind: str
    sigma_min: float
    sigma_max: float
    sigma_data: float
    betas: tuple[float, float]
    steps: int
    edges: tuple[float, ...] = field(repr=False, default=())

    @property
    def predicts(self) -> str:  # type: ignore[override]
        return "v" if self.kind == "edm" else "eps"

    @property
    def channels(self) -> int:  # type: ignore[override]
        return 2 if self.kind == "iddpm" else 1

    @property
    def schedule(self) -> Schedule:
        return karras(self.sigma_min, self.sigma_max)

    def inputs(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "edm":
            return wide(gamma) * z * torch.rsqrt(gamma.exp() + fixed(self.sigma_data) ** 2), gamma / 8.0
        if self.kind == "ve":
            return wide(gamma) * z, 0.5 * gamma - math.log(2.0)
        if self.kind == "vp":
            time = vp_time(F.softplus(gamma, threshold=80), *self.betas)
            return z, fixed(self.steps - 1) * time
        edges = torch.tensor(self.edges, dtype=z.dtype, device=z.device)
        return z, torch.searchsorted(edges, torch.exp(0.5 * gamma.detach()).contiguous()).to(z.dtype) - 1.0

    def prediction(self, z: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
        if self.kind == "edm":
            var = fixed(self.sigma_data) ** 2
            total, noise = gamma.exp() + var, torch.exp(0.5 * gamma)
            return noise * (1.0 - var) / total * z - fixed(self.sigma_data) * wide(gamma) * torch.rsqrt(total) * out
        return -out if self.kind == "ve" else out


def edm(
    kind: str = "edm",
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    sigma_data: float = 0.5,
    beta_min: float = 0.1,
    beta_d: float = 19.9,
    steps: int = 1000,
    c_1: float = 0.001,
    c_2: float = 0.008,
) -> Process:
    """Makes the process of Karras et al. 2022 (arXiv 2206.00364): alpha = 1, sigma = exp(gamma / 2), x_t = sqrt(1 +
    sigma**2) z, with one of the four preconditionings of their table 1. The network is F, within the class that has one.

    With s = sigma and d = sigma_data, in the order of ``kind``:

    | kind | F takes | and | says |
    |---|---|---|---|
    | "edm" | x_t / sqrt(s^2 + d^2) | log(s) / 4 | v = s (1 - d^2) / (s^2 + d^2) z - d sqrt((1 + s^2) / (s^2 + d^2)) F |
    | "vp" | z | (M - 1) t, t from s | eps = F |
    | "ve" | x_t | log(s / 2) | eps = -F |
    | "iddpm" | z | M - 1 - j, u_j nearest s | eps = F, of the first half of the channels |

    v is what they call D = c_skip x_t + c_out F in other terms, without its cancellation at a small sigma. M is ``steps``; t
    is where beta_min t + beta_d t**2 / 2 = log(1 + s^2). "iddpm" is told the nearest of its M levels, as in their code, and
    so is no smooth function of gamma: take it in steps. 8-bit data are at 2 k / 255 - 1.

    Args:
        kind: of the network.
        sigma_min, sigma_max: the ends of the schedule, :func:`purevdm.schedules.karras`; 0.002 and 80 where left out,
            within what the network takes ("ve" up to 100 and from 0.02, "iddpm" at its levels).
        sigma_data: d.
        beta_min, beta_d: of "vp".
        steps, c_1, c_2: M, and the constants of "iddpm".

    Raises:
        TypeError, ValueError: another kind, or numbers out of range.
    """
    _checks.choice("kind", kind, ("edm", "vp", "ve", "iddpm"))
    steps, ends = _checks.integer("steps", steps, 2), (0.002, 80.0)
    edges: tuple[float, ...] = ()
    if kind == "ve":
        ends = (0.02, 100.0)
    elif kind == "iddpm":
        u = _iddpm_sigmas(steps, _checks.positive("c_1", c_1), _checks.positive("c_2", c_2))
        edges, ends = tuple(0.5 * (a + b) for a, b in itertools.pairwise(u)), (u[1], min(80.0, u[-1]))
    low = ends[0] if sigma_min is None else _checks.positive("sigma_min", sigma_min)
    high = ends[1] if sigma_max is None else _checks.positive("sigma_max", sigma_max)
    low, high = _checks.increasing("sigma_min", low, "sigma_max", high)
    data, *rates = (
        _checks.positive(n, v) for n, v in (("sigma_data", sigma_data), ("beta_min", beta_min), ("beta_d", beta_d))
    )
    return EDM(kind, low, high, data, (rates[0], rates[0] + rates[1]), steps, edges)


def _iddpm_sigmas(steps: int, c_1: float, c_2: float) -> list[float]:
    """Computes the noise scales u_M = 0, ..., u_0 of EDM's iDDPM."""

    def bar(j: int) -> float:
        return math.sin(0.5 * math.pi * j / steps / (c_2 + 1.0)) ** 2

    u = [0.0]
    for j in range(steps, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1.0) / max(bar(j - 1) / bar(j), c_1) - 1.0))
    return u
