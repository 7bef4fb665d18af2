"""What the official code of MuLAN (s-sahoo/MuLAN) arranges otherwise: its schedule counts an image's numbers with channels
last, and a Gaussian code has a dense layer for the means and one for the variances."""

import math

import torch
from torch import Tensor

from purevdm.types import Params

_LAST = ("a", "b", "c")
_HEADS = ("mean", "variance")


def _turned(params: Params, ours: bool) -> Params:
    """Moves the channels of the schedule's outputs, (..., numbers), in front of the square image's positions, or back."""
    channels, schedule = len(params["network"]["conv_out"]["bias"]), params["schedule"]
    side = math.isqrt(len(schedule["a"]["bias"]) // channels)
    if side * side * channels != len(schedule["a"]["bias"]):
        raise ValueError(f"schedule: expected as many outputs as a square image has, got {len(schedule['a']['bias'])}")

    def turn(leaf: Tensor) -> Tensor:
        if ours:
            return leaf.unflatten(-1, (side, side, channels)).movedim(-1, -3).flatten(-3).contiguous()
        return leaf.unflatten(-1, (channels, side, side)).movedim(-3, -1).flatten(-3).contiguous()

    turned = {name: {key: turn(leaf) for key, leaf in schedule[name].items()} for name in _LAST}
    return params | {"schedule": schedule | turned}


def to_ours(params: Params) -> Params:
    """Arranges renamed official parameters as ours."""
    code = params["code"]
    if "mean" in code:
        heads = [code[name] for name in _HEADS]
        rest = {name: branch for name, branch in code.items() if name not in _HEADS}
        params = params | {"code": rest | {"out": {key: torch.cat([head[key] for head in heads], -1) for key in heads[0]}}}
    return _turned(params, True) if "a" in params["schedule"] else params


def to_theirs(params: Params) -> Params:
    """Arranges our parameters for the official names."""
    code, schedule = params["code"], params["schedule"]
    if "a" not in schedule or "dense1" not in schedule:
        return params
    size = len(schedule["dense1"]["kernel"])
    if len(code["out"]["bias"]) == 2 * size:
        parts = {key: leaf.split(size, -1) for key, leaf in code["out"].items()}
        heads = {name: {key: part[i].contiguous() for key, part in parts.items()} for i, name in enumerate(_HEADS)}
        params = params | {"code": {name: branch for name, branch in code.items() if name != "out"} | heads}
    return _turned(params, False)
