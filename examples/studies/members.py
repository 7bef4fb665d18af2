"""The members of the family on images: models of each kind around one network, and the rows of their table."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Figures, Task, summary

import purevdm
from purevdm import bfn, codes, encoders, evaluation, networks, random, schedules
from purevdm.model import Bounded
from purevdm.networks import Network

FAMILIES = {"vdm": "diffusion", "bfn": "Bayesian flow"}
MEMBERS = FAMILIES | {"binned": "diffusion, binned", "v": "diffusion, v", "diffenc": "DiffEnc, v"}
MEMBERS |= {"mulan": "MuLAN, Gaussian code", "one_hot": "MuLAN, one-hot code"}
CODE = 8  # numbers of MuLAN's code
HEADER = "| data | model | test | over examples | train |"
FLAGS = {
    "step_times": "only time a training step of each row, in turn, as multiples of the first's",
    "equal_time": "train for the time, not the steps, of the diffusion model, as a step of each takes in eager mode",
}


class Images(NamedTuple):
    """What the members share on some images.

    Attributes:
        shape, levels: of an image, and how many levels a pixel has.
        ends: the endpoints of gamma at first.
        sigma_1: the Bayesian flow's last deviation, below the distance of two levels.
        network: makes the network, of ``outputs``, ``predicts`` and ``cond_dim``.
        mover: makes the network that moves DiffEnc's means.
        coder: makes the encoder of MuLAN's code, of so many outputs.
    """

    shape: tuple[int, ...]
    levels: int
    ends: tuple[float, float]
    sigma_1: float
    network: Callable[..., Network]
    mover: Callable[[], Network]
    coder: Callable[[int], Any]


def model(images: Images, kind: str) -> Bounded:
    """Makes a member."""
    network, shape, levels = images.network, images.shape, images.levels
    if kind == "bfn":
        return bfn.discretised(network(outputs=2), shape, bins=levels, sigma_1=images.sigma_1)
    if kind in ("mulan", "one_hot"):
        wide, make = (2, codes.gaussian) if kind == "mulan" else (1, codes.one_hot)
        schedule = schedules.polynomial(shape, CODE, gamma_min=images.ends[0], gamma_max=images.ends[1])
        code = make(images.coder(wide * CODE), CODE)
        return purevdm.vdm(network(cond_dim=CODE), schedule, shape, vocab_size=levels, code=code)
    options = {}
    if kind == "binned":
        own = networks.binned(network(outputs=2), levels)
    else:
        own = network(predicts="eps" if kind == "vdm" else "v")
    if kind == "diffenc":
        options["encoder"] = encoders.learned(images.mover())
    return purevdm.vdm(own, schedules.learned_linear(*images.ends), shape, vocab_size=levels, **options)


def task(whole: Bounded, x: torch.Tensor, test: torch.Tensor, dimensions: int = 1) -> Task:
    """Makes the row of a model. As in the paper, the training of a Bayesian flow leaves the reconstruction out, and with it
    the second application of the network."""
    trained = whole._replace(reconstruction=False) if hasattr(whole, "reconstruction") else whole
    return Task(trained, x, partial(assess, whole, x, test, dimensions))


def assess(
    model: Bounded, x: torch.Tensor, test: torch.Tensor, dimensions: int, params: Any, key: torch.Tensor, passes: int
) -> dict[str, float]:
    """Bounds the test examples, and as many that the model was trained on; bits in the table's unit, of which each has
    so many of the model's dimensions."""
    k_test, k_train, _ = random.split(key, 3)
    bound = evaluation.evaluate(model, params, [test], k_test, passes=passes).nll
    seen = evaluation.evaluate(model, params, [x[: len(test)]], k_train, passes=passes).nll
    figures = {"bits": bound.mean, "error": bound.error, "train": seen.mean}
    return {name: value * dimensions for name, value in figures.items()}


def lines(figures: Figures, data: str, unit: str, titles: dict[str, str], simpler: dict[str, torch.Tensor]) -> list[str]:
    """Writes the table's rows of some data: the members that have been trained, and simpler models' bits an example."""
    written = []
    for kind, title in titles.items():
        if runs := figures.get((data, kind)):
            bits, seen = (summary([r[field] for r in runs]) for field in ("bits", "train"))
            error = np.mean([r["error"] for r in runs])
            written.append(f"| {data}, {unit} | {title} | {bits} | ± {error:.3f} | {seen} |")
    for title, each in simpler.items():
        written.append(f"| {data}, {unit} | {title} | {each.mean():.3f} | ± {each.std() / len(each) ** 0.5:.3f} | |")
    return written
