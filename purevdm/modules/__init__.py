"""Any ``torch.nn.Module`` as a score network: :func:`purevdm.networks.from_module` and its kin.

The network and its public functions; a module without its tensors, drawn anew and run with given ones; dropout by key.
"""

from purevdm.modules._network import from_module, load_module, module_params

__all__ = ["from_module", "load_module", "module_params"]
