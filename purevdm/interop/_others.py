"""Models of other programs' objects: which process they have is read from their settings."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from purevdm import _checks, decoders
from purevdm._vdm import VDM
from purevdm.decoders import Decoder
from purevdm.interop._adapter import adapt
from purevdm.interop._betas import betas, levels_of
from purevdm.interop._edm import edm
from purevdm.interop._flow_matching import flow_matching
from purevdm.interop._process import Process, ddpm
from purevdm.types import Params, Shape

__all__ = ["from_denoising_diffusion", "from_diffusers", "from_improved_diffusion"]


def _named(name: str, given: Any, choices: dict[str, str]) -> str:
    if given not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {given!r}, for which there is no formula here")
    return choices[given]


def _pixels(decoder: Decoder | None, event_shape: Shape) -> Decoder | None:
    """Returns the decoder, which latents of an autoencoder need."""
    if decoder is None and event_shape[0] not in (1, 3):
        raise ValueError(f"decoder: expected one for {event_shape[0]} channels, such as decoders.denoised() for latents")
    return decoder


# diffusers


def _labels(module: Module, x: Tensor, time: Tensor, cond: Any) -> Any:
    return module(x, timestep=time, class_labels=cond)


def _states(module: Module, x: Tensor, time: Tensor, cond: Any) -> Any:
    return module(x, timestep=time, encoder_hidden_states=cond)


def _plain(module: Module, x: Tensor, time: Tensor, cond: Any) -> Any:
    return module(x, timestep=time)


@dataclass(frozen=True)
class _Negated:
    call: Callable[..., Any]

    def __call__(self, *given: Any) -> Tensor:
        return -self.call(*given).sample  # type: ignore[no-any-return]


def _call_of(module: Module) -> Callable[..., Any]:
    names = inspect.signature(module.forward).parameters
    return _states if "encoder_hidden_states" in names else _labels if "class_labels" in names else _plain


def from_diffusers(
    source: Any,
    scheduler: Any = None,
    *,
    event_shape: Shape | None = None,
    decoder: Decoder | None = None,
    clip: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[VDM, Params]:
    """Makes a model of a network and a scheduler of diffusers (tested with 0.42.1): of a ``UNet2DModel``, DiT, or another
    module of theirs that returns a sample.

    The scheduler says the process: of T betas ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid" or given ones; with
    zero terminal SNR or without), :func:`ddpm` in T - 1 steps; of flow matching, :func:`flow_matching` in reversed time; of
    EDM, :func:`edm`. How it samples, by Euler or DDIM and in how many steps, is not taken over: its samplers differ from
    their own settings in places (``findings/``). Tables of betas are made anew in float64, as theirs, of float32, are off by
    up to 4e-3 in the log-SNR. ``clip_sample`` is a sampler's setting: take ``clip=True`` for it.

    The condition is what the network calls ``class_labels`` or ``encoder_hidden_states``. Classifier-free guidance is an
    argument of samplers.

    Args:
        source: a pipeline, the folder of one that was saved by ``save_pretrained``, or a network.
        scheduler: one of diffusers', for a network.
        event_shape: of the data; the network's ``in_channels`` and ``sample_size`` where left out.
        decoder, clip, dtype: as for :func:`adapt`. A network of neither 1 nor 3 channels needs a decoder.

    Raises:
        FileNotFoundError: no pipeline in the folder.
        ImportError: a folder, and diffusers is not installed.
        TypeError, ValueError: a scheduler, a prediction or a variance without a formula here; betas that are not those that
            the scheduler's settings say; as for :func:`adapt`.
    """
    if isinstance(source, (str, os.PathLike)):
        folder = Path(source)
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"source: expected the folder of a saved pipeline, with a model_index.json, got {folder}"
            )
        import diffusers

        source = diffusers.DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    if not isinstance(source, Module):
        parts = getattr(source, "components", {})
        network = parts.get("unet", parts.get("transformer"))
        if network is None:
            raise TypeError(f"source: expected a network, or a pipeline with one, got {_checks.describe(source)}")
        source, scheduler = network, parts["scheduler"] if scheduler is None else scheduler
    if scheduler is None:
        raise ValueError("scheduler: expected the one that the network was trained with, got None")
    own = source.config
    channels, size = own["in_channels"], own.get("sample_size")
    if event_shape is None:
        if size is None:
            raise ValueError("event_shape: expected the data's shape, as the network has no sample_size, got None")
        event_shape = (channels, *(size if isinstance(size, (tuple, list)) else (size, size)))
    twice = own.get("out_channels") == 2 * channels
    process, call = _process(scheduler, twice), _call_of(source)
    if type(scheduler).__name__.startswith("EDM") and scheduler.config["prediction_type"] == "v_prediction":
        call = _Negated(call)
    decoder = _pixels(decoder, event_shape)
    return adapt(source, process, event_shape, decoder=decoder, call=call, clip=clip, dtype=dtype)


def _process(scheduler: Any, twice: bool) -> Process:
    """Makes the process of a scheduler; ``twice`` says that the network has twice the channels."""
    name, config = type(scheduler).__name__, dict(scheduler.config)
    if name.startswith("FlowMatch"):
        return flow_matching(reversed=True, time_scale=config["num_train_timesteps"])
    if name.startswith("EDM"):
        _named("scheduler.config.prediction_type", config["prediction_type"], {"epsilon": "", "v_prediction": ""})
        return edm(**{key: config[key] for key in ("sigma_min", "sigma_max", "sigma_data")})
    if "beta_schedule" not in config or config.get("use_flow_sigmas"):
        raise ValueError(f"scheduler: expected one of betas, of flow matching or of EDM, got {name}, for which there is no "
                         "formula here")  # fmt: skip
    n, start, end = (config[key] for key in ("num_train_timesteps", "beta_start", "beta_end"))
    names = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
    if config.get("trained_betas") is not None:
        table = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    else:
        kind = _named("scheduler.config.beta_schedule", config["beta_schedule"], names)
        zero = bool(config.get("rescale_betas_zero_snr"))
        table = betas(kind, n, start, end, zero_terminal_snr=zero)
    bar = torch.sigmoid(-torch.tensor(levels_of(table), dtype=torch.float64))
    off = (bar - scheduler.alphas_cumprod.double().cpu()).abs().max().item()
    if not off <= 1e-3:
        raise ValueError(f"scheduler: expected the alphas_cumprod of its settings, got some that are {off:.2g} off")
    predicts = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
    variances = {kind + log: kind for kind in ("fixed_small", "fixed_large") for log in ("", "_log")}
    variance = config.get("variance_type") or "fixed_small"
    return ddpm(
        table,
        predicts=_named("scheduler.config.prediction_type", config.get("prediction_type", "epsilon"), predicts),
        variance="learned_range" if twice else _named("scheduler.config.variance_type", variance, variances),
    )


# improved-diffusion and guided-diffusion


def _classes(module: Module, x: Tensor, time: Tensor, cond: Any) -> Tensor:
    return module(x, time) if cond is None else module(x, time, y=cond)  # type: ignore[no-any-return]


def from_improved_diffusion(
    network: Module,
    diffusion: Any,
    event_shape: Shape,
    *,
    decoder: Decoder | None = None,
    clip: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[VDM, Params]:
    """Makes a model of a network and a diffusion of improved-diffusion or guided-diffusion: what
    ``create_model_and_diffusion`` of either returns, with the network's values loaded.

    Betas, prediction, variance, rescaled and respaced times are the object's. Their likelihood script clamps estimates:
    ``clip=True``. The condition is their ``y``.

    Args:
        network, diffusion: the objects.
        event_shape: of the data, (3, size, size).
        decoder, clip, dtype: as for :func:`adapt`.

    Raises:
        TypeError, ValueError: a network that predicts the last latent, or a variance that is learned without a range; as for
            :func:`adapt`.
    """
    mean = _named("diffusion.model_mean_type", diffusion.model_mean_type.name, {"EPSILON": "eps", "START_X": "x"})
    kinds = {name.upper(): name for name in ("fixed_small", "fixed_large", "learned_range")}
    variance = _named("diffusion.model_var_type", diffusion.model_var_type.name, kinds)
    times = list(getattr(diffusion, "timestep_map", range(len(diffusion.betas))))
    if diffusion.rescale_timesteps:
        total = getattr(diffusion, "original_num_steps", len(times))
        times = [t * (1000.0 / total) for t in times]
    process = ddpm(torch.as_tensor(diffusion.betas), predicts=mean, variance=variance, times=times)
    decoder = _pixels(decoder, event_shape)
    return adapt(network, process, event_shape, decoder=decoder, call=_classes, clip=clip, dtype=dtype)


# denoising-diffusion-pytorch


def from_denoising_diffusion(
    diffusion: Module, *, decoder: Decoder | None = None, clip: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[VDM, Params]:
    """Makes a model of a ``GaussianDiffusion`` of denoising-diffusion-pytorch (tested with 2.3.4), with its U-Net, or of its
    ``LearnedGaussianDiffusion``.

    Its betas are kept in float32, of which the products are taken in float64. Without ``auto_normalize`` the network's data
    are in [0, 1].

    Args:
        diffusion: the object, on the CPU or a device.
        decoder, clip, dtype: as for :func:`adapt`.

    Raises:
        TypeError, ValueError: one in continuous time; as for :func:`adapt`.
    """
    if not isinstance(diffusion, Module) or not hasattr(diffusion, "betas") or not hasattr(diffusion, "objective"):
        raise TypeError(f"diffusion: expected a GaussianDiffusion in discrete time, got {_checks.describe(diffusion)}")
    kinds = {"pred_noise": "eps", "pred_x0": "x", "pred_v": "v"}
    own: Any = diffusion
    network = own.model
    twice = network.out_dim == 2 * network.channels
    process = ddpm(
        own.betas.double().cpu(),
        predicts=_named("diffusion.objective", diffusion.objective, kinds),
        variance="learned_range" if twice else "fixed_small",
    )
    if decoder is None and getattr(diffusion.normalize, "__name__", "") == "identity":
        decoder = decoders.discretised_gaussian(loc=-255 / 256, scale=2 * 255 / 256)  # in [0, 1]
    shape = (network.channels, *own.image_size)
    return adapt(
        network,
        process,
        shape,
        decoder=_pixels(decoder, shape),
        self_condition=network.self_condition,
        clip=clip,
        dtype=dtype,
    )
