"""What demo.py answers, as functions of a model, its parameters and an image: bits and where they lie, samples on their way,
holes filled in, bytes beside other formats. And how a file that someone gives becomes an image."""

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import compress
import numpy as np
import torch
from PIL import Image, ImageOps
from readers.files import Pixels
from torch import Tensor

from purevdm import VDM, codec, random, sampling, solvers
from purevdm.denoiser import Prediction
from purevdm.solvers import Carry, Solver, Step
from purevdm.types import Key, Params

SOLVERS = {"dpmpp_2m": solvers.dpmpp_2m, "ddim": solvers.ddim, "ancestral": solvers.ancestral}
GROUP = 16  # draws of times and noise whose mean is one figure; the figures' spread gives the standard error
NOISY = -2.0  # gamma above which noise leaves shapes only
BYTES = 1_000_000  # of a file
PIXELS = 1 << 24  # of the picture in it
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

Progress = Callable[[float], None]


class Bits(NamedTuple):
    """What an image costs by the bound.

    Attributes:
        mean, error: bits per pixel, and their standard error over times and noise.
        terms: the mean's parts by name, bits per pixel.
        map: bits of each pixel, (height, width).
        noisy: those that are spent at gamma above ``NOISY``.
        draws: of times and noise.
    """

    mean: float
    error: float
    terms: dict[str, float]
    map: Tensor
    noisy: Tensor
    draws: int


@torch.no_grad()
def bits(model: VDM, params: Params, x: Tensor, key: Key, draws: int = 128, progress: Progress | None = None) -> Bits:
    """Bounds -log p(x) of an image, (1, height, width), as the mean over at least so many draws of times and noise. Group i
    of them draws from ``fold_in(key, i)``, as ``model.nll_bound`` of ``GROUP`` copies of the image does."""
    groups, figures, maps, noisy = math.ceil(draws / GROUP), [], 0.0, 0.0
    if groups < 2:
        raise ValueError(f"draws: expected more than {GROUP}, got {draws}")
    for i in range(groups):
        seeds = model.seeds(random.fold_in(key, i), GROUP)
        terms = model.terms(params, x.expand(GROUP, *x.shape), seeds)
        above = (model.gamma(params, seeds.t) > NOISY).reshape(-1, 1, 1, 1)
        figures.append(torch.stack([term.double().mean() for term in terms]) / math.log(2))
        maps = maps + terms.total.double().mean((0, 1)) / math.log(2)
        noisy = noisy + (above * terms.diffusion).double().mean((0, 1)) / math.log(2)
        if progress is not None:
            progress((i + 1) / groups)
    each = torch.stack(figures)
    totals, parts = each.sum(1), dict(zip(terms._fields, each.mean(0).tolist(), strict=True))
    error = totals.std().item() / math.sqrt(groups)
    return Bits(totals.mean().item(), error, parts, maps / groups, noisy / groups, groups * GROUP)


class Drawn(NamedTuple):
    """Samples, (n, 1, height, width), and on their way to each some latents and what the network took the image to be,
    (moments, n, 1, height, width), all integers. ``steps`` are those after which the latents are shown."""

    x: Tensor
    latents: Tensor
    estimates: Tensor
    steps: list[int]


@dataclass(frozen=True, eq=False)
class Watched(Solver):
    """A solver whose latents and estimates are seen at each step."""

    own: Solver
    see: Callable[[Tensor, Tensor], None]

    def init(self, z_1: Tensor, gamma_1: Tensor) -> Carry:
        return self.own.init(z_1, gamma_1)

    def step(
        self,
        denoise: Callable[[Tensor, Tensor], Prediction],
        z_t: Tensor,
        gamma_t: Tensor,
        gamma_s: Tensor,
        key: Key | None,
        carry: Carry,
    ) -> Step:
        done = self.own.step(denoise, z_t, gamma_t, gamma_s, key, carry)
        self.see(z_t, done[1])
        return done


@torch.no_grad()
def sample(
    model: VDM, params: Params, key: Key, n: int, steps: int, solver: str, moments: int = 8, progress: Progress | None = None
) -> Drawn:
    """Draws n images, as ``model.sample`` does, and keeps what is seen at a few steps, most of them early ones."""
    if solver not in SOLVERS:
        raise ValueError(f"solver: expected one of {', '.join(SOLVERS)}, got {solver!r}")
    seen: list[tuple[Tensor, Tensor]] = []

    def see(z: Tensor, x_hat: Tensor) -> None:
        seen.append((z, x_hat))
        if progress is not None:
            progress(len(seen) / steps)

    x = model.sample(params, key, n, steps=steps, solver=Watched(SOLVERS[solver](), see))
    at = sorted({round((steps - 1) * (i / max(1, moments - 1)) ** 2) for i in range(moments)})
    latents, estimates = (torch.stack([model.decoder.mode({}, seen[i][part]) for i in at]) for part in (0, 1))
    return Drawn(x, latents, estimates, at)


@torch.no_grad()
def fill(
    model: VDM,
    params: Params,
    x: Tensor,
    hole: Tensor,
    key: Key,
    n: int,
    steps: int,
    repeats: int,
    progress: Progress | None = None,
) -> Tensor:
    """Draws n times what could be in a hole, bool, of an image, both (1, height, width): (n, 1, height, width)."""
    if not hole.any():
        raise ValueError("hole: expected some pixels, got none; draw a hole first")
    x, known = (part.expand(n, *part.shape) for part in (x, ~hole))
    solver = sampling.repaint(model.decoder.encode({}, x, dtype=model.dtype), known, repeats)
    told = None if progress is None else lambda i, z: progress((int(i) + 1) / steps)
    drawn = model.sample(params, key, n, steps=steps, solver=solver, callback=told)
    return torch.where(known, x.to(drawn.dtype), drawn)


class Packed(NamedTuple):
    """Images as a file.

    Attributes:
        sizes: bytes, by the name of the format; of others than the model's, the smaller of one file for each image and one
            for all side by side.
        info: what the model's file says of itself.
        same: whether it decodes to the same images.
    """

    sizes: dict[str, float]
    info: codec.Info
    same: bool


def pack(model: VDM, params: Params, x: Tensor, timesteps: int, progress: Progress | None = None) -> Packed:
    """Encodes images, (n, 1, height, width), as one file with the model, decodes it, and measures other formats."""
    done = [0]

    def told(examples: int, cost: int) -> None:
        done[0] += examples
        if progress is not None:
            progress(done[0] / (2 * len(x)))

    file = codec.encode(model, params, x, timesteps=timesteps, callback=told)
    back = torch.cat(list(codec.read(file, model, params, callback=told)))
    info, rates = codec.info(file), dict(compress.peers(x.numpy()))
    sizes = {"model": float(info.size)}
    for name in ("PNG", "WebP lossless", "JPEG XL"):
        found = [rate for peer, rate in rates.items() if peer.startswith(name)]
        sizes |= {name: min(found) * x.numel() / 8} if found else {}
    return Packed(sizes, info, bool((back == x).all()))


def stroke(height: int, width: int, start: tuple[float, float], end: tuple[float, float], thickness: float) -> np.ndarray:
    """Says which pixels a brush touches that goes from one point, (x, y), to another: bool, (height, width)."""
    y, x = np.mgrid[:height, :width] + 0.5
    (dx, dy), (px, py) = (end[0] - start[0], end[1] - start[1]), (x - start[0], y - start[1])
    along = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-12), 0.0, 1.0)
    far = np.hypot(px - along * dx, py - along * dy)
    return far <= max(thickness / 2, 0.5)


def picture(name: str, content: bytes, height: int, width: int) -> tuple[Tensor, str]:
    """Reads an image file as a grey image, uint8 (1, height, width), and says what was done to it.

    Raises:
        ValueError: too large a file, no image, too many pixels, more than 8 bits a channel, an animation.
    """
    if len(content) > BYTES:
        raise ValueError(f"{name}: expected a file of at most {BYTES / 1e6:g} MB, got {len(content) / 1e6:.1f} MB")
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            warnings.simplefilter("ignore")
            size, mode, clear = opened.size, opened.mode, opened.has_transparency_data
    except Exception:  # of many kinds
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise ValueError(f"{name}: expected a {kinds} image, got something else") from None
    if math.prod(size) > PIXELS:
        raise ValueError(f"{name}: expected at most {PIXELS / 1e6:.0f} million pixels, got {size[0]} x {size[1]}")
    grey = Image.fromarray(Pixels(None, 1, 0).pixels(name, io.BytesIO(content))[0])
    changes = ["transparent parts became black"] * clear + ["colours became grey"] * (mode not in ("1", "L", "LA"))
    if grey.size != (width, height):
        cropped = abs(grey.width * height - grey.height * width) >= min(grey.size)
        changes += ["it was cropped to its centre"] * cropped
        changes.append(f"it was {'shrunk' if grey.width > width else 'enlarged'} to {width} x {height} pixels")
        grey = ImageOps.fit(grey, (width, height), Image.Resampling.BOX)
    x = torch.from_numpy(np.array(grey))[None]
    return x, f"{name}, {size[0]} x {size[1]} pixels" + (f": {', '.join(changes)}." if changes else ", taken as it is.")
