"""Score networks: each a pair of pure functions, which predict the noise, the data or v in a latent.

A network is any :class:`Network`. Ten lines make one of your own:

>>> import torch
>>> import purevdm
>>> from purevdm import networks, nn, random, schedules
>>> def init(key, event_shape):
...     return nn.dense_init(key, event_shape[0] + 1, event_shape[0])
>>> def apply(params, z, gamma, cond=None, key=None):
...     return nn.dense(params, torch.cat([z, gamma[None]]))
>>> network = networks.Network.of(init, apply)

``apply`` takes one example, and the model maps it over a batch. With ``batched=True`` it takes the whole batch, as networks
made of a ``torch.nn.Module`` by :func:`from_module` do:

>>> class Net(torch.nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.layers = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Dropout(0.1), torch.nn.Linear(16, 2))
...     def forward(self, z, gamma):
...         return self.layers(torch.cat([z, gamma[:, None]], 1))
>>> network = networks.from_module(Net)
>>> model = purevdm.vdm(network, schedules.learned_linear(), event_shape=(2,))
>>> x = random.randint(random.key(1), (4, 2), 0, 256)
>>> model.loss_fn(model.init(random.key(0)), x, random.key(2)).shape
torch.Size([])

The library's own networks:

- :func:`unet` takes signals, images and volumes of any size, at several resolutions.
- :func:`vdm_unet` is the paper's, for images: :func:`unet` at one resolution, equal to the official network.
- :func:`mlp` takes events of any shape, flattened. It is made for points.
- :func:`egnn` takes points with features, such as atoms, and is equivariant under turns, reflections and permutations.
- :func:`transformer` takes sets and sequences, (n, d), padded ones by their mask.
- :func:`unet_encoder` takes images to a few numbers, for a code (:mod:`purevdm.codes`).
- :func:`binned` makes an estimate of integers by what is known of them: they have levels.
- :func:`mirrored` makes any network as good at the mirror image: a mean of two estimates, for twice the time.
- :func:`mixed` makes any network compute in bfloat16. Parameters, schedule, random numbers and losses stay float32.

**Attention** in :func:`unet` is given as an einops pattern, the way a feature map becomes tokens. A pattern that cannot be
undone is refused, with the reason, when the network is made.

**Conditions** are a vector of numbers (``cond_dim``), a class (``classes``), a control sequence for cross-attention
(``ctrl_dim``), a map of the event's own size (``map_channels``), or several of them in a :class:`Condition`. ``cond_drop``
drops the condition in training, by key. Then ``sample(..., guidance=2.0)`` strengthens it (classifier-free guidance).

**Self-conditioning** (``self_condition=True``) gives the network its earlier estimate of the data: half of the time in
training, and always in the bound, which takes two passes and so stays a bound. A sampler hands the estimate from step to
step.
"""

from purevdm.networks._binned import binned
from purevdm.networks._condition import Condition
from purevdm.networks._egnn import egnn
from purevdm.networks._encoder import unet_encoder
from purevdm.networks._mirrored import mirrored
from purevdm.networks._mlp import mlp
from purevdm.networks._network import Network, Wrapped, mixed
from purevdm.networks._transformer import transformer
from purevdm.networks._unets import unet, vdm_unet

from purevdm.modules import from_module, load_module, module_params  # isort: skip (they derive from Network)

__all__ = [
    "Condition",
    "Network",
    "Wrapped",
    "binned",
    "egnn",
    "from_module",
    "load_module",
    "mirrored",
    "mixed",
    "mlp",
    "module_params",
    "transformer",
    "unet",
    "unet_encoder",
    "vdm_unet",
]
