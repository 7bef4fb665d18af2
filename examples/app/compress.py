"""Compress images losslessly with a trained model, and get them back bit for bit (extra "codec").

    python examples/app/compress.py encode runs/digits_train digits.pvdm            # the run's test set
    python examples/app/compress.py encode runs/digits_train mine.pvdm --data x.npy # integers, (n, *event)
    python examples/app/compress.py encode runs/digits_train digits.pvdm --sweep 50 100 250
    python examples/app/compress.py decode runs/digits_train digits.pvdm x.npy
    python examples/app/compress.py info digits.pvdm
    python examples/app/compress.py test runs/digits_train digits.pvdm

encode ends with a table: what the file costs with its initial bits and without, the bound in as many steps, and what the
same images cost in other formats. test decodes a file block by block, and says which are intact. A file decodes on every
machine, unless it is written with --fast. Classes are not part of a file: a model that takes them is told them again in
decoding.
"""

import io
import lzma
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import programs
import torch
import tyro
from presets import condition
from readers import DataError, npy
from runs import Run, load
from tqdm import tqdm

from purevdm import Seeds, codec, random
from purevdm.networks import Wrapped
from purevdm.noise import discretise
from purevdm.training.data import batch

Positional = tyro.conf.Positional


@dataclass
class Encode:
    """Images to a file."""

    run: Annotated[Path, Positional]
    """A folder of train.py, or one of its checkpoints."""
    file: Annotated[Path, Positional]
    data: Path | None = None
    """A .npy file of integers, (n, *event); the run's test set where left out."""
    labels: Path | None = None
    """A .npy file of their classes, for a model that takes them."""
    timesteps: int = 250
    """T: the rate falls with it, and time grows."""
    sweep: tuple[int, ...] = ()
    """Several T, with a table of the rates; the file has the last."""
    block: int = 10_000
    """How many images decode together; initial bits are paid for one of each."""
    lanes: int = 32
    """How many images the network sees at once."""
    fast: bool = False
    """Whether to compute in the model's dtype, for this machine and these settings alone."""
    examples: int | None = None
    """How many, from the first; all where left out."""
    passes: int = 25
    """Times at which the bound of each image is taken."""
    peers: bool = True
    """Whether to compress the images by other formats, too."""
    seed: int = 0
    path: str | None = None
    """Where the run's data are, if not where they were in training."""
    device: str = "cpu"
    compile: bool = False


@dataclass
class Decode:
    """A file to images, a .npy file."""

    run: Annotated[Path, Positional]
    file: Annotated[Path, Positional]
    out: Annotated[Path, Positional]
    labels: Path | None = None
    """Their classes, for a model that takes them; those of the run's test set where left out."""
    salvage: bool = False
    """Whether to leave damaged blocks out, instead of stopping at them."""
    lanes: int | None = None
    path: str | None = None
    device: str = "cpu"
    compile: bool = False


@dataclass
class Test:
    """Whether a file is intact."""

    run: Annotated[Path, Positional]
    file: Annotated[Path, Positional]
    labels: Path | None = None
    lanes: int | None = None
    path: str | None = None
    device: str = "cpu"
    compile: bool = False


@dataclass
class Info:
    """What a file tells without its model."""

    file: Annotated[Path, Positional]


@programs.program
def main() -> None:
    args = tyro.extras.subcommand_cli_from_dict(
        {"encode": Encode, "decode": Decode, "info": Info, "test": Test}, description=__doc__
    )
    try:
        {Encode: encode, Decode: decode, Info: info, Test: test}[type(args)](args)
    except codec.CodecError as error:
        sys.exit(f"{args.file}: {error}")


def restored(args: Any) -> Run:
    changes = {} if args.path is None else {"data.path": args.path}
    own = isinstance(args, Encode) and args.data is None  # what else needs the run's own images?
    return load(args.run, programs.device(args.device), dataless=not own, **changes)


# Encoding


def encode(args: Encode) -> None:
    programs.least(1, timesteps=args.timesteps, block=args.block, lanes=args.lanes, passes=args.passes)
    for timesteps in args.sweep:
        programs.least(1, sweep=timesteps)
    programs.least(1, examples=args.examples)
    programs.file(args.file, "file")
    programs.other(args.file, args.run, args.data, args.labels, name="file")
    run = restored(args)
    x, labels = images(run, args)
    rows = []
    for timesteps in args.sweep or (args.timesteps,):
        rows.append(measured(run, args, x, labels, timesteps))
    numbers = math.prod(x.shape[1:])
    print(f"{args.data or run.test.name}: {len(x)} examples of {numbers} numbers, bits/dim")
    print(f"{'T':>6}{'bound':>19}{'net':>19}{'net - bound':>19}{'whole file':>12}{'examples/s':>12}{'network':>9}")
    for row in rows:
        print(row)
    if args.peers:
        for name, rate in peers(x.numpy()):
            print(f"{name:28}{rate:8.4f}")


class Row(NamedTuple):
    """One line of the table: figures with standard errors over examples, or rounds of them; bits/dim."""

    timesteps: int
    bound: tuple[float, float]
    net: tuple[float, float]
    excess: tuple[float, float]
    whole: float
    speed: float
    share: float | None

    def __str__(self) -> str:
        share = "" if self.share is None else f"{100 * self.share:8.0f}%"
        figures = "".join(f" {f'{mean:.4f} +- {error:.4f}':>18}" for mean, error in (self.bound, self.net, self.excess))
        return f"{self.timesteps:6}{figures}{self.whole:12.4f}{self.speed:12.2f}{share}"


def measured(run: Run, args: Encode, x: torch.Tensor, labels: torch.Tensor | None, timesteps: int) -> Row:
    """Writes the file, and what it costs beside the bound."""
    clock = Clock(run.model.network)
    model = run.model if args.compile else run.model._replace(network=clock)
    counts, bits, numbers = [], [], math.prod(x.shape[1:])
    started = time.perf_counter()
    with tqdm(total=len(x), desc=f"encode, T = {timesteps}") as bar:

        def told(n: int, cost: int) -> None:
            counts.append(n)
            bits.append(cost)
            bar.update(n)
            bar.set_postfix_str(f"{sum(bits) / (sum(counts) * numbers):.3f} bits/dim")

        found = codec.write(
            args.file,
            model,
            run.params,
            pieces(run, x, labels, args.block),
            timesteps=timesteps,
            lanes=args.lanes,
            portable=not args.fast,
            compile=args.compile,
            seed=args.seed,
            callback=told,
        )
    took = time.perf_counter() - started
    with tqdm(total=len(x), desc=f"bound, T = {timesteps}") as bar:
        bound = bounds(run, x, labels, timesteps, args, bar) / (math.log(2.0) * numbers)
    rounds = np.add.reduceat(bound, np.cumsum([0, *counts[:-1]]))
    each, net = np.array(counts), np.array(bits) / numbers
    return Row(
        timesteps,
        (bound.mean(), bound.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else math.nan),
        of_rounds(net, each),
        of_rounds(net - rounds, each),
        found.rate,
        len(x) / took,
        None if args.compile else sum(clock.runs) / took,
    )


@torch.no_grad()
def bounds(run: Run, x: torch.Tensor, labels: torch.Tensor | None, timesteps: int, args: Encode, bar: tqdm) -> np.ndarray:
    """The bound of each example, nats, its times spread evenly over the passes."""
    model, found = run.model._replace(timesteps=timesteps), []
    for j, (part, cond) in enumerate(pieces(run, x, labels, 128)):
        key = random.fold_in(random.key(args.seed, device=args.device), j)
        start, total = random.uniform(key, (len(part),), model.dtype), 0.0
        for i in range(args.passes):
            t = discretise((start + i) / args.passes, timesteps)
            keys = model.seeds(random.fold_in(key, i), len(part)).key
            total = total + model.nll_bound(run.params, part, Seeds(t, keys), cond).total.double()
        found.append(total.cpu().numpy() / args.passes)
        bar.update(len(part))
    return np.concatenate(found)


def of_rounds(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The mean over examples of what is known as sums over rounds of them, and its standard error."""
    mean = sums.sum() / counts.sum()
    return mean, math.sqrt(np.square(sums - counts * mean).sum()) / counts.sum()


@dataclass(frozen=True)
class Clock(Wrapped):
    """A network that notes how long it ran."""

    runs: list[float] = field(default_factory=list)

    def apply(self, *args: Any, **options: Any) -> torch.Tensor:
        started = time.perf_counter()
        found = self.own.apply(*args, **options)
        self.runs.append(time.perf_counter() - started)
        return found


def images(run: Run, args: Encode) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What is to be compressed, with its classes."""
    if run.train.vocab_size is None:
        raise DataError(f"{run.train.name}: expected integers, found real numbers, which no file holds exactly")
    n = args.examples
    if args.data is None:
        x, labels = batch(run.test, np.arange(min(run.test.size, n or run.test.size)))
    else:
        found, labels = array(args.data)[:n], None
        if found.shape[1:] != run.model.event_shape or found.dtype.kind not in "iu":
            shape = ", ".join(map(str, run.model.event_shape))
            raise DataError(
                f"{args.data}: expected integers of shape (n, {shape}), channels first, found {found.shape} of {found.dtype}"
            )
        if not len(found) or found.min() < 0 or found.max() >= run.train.vocab_size:
            raise DataError(f"{args.data}: expected at least one example, of integers in [0, {run.train.vocab_size - 1}]")
        x = torch.from_numpy(found)
    if args.labels is not None:
        labels = classes(args.labels)[:n]
    return x, told_classes(run, labels, len(x))


def told_classes(run: Run, labels: torch.Tensor | None, n: int) -> torch.Tensor | None:
    """The classes of n images, of which there must be as many if the model takes any."""
    if not run.config.model.labels:
        return None
    if labels is None or len(labels) < n:
        found = "none" if labels is None else len(labels)
        raise DataError(f"labels: expected the classes of {n} examples, as this model takes them, found {found}")
    labels = labels[:n].to(torch.int64)
    if n and not (labels.min() >= 0 and labels.max() < run.train.classes):
        raise DataError(f"labels: expected classes in [0, {run.train.classes - 1}], found {labels.min()} to {labels.max()}")
    return labels


def classes(path: Path) -> torch.Tensor:
    """The classes in a .npy file."""
    found = array(path)
    if found.ndim != 1 or found.dtype.kind not in "iu" or (len(found) and found.max() > 2**31):
        raise DataError(f"{path}: expected the classes of examples, integers, found {found.dtype} of shape {found.shape}")
    return torch.from_numpy(found.astype(np.int64))


def array(path: Path) -> np.ndarray:
    try:
        return np.array(npy.mapped(path))
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes raise many kinds
        raise DataError(f"{path}: expected a .npy file of numbers ({error})") from None


def pieces(run: Run, x: torch.Tensor, labels: torch.Tensor | None, size: int) -> Iterator[tuple[torch.Tensor, Any]]:
    """Images in pieces, with their conditions."""
    device = run.config.device
    for i in range(0, len(x), size):
        part = x[i : i + size].to(device)
        yield part, told(run, labels, i, len(part))


def told(run: Run, labels: torch.Tensor | None, at: int, n: int) -> Any:
    """The condition of images as they are."""
    part = None if labels is None else labels[at : at + n].to(run.config.device)
    return condition(run.config, torch.zeros(n, device=run.config.device), part)


# Decoding


def blocks(run: Run, args: Any, skip: Callable[[int, codec.CodecError], None] | None) -> Iterator[torch.Tensor]:
    """The images of a file, block after block."""
    found = codec.info(args.file)
    labels = classes(args.labels) if args.labels else None
    if labels is None and run.config.model.labels:
        labels = batch(run.test, np.arange(run.test.size))[1]
    n = found.examples if found.complete or labels is None else max(found.examples, len(labels))  # some may be lost
    with tqdm(total=found.examples, desc="decode") as bar:
        yield from codec.read(
            args.file,
            run.model,
            run.params,
            cond=told(run, told_classes(run, labels, n), 0, n),
            lanes=args.lanes,
            compile=args.compile,
            skip=skip,
            callback=lambda n, cost: bar.update(n),
        )


def decode(args: Decode) -> None:
    programs.file(args.out)
    programs.other(args.out, args.run, args.file, args.labels)
    lost: list[codec.CodecError] = []
    found = list(blocks(restored(args), args, (lambda number, error: lost.append(error)) if args.salvage else None))
    for error in lost:
        print(f"{args.file}: {error}", file=sys.stderr)
    if not found:
        sys.exit(f"{args.file}: nothing intact")
    x = torch.cat(found).numpy()
    draft = io.BytesIO()
    np.save(draft, x)
    programs.write(args.out, draft.getvalue())
    print(f"{len(x)} examples in {args.out}")


def test(args: Test) -> None:
    lost: list[str] = []
    n = sum(len(x) for x in blocks(restored(args), args, lambda number, error: lost.append(str(error))))
    print(*lost, f"{args.file}: {n} examples intact", sep="\n")
    if lost:
        sys.exit(1)


def info(args: Info) -> None:
    found = codec.info(args.file)
    where = "every machine" if found.portable else found.machine
    print(
        f"{args.file}: {found.examples} examples of shape {found.event_shape}, {found.vocab_size} values, {found.dtype}",
        f"{found.size} bytes, {found.rate:.4f} bits/dim; {found.net:.4f} without the initial bits and the container",
        f"{found.timesteps} steps, {len(found.blocks)} blocks, {'complete' if found.complete else 'damaged or cut short'}",
        f"model {found.model}; decodes on {where}",
        sep="\n",
    )


# Other formats


def peers(x: np.ndarray) -> Iterator[tuple[str, float]]:
    """What images (n, channels, height, width) or other arrays of bytes cost in other formats, bits per dimension."""
    if x.max() > 255:
        return
    x = x.astype(np.uint8)

    def rate(size: int) -> float:
        return 8.0 * size / x.size

    yield "zlib of all", rate(len(zlib.compress(x.tobytes(), 9)))
    yield "LZMA of all", rate(len(lzma.compress(x.tobytes(), preset=9 | lzma.PRESET_EXTREME)))
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return
    try:
        import imagecodecs
    except ImportError:
        print("PNG, WebP and JPEG XL need the package imagecodecs", file=sys.stderr)
        return
    formats: dict[str, Callable[..., bytes]] = {
        "PNG": partial(imagecodecs.png_encode, level=9),
        "WebP lossless": lambda image: imagecodecs.webp_encode(colour(image), lossless=True, level=100),
        "JPEG XL": partial(imagecodecs.jpegxl_encode, lossless=True, effort=9),
    }
    one_by_one = [picture(image) for image in x]
    whole = picture(tiled(x))
    for name, run in formats.items():
        yield f"{name}, one by one", rate(sum(len(run(image)) for image in tqdm(one_by_one, desc=name)))
        yield f"{name}, tiled", rate(len(run(whole)))


def picture(image: np.ndarray) -> np.ndarray:
    """(channels, height, width) as formats take it."""
    return np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def colour(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.ascontiguousarray(np.repeat(image[..., None], 3, -1))


def tiled(x: np.ndarray) -> np.ndarray:
    """All images as one, row by row; what is left of the last row is 0."""
    n, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    full = np.zeros((rows * columns, channels, height, width), x.dtype)
    full[:n] = x
    return full.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4).reshape(channels, rows * height, -1)


if __name__ == "__main__":
    main()
