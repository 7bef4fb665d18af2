"""Bayesian Flow Networks of real numbers, of integers, and of classes."""

from typing import Any

import torch

from purevdm import _checks
from purevdm.bfn.distributions import binned
from purevdm.bfn.flows import Categorical, Flow, Normal
from purevdm.bfn.model import BFN, timed
from purevdm.bfn.outputs import Classes, Normals, Output, Point
from purevdm.decoders import Decoder, gaussian
from purevdm.decoders import discrete as integers
from purevdm.networks import Network
from purevdm.types import Shape


def continuous(
    network: Network,
    event_shape: Shape,
    sigma_1: float,
    *,
    decoder: Decoder | None = None,
    clip: tuple[float, float] | bool = True,
    recon_std: float | None = None,
    timesteps: int | None = 0,
    draws: int = 1,
    reconstruction: bool = True,
    antithetic: bool = True,
    dtype: torch.dtype = torch.float32,
) -> BFN:
    """Makes a BFN of real numbers (sec. 4), or of integers by their positions on the real line.

    Its loss is a diffusion model's: :mod:`purevdm.bfn.bridge`.

    Args:
        network: takes the input distribution's mean, (event_shape), and the time; predicts the noise ("eps", the paper's
            choice), the data or v. Where data have no bounds to clip to, predict "x" or "v": an error of the noise near
            t = 0 counts without limit.
        event_shape: the shape of one example.
        sigma_1: the input distribution's deviation at t = 1, in (0, 1): 0.001 for 256 bins, sqrt(0.001) for 16 in the paper.
        decoder: data to numbers and back: ``decoders.gaussian()`` where left out, for real data, or :func:`binned`, which
            the official code takes to compare likelihoods of integers.
        clip: what to clamp the predicted data to. True: [-1, 1] for integers, as in the paper, and nothing for real data.
        recon_std: the deviation of p(x) around the prediction at t = 1; sigma_1 where left out.
        timesteps, draws, reconstruction, antithetic, dtype: as in :class:`BFN`; timesteps=None is 0.

    Raises:
        TypeError, ValueError: arguments out of range, or a network that returns several numbers a dimension.

    >>> import torch
    >>> from purevdm import bfn, networks, random
    >>> model = bfn.continuous(networks.mlp(32, predicts="v"), event_shape=(2,), sigma_1=0.02)
    >>> x = random.normal(random.key(0), (16, 2))
    >>> params = model.init(random.key(1))
    >>> model.nll_bound(params, x, random.key(2)).total.shape  # nats, each an upper bound on -log p(x)
    torch.Size([16])
    """
    decoder = gaussian() if decoder is None else _checks.instance("decoder", decoder, Decoder, "a purevdm Decoder")
    if isinstance(clip, bool):
        limits = (-1.0, 1.0) if clip and decoder.bounds(torch.zeros(())) is not None else None
    else:
        limits = _pair("clip", clip)
    output = Point(decoder, limits, sigma_1 if recon_std is None else recon_std)
    return _model(network, Normal(sigma_1), output, event_shape, timesteps, draws, reconstruction, antithetic, dtype)


def discretised(
    network: Network,
    event_shape: Shape,
    bins: int,
    sigma_1: float,
    *,
    std_bounds: tuple[float, float] | None = (1e-3, 10.0),
    timesteps: int | None = 0,
    draws: int = 1,
    reconstruction: bool = True,
    antithetic: bool = True,
    dtype: torch.dtype = torch.float32,
) -> BFN:
    """Makes a BFN of integers in [0, bins), such as pixels, with normals over bins for output distributions (sec. 5).

    Args:
        network: as for :func:`continuous`, with ``outputs=2``: the mean and the log deviation of what it predicts.
        event_shape: the shape of one example.
        bins: how many values, at least 2; value v is the bin around (2 v + 1) / bins - 1.
        sigma_1: the input distribution's deviation at t = 1, in (0, 1).
        std_bounds: what to clamp the deviations of the data to, as the official code does; None for nothing.
        timesteps, draws, reconstruction, antithetic, dtype: as in :class:`BFN`; timesteps=None is 0.

    Raises:
        TypeError, ValueError: arguments out of range, or a network without two outputs.

    >>> from purevdm import bfn, networks, random
    >>> model = bfn.discretised(networks.mlp(32, outputs=2), event_shape=(2,), bins=16, sigma_1=0.03)
    >>> x = random.randint(random.key(0), (8, 2), 0, 16)
    >>> model.loss_fn(model.init(random.key(1)), x, random.key(2)).shape  # bits/dim
    torch.Size([])
    """
    if std_bounds is not None:
        std_bounds = _pair("std_bounds", std_bounds)
        _checks.positive("std_bounds[0]", std_bounds[0])
    return _model(
        network,
        Normal(sigma_1),
        Normals(binned(bins), std_bounds),
        event_shape,
        timesteps,
        draws,
        reconstruction,
        antithetic,
        dtype,
    )


def discrete(
    network: Network,
    event_shape: Shape,
    classes: int,
    beta_1: float,
    *,
    classes_last: bool = False,
    timesteps: int | None = 0,
    draws: int = 1,
    reconstruction: bool = True,
    antithetic: bool = True,
    dtype: torch.dtype = torch.float32,
) -> BFN:
    """Makes a BFN of classes, integers in [0, classes) without an order, such as characters (sec. 6).

    Args:
        network: takes 2 theta - 1, theta the probabilities of all classes, and the time, and returns logits of the same
            shape. For an event (C, ...) that shape is (C K, ...), so (1, length) is K channels along a line; for two classes
            it is the event's, with the logit of class 1. What it ``predicts`` does not matter.
        event_shape: the shape of one example.
        classes: K, at least 2.
        beta_1: the accuracy at t = 1: 3**2 for two classes, 0.75**2 for 27 in the paper.
        classes_last: whether a network for K > 2 takes (*event_shape, K) instead, as transformers over tokens do.
        timesteps, draws, reconstruction, antithetic, dtype: as in :class:`BFN`; timesteps=None is 0.

    Raises:
        TypeError, ValueError: arguments out of range, or a network with an axis of outputs.

    >>> from purevdm import bfn, networks, random
    >>> line = networks.unet(8, (1,), 1, adapter="c l -> l c", groups=4)
    >>> model = bfn.discrete(line, event_shape=(1, 12), classes=27, beta_1=0.75**2)
    >>> x = random.randint(random.key(0), (4, 1, 12), 0, 27)
    >>> model.loss_fn(model.init(random.key(1)), x, random.key(2)).shape  # bits/dim, here bits a character
    torch.Size([])
    """
    classes = _checks.integer("classes", classes, 2, 2**22)
    flow = Categorical(classes, beta_1, _checks.boolean("classes_last", classes_last))
    return _model(
        network, flow, Classes(integers(classes)), event_shape, timesteps, draws, reconstruction, antithetic, dtype
    )


def _model(network: Network, flow: Flow, output: Output, event_shape: Shape, timesteps: int | None, *rest: Any) -> BFN:
    network = timed(_checks.instance("network", network, Network, "a purevdm Network"))
    model = BFN(
        network, flow, output, _checks.shape("event_shape", event_shape), 0 if timesteps is None else timesteps, *rest
    )
    model._structure()  # refuses what does not fit; an init that does not take this event_shape says so here
    return model


def _pair(name: str, x: object) -> tuple[float, float]:
    """Checks two rising numbers."""
    if not isinstance(x, (tuple, list)) or len(x) != 2:
        raise TypeError(f"{name}: expected a pair of numbers, got {_checks.describe(x)}")
    return _checks.increasing(f"{name}[0]", x[0], f"{name}[1]", x[1])
