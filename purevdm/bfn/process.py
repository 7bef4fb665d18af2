"""What all Bayesian flows have in common: one latent, one loss.

Let h be the data as numbers: x itself for real data, e_x - 1 / K for classes. By the time t the sender's noisy messages,
added up with their accuracies, amount to snr(t) h + sqrt(snr(t)) eps: a Brownian motion with drift h, whose clock is the
signal-to-noise ratio snr(t), beta(t) for real data and K beta(t) for classes. The latent used here is that sum over
sqrt(snr),

    w = sqrt(snr) h + eps,

standard normal noise at t = 0, where nothing was sent. The input distribution is a function of w and t: its mean is
sqrt(snr) w / (1 + snr) for real data, its probabilities are softmax(sqrt(snr) w) for classes. A variational diffusion
model's latent is the same w times sigma (:mod:`purevdm.bfn.bridge`).

Functions of one example, with the noise and what the network predicts as arguments; snr and its changes broadcast.
"""

import torch
from torch import Tensor

__all__: list[str] = []  # for the rooms of this package


def latent(h: Tensor, snr: Tensor, eps: Tensor) -> Tensor:
    """w = sqrt(snr) h + eps."""
    return torch.sqrt(snr) * h + eps


def continuous_loss(h: Tensor, h_hat: Tensor, slope: Tensor) -> Tensor:
    """The continuous-time loss's integrand, snr'(t) |h - h_hat|**2 / 2, nats: of each number, of h's shape.

    h_hat is the mean of the output distribution. For real data this is -log(sigma_1) sigma_1**(-2 t) |x - x_hat|**2 (eq.
    101), for classes K beta_1 t |e_x - e_hat|**2 (eq. 205).
    """
    return 0.5 * (slope * (h - h_hat).square())


def sender_loss(h: Tensor, h_hat: Tensor, gain: Tensor) -> Tensor:
    """KL(sender || receiver) of one step for an output distribution that is a point h_hat, gain |h - h_hat|**2 / 2,
    nats: of each number, of h's shape. The gain is the step's in snr, its accuracy alpha for real data."""
    return 0.5 * (gain * (h - h_hat).square())


def receiver_loss(log_p: Tensor, offsets: Tensor, eps: Tensor, gain: Tensor) -> Tensor:
    """A draw of log sender(y) - log receiver(y) of one step, the receiver being a mixture, nats: of each dimension,
    (*event_shape).

    The mean over noise is KL(sender || receiver). Each dimension's receiver mixes the sender's normals of all values k with
    the weights p_k of the output distribution (eqs. 189 and 190 for classes). Their densities at y, relative to the
    sender's, are exp(-gain |h - h_k|**2 / 2 - sqrt(gain) (h - h_k) . eps): y never appears, and nothing cancels.

    Args:
        log_p: log probabilities of all values, (*event_shape, K).
        offsets: h - h_k, (*event_shape, K, d), where a value is d numbers.
        eps: the sender's noise, (*event_shape, d).
        gain: the step's in snr.
    """
    along = (offsets * eps[..., None, :]).sum(-1)
    relative = -0.5 * gain * offsets.square().sum(-1) - torch.sqrt(gain) * along
    return -torch.logsumexp(log_p + relative, -1)
