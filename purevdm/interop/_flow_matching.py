"""The processes of flow matching, which are diffusions in other coordinates."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks
from purevdm._compile import fixed
from purevdm.interop._process import Process, vp_time
from purevdm.process import alpha, sigma
from purevdm.schedules import Schedule, fixed_linear

__all__ = ["flow_matching"]


PATHS = ("condot", "cosine", "linear_vp", "poly", "vp")


@dataclass(frozen=True)
class FlowMatching(Process):
    """The process of :func:`flow_matching`."""

    path: str
    reversed: bool
    time_scale: float
    power: float
    betas: tuple[float, float]
    gammas: tuple[float, float]

    predicts = "v"

    @property
    def schedule(self) -> Schedule:
        return fixed_linear(*self.gammas)

    def time(self, gamma: Tensor) -> Tensor:
        """Gives t, 1 at data and 0 at noise."""
        if self.path == "cosine":
            return 2.0 / math.pi * torch.atan(torch.exp(-0.5 * gamma))
        if self.path == "linear_vp":
            return alpha(gamma)
        if self.path == "vp":
            return 1.0 - vp_time(F.softplus(gamma, threshold=80), *self.betas)
        t = torch.sigmoid(-0.5 * gamma)
        return t if self.path == "condot" else t ** (1.0 / fixed(self.power))

    def _path(self, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Computes alpha, sigma, alpha' and sigma sigma', from gamma."""
        if self.path in ("cosine", "linear_vp", "vp"):
            a, s = alpha(gamma), sigma(gamma)
            if self.path == "cosine":
                return a, s, 0.5 * math.pi * s, -0.5 * math.pi * a * s
            if self.path == "linear_vp":
                return a, s, torch.ones_like(a), -a
            low, high = self.betas
            slope = 0.5 * (fixed(low) + fixed(high - low) * (1.0 - self.time(gamma)))  # of -log alpha, in 1 - t
            return a, s, slope * a, -slope * a.square()
        t, power = self.time(gamma), 1.0 if self.path == "condot" else fixed(self.power)
        a, s = torch.sigmoid(-0.5 * gamma), torch.sigmoid(0.5 * gamma)
        slope = power * t ** (power - 1.0)
        return a, s, slope, -slope * s

    def scale(self, gamma: Tensor) -> Tensor:
        """Gives c = sqrt(alpha**2 + sigma**2): x_t = c z."""
        a, s, *_ = self._path(gamma)
        return torch.sqrt(a.square() + s.square())

    def inputs(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        t = self.time(gamma)
        if self.reversed:
            t = torch.sigmoid(0.5 * gamma) if self.path == "condot" else 1.0 - t
        return self.scale(gamma) * z, fixed(self.time_scale) * t

    def prediction(self, z: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
        a, s, da, sds = self._path(gamma)
        c, velocity = self.scale(gamma), -out if self.reversed else out
        # (c u - (alpha alpha' + sigma sigma') z) / (alpha sigma' - sigma alpha'), times sigma above and below
        return s * (c * velocity - (a * da + sds) * z) / (a * sds - s.square() * da)


def flow_matching(
    path: str = "condot",
    *,
    reversed: bool = False,
    time_scale: float = 1.0,
    power: float = 2.0,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    gamma_min: float = -18.0,
    gamma_max: float = 18.0,
) -> Process:
    """Makes the process of flow matching and rectified flows (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023): the
    network predicts the velocity u = alpha' data + sigma' noise at x_t = alpha data + sigma noise, data at t = 1. It is a
    diffusion in other coordinates:

        v = alpha_vp eps - sigma_vp x = (c u - (alpha alpha' + sigma sigma') z) / (alpha sigma' - sigma alpha').

    On the straight path, "condot", alpha = t, sigma = 1 - t and v = (2 t - 1) z - c u. The others have an alpha and a sigma
    of: "cosine", sin and cos of pi t / 2; "linear_vp", t and sqrt(1 - t^2); "poly", t^n and 1 - t^n; "vp", exp(-B / 2) and
    sqrt(1 - exp(-B)), with B that of :func:`score_sde` at 1 - t.

    A density of data themselves, at t = 1, has gamma = -infinity. gamma_min = -18, a noise of 1e-4, stands for it: 1e-8 off
    in a log density that is smooth on that scale. For a file or a bound, it is the noise of p(x given z_0).

    Args:
        path: of alpha and sigma.
        reversed: whether the network has data at time 0 and predicts noise - data, as in Stable Diffusion 3 and Flux.
        time_scale: what the network's time is multiplied by: 1000 there.
        power: n of "poly".
        beta_min, beta_max: of "vp".
        gamma_min, gamma_max: the ends of the schedule, a line in gamma.

    Raises:
        TypeError, ValueError: another path, or numbers out of range.
    """
    low, high = _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)
    betas = _checks.increasing("beta_min", _checks.positive("beta_min", beta_min), "beta_max", beta_max)
    return FlowMatching(
        _checks.choice("path", path, PATHS),
        _checks.boolean("reversed", reversed),
        _checks.positive("time_scale", time_scale),
        _checks.positive("power", power),
        betas,
        (low, high),
    )
