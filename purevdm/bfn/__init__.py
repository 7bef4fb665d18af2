"""Bayesian Flow Networks (Graves, Srivastava, Atkinson, Gomez 2023, arXiv 2308.07037) as pure functions.

A sender has data, and sends noisy messages about them, step by step, about each dimension separately. A receiver keeps an
*input distribution* of each dimension, starts from a prior, and updates it by Bayes' rule. A network takes the parameters of
all input distributions and gives an *output distribution*, from which the receiver predicts the next message: so it models
how dimensions depend on one another. The nats that the messages cost under that prediction bound -log p(x). Means and
probabilities are continuous, so discrete data are modelled by a continuous process.

Three functions make a model, a :class:`BFN`, which has a VDM's methods:

- :func:`continuous`: of real numbers, with normal input distributions and a point as output. It is a diffusion model:
  :mod:`~purevdm.bfn.bridge` shows how, and where the two differ.
- :func:`discretised`: of integers with an order, such as pixels; the output gives each bin a mass.
- :func:`discrete`: of classes, such as characters, with categorical input distributions.

>>> import torch
>>> from purevdm import bfn, networks, random
>>> model = bfn.discrete(networks.mlp(32, fourier=()), event_shape=(8,), classes=4, beta_1=2.0)
>>> params = model.init(random.key(0))
>>> x = random.randint(random.key(1), (16, 8), 0, 4)
>>> grads, loss = torch.func.grad_and_value(model.loss_fn)(params, x, random.key(2))
>>> terms = model.nll_bound(params, x, random.key(3))  # recon, diffusion (the messages), each (16,), nats
>>> model.sample(params, random.key(4), 5, steps=20).shape
torch.Size([5, 8])
>>> fast = model.sample(params, random.key(4), 5, steps=10, solver=bfn.solvers.ode_2())
>>> model._replace(timesteps=50).loss_fn(params, x, random.key(2)).shape  # the loss of 50 messages
torch.Size([])

Networks are those of :mod:`purevdm.networks`. They take the time t, from 0 to 1, where a diffusion model's take gamma. The
library's own embed it between the endpoints 0 and 1, as the official code does. Conditions, guidance, self-conditioning,
dropout and mixed precision work as they do there.

A model is made of values: :mod:`~purevdm.bfn.flows` (the latent, and what is sent by each time, in the paper's symbols),
:mod:`~purevdm.bfn.outputs` (with the losses) and :mod:`~purevdm.bfn.solvers`.

The n-step loss of discrete data takes the receiver for one mixture over classes, as the paper has it (eqs. 189 and 190): so
it tends to the continuous-time loss as n grows. The official code takes a product over coordinates. Probabilities of bins
have no floor.
"""

from purevdm.bfn import bound, bridge, flows, outputs, solvers
from purevdm.bfn._kinds import continuous, discrete, discretised
from purevdm.bfn.distributions import binned
from purevdm.bfn.model import BFN
from purevdm.bfn.sampling import Sample

__all__ = [
    "BFN",
    "Sample",
    "binned",
    "bound",
    "bridge",
    "continuous",
    "discrete",
    "discretised",
    "flows",
    "outputs",
    "solvers",
]
