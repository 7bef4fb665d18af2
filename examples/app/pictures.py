"""Pictures of samples, schedules and losses, as PNG files."""

import math
from pathlib import Path

import matplotlib
import numpy as np
import optree
import torch

from purevdm import VDM, _files, random, schedules
from purevdm.evaluation import Profile

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image


def drawable(event_shape: tuple[int, ...], vocab_size: int | None) -> bool:
    """Says whether examples make a picture: integers always, real numbers where they are images of 1 or 3 channels."""
    return vocab_size is not None or (len(event_shape) == 3 and event_shape[0] in (1, 3))


def tiles(x: torch.Tensor, vocab_size: int | None, side: int | None = None) -> np.ndarray:
    """Sets images (n, channels, height, width) side by side, (rows, columns, 3), uint8, on white. Real
    numbers (vocab_size None) go from black, the least of all, to white. Events of other ranks are drawn as the rows of a
    flat map."""
    if vocab_size is None:
        low, high = x.aminmax()
        x, vocab_size = (x.double() - low) / (high - low).clamp(min=1e-30), 2
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        x = x.reshape(x.shape[0], 1, 1, -1)
    n, columns = len(x), side or math.ceil(math.sqrt(len(x)))
    shown = (x.double().cpu() * (255.0 / (vocab_size - 1))).round().to(torch.uint8).expand(-1, 3, -1, -1)
    shown = torch.nn.functional.pad(shown, (1, 1, 1, 1), value=255)
    lines = math.ceil(n / columns)
    white = torch.full((lines * columns - n, *shown.shape[1:]), 255, dtype=torch.uint8)
    shown = torch.cat([shown, white]).unflatten(0, (lines, columns))
    return shown.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()


def grid(x: torch.Tensor, vocab_size: int | None, path: Path) -> None:
    """Writes a grid of images as a PNG, small ones enlarged."""
    image = Image.fromarray(tiles(x, vocab_size))
    zoom = max(1, 512 // max(image.size))
    with _files.replaced(path) as draft:
        image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(draft)


def curve(model: VDM, params, path: Path) -> None:
    """Draws the schedule: gamma, and its slope, against time; of at most 100 dimensions, for one code from its prior."""
    device = optree.tree_leaves(params)[0].device
    t = torch.linspace(0, 1, 257, device=device, dtype=model.dtype)
    code = None
    if model.schedule.contextual:
        code = model.code.prior(random.key(0, device=device), model.dtype).expand(len(t), -1)
    found = schedules.gamma_and_slope(model.schedule, params["schedule"], t, code)
    gamma, slope = (v.detach().cpu().reshape(len(t), -1)[:, :: max(1, v[0].numel() // 100)] for v in found)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for ax, values, name in zip(axes, (gamma, slope), ("gamma(t)", "gamma'(t)"), strict=True):
        ax.plot(t.cpu(), values)
        ax.set(xlabel="t", title=name)
        ax.grid(alpha=0.3)
    axes[1].set_ylim(bottom=0)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def profiles(by_model: dict[str, Profile], path: Path) -> None:
    """Draws the diffusion loss against time and against gamma, by model, with bars of one standard error."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, profile in by_model.items():
        for ax, curve in zip(axes, (profile.t, profile.gamma), strict=True):
            if curve is not None:
                steps = ax.stairs(curve.mean, curve.edges, label=f"{name}: {profile.diffusion} {profile.unit}")
                ax.errorbar(curve.centres, curve.mean, curve.error, fmt="none", ecolor=steps.get_edgecolor(), capsize=2)
    unit = next(iter(by_model.values())).unit
    axes[0].set(xlabel="t", ylabel=unit, title="diffusion loss at t")
    axes[1].set(xlabel="gamma", ylabel=f"{unit} per unit of gamma", title="diffusion loss at gamma")
    axes[0].legend(fontsize=8)
    for ax in axes:
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
