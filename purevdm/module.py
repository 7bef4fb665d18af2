"""A pure function of parameters as a ``torch.nn.Module``, for loops and tools that want one.

``DistributedDataParallel``, Hugging Face Accelerate, Lightning, ``torch.optim.swa_utils`` and ``torch.export`` take modules.
``examples/copy/loops.py`` trains in the first three.

``torch.export``, strict or not, takes a module of ``loss_fn``, ``nll_bound``, ``eps_hat`` or ``sample``. The batch may be
dynamic; where noise is drawn it needs a bound, ``Dim("B", max=1024)``. A sampler's steps are a Python integer, and are
unrolled. With PyTorch 2.13 or newer a program can be saved, if it returns tensors or a tuple of them and no NamedTuple, as
``tuple(model.nll_bound(...))``. A process that loads it must import purevdm first.
"""

from collections.abc import Callable
from typing import Any

import torch

from purevdm import _checks, _facts, _trees
from purevdm.types import Params

__all__ = ["Module"]


class Module(torch.nn.Module):
    """``Module(f, params)(*args) = f(params, *args)``: a function whose first argument, the parameters, the module owns.

    Its parameters are copies of the leaves, named by their paths as in checkpoints (``params.network.dense1.kernel``), and
    change as an optimiser changes them. Leaves that are not floating-point take no gradient. :meth:`tree` gives them back.
    The buffers of ``networks.from_module`` are buffers here, too, and so is the histogram of a warped schedule. Keys that
    modules use themselves get an underscore more.

    Args:
        function: a method of a model, or any other function of parameters; ``torch.compile(model.loss_fn)`` too.
        params: nested dicts of tensors.

    Raises:
        TypeError, ValueError: something that is not a function; in the tree something that is neither a dict nor a tensor,
            or a key that is not text, empty or dotted; the leaf is named by its path.

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
            given = _checks.describe(function)
            raise TypeError(f"function: expected a function of parameters, such as model.loss_fn, got {given}")
        self.function, self.params = function, _registered("params", params)

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.function(self.tree(), *args, **options)

    def tree(self) -> Params:
        """Returns the parameters as nested dicts. The leaves are the module's own, not copies."""
        return _tree(self.params)

    @torch.no_grad()
    def load(self, params: Params) -> None:
        """Copies parameters of the same structure into the module: those of ``model.update`` after a step, for example.

        Raises:
            TypeError, ValueError: another structure; the leaf is named.
        """
        own = _checks.leaves(self.tree())
        values = _checks.leaves(params)
        _trees.matches("params", values, tuple((p, tuple(v.shape), v.dtype) for p, v in own.items()))
        _facts.verify(_trees.finite("params", values))
        for path, value in values.items():
            own[path].copy_(value)


class _Branch(torch.nn.Module):
    """A dict of the tree. ``names`` holds the keys that had to be changed, as modules use them themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, str] = {}


# of networks.from_module and importance.warped: no optimiser may change them
_BUFFERS = ("params.network.buffers", "params.schedule.warp")


def _registered(path: str, tree: Any) -> _Branch:
    """Makes a module for each dict, which holds the tensors as its parameters and the dicts as its children."""
    if not isinstance(tree, dict):
        raise TypeError(f"{path}: expected a dict of tensors, got {_checks.describe(tree)}")
    module, constant = _Branch(), f"{path}.".startswith(tuple(f"{kept}." for kept in _BUFFERS))
    for key, branch in tree.items():
        here = _trees.dotted(path, key)
        if not isinstance(key, str) or not key or "." in key:
            raise ValueError(f"{here}: expected a key that is text, not empty and without dots, got {key!r}")
        name = key
        while hasattr(module, name) or (name != key and name in tree):
            name += "_"
        module.names[name] = key
        if isinstance(branch, dict):
            module.add_module(name, _registered(here, branch))
            continue
        leaf = _checks.tensor(here, branch).detach().clone()
        if constant:
            module.register_buffer(name, leaf)
        else:
            module.register_parameter(name, torch.nn.Parameter(leaf, requires_grad=leaf.is_floating_point()))
    return module


def _tree(module: Any) -> Params:
    own = module._parameters | module._buffers | {name: _tree(child) for name, child in module.named_children()}
    return {module.names[name]: branch for name, branch in own.items()}
