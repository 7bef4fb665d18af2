"""A network of another program, with its noise process, as a model with parameters."""

import itertools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from purevdm import _checks, decoders, process, random
from purevdm._compile import fixed
from purevdm._vdm import VDM, vdm
from purevdm.decoders import Decoder
from purevdm.interop._process import DDPM, Process
from purevdm.networks import from_module
from purevdm.types import Key, Params, Shape

__all__ = ["adapt", "respaced", "spaced", "warn_of_range"]


@dataclass(frozen=True)
class Adapted:
    """How a module is called for latents at gamma: the ``call`` of a network of :func:`adapt`."""

    process: Process
    own: Callable[..., Any] | None
    clip: tuple[float, float] | None

    def __call__(self, module: Module, z: Tensor, gamma: Tensor, cond: Any, **extra: Tensor) -> Tensor:
        gamma = process.align(gamma, z)
        x, time = self.process.inputs(z, gamma)
        time = time.reshape(len(z))
        if self.own is not None:
            out = self.own(module, x, time, cond, **extra)
        else:
            out = module(x, time, *extra.values()) if cond is None else module(x, time, cond, *extra.values())
        out = getattr(out, "sample", out)  # of diffusers
        wanted = (len(z), self.process.channels * z.shape[1], *z.shape[2:])
        if not isinstance(out, Tensor) or out.shape != wanted:
            many = isinstance(out, Tensor) and out.shape == (wanted[0], 2 * z.shape[1], *wanted[2:])
            hint = "; its second half says the variance of a process with variance='learned_range'" if many else ""
            raise ValueError(f"network: expected an output of shape {wanted}, got {_checks.describe(out)}{hint}")
        out, *rest = out.split(z.shape[1], 1)
        out = self.process.prediction(z, gamma, out)
        if self.clip is not None:
            to_x = {"eps": process.x_from_eps, "v": process.x_from_v}
            out = to_x[self.process.predicts](z, out, gamma) if self.process.predicts in to_x else out
            out = out.clamp(*map(fixed, self.clip))
        return torch.stack([out, *rest], -1) if self.process.reverse.takes_range else out


def adapt(
    module: Module,
    process: Process,
    event_shape: Shape,
    *,
    decoder: Decoder | None = None,
    call: Callable[..., Any] | None = None,
    self_condition: bool = False,
    clip: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[VDM, Params]:
    """Makes a model of another program's network and its noise process, on which everything here works: bounds, likelihoods,
    samples, inversion, files, training.

    Args:
        module: the network, with its values, such as EDM's F or a U-Net that predicts the noise. It is copied.
        process: the noise process, of :mod:`purevdm.interop`.
        event_shape: of the data, channels first.
        decoder: of the data; ``decoders.discretised_gaussian()`` where left out, 256 values from -1 to 1 around the
            network's estimate. For real data and latents of an autoencoder, ``decoders.denoised()``.
        call: ``call(module, x, time, cond) -> output`` for a module that is not called as ``module(x, time)``, or
            ``module(x, time, cond)`` under a condition: x and the output have a leading axis B, and time is (B,). It also
            takes ``x_hat=`` where the network is self-conditioned, the estimate of the data or zeros.
        self_condition: whether the network takes an estimate of the data as its last argument.
        clip: whether estimates of the data are clamped to the data's range, as likelihood scripts of DDPMs do by default.
            That is another model, whose bound is a bound, too, and often a better one.
        dtype: of latents and bounds.

    Returns:
        A model and its parameters. The module may compute in float32 within a model of float64 only if it casts.

    Raises:
        TypeError, ValueError: as for :func:`purevdm.vdm` and :func:`purevdm.networks.from_module`; ``clip`` for data without
            one range; from the model's methods, a network whose output has other channels than its process says.

    >>> import torch
    >>> from purevdm import interop, random
    >>> class Net(torch.nn.Module):  # stands for a trained network
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)
    ...     def forward(self, x, t):
    ...         return self.conv(x) * torch.cos(t / 1000)[:, None, None, None]
    >>> model, params = interop.adapt(Net(), interop.ddpm(interop.betas("linear")), (1, 8, 8))
    >>> x = random.randint(random.key(0), (4, 1, 8, 8), 0, 256)
    >>> model.timesteps, model.nll_bound(params, x, random.key(1)).total.shape
    (999, torch.Size([4]))
    """
    _checks.instance("process", process, Process, "a Process of purevdm.interop")
    if call is not None:
        _checks.function("call", call)
    learned, decoder = process.reverse.takes_range, decoders.discretised_gaussian() if decoder is None else decoder
    limits = _range(decoder, event_shape) if _checks.boolean("clip", clip) else None
    network = from_module(
        _checks.instance("module", module, Module, "a torch.nn.Module"),
        call=Adapted(process, call, limits),
        pretrained=True,
        predicts="x" if clip else process.predicts,
        self_condition=self_condition,
        outputs=2 if learned else None,
    )
    model = vdm(
        network,
        process.schedule,
        event_shape,
        decoder=decoder,
        timesteps=process.timesteps,
        reverse=process.reverse,
        dtype=dtype,
    )
    return model, model.init(random.key(0))


def _range(decoder: Decoder, event_shape: Shape) -> tuple[float, float]:
    """Gives the range of encoded data, the same for all dimensions."""
    bounds = decoder.bounds(torch.zeros(tuple(event_shape), dtype=torch.float64, device="cpu"))
    ends = [] if bounds is None else [end.unique().tolist() for end in bounds]
    if [len(end) for end in ends] != [1, 1]:
        raise ValueError(f"clip: expected False for data without one range for all dimensions, got True with {decoder!r}")
    return ends[0][0], ends[1][0]


def spaced(timesteps: int, spacing: int | str) -> list[int]:
    """Gives the indices of a respaced DDPM's times, as improved-diffusion's ``space_timesteps`` does.

    Args:
        timesteps: T of the process.
        spacing: "ddimN" for every (T / N)th from 0; a number N for N times from 0 to T - 1; "A,B,C" for so many in each of
            as many equal sections.

    Raises:
        TypeError, ValueError: a spacing that there is not.

    >>> from purevdm import interop
    >>> interop.spaced(1000, "ddim4"), interop.spaced(1000, 4), interop.spaced(12, "1,2,3")
    ([0, 250, 500, 750], [0, 333, 666, 999], [0, 4, 7, 8, 10, 11])
    """
    timesteps, text = _checks.integer("timesteps", timesteps, 2), str(spacing)
    wanted = f"a number up to {timesteps}, several with commas, or 'ddimN' with a whole stride"
    bad = ValueError(f"spacing: expected {wanted}, got {spacing!r}")
    if text.startswith("ddim"):
        n = int(text[4:]) if text[4:].isdecimal() else 0
        strides = [i for i in range(1, timesteps) if n and len(range(0, timesteps, i)) == n]
        if not strides:
            raise bad
        return list(range(0, timesteps, strides[0]))
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise bad
    counts, start, kept = [int(part) for part in text.split(",")], 0, []
    for i, count in enumerate(counts):
        size = timesteps // len(counts) + (i < timesteps % len(counts))
        if not 1 <= count <= size:
            raise bad
        stride = 1.0 if count == 1 else (size - 1) / (count - 1)
        kept += [start + round(stride * j) for j in range(count)]
        start += size
    return kept


def respaced(model: VDM, kept: Iterable[int]) -> VDM:
    """Gives a model of a DDPM with some of its times only: the levels there, its network told the times that it knows, and
    the variances that go with the longer steps.

    Args:
        model: a model of :func:`adapt` whose process is in discrete time.
        kept: indices of times, rising, at least two, such as those of :func:`spaced`. Where the last is not T - 1, the prior
            term is larger.

    Raises:
        TypeError, ValueError: another model, or indices that do not rise or are out of range.
    """
    _checks.instance("model", model, VDM, "a purevdm VDM")
    adapted = getattr(model.network, "call", None)
    if not isinstance(adapted, Adapted) or not isinstance(adapted.process, DDPM):
        raise ValueError(f"model: expected one of interop.adapt with a process in discrete time, got {model.network!r}")
    levels = adapted.process.levels
    indices = _checks.integers("kept", kept, 0)
    if len(indices) < 2 or any(a >= b for a, b in itertools.pairwise(indices)) or indices[-1] >= len(levels):
        raise ValueError(f"kept: expected at least two indices that rise, up to {len(levels) - 1}, got {indices}")
    own = adapted.process._replace(kept=indices)
    network = model.network._replace(call=Adapted(own, adapted.own, adapted.clip))
    return model._replace(network=network, schedule=own.schedule, timesteps=own.timesteps, reverse=own.reverse)


@torch.no_grad()
def warn_of_range(model: VDM, params: Params, x: Tensor, key: Key, cond: Any = None) -> None:
    """Warns where data of values seem to lie elsewhere than where the network learned them: in [0, 1] or in [-1, 1]. It
    computes the bound on x with both, and compares.

    Args:
        model, params, x, key, cond: as for ``model.nll_bound``; the decoder is ``decoders.discretised_gaussian`` or
            ``decoders.discrete``.

    Raises:
        TypeError, ValueError: a decoder without values or with others than those two ranges.
    """
    own: Any = model.decoder
    if own.vocab_size is None or not hasattr(own, "loc") or isinstance(own.loc, tuple) or isinstance(own.scale, tuple):
        raise ValueError(f"model.decoder: expected one of values between two numbers, got {own!r}")
    # u in [-1, 1] goes to (u - loc) / scale: to [0, 1] with loc lower by the scale, and twice the scale
    inside = own.loc == 0.0
    moved = (-own.scale, 2.0 * own.scale) if inside else (0.0, 0.5 * own.scale)
    other = model._replace(decoder=own._replace(loc=moved[0], scale=moved[1]))
    here, there = (float(m.loss_fn(params, x, key, cond, train=False)) for m in (model, other))
    if there < here - 0.2 * abs(here):
        ranges = ("[-1, 1]", "[0, 1]") if inside else ("[0, 1]", "[-1, 1]")
        told = f"the bound is {here:.3g} bits/dim with data in {ranges[0]}, and {there:.3g} with data in {ranges[1]}"
        warnings.warn(f"decoder: {told}; the network seems to have learned the latter", stacklevel=2)
