"""Time purevdm in eager and compiled, and other people's VDMs beside it: calls taken in turn, in one process.

    python examples/studies/benchmark.py
    python examples/studies/benchmark.py --parts step sample --jax-vdm ../vdm --addtt ../variational-diffusion-models

Prints, for each part, the seconds of the first call (which compiles), medians with minimum and maximum, ratios (only they
carry over to other machines), and GFLOP/s with their share of what this machine's matrix products and convolutions reach,
measured in the same turns. --jax-vdm and --addtt take checkouts of the official JAX code and of the best-known PyTorch port.
Install their packages first. JAX runs on its default device.

The network is the paper's U-Net with embed 64 and 4 layers: 1.33 million parameters, images of 32x32x3, dropout, Fourier
features, attention in the middle, float32.

What to expect on a CPU:

- On an empty cache the first call takes a minute and a half for this network's step on two cores, one minute by
  ``training.gradients``, which makes the code of each kind of block once, and half a minute for the sampler (official JAX
  takes 5 s). PyTorch caches what its last stage makes in TORCHINDUCTOR_CACHE_DIR, so the first call in a second process
  takes 11 to 27 s, nearly all tracing. From a file of :mod:`purevdm.artifact`, step or samples are there after 5 to 7 s.
- One graph serves every key and every number of sampling steps in a tensor. With ``torch._dynamo.mark_dynamic(x, 0)`` it
  serves every batch size (PyTorch 2.13 or newer; the compiler may limit the range, as to 16 to 256). A sampler's first graph
  is for the number of samples that it was called with; another number compiles a second one, for any.

The part "ways" times a training step and the sampler in float32 and bfloat16, and in the compiler's mode "reduce-overhead":
CUDA graphs, on a GPU. The peaks are those of bfloat16. With --device cuda it prints images a second, too:

    python examples/studies/benchmark.py --device cuda --parts ways --embed 128 --layers 32 --batch 128 --samples 64

The part "flow" integrates log p of images, by the model that ``copy/digits.py`` trained and one probe each: by adaptive
steps in one graph, with the divergence at all stages and at the ends of steps (``quadrature=2``); by Heun's method in
as many steps as --steps says; by the first in eager; and by SciPy's RK45 driven from Python, as public code of score models
does it. It prints also how often each applied the network, and how far their log p's are from those at a tenth of the
tolerance. It takes half an hour.

    python examples/studies/benchmark.py --parts flow --runs 2 --steps 100
"""

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import optree
import peers
import programs
import torch
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

import purevdm
from purevdm import likelihood, ode, random, solvers, training
from purevdm.likelihood import flow as likelihood_flow

PARTS = ("step", "sample", "ways", "flow")
DEFAULT = PARTS[:2]
WAYS = (("float32", "default"), ("bfloat16", "default"), ("bfloat16", "reduce-overhead"))
PAPER = dict(solver=solvers.ancestral(), grid="time")  # the sampler of all that are compared
Calls = dict[str, Callable[[], Any]]


def timed(calls: Calls, runs: int, device: str) -> dict[str, dict[str, Any]]:
    """Measures seconds of each call, the calls taken in turn so that a drift of the machine meets all of them."""

    def once(call: Callable[[], Any]) -> float:
        started = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    times: dict[str, dict[str, Any]] = {name: {"first": once(call), "seconds": []} for name, call in calls.items()}
    for _ in range(runs):
        for name, call in calls.items():
            times[name]["seconds"].append(once(call))
    return times


def peaks(dtype: torch.dtype, device: str, embed: int, batch: int, size: int) -> tuple[Calls, dict[str, float]]:
    """Makes calls that show what the machine reaches, a large matrix product and the network's commonest convolution, and
    counts their FLOPs."""
    n = 2048 if device == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=dtype)
    x = torch.randn(batch, embed, size, size, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = torch.randn(embed, embed, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    calls: Calls = {"peak: matrix product": lambda: a @ a, "peak: convolution": lambda: conv2d(x, kernel, padding=1)}
    flops = {"peak: matrix product": 2.0 * n**3, "peak: convolution": 2.0 * 9 * batch * embed**2 * size**2}
    return calls, flops


def counted(call: Callable[[], Any]) -> float:
    """Counts floating-point operations of a call's products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def report(times: dict[str, dict[str, Any]]) -> None:
    """Prints a line for each call; ratios are to the first."""
    medians = {name: statistics.median(row["seconds"]) for name, row in times.items()}
    base = next(iter(medians.values()))
    rates = {name: row["flops"] / medians[name] / 1e9 for name, row in times.items() if row.get("flops")}
    best = [rates[name] for name in rates if name.startswith("peak")]
    for name, median in medians.items():
        low, high = min(times[name]["seconds"]), max(times[name]["seconds"])
        line = f"  {name:<32} {median * 1e3:10.2f} ms [{low * 1e3:.2f}, {high * 1e3:.2f}]  {median / base:6.2f} x"
        if name in rates:
            line += f"  {rates[name]:8.1f} GFLOP/s"
            if best and not name.startswith("peak"):
                line += " = " + " and ".join(f"{rates[name] / peak:.0%}" for peak in best) + " of the peaks"
        print(f"{line}  (first call {times[name]['first']:.1f} s)")


def beside_peaks(calls: Calls, operations: float, args: argparse.Namespace, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Times calls of so many operations in turn with what the machine reaches, and prints their lines."""
    extra, flops = peaks(dtype, args.device, args.embed, args.batch, args.size)
    times = timed(calls | extra, args.runs, args.device)
    for name, number in (dict.fromkeys(calls, operations) | flops).items():
        times[name]["flops"] = number
    report(times)
    return times


def ways(args: argparse.Namespace, model: purevdm.VDM, params: Any, x: torch.Tensor) -> dict[str, dict[str, Any]]:
    """Times a training step and the sampler, in each dtype and mode of the compiler."""
    key, count = random.key(0, device=args.device), torch.tensor(args.steps)
    steps: Calls = {}
    samples: Calls = {}
    for dtype, mode in WAYS:
        own = model.network if dtype == "float32" else purevdm.networks.mixed(model.network, getattr(torch, dtype))
        other, name = model._replace(network=own), dtype if mode == "default" else f"{dtype}, {mode}"
        grad = training.gradients(other, compile=True, mode=mode)
        sample = torch.compile(functools.partial(other.sample, **PAPER), fullgraph=True, mode=mode)
        steps[name] = functools.partial(grad, params, x, key)
        samples[name] = functools.partial(sample, params, key, args.samples, steps=count)
    operations = {
        "step": counted(lambda: torch.func.grad_and_value(model.loss_fn)(params, x, key)),
        "sample": counted(lambda: model.sample(params, key, args.samples, steps=1, **PAPER)) * args.steps,
    }
    results: dict[str, dict[str, Any]] = {}
    for part, calls, images in (("step", steps, args.batch), ("sample", samples, args.samples)):
        print(f" {part}")
        results[part] = beside_peaks(calls, operations[part], args, torch.bfloat16)
        for name in calls if args.device != "cpu" else ():
            print(f"  {name:<32} {images / statistics.median(results[part][name]['seconds']):10.1f} images/s")
    return results


def flow(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Times log p of digits by the probability flow, in one graph, in eager mode, and by SciPy."""
    model, params, z, probes = common.latents(args.digits, args.images, 1, args.device)
    pieces = list(zip(z.split(args.piece), probes.split(args.piece, 1), strict=True))

    def by(integrator: Callable[[torch.Tensor], ode.Integrator]) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        """Makes log p by an integrator of some setting, in a tensor."""

        def log_p(z: torch.Tensor, probes: torch.Tensor, setting: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            estimate = likelihood.log_prob_latent(model, params, z, integrator=integrator(setting), probe_noise=probes)
            return estimate.log_prob, estimate.evaluations

        return log_p

    adaptive = by(lambda tolerance: ode.dopri5(tolerance, tolerance))
    by_points = by(lambda tolerance: ode.dopri5(tolerance, tolerance, quadrature=2))

    def all_of(run: Callable[..., Any], setting: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, counts = zip(*(run(*piece, setting) for piece in pieces), strict=True)
        return torch.cat(values), torch.cat(counts)

    def velocity(z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return likelihood_flow.velocity(model, params, z, gamma)

    compiled, points, grid = (torch.compile(run, fullgraph=True) for run in (adaptive, by_points, by(ode.heun)))
    tolerance, fine = (torch.tensor(t, device=args.device) for t in (args.tolerance, 0.1 * args.tolerance))
    start, stop = model.gamma(params, torch.tensor([0.0, 1.0], device=args.device)).tolist()
    calls: Calls = {
        "one graph": lambda: all_of(compiled, tolerance),
        "one graph, quadrature=2": lambda: all_of(points, tolerance),
        f"one graph, heun({args.steps})": lambda: all_of(grid, torch.tensor(args.steps)),
        "the same loop in eager": lambda: all_of(adaptive, tolerance),
        "SciPy's RK45": lambda: peers.score_sde(velocity, z, probes[0], start, stop, args.tolerance),
    }
    estimates: dict[str, Any] = {}

    def kept(name: str) -> None:
        estimates[name] = calls[name]()

    with torch.no_grad():
        times = timed({name: functools.partial(kept, name) for name in calls}, args.runs, args.device)
        exact = all_of(compiled, fine)[0].double()
    for name, (value, evaluations) in estimates.items():
        off = (value.double() - exact).abs()
        count = torch.as_tensor(evaluations, dtype=torch.float64)
        times[name] |= {"evaluations": count.mean().item(), "most": count.max().item()}
        times[name] |= {"error": off.mean().item(), "worst": off.max().item()}
        print(
            f"  {name:<32} {count.mean():6.1f} evaluations an image, at most {count.max():.0f};"
            f" log p off by {off.mean():.1e} nats, at most {off.max():.1e}"
        )
    report(times)
    return times


@programs.program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--embed", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50, help="sampling steps")
    parser.add_argument("--digits", type=Path, default=Path("runs/digits"), help="for the part flow: what digits.py wrote")
    parser.add_argument("--images", type=int, default=297, help="for the part flow")
    parser.add_argument("--piece", type=int, default=33, help="for the part flow: images in one call of ours")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="for the part flow")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jax-vdm", type=Path, help="a checkout of github.com/google-research/vdm, to time beside")
    parser.add_argument("--addtt", type=Path, help="a checkout of github.com/addtt/variational-diffusion-models, likewise")
    parser.add_argument("--out", type=Path, help="a JSON file for all times, in seconds")
    args = parser.parse_args()
    if min(args.runs, args.batch, args.samples, args.steps, args.size, args.images, args.piece) < 1:
        parser.error("--runs, --batch, --samples, --steps, --size, --images and --piece must be at least 1")
    if args.images % min(args.images, args.piece):
        parser.error(f"--images {args.images}: expected a multiple of --piece, {args.piece}")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: this PyTorch sees no such device")

    programs.file(args.out)
    shape = (3, args.size, args.size)
    network = purevdm.networks.vdm_unet(args.embed, args.layers)
    model = purevdm.vdm(network, purevdm.schedules.learned_linear(), shape)
    key = random.key(0, device=args.device)
    params = model.init(key)
    x, count = random.randint(key, (args.batch, *shape), 0, 256), torch.tensor(args.steps)
    loss_and_grad = torch.func.grad_and_value(model.loss_fn)
    gradients, by_blocks = training.gradients(model), training.gradients(model, compile=True)
    step = torch.compile(loss_and_grad, fullgraph=True)
    sample = torch.compile(functools.partial(model.sample, **PAPER), fullgraph=True)
    parts: dict[str, Calls] = {
        "step": {
            "purevdm, compiled": lambda: step(params, x, key),
            "purevdm, gradients, compiled": lambda: by_blocks(params, x, key),
            "purevdm, eager": lambda: loss_and_grad(params, x, key),
            "purevdm, gradients, eager": lambda: gradients(params, x, key),
        },
        "sample": {
            "purevdm, compiled": lambda: sample(params, key, args.samples, steps=count),
            "purevdm, eager": lambda: model.sample(params, key, args.samples, steps=count, **PAPER),
        },
    }
    flops = {
        "step": lambda: loss_and_grad(params, x, key),
        "sample": lambda: model.sample(params, key, args.samples, steps=1, **PAPER),
    }
    sizes = (args.embed, args.layers, args.size, args.batch, args.samples, args.steps)
    for other in (
        peers.official(args.jax_vdm, *sizes) if args.jax_vdm else {},
        peers.port(args.addtt, *sizes, args.device) if args.addtt else {},
    ):
        for part, calls in other.items():
            parts[part] |= calls

    machine = platform.processor() or platform.machine()
    device = torch.cuda.get_device_name() if args.device != "cpu" else f"{machine}, {torch.get_num_threads()} threads"
    leaves: Any = optree.tree_leaves(params)  # type: ignore[arg-type]
    print(f"torch {torch.__version__} on {device}; {sum(p.numel() for p in leaves):,} parameters")
    results: dict[str, Any] = {}
    for part in (part for part in PARTS if part in args.parts):
        print(part)
        if part in parts:
            operations = counted(flops[part]) * (args.steps if part == "sample" else 1)
            results[part] = beside_peaks(parts[part], operations, args, torch.float32)
        else:
            results[part] = ways(args, model, params, x) if part == "ways" else flow(args)
    if args.out:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        head = {"torch": torch.__version__, "device": device, "settings": settings}
        programs.write(args.out, json.dumps(head | results, indent=1))


if __name__ == "__main__":
    main()
