"""The likelihood of data: exactly by the probability flow, and bounds tighter than the NLLBound by importance weights.

The flow gives log p(z_0) of a latent exactly: log p(z_0) = log N(z_1; 0, I) + the integral of the divergence along it.
Data are not latents, so a distribution q(z_0 given x) stands between, with weights w whose mean is p(x) or less:

| dequantisation | q(z_0 given x) | log w = log p(z_0) + |
|---|---|---|
| "variational" | N(alpha_0 f, sigma_0**2), as in the bound | log p(x given z_0) - log q(z_0 given x) |
| "truncated" | the same, truncated to x's bin (Zheng et al. 2023, arXiv 2305.03935) | -log q(z_0 given x) |
| "uniform" | uniform over x's bin (Theis et al. 2016, arXiv 1511.01844) | the log volume of the bin |
| "none" | z_0 = alpha_0 f, for real-valued data | the log Jacobian of x to z_0 |

In the first, the model is that of the bound: a latent and the decoder. In the next two it is a latent rounded to the nearest
value. E log w bounds log p(x) from below. The logarithm of the mean of K weights is a tighter bound, which rises with K and
tends to log p(x) (Burda et al. 2016, arXiv 1509.00519).

A model with a code (:mod:`purevdm.codes`) draws one for each weight, whose logarithm then has log p(c) - log q(c given x),
too. How likely a k-hot code is under its encoder is not known, and is taken to be 1, which bounds the weight from below.

In a model's subspace, densities and the divergence are those within it. Data of several kinds side by side
(:func:`purevdm.decoders.product`), and others whose latents have another shape, take "variational".
"""

from purevdm.likelihood import flow
from purevdm.likelihood._estimate import Estimate, combine
from purevdm.likelihood.density import log_prob, log_prob_latent
from purevdm.likelihood.flow import to_data, to_noise
from purevdm.likelihood.gradient import log_prob_and_grad
from purevdm.likelihood.trajectories import importance_bound

__all__ = [
    "Estimate",
    "combine",
    "flow",
    "importance_bound",
    "log_prob",
    "log_prob_and_grad",
    "log_prob_latent",
    "to_data",
    "to_noise",
]
