"""The network as a codec applies it: in float64 for files that decode everywhere, or as it is on one machine."""

import json
import platform
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import optree
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from purevdm import _checks, denoiser
from purevdm._compile import exact
from purevdm._vdm import VDM
from purevdm.codec._arithmetic import Floats
from purevdm.types import Params

Output = tuple[Tensor, Tensor | None]


class Denoiser(NamedTuple):
    """A model as a codec uses it.

    Attributes:
        model: the model; in float64 where files are portable.
        params: its parameters, likewise.
        step, last: ``step(params, z, gamma, cond) -> (eps_hat, v)`` for a batch, and ``last(...) -> (x_hat, v)`` at time 0,
            where the decoder takes the estimate; v is None but for a learned range.
        lanes: how many examples the network sees at once.
        pad: whether it always sees that many.
    """

    model: VDM
    params: Params
    step: Callable[[Params, Tensor, Tensor, Any], Output]
    last: Callable[[Params, Tensor, Tensor, Any], Output]
    lanes: int
    pad: bool

    def outputs(self, z: Floats, gamma: Floats, cond: Any, last: bool = False) -> list[Floats]:
        """Computes what the network says of latents (n, D), at gamma (n or 1, D or 1): float64 (n, D), first the noise, or
        the data for the ``last`` step, and then v, if there is one."""
        n, shape, device = len(z), (len(z), *self.model.event_shape), device_of(self.params)
        latents = torch.from_numpy(z).reshape(shape).to(device, self.model.dtype)
        level = torch.from_numpy(gamma.copy()).to(device, self.model.dtype).expand(n, -1)
        level = level.reshape(shape if gamma.shape[1] > 1 else (n,))
        parts = []
        with torch.no_grad(), exact(device):  # a file is read under any autocast
            for i in range(0, n, self.lanes):
                rows = torch.arange(i, i + self.lanes, device=device).clamp(max=n - 1)
                rows = rows if self.pad else rows[: n - i]
                part = optree.tree_map(lambda leaf, rows=rows: leaf[rows], cond)  # type: ignore[misc]
                out = (self.last if last else self.step)(self.params, latents[rows], level[rows], part)
                each = (part[: n - i].reshape(min(self.lanes, n - i), -1).double() for part in out if part is not None)
                parts.append([part.cpu().numpy() for part in each])
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def denoiser_of(model: VDM, params: Params, portable: bool, lanes: int, compile: bool) -> Denoiser:
    """Gives a model as files need it."""
    if portable:
        model = model._replace(network=model.network.computing_in(None), dtype=torch.float64)
        params = cast(params, torch.float64)
    runs = (torch.compile(run, fullgraph=True, dynamic=False) if compile else run for run in (_step, _last))
    step, last = (partial(run, model) for run in runs)
    return Denoiser(model, params, step, last, lanes, compile)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """Gives a tree of tensors, or None, with its floating-point numbers in a dtype."""
    return optree.tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, tree)


def _step(model: VDM, params: Params, z: Tensor, gamma: Tensor, cond: Any) -> Output:
    return denoiser.of_model(model, params, cond).eps_and_range(z, gamma)


def _last(model: VDM, params: Params, z: Tensor, gamma: Tensor, cond: Any) -> Output:
    prediction, v = denoiser.of_model(model, params, cond).with_range(z, gamma)
    return prediction.x, v


def device_of(params: Params) -> torch.device:
    """Gives the parameters' device; the CPU if there are none."""
    return next((leaf.device for leaf in _checks.leaves(params).values()), torch.device("cpu"))


def machine(denoise: Denoiser) -> str:
    """Gives what decides the last digits of a network's output, as JSON text."""
    device = device_of(denoise.params)
    cuda = device.type == "cuda"
    return json.dumps(
        {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if cuda else f"{device.type} {platform.machine()}",
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "dtype": str(denoise.model.dtype).removeprefix("torch."),
            "lanes": denoise.lanes,
            "compiled": denoise.pad,
        },
        sort_keys=True,
    )


class Float64Only(TorchFunctionMode):
    """Refuses the first operation that gives floating-point numbers shorter than float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in optree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64:
                short = f"{getattr(func, '__name__', func)} in {str(leaf.dtype).removeprefix('torch.')}"
                raise ValueError(
                    f"network: expected to compute in float64 throughout, so that files decode everywhere, found {short}; "
                    "portable=False makes a file for this machine"
                )
        return result


def require_float64(denoise: Denoiser, gamma: Floats, cond: Any) -> None:
    """Refuses a network that computes anything in a shorter dtype, whose files would not decode elsewhere."""
    eager, code = denoiser_of(denoise.model, denoise.params, True, 1, False), denoise.model.code
    with Float64Only():
        if code is not None:
            code.encode(denoise.params["code"], torch.zeros(1, *denoise.model.event_shape, dtype=torch.float64))
        eager.outputs(np.full((1, np.prod(denoise.model.event_shape, dtype=int)), 0.5), gamma[:1], cond)
