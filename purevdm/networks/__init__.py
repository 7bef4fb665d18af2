"""Score networks: each a pair of pure functions that predict the noise, the data or v in a latent.

A network is any :class:`Network`; there is nothing to inherit. Ten lines make one of your own:

>>> import torch
>>> import purevdm
>>> from purevdm import networks, nn, random, schedules
>>> def init(key, event_shape):
...     return nn.dense_init(key, event_shape[0] + 1, event_shape[0])
>>> def apply(params, z, gamma, cond=None, key=None):
...     return nn.dense(params, torch.cat([z, gamma[None]]))
>>> network = networks.Network(init, apply)

``apply`` sees one example, and the model maps it over a batch; with ``batched=True`` it sees the whole batch. So do networks
made of a ``torch.nn.Module``, by :func:`from_module`:

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
"""

from purevdm.networks._condition import Condition
from purevdm.networks._network import Network
from purevdm.networks.mixed import mixed
from purevdm.networks.mlp import mlp
from purevdm.networks.module import from_module, load_module, module_params
from purevdm.networks.unet import unet, vdm_unet

__all__ = ["Condition", "Network", "from_module", "load_module", "mixed", "mlp", "module_params", "unet", "vdm_unet"]
