"""Bayesian flows in the paper's own words: what is sent, the input distribution after it, and the sum of many messages."""

import torch

from purevdm.bfn import categorical, normal


def normal_flow(x, t, eps, sigma_1):
    """The input distribution's mean at time t, a draw of N(g x, g (1 - g)) with g = 1 - sigma_1**(2 t) (sec. 4.3)."""
    variance = normal.variance(t, sigma_1)
    g = variance * normal.beta(t, sigma_1)
    return g * x + torch.sqrt(g * variance) * eps


def normal_sender(x, alpha, eps):
    """y = x + eps / sqrt(alpha), a draw of the sender distribution of accuracy alpha (sec. 4)."""
    return x + eps / torch.sqrt(alpha)


def normal_update(mean, precision, y, alpha):
    """The input distribution's mean and precision after seeing y of accuracy alpha (sec. 4.2)."""
    new = precision + alpha
    return (precision * mean + alpha * y) / new, new


def classes_sender(x, alpha, eps):
    """y = alpha (K e_x - 1) + sqrt(alpha K) eps, a draw of the sender distribution of accuracy alpha (sec. 6)."""
    classes = eps.shape[-1]
    return alpha * (classes * categorical.one_hot(x, classes, eps.dtype) - 1.0) + torch.sqrt(alpha * classes) * eps


def classes_update(theta, y):
    """The input distribution after seeing y: exp(y) theta, normalised."""
    return torch.softmax(theta.log() + y, -1)


def classes_flow(x, t, eps, beta_1):
    """theta at time t, a draw of the Bayesian flow distribution when eps is standard normal."""
    return torch.softmax(classes_sender(x, categorical.beta(t, beta_1), eps), -1)
