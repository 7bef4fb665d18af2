"""Masked diffusion (MD4, Shi et al. 2024, arXiv 2406.04329; MDLM, Sahoo et al. 2024, arXiv 2406.07524) as pure functions:
diffusion over tokens, classes without an order such as characters, words or grey levels.

Noise hides tokens one by one, each by time t with probability 1 - alpha(t) = sigmoid(gamma(t)), until all are hidden. A
network says what stands behind a mask given what shows. Its nats, weighed over time, bound -log p(x); masks have no other
cost. With ``corruption="uniform"`` noise puts other classes in place of tokens instead.

:func:`diffusion` makes a model, a :class:`MaskedDiffusion`, which has a VDM's methods. Networks are those of
:mod:`purevdm.networks`, and take the symbols as numbers; schedules are those of :mod:`purevdm.schedules`.

>>> import torch
>>> from purevdm import masked, networks, random
>>> model = masked.diffusion(networks.transformer(16, 1, positions=True), None, (12,), classes=27, classes_last=True)
>>> params = model.init(random.key(0))
>>> x = random.randint(random.key(1), (4, 12), 0, 27)
>>> grads, loss = torch.func.grad_and_value(model.loss_fn)(params, x, random.key(2))  # bits a token
>>> terms = model.nll_bound(params, x, random.key(3))  # recon, prior, diffusion, each (4,), nats
>>> model.sample(params, random.key(4), 5, steps=20).shape
torch.Size([5, 12])

**What is counted.** Every token of x that ``mask`` says exists, once, whatever it is: a marker of a text's beginning or end
costs its nats and counts as a token. Padding costs nothing and does not count. An example is coded by itself: of a text cut
into windows, each window's first tokens have no past. ``evaluation.evaluate`` gives the mean over examples of bits a token
(``nll``) and total bits over total tokens (``pooled``), :func:`purevdm.evaluation.bits_per` total bits over any other count,
such as the bytes that the tokens stand for. :mod:`purevdm.masked.bound` says which terms there are, and which of them
others leave out.

:mod:`~purevdm.masked.order` has the bound of the same network as an autoregressive model in any order, by which
``codec.encode_tokens`` makes files.
"""

from purevdm.masked import bound, corruptions, order
from purevdm.masked.bound import Noise
from purevdm.masked.model import MaskedDiffusion, diffusion
from purevdm.masked.sampling import Sample

__all__ = ["MaskedDiffusion", "Noise", "Sample", "bound", "corruptions", "diffusion", "order"]
