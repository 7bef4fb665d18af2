"""What a run is made of: its configuration, the presets, and the data and the model that they stand for."""

import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import readers
import torch

import purevdm
from purevdm import bfn, codes, decoders, importance, networks, random, schedules
from purevdm.training import AdamW
from purevdm.training.data import Dataset, batch, split


class Checked:
    """Refuses fields of other types or names than are annotated, also where they come from a file."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, kind):
                names = ", ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else ""
                expected = f"one of {names}" if names else getattr(kind, "__name__", str(kind).replace("typing.", ""))
                raise ValueError(f"{type(self).__name__.lower()}.{name}: expected {expected}, got {value!r:.80}")


def _fits(x: Any, kind: Any) -> bool:
    """Says whether a value is of an annotation's kind."""
    origin, parts = get_origin(kind), get_args(kind)
    if type(None) in parts:
        return any(_fits(x, part) for part in parts)
    if origin is Literal:
        return isinstance(x, str) and x in parts
    if origin is tuple:
        return isinstance(x, tuple) and all(_fits(value, parts[0]) for value in x)
    return type(x) in (int, float) if kind is float else type(x) is int if kind is int else isinstance(x, kind)


@dataclass(frozen=True)
class Data(Checked):
    """Where examples come from."""

    source: Literal["digits", "idx", "cifar10", "imagenet32", "imagenet64", "folder", "array", "huggingface"] = "digits"
    path: str = ""
    """The archive, folder or file, or the name of a Hugging Face data set."""
    size: int | None = None
    """Images of a folder or of Hugging Face are cropped and resized to this."""
    channels: int | None = None
    """Of images: 3 for colour, 1 for grey, 4 or 2 for these with their opacity. Left out, colour for a folder, and as the
    images are for Hugging Face."""
    background: int | None = None
    """A grey, 0 to 255, that images with transparent pixels are laid on; else these are refused."""
    label: str | None = None
    """The column of Hugging Face's data with the classes, where it is not "label"; empty for none."""
    layout: Literal["channels_first", "channels_last", "none"] | None = None
    """Of an array, where it cannot be guessed."""
    vocab_size: int = 256
    """How many values an array of integers takes. Booleans take 2, and floats are real data, modelled by their density."""
    loc: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    """Real data are standardised to (x - loc) / scale, a number for each channel (or column of a table). Left out, the mean
    and the standard deviation of the training examples."""
    held_out: int = 297
    """How many examples make the test set, where the source has none of its own."""
    augment: bool = False
    """Flips and 90-degree rotations in training, told to the network by a flag."""


@dataclass(frozen=True)
class Model(Checked):
    """The network and the schedule."""

    network: Literal["vdm_unet", "unet", "mlp"] = "vdm_unet"
    embed: int = 64
    """The width (of the mlp: of its hidden layers)."""
    layers: int = 2
    """The depth: blocks of each half of the vdm_unet, of each resolution of the unet, hidden layers of the mlp."""
    multipliers: tuple[int, ...] = (1, 2)
    """Of the unet: the width at each resolution."""
    attention: tuple[int, ...] = ()
    """Of the unet: resolutions with attention. Of the vdm_unet: any number for attention after every block."""
    heads: int = 4
    time_scale: float = 1000.0
    """Of the unets: how fast the sinusoids are that embed gamma; 20 makes log p by the flow cheaper."""
    groups: int = 32
    dropout: float = 0.1
    fourier: tuple[int, ...] = (6, 7)
    flag: bool = True
    """Whether the network takes the flag of augmentation as a number; always so in the official model."""
    labels: bool = False
    """Whether it takes the class."""
    cond_drop: float = 0.0
    """The rate at which the condition is dropped in training, for guidance."""
    self_condition: bool = False
    predicts: Literal["eps", "x", "v", "binned"] = "eps"
    """What the network predicts: the noise, the data, v, or a distribution over the data's levels (networks.binned)."""
    mirrored: bool = False
    """Whether the estimate is the mean of those of an image and of its mirror image (networks.mirrored): twice the time."""
    remat: bool = False
    """Whether blocks are computed again in the backward pass, for less memory."""
    schedule: Literal[
        "fixed_linear",
        "learned_linear",
        "monotone_mlp",
        "monotone_mlp_pinned",
        "constrained_monotone",
        "polynomial",
        "multivariate_mlp",
    ] = "learned_linear"
    """The last two have a gamma for each dimension, which takes the code where there is one."""
    gamma_min: float | None = None
    """Left out, the one that suits the number of levels of the data (-13.3 for 256, and for real data)."""
    gamma_max: float = 5.0
    variance: bool = False
    """Whether the schedule's interior follows the variance of the loss (App. I.2)."""
    importance: bool = False
    """Whether times are drawn by importance, by a histogram of the loss (purevdm.importance); in continuous time."""
    timesteps: int = 0
    """T, or 0 for continuous time."""
    code: Literal["none", "gaussian", "one_hot", "k_hot"] = "none"
    """The code of each image that schedule and network take (MuLAN)."""
    code_size: int = 50
    """How many numbers it has."""
    code_k: int = 15
    """How many of a k_hot's are ones."""
    code_layers: int = 4
    """The depth of its encoder, as wide as the network."""
    kind: Literal["vdm", "bfn_continuous", "bfn_discretised", "bfn_discrete"] = "vdm"
    """A diffusion model, or a Bayesian Flow Network, which has no schedule to learn."""
    sigma_1: float = 0.03
    """Of continuous and discretised Bayesian flows: the deviation at their end."""
    beta_1: float = 3.0
    """Of discrete ones: the accuracy at their end."""


@dataclass(frozen=True)
class Config(Checked):
    """A run."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optimizer: AdamW = field(default_factory=AdamW)
    batch: int = 128
    """Examples a step, over all processes."""
    shards: int = 1
    """In how many parts the state is spread over the processes of torchrun: 1 for all of it in each."""
    accumulate: int = 1
    """In how many pieces a process computes its part of a batch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters, schedule and losses stay float32."""
    seed: int = 1
    out: Path = Path("runs/train")
    resume: bool = False
    """Go on from the latest checkpoint in out, bit for bit as if never stopped."""
    extend: bool = False
    """With resume: go on by the learning rate of these settings, where its steps, lr, warmup or decay are others than
    before. A constant rate may go on for more steps without it."""
    log_every: int = 50
    eval_every: int = 1000
    save_every: int = 1000
    keep: int = 3
    """How many of the latest checkpoints stay; the best stays besides."""
    eval_examples: int = 10_000
    eval_batch: int = 128
    eval_passes: int = 1
    samples: int = 16
    sample_steps: int = 100
    device: str = "cpu"
    compile: bool = True
    """It takes a minute or more at first, which some 3000 steps on a CPU repay; the presets of digits do without."""


# How the unet's feature maps become tokens, by the rank of an event: series, images, volumes.
ADAPTERS = {2: "c l -> l c", 3: "c h w -> (h w) c", 4: "c d h w -> (d h w) c"}

SCHEDULES = {
    "fixed_linear": schedules.fixed_linear,
    "learned_linear": schedules.learned_linear,
    "monotone_mlp": schedules.monotone_mlp,
    "monotone_mlp_pinned": partial(schedules.monotone_mlp, pin_endpoints=True),
    "constrained_monotone": schedules.constrained_monotone,
}
MULTIVARIATE = {"polynomial": schedules.polynomial, "multivariate_mlp": schedules.multivariate_mlp}

# Those of the official configurations; what else they hold are the defaults above.
_cifar10 = Config(
    data=Data(source="cifar10", path="data"),
    model=Model(embed=128, layers=32),
    optimizer=AdamW(lr=2e-4, steps=10_000_000),
    device="cuda",
    **dict(log_every=1000, eval_every=10_000, save_every=10_000, eval_batch=128, sample_steps=1000, keep=5),
)
_aug = replace(
    _cifar10,
    data=Data(source="cifar10", path="data", augment=True),
    model=Model(embed=256, layers=32, dropout=0.05, schedule="monotone_mlp"),
    optimizer=AdamW(lr=1e-4, steps=100_000_000),
    **dict(batch=768, eval_batch=1024),
)
_short = AdamW(decay="cosine", clip_norm=1.0, ema_rate=0.99, ema_warmup=True)
_digits = Config(
    model=Model(groups=16, dropout=0.0, fourier=(1, 2, 3), flag=False, gamma_max=4.0),
    optimizer=_short._replace(lr=2e-3, warmup=30, steps=550),
    out=Path("runs/digits_train"),
    **dict(batch=64, eval_every=275, save_every=275, eval_batch=99, eval_passes=10, compile=False),
)
_fashion = Config(
    data=Data(source="idx", path="/usr/share/datasets/fashion-mnist"),
    model=Model(
        **dict(network="unet", embed=32, multipliers=(1, 2, 2), attention=(2,), groups=16, dropout=0.0, flag=False),
        **dict(schedule="constrained_monotone", variance=True),
    ),
    optimizer=_short._replace(lr=1e-3, warmup=100, steps=11_000, ema_rate=0.999),
    out=Path("runs/fashion_mnist"),
    **dict(batch=64, eval_every=1000, save_every=500, eval_examples=1000, eval_batch=100),
)
_real = Config(
    data=Data(source="array", path="x.npy"),
    model=Model(network="mlp", embed=128, layers=3, fourier=(), flag=False, gamma_min=-8.0, schedule="fixed_linear"),
    optimizer=_short._replace(lr=1e-3, warmup=100, steps=5000),
    out=Path("runs/real"),
    **dict(batch=256, eval_passes=16),
)

# MuLAN's, of s-sahoo/MuLAN: the one of CIFAR-10 predicts v, the other the noise.
_mulan = Model(embed=128, layers=32, flag=False, schedule="polynomial", code="k_hot")
_mulan_cifar10 = replace(
    _cifar10,
    model=replace(_mulan, predicts="v"),
    optimizer=AdamW(lr=2e-4, steps=10_000_000),
    out=Path("runs/mulan_cifar10"),
)
_mulan_imagenet32 = replace(
    _cifar10,
    data=Data(source="imagenet32", path="data"),
    model=replace(_mulan, embed=256),
    optimizer=AdamW(lr=2e-4, steps=2_000_000),
    out=Path("runs/mulan_imagenet32"),
    **dict(batch=512, eval_batch=512),
)
_mulan_digits = replace(
    _digits,
    model=replace(_digits.model, schedule="polynomial", code="k_hot", code_size=10, code_k=3, code_layers=1),
    out=Path("runs/mulan_digits"),
)

PRESETS: dict[str, tuple[str, Config]] = {
    "digits": ("scikit-learn's digits, for two CPU cores: a few minutes", _digits),
    "fashion_mnist": ("Fashion-MNIST (or MNIST) in IDX files, for two CPU cores: two to three hours", _fashion),
    "digits_bfn": (
        "digits by a Bayesian Flow Network of discretised data",
        replace(_digits, model=replace(_digits.model, kind="bfn_discretised"), out=Path("runs/digits_bfn")),
    ),
    "real": ("an array of real numbers, .npy: rows of a table, for one CPU core", _real),
    "mulan_digits": ("digits with a schedule for each pixel and image (MuLAN), for two CPU cores", _mulan_digits),
    "mulan_cifar10": ("CIFAR-10 by MuLAN, the official code's (2.55 bits/dim by the flow)", _mulan_cifar10),
    "mulan_imagenet32": ("ImageNet 32x32 by MuLAN, the official code's", _mulan_imagenet32),
    "cifar10_small": (
        "CIFAR-10, for one GPU of 8 GB",
        replace(
            _cifar10,
            model=Model(embed=64, layers=8),
            optimizer=AdamW(lr=4e-4, warmup=1000, decay="cosine", steps=200_000, clip_norm=1.0, ema_rate=0.999),
            dtype="bfloat16",
            eval_every=5000,
            save_every=5000,
        ),
    ),
    "cifar10": ("CIFAR-10, the paper's (2.65 bits/dim)", _cifar10),
    "cifar10_aug": ("CIFAR-10 with augmentation, the official code's", _aug),
    "cifar10_aug_paper": (
        "CIFAR-10 with augmentation, the paper's (2.49 bits/dim)",
        replace(_aug, model=replace(_aug.model, attention=(0,)), optimizer=_aug.optimizer._replace(lr=2e-4), batch=1024),
    ),
    "imagenet32": (
        "ImageNet 32x32",
        replace(_cifar10, data=Data(source="imagenet32", path="data"), model=Model(embed=256, layers=32)),
    ),
    "imagenet64": (
        "ImageNet 64x64",
        replace(_cifar10, data=Data(source="imagenet64", path="data"), model=Model(embed=256, layers=64)),
    ),
}


# The readers of sources with a test set of their own.
PUBLISHED: dict[str, Callable[..., Dataset]] = {
    "idx": readers.idx,
    "cifar10": readers.cifar10,
    "imagenet32": partial(readers.imagenet, size=32),
    "imagenet64": partial(readers.imagenet, size=64),
}


def datasets(data: Data, key: torch.Tensor) -> tuple[Dataset, Dataset]:
    """Reads the training and the test set; the key decides what is held out where the source has no test set."""
    if data.source != "digits" and not data.path:
        raise readers.DataError(f"data.path: expected where the data of data.source {data.source} are, got none")
    if read := PUBLISHED.get(data.source):
        return read(data.path, split="train"), read(data.path, split="test")
    match data.source:
        case "digits":
            whole = readers.digits()
        case "folder":
            channels = 3 if data.channels is None else data.channels
            whole = readers.image_folder(data.path, data.size, channels, data.background)
        case "array":
            whole = readers.array(data.path, data.layout, data.vocab_size)
        case "huggingface":
            options = dict(label=data.label, size=data.size, channels=data.channels, background=data.background)
            whole = readers.huggingface(data.path, **options)
    return split(whole, key, data.held_out)


def standardised(data: Data, train: Dataset, size: int = 4096) -> Data:
    """Gives the configuration of real data the ``loc`` and ``scale`` of the training examples, where it has none.

    Raises:
        DataError: a channel that is constant, which has no density; loc and scale of other lengths than there are channels.
    """
    if train.vocab_size is not None:
        return data
    channels = train.event_shape[0]
    if data.loc or data.scale:
        if not len(data.loc) == len(data.scale) == channels:
            raise readers.DataError(f"data.loc, data.scale: expected {channels} numbers in each, one a channel")
        return data
    axes = (0, *range(2, 1 + len(train.event_shape)))
    parts = [np.arange(i, min(train.size, i + size)) for i in range(0, train.size, size)]
    loc = sum(train.take(part).mean(axes, dtype=np.float64) * len(part) for part in parts) / train.size
    centre = loc.reshape(-1, *[1] * (len(train.event_shape) - 1))
    variance = sum(np.square(train.take(part) - centre).mean(axes) * len(part) for part in parts) / train.size
    scale = np.sqrt(variance)
    if not (scale > 0).all():
        raise readers.DataError(f"{train.name}: channel {int(scale.argmin())} is constant, and has no density")
    return replace(data, loc=tuple(loc.tolist()), scale=tuple(scale.tolist()))


def decoder(data: Data, event_shape: tuple[int, ...], vocab_size: int | None) -> decoders.Decoder:
    """Makes the decoder of integers, or of real numbers standardised by channel, as :func:`standardised` says."""
    if vocab_size is not None:
        return decoders.discrete(vocab_size)
    loc, scale = (np.reshape(a, (-1, *[1] * (len(event_shape) - 1))).tolist() for a in (data.loc, data.scale))
    return decoders.gaussian(loc=loc, scale=scale)


def build(config: Config, event_shape: tuple[int, ...], vocab_size: int | None, classes: int = 0) -> purevdm.VDM | bfn.BFN:
    """Makes the model of a configuration for some data; ``vocab_size`` is None for real data."""
    m = config.model
    if m.labels and not classes:
        raise ValueError("model.labels: the data have no classes")
    binned = m.predicts == "binned"
    if binned and (vocab_size is None or m.kind != "vdm"):
        got = "real data" if vocab_size is None else m.kind
        raise ValueError(f"model.predicts: expected 'binned' only for integers and kind='vdm', got it for {got}")
    options = dict(fourier=m.fourier, cond_drop=m.cond_drop, self_condition=m.self_condition)
    options |= dict(predicts="eps" if binned else m.predicts)
    code = code_of(m, event_shape)
    if code is not None and m.labels:
        raise ValueError("model.labels: expected False beside a code, which takes numbers besides")
    options |= dict(cond_dim=int(m.flag) + (m.code_size if code else 0), classes=classes if m.labels else 0)
    options |= dict(outputs=2 if binned or m.kind == "bfn_discretised" else None)
    if m.network == "mlp":
        network = networks.mlp(m.embed, m.layers, **options)
    else:
        options |= dict(dropout=m.dropout, groups=m.groups, remat=m.remat, time_scale=m.time_scale)
        options |= dict(add_z=code is not None)  # as MuLAN's official network has it, whatever it predicts
        if m.network == "vdm_unet":
            network = networks.vdm_unet(m.embed, m.layers, attention=bool(m.attention), **options)
        else:
            options |= dict(heads=m.heads, adapter=ADAPTERS.get(len(event_shape), ADAPTERS[3]))
            network = networks.unet(m.embed, m.multipliers, m.layers, attention=m.attention, **options)
    network = networks.binned(network, vocab_size) if binned else network
    network = networks.mirrored(network) if m.mirrored else network
    if config.dtype == "bfloat16":
        network = networks.mixed(network)
    shape = dict(event_shape=event_shape, timesteps=m.timesteps)
    if m.kind == "vdm":
        # Without gamma_min, purevdm.vdm takes one for the data.
        ends = dict(gamma_min=m.gamma_min, gamma_max=m.gamma_max)
        if m.schedule in MULTIVARIATE:
            schedule = MULTIVARIATE[m.schedule](event_shape, m.code_size if code else 0, **ends)
        else:
            schedule = SCHEDULES[m.schedule](**ends)
        schedule = importance.warped(schedule) if m.importance else schedule
        return purevdm.vdm(network, schedule, decoder=decoder(config.data, event_shape, vocab_size), code=code, **shape)
    if code is not None:
        raise ValueError(f"model.code: expected none for {m.kind}, which has no schedule that takes one")
    shape |= dict(reconstruction=False)  # as in the official code, training leaves it out
    if m.kind == "bfn_continuous":
        values = bfn.binned(vocab_size) if vocab_size else decoder(config.data, event_shape, None)
        return bfn.continuous(network, sigma_1=m.sigma_1, decoder=values, **shape)
    if vocab_size is None:
        raise ValueError(f"model.kind: real data take bfn_continuous, got {m.kind}")
    if m.kind == "bfn_discretised":
        return bfn.discretised(network, bins=vocab_size, sigma_1=m.sigma_1, **shape)
    return bfn.discrete(network, classes=vocab_size, beta_1=m.beta_1, **shape)


def code_of(m: Model, event_shape: tuple[int, ...]) -> codes.Code | None:
    """Makes the code of a configuration, or None."""
    if m.code == "none":
        return None
    outputs = m.code_size * (2 if m.code == "gaussian" else 1)
    options = dict(fourier=m.fourier, dropout=m.dropout, groups=m.groups)
    encoder = networks.unet_encoder(event_shape, outputs, m.embed, m.code_layers, **options)
    if m.code == "k_hot":
        return codes.k_hot(encoder, m.code_size, m.code_k, penalty="softmax")
    return {"gaussian": codes.gaussian, "one_hot": codes.one_hot}[m.code](encoder, m.code_size)


def condition(config: Config, flags: torch.Tensor, labels: torch.Tensor | None):
    """Makes what the network takes besides a batch: the flag of augmentation, the class, or nothing."""
    m = config.model
    if not (m.flag or m.labels):
        return None
    if m.code != "none":  # beside which numbers stand
        return flags[:, None]
    return networks.Condition(vector=flags[:, None] if m.flag else None, label=labels if m.labels else None)


def as_json(config: Config) -> dict:
    """Makes plain values of a configuration."""
    return asdict(config) | {"optimizer": config.optimizer._asdict(), "out": str(config.out)}


def from_json(entries: dict) -> Config:
    """Makes a configuration of what :func:`as_json` made."""
    data, model = (
        {name: tuple(value) if isinstance(value, list) else value for name, value in entries[part].items()}
        for part in ("data", "model")
    )
    if "label" not in data and (data.get("channels") == 3 or data["source"] == "huggingface"):
        data["channels"] = None  # for which 3 stood in version 0.3
    parts = dict(data=Data(**data), model=Model(**model), optimizer=AdamW(**entries["optimizer"]))
    return Config(**(entries | parts | {"out": Path(entries["out"])}))


def keys(seed: int) -> dict[str, torch.Tensor]:
    """Splits the keys of a run, one for each use."""
    names = ("split", "init", "order", "augment", "loss", "eval", "sample")
    return dict(zip(names, random.split(random.key(seed), len(names)), strict=True))


def stream(program: str, seed: int, device: torch.device | str) -> torch.Tensor:
    """Makes the key of a program that uses a run: none of the run's own keys, whatever the seeds."""
    return random.fold_in(random.key(seed, device=device), zlib.crc32(program.encode()) >> 1)


def batches(config: Config, data: Dataset, n: int, size: int, device: torch.device | str):
    """Gives the first n examples in batches of a size, with the conditions of images as they are."""
    for i in range(0, n, size):
        x, labels = batch(data, np.arange(i, min(n, i + size)), device)
        yield x, condition(config, torch.zeros(len(x), device=device), labels)
