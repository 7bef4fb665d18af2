"""Train a variational diffusion model: any data, presets with the official hyper-parameters, exact resume.

    python examples/app/train.py                             # digits, a few minutes on two cores
    python examples/app/train.py cifar10 --data.path data    # the official CIFAR-10 configuration
    python examples/app/train.py digits --model.network unet --optimizer.steps 2000 --out runs/mine
    python examples/app/train.py digits --model.predicts v --model.importance --out runs/v
    torchrun --nproc-per-node 4 examples/app/train.py cifar10 --shards 4
    python examples/app/train.py real --data.path x.npy      # real numbers: the bound is on their density, in nats

Writes into --out: config.json, metrics.jsonl, TensorBoard's files, checkpoints/, and at each evaluation a grid of samples
(where data are real, their numbers as .npy) and the schedule's curve. --resume goes on from the latest checkpoint, bit for
bit as if never stopped. Ctrl-C saves and stops.

A run is extended by --resume with more --optimizer.steps. With a constant learning rate it becomes, bit for bit, the run
that had so many steps from its start. A decaying rate has come down by then: --extend says that the steps left have the
rate of the settings given now (--optimizer.steps, lr, warmup, decay), at their place in the whole run.

Data (readers/): scikit-learn's digits; MNIST and its kin in IDX files; CIFAR-10 in its python or binary archive; ImageNet
32 and 64 in their npz batches; a folder of images; a .npy or .npz array of integers or real numbers; Hugging Face (extra
"huggingface"). A missing or damaged file is named, with where to get it. Refused are images of more than 8 bits a channel,
transparent pixels (unless --data.background or --data.channels says what becomes of them), labels that are not integers.

Checkpoints (safetensors and JSON, the last few and the best) appear whole or not at all, written while training goes on. The
order of the data is a function of key and step. N processes compute what one computes with the whole batch, to rounding, and
--accumulate pieces do the same; with --shards N each holds a part of parameters, averages and moments. A run goes on with
another number of either. --dtype bfloat16 and --model.remat need less memory. A non-finite loss stops the run; the step, the
loss's parts and the last good checkpoint are named. --help after a preset lists every field.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import optree
import programs
import torch
import tyro
from pictures import curve, drawable, grid
from PIL import Image
from presets import PRESETS, Config, Data, as_json, batches, build, condition, datasets, from_json, keys, standardised
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from purevdm import _files, evaluation, parallel, random, training
from purevdm.training import checkpoint
from purevdm.training.data import augment, batch, rows

T = TypeVar("T")
# What may differ between a run and its continuation.
FREE = {"out", "resume", "extend", "shards", "log_every", "eval_every", "save_every", "keep", "device", "compile"}
FREE |= {"eval_examples", "eval_batch", "eval_passes", "samples", "sample_steps"}
# The entries of data that a source goes by, besides the path and how images are augmented.
TAKEN = {
    "digits": {"held_out"},
    "folder": {"held_out", "size", "channels", "background"},
    "array": {"held_out", "layout", "vocab_size", "loc", "scale"},
    "huggingface": {"held_out", "size", "channels", "background", "label"},
}
RATE = {f"optimizer.{name}" for name in ("steps", "lr", "warmup", "decay")}  # what may, by --extend


def parse(arguments: list[str]) -> Config:
    """Reads the preset's configuration with what the command line changes; digits where no preset is named."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["digits", *arguments]
    return tyro.extras.overridable_config_cli(PRESETS, args=arguments, description=__doc__)


def check(config: Config) -> None:
    """Refuses settings that would stop the run after steps were taken."""
    sizes = "batch shards accumulate keep sample_steps log_every eval_every save_every eval_examples eval_batch eval_passes"
    programs.least(1, **{name: getattr(config, name) for name in sizes.split()})
    programs.least(0, samples=config.samples)
    if config.extend and not config.resume:
        raise ValueError("extend: expected it with --resume, which it goes with, got it alone")
    data, usual = asdict(config.data), asdict(Data())
    for name in sorted(usual.keys() - TAKEN.get(config.data.source, set()) - {"source", "augment"}):
        if data[name] != usual[name] and (name != "path" or config.data.source == "digits"):
            raise ValueError(f"data.{name}: expected none with data.source {config.data.source}, got {data[name]!r}")
    training.learning_rate(config.optimizer, 0)  # refuses an optimiser's bad settings
    programs.device(config.device)


def prepare(config: Config) -> Path | None:
    """Makes the output folder, and says from which checkpoint to go on."""
    programs.folder(config.out)
    saved = config.out / "config.json"
    latest = checkpoint.latest(config.out / "checkpoints")
    if not config.resume:
        if latest is not None:
            sys.exit(f"out: {config.out} holds a run already; go on with --resume, or give another --out")
    elif latest is None:
        tqdm.write(f"nothing to resume in {config.out}: starting anew")
    if latest is None:
        programs.write(saved, json.dumps(as_json(config), indent=1))
        return None
    now, notes, extended = settings(config), checkpoint.notes(latest), False
    for file, entries in ((saved, programs.saved(saved)), (latest, notes["extra"])):
        try:  # read as a configuration, it has the defaults of what was added since
            was = settings(from_json(entries))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            sys.exit(f"resume: {file} holds no configuration ({type(error).__name__}: {error})")
        differing = [name for name in now if was[name] != now[name]]
        constant = config.optimizer.decay == "constant" and differing == ["optimizer.steps"]
        if differing and not constant and not (config.extend and RATE.issuperset(differing)):
            changes = "; ".join(f"{name}: {was[name]} then, {now[name]} now" for name in differing)
            advice = "; --extend goes on by the new learning rate" * RATE.issuperset(differing)
            sys.exit(f"resume: {file} is of other settings: {changes}{advice}")
        extended = extended or bool(differing)
    if config.optimizer.steps < notes["step"]:
        sys.exit(f"optimizer.steps: expected at least the {notes['step']} of {latest}, got {config.optimizer.steps}")
    if extended:
        programs.write(saved, json.dumps(as_json(config), indent=1))
    return latest


def settings(config: Config) -> dict:
    """Lists what may not differ between a run and its continuation: the configuration's entries by name."""
    entries = {name: part for name, part in json.loads(json.dumps(as_json(config))).items() if name not in FREE}
    parts = {name: part if isinstance(part, dict) else {"": part} for name, part in entries.items()}
    return {f"{name}.{entry}".rstrip("."): value for name, part in parts.items() for entry, value in part.items()}


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Holds a folder, so that no second run writes into it; whatever ends this process lets it go."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder = os.open(programs.folder(out), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"out: another run is at work in {out}")
    else:
        yield
    finally:
        os.close(folder)


class Log:
    """Metrics as JSON lines and in TensorBoard; a continued run drops what its checkpoint does not know of."""

    def __init__(self, out: Path, step: int):
        self.path = out / "metrics.jsonl"
        programs.write(self.path, "".join(f"{line}\n" for line in (logged(self.path, step) if step else ())))
        self.file = self.path.open("a")
        self.board = SummaryWriter(out / "tensorboard", purge_step=step or None)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        with _files.naming(self.path):
            self.file.write(json.dumps({"step": step} | metrics) + "\n")
            self.file.flush()
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self.board.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        for opened in (self.file, self.board):
            with suppress(OSError):  # a full disk was named before
                opened.close()


def logged(path: Path, step: int) -> list[str]:
    """Reads the lines of a log up to a step. The last may be half a line, where the run was killed; no other."""
    if not path.exists():
        tqdm.write(f"{path}: not there; the run's log starts anew", file=sys.stderr)
        return []
    try:
        lines = [line for line in _files.regular(path).read_text(encoding="utf-8").split("\n")[:-1] if line]
        steps = [json.loads(line)["step"] for line in lines]
        if not all(type(at) is int for at in steps):
            raise TypeError("a step is no integer")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        wrong = f"{type(error).__name__}: {error}"
        sys.exit(f"resume: expected the run's log in {path}, got {wrong}; move it away to start a new one")
    return [line for line, at in zip(lines, steps, strict=True) if at <= step]


@programs.program
def main() -> int:
    config = parse(sys.argv[1:])
    check(config)
    group = parallel.join(config.device, timeout=1800.0)
    try:
        with ExitStack() as stack, parallel.answering(group):
            return run(config, group, stack)
    finally:
        parallel.leave()


def run(config: Config, group: parallel.Group, stack: ExitStack) -> int:
    first = group.rank == 0
    if config.batch % (group.size * config.accumulate):
        pieces = f"{group.size} processes x accumulate {config.accumulate}"
        sys.exit(f"batch: expected a multiple of {pieces}, got {config.batch}")
    mesh = parallel.mesh(group, config.shards)
    k = {name: key.to(group.device) for name, key in keys(config.seed).items()}
    train, test = datasets(config.data, k["split"].cpu())
    config = replace(config, data=standardised(config.data, train))
    model = build(config, train.event_shape, train.vocab_size, train.classes)
    state = training.init(model, k["init"], mesh)
    start = ending_alike(lambda: begun(config, stack) if first else None)
    if start is not None:
        state = checkpoint.load(start, state)
    count = sum(leaf.numel() for leaf in optree.tree_leaves(state.params))
    if first:
        print(f"{train.name}: {train.size} examples {train.event_shape}; {test.name}: {test.size}")
        print(f"{config.model.network}: {count} parameters; step {state.step} of {config.optimizer.steps}")
    m = config.model
    options = dict(variance=m.variance, compile=config.compile, remat=m.remat, accumulate=config.accumulate)
    grad_fn = training.gradients(model, **options)
    bound = torch.compile(model.nll_bound, fullgraph=True) if config.compile else None
    log = Log(config.out, state.step) if first else None
    checkpoints = config.out / "checkpoints"

    stopping = []
    previous = {s: signal.signal(s, lambda number, frame: stopping.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    size = config.batch // group.size
    mine = slice(group.rank * size, (group.rank + 1) * size)  # this process's rows of each batch
    metric = None
    last_good, saver = start, checkpoint.Saver()

    def saved() -> None:
        nonlocal last_good
        last_good = saver.wait() or last_good

    bar = tqdm(total=config.optimizer.steps, initial=state.step, disable=not first, desc="train")
    try:
        while state.step < config.optimizer.steps:
            chosen = rows(k["order"].cpu(), train.size, state.step, config.batch)
            x, labels = batch(train, chosen[mine], group.device)
            flags = torch.zeros(size, device=group.device)
            if config.data.augment:
                keys_of_images = random.split(random.fold_in(k["augment"], state.step), config.batch)
                x, flags = augment(keys_of_images[mine], x)
            seeds = model.seeds(random.fold_in(k["loss"], state.step), config.batch).rows(mine)
            cond = condition(config, flags, labels)
            state, metrics = training.train_step(config.optimizer, grad_fn, state, x, seeds, cond)
            bar.update()
            bar.set_postfix_str(f"{metrics['loss']:.3f} bits/dim", refresh=False)
            last = state.step == config.optimizer.steps
            if log and (state.step % config.log_every == 0 or last):
                log.write(state.step, metrics)
            metric = None
            if state.step % config.eval_every == 0 or last:
                metric = assess(config, model, state, test, k, bound, log, group)
            stop = parallel.anywhere(bool(stopping))  # all stop where one has to
            if (first or mesh is not None) and (state.step % config.save_every == 0 or last or stop):
                saved()
                saver.save(checkpoints, state, metric=metric, extra=as_json(config), keep=config.keep)
            if last or stop:
                saved()
            if stop and not last:
                # torchrun ends the processes left half a minute after one has stopped.
                parallel.barrier()
                if first:
                    tqdm.write(f"stopped at step {state.step}, saved in {last_good}; go on with --resume")
                return 130
    except (training.NonFiniteLossError, OSError, ValueError) as error:  # a schedule out of its range is a ValueError
        if not programs.expected(error):
            raise
        with suppress(OSError, ValueError):
            saved()
        where = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint yet"
        tqdm.write(f"{programs.message(error)}; {where}", file=sys.stderr)
        return 1
    finally:
        saver.close()
        bar.close()
        if log:
            log.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def begun(config: Config, stack: ExitStack) -> Path | None:
    """Holds the output folder for this run, and makes it; see :func:`prepare`."""
    stack.enter_context(alone(config.out))
    return prepare(config)


def ending_alike(run: Callable[[], T]) -> T:
    """Returns what the first process makes; where it ends the program, all end it with the same line."""
    try:
        outcome = (run(), None)
    except SystemExit as end:
        outcome = (None, end.code)
    value, code = parallel.gather(outcome)[0]
    if code is not None:
        sys.exit(code)
    return value


def assess(config, model, state, test, k, bound, log, group) -> float:
    """Bounds the test set, by all processes; by the first, draws samples and the schedule's curve. Returns the bound, in its
    own unit."""
    step, params, device = state.step, parallel.whole(state.ema_params), group.device
    n = min(test.size, config.eval_examples)
    data = batches(config, test, n, config.eval_batch, device)
    with tqdm(total=n, desc="test bound", leave=False, disable=log is None) as bar:
        options = dict(passes=config.eval_passes, method=bound, group=group, callback=parallel.counted(bar.update))
        figures = evaluation.evaluate(model, params, data, k["eval"], **options)
    if log is None:
        return figures.nll.mean
    metrics = {f"test/{name}": term.mean for name, term in figures.terms.items()}
    log.write(step, metrics | {"test/nll": figures.nll.mean, "test/error": figures.nll.error})
    terms = ", ".join(f"{name} {term}" for name, term in figures.terms.items())
    tqdm.write(f"step {step}: test bound {figures.nll} {figures.unit} ({terms})")
    pictures = config.out / "pictures"
    pictures.mkdir(exist_ok=True)
    if config.model.kind == "vdm":
        curve(model, params, pictures / f"gamma_{step:08d}.png")
        log.picture("gamma", pictures / f"gamma_{step:08d}.png", step)
    if config.samples:
        labels = torch.arange(config.samples, device=device) % max(test.classes, 1)
        options = dict(cond=condition(config, torch.zeros(config.samples, device=device), labels), steps=config.sample_steps)
        with tqdm(total=config.sample_steps, desc="sample", leave=False) as bar:
            x = model.sample(params, k["sample"], config.samples, callback=lambda i, z: bar.update(), **options)
        name = f"samples_{step:08d}"
        if test.vocab_size is None:
            with _files.replaced(pictures / f"{name}.npy") as draft:
                np.save(draft, x.cpu().numpy())
        if drawable(test.event_shape, test.vocab_size):
            grid(x, test.vocab_size, pictures / f"{name}.png")
            log.picture("samples", pictures / f"{name}.png", step)
    return figures.nll.mean


if __name__ == "__main__":
    sys.exit(main())
