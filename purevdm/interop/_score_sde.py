"""The processes of score-based models in continuous time."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks
from purevdm._compile import fixed
from purevdm._stable import expm1
from purevdm.interop._process import Process, vp_time, wide
from purevdm.schedules import Schedule, fixed_linear
from purevdm.types import Key, Params

__all__ = ["score_sde"]


@dataclass(frozen=True)
class ScoreSDE(Process, Schedule):
    """The process of :func:`score_sde`, and its schedule."""

    kind: str
    low: float
    high: float
    epsilon: float

    @property
    def schedule(self) -> Schedule:
        if self.kind != "ve":
            return self
        low, high = 2.0 * math.log(self.low), 2.0 * math.log(self.high)
        return fixed_linear(low + (high - low) * self.epsilon, high)

    @property
    def endpoints(self) -> tuple[float, float]:  # type: ignore[override]
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu")
        return tuple(self.gamma({}, ends).tolist())  # type: ignore[return-value]

    def init(self, key: Key) -> Params:
        return {}

    def gamma(self, params: Params, t: Tensor, *context: object) -> Tensor:
        t = fixed(self.epsilon) + fixed(1.0 - self.epsilon) * t
        total = fixed(self.low) * t + fixed(0.5 * (self.high - self.low)) * t.square()
        log = torch.log(2.0 * torch.sinh(0.5 * total))  # exp(B) - 1 = 2 sinh(B / 2) exp(B / 2)
        return log + 0.5 * total if self.kind == "vp" else 2.0 * log

    def inputs(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "ve":
            return wide(gamma) * z, torch.exp(0.5 * gamma)
        if self.kind == "vp":
            return z, 999.0 * vp_time(F.softplus(gamma, threshold=80), self.low, self.high)
        total = 2.0 * torch.asinh(0.5 * torch.exp(0.5 * gamma))
        scale = torch.sqrt(torch.exp(-total) + expm1(-total).square())
        return scale * z, 999.0 * vp_time(total, self.low, self.high)

    def prediction(self, z: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
        return -torch.exp(0.5 * gamma) * out if self.kind == "ve" else out


def score_sde(
    kind: str = "vp",
    *,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    sigma_min: float = 0.01,
    sigma_max: float = 50.0,
    epsilon: float = 1e-5,
) -> Process:
    """Makes a process of Song et al. 2021 (arXiv 2011.13456) in their continuous time. With B = beta_min t + (beta_max -
    beta_min) t**2 / 2, t from ``epsilon`` to 1:

    | kind | alpha | sigma | the network takes | and says |
    |---|---|---|---|---|
    | "vp" | exp(-B / 2) | sqrt(1 - exp(-B)) | x_t, 999 t | eps = F |
    | "subvp" | exp(-B / 2) | 1 - exp(-B) | x_t, 999 t | eps = F |
    | "ve" | 1 | sigma_min (sigma_max / sigma_min)^t | x_t, sigma | eps = -sigma F |

    F is what the network itself returns: eps for the first two, which their code divides by -sigma, and the score for "ve".
    gamma is log(exp(B) - 1), 2 log(2 sinh(B / 2)), and 2 log sigma. Their data are in [-1, 1] for the first two, and in
    [0, 1] for "ve", ``decoders.discrete(loc=-1, scale=2)``.

    Their likelihoods start at t = epsilon from data without noise, end in N(0, 1) or N(0, sigma_max**2), and add 7 or 8 bits
    for the data's range (7 for [-1, 1]). Here the first noise is part of the model, p(x given z_0) or a dequantisation, and
    z_1 of "ve" has the variance that it has, 1 + sigma_max**2.

    Args:
        kind: "vp", "subvp" or "ve".
        beta_min, beta_max, sigma_min, sigma_max: of the processes, in units of data.
        epsilon: the least time.

    Raises:
        TypeError, ValueError: another kind, or numbers out of range.
    """
    _checks.choice("kind", kind, ("vp", "subvp", "ve"))
    names = ("sigma_min", "sigma_max") if kind == "ve" else ("beta_min", "beta_max")
    given = (sigma_min, sigma_max) if kind == "ve" else (beta_min, beta_max)
    low, high = (_checks.positive(name, x) for name, x in zip(names, given, strict=True))
    low, high = _checks.increasing(names[0], low, names[1], high)
    epsilon = _checks.positive("epsilon", epsilon)
    if epsilon >= 1.0:
        raise ValueError(f"epsilon: expected a number below 1, got {epsilon}")
    return ScoreSDE(kind, low, high, epsilon)
