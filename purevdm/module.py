"""A pure function of parameters as a ``torch.nn.Module``, for loops and tools that want one.

``DistributedDataParallel``, Hugging Face Accelerate, Lightning, ``torch.optim.swa_utils`` and ``torch.export`` take modules.
``examples/loops.py`` trains in the first three.

``torch.export``, strict or not, takes a module of ``loss_fn``, ``elbo``, ``eps_hat`` or ``sample``. The batch may be
dynamic; where noise is drawn it needs a bound, ``Dim("B", max=1024)``. A sampler's steps are a Python integer, and are
unrolled. The program of a loss is differentiated like any module; ``torch.func.grad`` around a ``vmap`` does not export.
With PyTorch 2.13 or newer a program can be saved, if it returns tensors or a tuple of them and no NamedTuple, as
``tuple(model.elbo(...))``. A process that loads it must import purevdm first.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks
from purevdm.types import Params

__all__ = ["Module"]


class Module(torch.nn.Module):
    """``Module(f, params)(*args) = f(params, *args)``: a function whose first argument, the parameters, the module owns.

    Its parameters are copies of the leaves, named by their paths as in checkpoints (``params.network.dense1.kernel``), and
    change as an optimiser changes them. Leaves that are not floating-point take no gradient. :meth:`tree` gives them back.

    Args:
        function: a method of a model, or any other function of parameters; ``torch.compile(model.loss_fn)`` too.
        params: nested dicts of tensors.

    Raises:
        TypeError, ValueError: something that is neither a dict nor a tensor, or a name that a module does not take; the
            leaf is named by its path.

    >>> import torch, purevdm
    >>> from purevdm import random
    >>> model = purevdm.vdm(purevdm.networks.mlp(hidden=32), purevdm.schedules.learned_linear(), event_shape=(2,))
    >>> loss_fn = purevdm.module.Module(model.loss_fn, model.init(random.key(0)))
    >>> optimizer = torch.optim.AdamW(loss_fn.parameters(), lr=1e-3)
    >>> loss_fn(random.randint(random.key(1), (16, 2), 0, 256), random.key(2)).backward()
    >>> optimizer.step()
    >>> model.sample(loss_fn.tree(), random.key(3), 5, steps=10).shape
    torch.Size([5, 2])
    """

    def __init__(self, function: Callable[..., Any], params: Params) -> None:
        super().__init__()
        if not callable(function):
            found = _checks.describe(function)
            raise TypeError(f"function: expected a function of parameters, such as model.loss_fn, got {found}")
        self.function = function
        self.params = _registered("params", params)

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.function(self.tree(), *args, **options)

    def tree(self) -> Params:
        """The parameters as nested dicts. The leaves are the module's own, not copies."""
        return _tree(self.params)


def _registered(path: str, tree: Any) -> torch.nn.Module:
    """A module for each dict, which holds the tensors as its parameters and the dicts as its children."""
    if not isinstance(tree, dict):
        raise TypeError(f"{path}: expected a dict of tensors, got {_checks.describe(tree)}")
    room = torch.nn.Module()
    for name, branch in tree.items():
        here = _checks.dotted(path, name)
        if not isinstance(name, str) or not name or "." in name or hasattr(room, name):
            raise ValueError(f"{here}: expected a name that a torch.nn.Module takes and does not use itself, got {name!r}")
        if isinstance(branch, dict):
            room.add_module(name, _registered(here, branch))
        else:
            leaf = _checks.tensor(here, branch).detach().clone()
            room.register_parameter(name, torch.nn.Parameter(leaf, requires_grad=leaf.is_floating_point()))
    return room


def _tree(room: torch.nn.Module) -> Params:
    leaves: dict[str, Tensor] = dict(room.named_parameters(recurse=False))
    return leaves | {name: _tree(child) for name, child in room.named_children()}
