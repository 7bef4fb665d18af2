"""Changes of a trained model that keep what it has learned: estimates over levels, double width, other endpoints of gamma.

Each takes a run with its parameters, and returns it after the change.
"""

import math
from dataclasses import replace
from typing import Any

import common  # noqa: F401
import optree
import torch
from presets import build
from runs import Run
from torch import Tensor

from purevdm import nn, random
from purevdm.types import Key, Params

LOG_RATIO = -0.7  # of the deviation of binned estimates at first: half of the noise's


def rebuilt(run: Run, dtype: str | None = None, **form: Any) -> Run:
    """Builds the model anew after changes of its form, which keep its parameters; ``dtype`` is what its network computes in
    from now on."""
    config = replace(run.config, model=replace(run.config.model, **form), dtype=dtype or run.config.dtype)
    return run._replace(config=config, model=build(config, run.train.event_shape, run.train.vocab_size, run.train.classes))


def binned(run: Run) -> Run:
    """Gives a U-Net's model that predicts the noise estimates over the data's levels (networks.binned). Its last layer gets
    a second output for each pixel, the logarithm of the estimate's deviation over the noise's: at first the same everywhere,
    so that the estimates are next to the old ones.

    Raises:
        ValueError: a model of another kind.
    """
    form = run.config.model
    integers = run.train.vocab_size is not None and form.kind == "vdm"
    if not integers or form.predicts != "eps" or form.network == "mlp" or form.flag or form.labels:
        wanted = "a U-Net's diffusion model of integers that predicts the noise, without a flag and labels"
        raise ValueError(f"checkpoint: expected {wanted}, got {form}")

    def put(leaf: Tensor, own: Tensor) -> Tensor:
        if leaf.shape == own.shape:
            return own.clone()
        out = torch.zeros_like(leaf)  # of the last layer: outputs come first, those of a channel beside each other
        out[0::2] = own
        if leaf.ndim == 1:
            out[1::2] = LOG_RATIO
        return out

    new = rebuilt(run, predicts="binned")
    return new._replace(params=optree.tree_map(put, new.model.init(random.key(0)), run.params))


def wider(run: Run, key: Key, spread: float = 0.25) -> Run:
    """Makes a U-Net twice as wide (Chen et al. 2016, arXiv 1511.05641): each channel becomes two that compute the same.

    What reads a channel reads its two in shares of a half each, plus and minus a normal draw of deviation ``spread / 2``, so
    that their gradients differ. The network computes what it did, but for the embedding of gamma: its frequencies are others
    in a wider network, and the layer that reads them is fitted to the old one by least squares.

    Raises:
        ValueError: another network than "unet", or one with labels or a flag.
    """
    form = run.config.model
    if form.network != "unet" or form.labels or form.flag:
        raise ValueError(f"checkpoint: expected a unet without labels and a flag, got {form}")
    new = rebuilt(run, embed=2 * form.embed)
    empty = new.model.init(random.key(0))
    paths, leaves, treedef = optree.tree_flatten_with_path(empty["network"])
    old = optree.tree_leaves(run.params["network"])
    keys = random.split(key, len(leaves))
    grown = [_doubled(path, leaf, own, k, spread) for path, leaf, own, k in zip(paths, leaves, old, keys, strict=True)]
    network = optree.tree_unflatten(treedef, grown)
    ends = run.model.network.endpoints
    network["dense0"]["kernel"] = _refitted(run.params["network"]["dense0"]["kernel"], form.time_scale, ends)
    return new._replace(params=run.params | {"network": network})


def _doubled(path: tuple, leaf: Tensor, own: Tensor, key: Key, spread: float) -> Tensor:
    """Doubles the axes of one leaf that differ. Kernels of convolutions are (outputs, inputs, *window), of layers (inputs,
    outputs)."""
    inputs = {4: 1, 2: 0}.get(own.ndim)
    out = own
    for axis in range(own.ndim):
        if leaf.shape[axis] == own.shape[axis] or path[-2:] == ("dense0", "kernel"):
            continue
        out = out.repeat_interleave(2, axis)
        if axis == inputs:
            more = 0.5 * spread * random.normal(key, own.shape if axis == 0 else out[:, ::2].shape)
            out = out * (0.5 + torch.stack([more, -more], axis + 1).flatten(axis, axis + 1))
    # q and k of an attention have twice as many numbers, so that their product, over its root, is sqrt(2) times as large
    return out * 0.5**0.5 if path[-2] == "q" else out


def _refitted(kernel: Tensor, scale: float, ends: tuple[float, float] | None) -> Tensor:
    """Fits what reads the doubled embedding of gamma, in double width, to what read the old one, with a small ridge."""
    t = scale * torch.linspace(*((-0.1, 1.1) if ends else (-20.0, 20.0)), 4001, dtype=torch.float64)
    old, new = (torch.stack([nn.timestep_embedding(one, n) for one in t]) for n in (len(kernel), 2 * len(kernel)))
    ridge = torch.eye(new.shape[1], dtype=torch.float64) * 1e-4 * len(t)
    fitted = torch.linalg.solve(new.T @ new + ridge, new.T @ (old @ kernel.double()))
    return fitted.repeat_interleave(2, 1).to(kernel.dtype)


def between(run: Run, gamma_min: float, gamma_max: float) -> Run:
    """Gives a learned schedule other endpoints; the network reads gamma as before.

    Raises:
        ValueError: endpoints that do not increase, or a schedule whose endpoints are not its parameters b and b + w.
    """
    if not -math.inf < gamma_min < gamma_max < math.inf:
        raise ValueError(f"gamma: expected two finite numbers that increase, got {gamma_min} and {gamma_max}")
    schedule: Params = run.params.get("schedule", {})
    if not {"b", "w"} <= schedule.keys():
        raise ValueError(f"checkpoint: expected a schedule with the parameters b and w, got {run.config.model.schedule}")
    ends = {"b": torch.full_like(schedule["b"], gamma_min), "w": torch.full_like(schedule["w"], gamma_max - gamma_min)}
    return run._replace(params=run.params | {"schedule": schedule | ends})
