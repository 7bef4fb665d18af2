"""Compress images losslessly with a trained model, and get them back bit for bit (extra "codec").

    python examples/app/compress.py encode runs/digits_train digits.pvdm            # the run's test set
    python examples/app/compress.py encode runs/digits_train mine.pvdm --data x.npy # integers, (n, *event)
    python examples/app/compress.py encode runs/digits_train digits.pvdm --sweep 50 100 250
    python examples/app/compress.py decode runs/digits_train digits.pvdm x.npy
    python examples/app/compress.py info digits.pvdm
    python examples/app/compress.py test runs/digits_train digits.pvdm

encode ends with a table: what the file costs with its initial bits and without, the bound in as many steps, and what the
same images cost in other formats. test decodes a file block by block, and says which are intact. A file decodes on every
machine, unless it is written with --fast. Classes are not part of a file: a model that takes them needs them again in
decoding.
"""

import lzma
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import programs
import torch
import tyro
from presets import condition
from readers import DataError, npy, reading
from runs import Run, load
from tqdm import tqdm

from purevdm import Seeds, _files, codec, parallel, random
from purevdm.networks import Wrapped
from purevdm.noise import discretise
from purevdm.parallel import Group
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


@dataclass(kw_only=True)
class Test:
    """Whether a file is intact."""

    run: Annotated[Path, Positional]
    file: Annotated[Path, Positional]
    labels: Path | None = None
    """Their classes, for a model that takes them; those of the run's test set where left out."""
    lanes: int | None = None
    path: str | None = None
    device: str = "cpu"
    compile: bool = False


@dataclass(kw_only=True)
class Decode(Test):
    """A file to images, a .npy file."""

    out: Annotated[Path, Positional]
    salvage: bool = False
    """Whether to leave damaged blocks out, instead of stopping at them."""


@dataclass
class Info:
    """What a file tells without its model."""

    file: Annotated[Path, Positional]


@programs.program
def main() -> None:
    commands = {"encode": Encode, "decode": Decode, "info": Info, "test": Test}
    args = tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    if not isinstance(args, Info):
        programs.device(args.device)
    group = parallel.join(getattr(args, "device", "cpu"))
    args = args if isinstance(args, Info) else replace(args, device=str(group.device))
    try:
        {Encode: encode, Decode: decode, Info: info, Test: test}[type(args)](args, group)
    except codec.CodecError as error:
        sys.exit(f"{args.file}: {error}")
    finally:
        parallel.leave()


def restored(args: Any) -> Run:
    """Loads the run."""
    own = isinstance(args, Encode) and args.data is None  # what else needs the run's own images?
    return load(args.run, args.device, dataless=not own, **{"data.path": args.path})


# Encoding


def encode(args: Encode, group: Group) -> None:
    sizes = dict(timesteps=args.timesteps, block=args.block, lanes=args.lanes, passes=args.passes, examples=args.examples)
    programs.least(1, **sizes, sweep=min(args.sweep, default=None))
    programs.file(args.file, "file")
    programs.other(args.file, args.run, args.data, args.labels, name="file")
    run = restored(args)
    x, labels = images(run, args)
    lines = [measured(run, args, x, labels, timesteps, group) for timesteps in args.sweep or (args.timesteps,)]
    if group.rank > 0:
        return
    print(f"{args.data or run.test.name}: {len(x)} examples of {math.prod(x.shape[1:])} numbers, bits/dim")
    print(f"{'T':>6}{'bound':>19}{'net':>19}{'net - bound':>19}{'whole file':>12}{'examples/s':>12}{'network':>9}")
    print(*lines, sep="\n")
    for name, rate in peers(x.numpy()) if args.peers else ():
        print(f"{name:28}{rate:8.4f}")


def measured(run: Run, args: Encode, x: torch.Tensor, labels: torch.Tensor | None, timesteps: int, group: Group) -> str:
    """Writes the file, and returns a line of the table: what it costs beside the bound, bits/dim, with standard errors over
    examples, or rounds of them."""
    clock = Clock(run.model.network)
    model = run.model if args.compile else run.model._replace(network=clock)
    counts, bits, numbers = [], [], math.prod(x.shape[1:])
    started = time.perf_counter()
    with tqdm(total=len(x), desc=f"encode, T = {timesteps}", disable=group.rank > 0) as bar:
        update = parallel.counted(bar.update)

        def after_round(n: int, cost: int) -> None:
            counts.append(n)
            bits.append(cost)
            update(n)
            bar.set_postfix_str(f"{sum(bits) / (sum(counts) * numbers):.3f} bits/dim")

        options = dict(timesteps=timesteps, lanes=args.lanes, portable=not args.fast, compile=args.compile, seed=args.seed)
        batches = pieces(run, x, labels, args.block)
        file = codec.write(args.file, model, run.params, batches, group=group, callback=after_round, **options)
        counts, bits = in_order(parallel.gather((counts, bits)), len(x), args.block)
        update(0)
    took = time.perf_counter() - started
    with tqdm(total=len(x), desc=f"bound, T = {timesteps}", disable=group.rank > 0) as bar:
        bound = bounds(run, x, labels, timesteps, args, bar, group) / (math.log(2.0) * numbers)
    rounds = np.add.reduceat(bound, np.cumsum([0, *counts[:-1]]))
    each, net = np.array(counts), np.array(bits) / numbers
    error = bound.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    figures = ((bound.mean(), error), of_rounds(net, each), of_rounds(net - rounds, each))
    line = "".join(f" {f'{mean:.4f} +- {error:.4f}':>18}" for mean, error in figures)
    share = "" if args.compile else f"{100 * sum(clock.runs) / took:8.0f}%"
    return f"{timesteps:6}{line}{file.rate:12.4f}{len(x) / took:12.2f}{share}"


@torch.no_grad()
def bounds(
    run: Run, x: torch.Tensor, labels: torch.Tensor | None, timesteps: int, args: Encode, bar: tqdm, group: Group
) -> np.ndarray:
    """Bounds each example, nats, its times spread evenly over the passes; processes take turns at pieces of them."""
    model, each, update = run.model._replace(timesteps=timesteps), {}, parallel.counted(bar.update)
    for j, (part, cond) in list(enumerate(pieces(run, x, labels, 128)))[group.rank :: group.size]:
        key = random.fold_in(random.key(args.seed, device=args.device), j)
        start, total = random.uniform(key, (len(part),), model.dtype), 0.0
        for i in range(args.passes):
            t = discretise((start + i) / args.passes, timesteps)
            keys = model.seeds(random.fold_in(key, i), len(part)).key
            total = total + model.nll_bound(run.params, part, Seeds(t, keys), cond).total.double()
        each[j] = total.cpu().numpy() / args.passes
        update(len(part))
    parts = programs.in_order(each)
    update(0)
    return np.concatenate(parts)


def in_order(everyone: list[tuple[list[int], list[int]]], n: int, block: int) -> tuple[list[int], list[int]]:
    """Puts the rounds of all processes, who took turns at blocks of n examples, into the order of the data."""
    left = [iter(zip(*rounds, strict=True)) for rounds in everyone]
    done: list[tuple[int, int]] = []
    for number, start in enumerate(range(0, n, block)):
        size = min(block, n - start)
        while size:
            done.append(next(left[number % len(left)]))
            size -= done[-1][0]
    return [count for count, _ in done], [cost for _, cost in done]


def of_rounds(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Returns the mean over examples of what is known as sums over rounds of them, and its standard error."""
    mean = sums.sum() / counts.sum()
    return mean, math.sqrt(np.square(sums - counts * mean).sum()) / counts.sum()


@dataclass(frozen=True)
class Clock(Wrapped):
    """A network that notes how long it ran."""

    runs: list[float] = field(default_factory=list)

    def around(self, apply: Callable[..., torch.Tensor], *args: Any, **options: Any) -> torch.Tensor:
        started = time.perf_counter()
        output = apply(*args, **options)
        self.runs.append(time.perf_counter() - started)
        return output


def images(run: Run, args: Encode) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Reads what is to be compressed, with its classes."""
    levels, shape = run.train.vocab_size, run.model.event_shape
    if levels is None:
        raise DataError(f"{run.train.name}: expected integers, found real numbers, which no file holds exactly")
    if args.data is None:
        n = min(run.test.size, args.examples or run.test.size)
        x, labels = batch(run.test, np.arange(n))
    else:
        values, labels = array(args.data)[: args.examples], None
        if values.shape[1:] != shape or values.dtype.kind not in "iu":
            expected = f"integers of shape (n, {', '.join(map(str, shape))}), channels first"
            raise DataError(f"{args.data}: expected {expected}, found {values.shape} of {values.dtype}")
        if not len(values) or values.min() < 0 or values.max() >= levels:
            raise DataError(f"{args.data}: expected at least one example, of integers in [0, {levels - 1}]")
        x = torch.from_numpy(values)
    labels = labels if args.labels is None else classes(args.labels)
    return x, fitting(run, labels, len(x))


def fitting(run: Run, labels: torch.Tensor | None, n: int) -> torch.Tensor | None:
    """Returns the classes of n images, of which there must be as many if the model takes any."""
    if not run.config.model.labels:
        return None
    if labels is None or len(labels) < n:
        given = "none" if labels is None else len(labels)
        raise DataError(f"labels: expected the classes of {n} examples, as this model takes them, found {given}")
    labels = labels[:n].to(torch.int64)
    if n and not (labels.min() >= 0 and labels.max() < run.train.classes):
        raise DataError(f"labels: expected classes in [0, {run.train.classes - 1}], found {labels.min()} to {labels.max()}")
    return labels


def classes(path: Path) -> torch.Tensor:
    """Reads the classes in a .npy file."""
    values = array(path)
    if values.ndim != 1 or values.dtype.kind not in "iu" or (len(values) and values.max() > 2**31):
        raise DataError(f"{path}: expected the classes of examples, integers, found {values.dtype} of shape {values.shape}")
    return torch.from_numpy(values.astype(np.int64))


def array(path: Path) -> np.ndarray:
    with reading(path, "a .npy file"):
        return np.array(npy.mapped(path))


def pieces(run: Run, x: torch.Tensor, labels: torch.Tensor | None, size: int) -> Iterator[tuple[torch.Tensor, Any]]:
    """Gives images in pieces, with their conditions."""
    for part, own in zip(x.split(size), (labels if labels is not None else x).split(size), strict=True):
        yield part.to(run.config.device), condition_of(run, None if labels is None else own, len(part))


def condition_of(run: Run, labels: torch.Tensor | None, n: int) -> Any:
    """Makes the condition of n images as they are."""
    device = run.config.device
    return condition(run.config, torch.zeros(n, device=device), None if labels is None else labels.to(device))


# Decoding


def blocks(
    run: Run, args: Test, group: Group, skip: Callable[[int, codec.CodecError], None] | None
) -> Iterator[torch.Tensor]:
    """Gives the images of a file, block after block."""
    file = codec.info(args.file)
    labels = classes(args.labels) if args.labels else None
    if labels is None and run.config.model.labels:
        labels = batch(run.test, np.arange(run.test.size))[1]
    n = file.examples if file.complete or labels is None else max(file.examples, len(labels))  # some may be lost
    options = dict(cond=condition_of(run, fitting(run, labels, n), n), lanes=args.lanes, compile=args.compile, skip=skip)
    with tqdm(total=file.examples, desc="decode", disable=group.rank > 0) as bar:
        update = parallel.counted(bar.update)
        options |= dict(group=group, callback=lambda n, cost: update(n))
        yield from codec.read(args.file, run.model, run.params, **options)
        update(0)


def decode(args: Decode, group: Group) -> None:
    programs.file(args.out)
    programs.other(args.out, args.run, args.file, args.labels)
    lost: list[codec.CodecError] = []
    skip = (lambda number, error: lost.append(error)) if args.salvage else None
    parts = list(blocks(restored(args), args, group, skip))
    if group.rank > 0:
        return
    for error in lost:
        print(f"{args.file}: {error}", file=sys.stderr)
    if not parts:
        sys.exit(f"{args.file}: nothing intact")
    with _files.naming(args.out), _files.replaced(args.out) as draft, draft.open("wb") as file:
        np.save(file, torch.cat(parts).numpy())
    print(f"{sum(map(len, parts))} examples in {args.out}")


def test(args: Test, group: Group) -> None:
    lost: list[str] = []
    n = sum(len(x) for x in blocks(restored(args), args, group, lambda number, error: lost.append(str(error))))
    if group.rank > 0:
        return
    print(*lost, f"{args.file}: {n} examples intact", sep="\n")
    if lost:
        sys.exit(1)


def info(args: Info, group: Group) -> None:
    file = codec.info(args.file)
    print(
        f"{args.file}: {file.examples} examples of shape {file.event_shape}, {file.vocab_size} values, {file.dtype}",
        f"{file.size} bytes, {file.rate:.4f} bits/dim; {file.net:.4f} without the initial bits and the container",
        f"{file.timesteps} steps, {len(file.blocks)} blocks, {'complete' if file.complete else 'damaged or cut short'}",
        f"model {file.model}; decodes on {'every machine' if file.portable else file.machine}",
        sep="\n",
    )


# Other formats


def peers(x: np.ndarray) -> Iterator[tuple[str, float]]:
    """Measures what images (n, channels, height, width) or other arrays of bytes cost in other formats, bits/dim."""
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
    """Turns (channels, height, width) into what formats take."""
    return np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def colour(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.ascontiguousarray(np.repeat(image[..., None], 3, -1))


def tiled(x: np.ndarray) -> np.ndarray:
    """Sets all images side by side as one; what is left of the last row is 0."""
    n, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    full = np.zeros((rows * columns, channels, height, width), x.dtype)
    full[:n] = x
    return full.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4).reshape(channels, rows * height, -1)


if __name__ == "__main__":
    main()
