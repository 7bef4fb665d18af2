"""Any ``torch.nn.Module`` as a score network: :func:`purevdm.networks.from_module` and its kin.

Four files: the network and its public functions; where a module comes from and how it is filled with given tensors; its
parts; its dropout by key.
"""

from purevdm.modules._network import from_module, load_module, module_params

__all__ = ["from_module", "load_module", "module_params"]
