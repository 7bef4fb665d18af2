"""Bayesian flows in the paper's own words: what is sent, and the input distribution after it."""

import torch


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
    return alpha * (classes * torch.nn.functional.one_hot(x, classes) - 1.0) + torch.sqrt(alpha * classes) * eps


def classes_update(theta, y):
    """The input distribution after seeing y: exp(y) theta, normalised."""
    return torch.softmax(theta.log() + y, -1)
