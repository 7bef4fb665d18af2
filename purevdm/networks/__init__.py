"""Score networks: each a pair of pure functions that predict the noise in a latent.

A network is any :class:`Network`; there is nothing to inherit. Ten lines make one of your own:

>>> import torch
>>> import purevdm
>>> from purevdm import nn, random
>>> def linear_network():
...     def init(key, event_shape):
...         return nn.dense_init(key, event_shape[0] + 1, event_shape[0])
...     def apply(params, z, gamma, cond=None, key=None):
...         return nn.dense(params, torch.cat([z, gamma[None]]))
...     return purevdm.networks.Network(init, apply)

and a ``torch.nn.Module`` serves through ``torch.func.functional_call``:

>>> def module_network(module):
...     def init(key, event_shape):
...         return {name: p.detach().clone() for name, p in module.named_parameters()}
...     def apply(params, z, gamma, cond=None, key=None):
...         return torch.func.functional_call(module, params, (z[None], gamma[None]))[0]
...     return purevdm.networks.Network(init, apply)
"""

from purevdm.networks._condition import Condition
from purevdm.networks._network import Network
from purevdm.networks.mixed import mixed
from purevdm.networks.mlp import mlp
from purevdm.networks.unet import unet
from purevdm.networks.vdm_unet import vdm_unet

__all__ = ["Condition", "Network", "mixed", "mlp", "unet", "vdm_unet"]
