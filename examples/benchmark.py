"""Time purevdm in eager and compiled, in turn, in one process: random numbers, a training step, sampling.

    python examples/benchmark.py --parts random step sample

Prints compile seconds, medians with minimum and maximum, and ratios, which are what carries over to other machines.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import purevdm
from purevdm import random


def timed(calls: dict[str, Callable[[], object]], runs: int, device: str) -> dict[str, list[float]]:
    """Seconds of each call, the calls taken in turn so that a drift of the machine meets all of them."""

    def once(call: Callable[[], object]) -> float:
        started = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    for name, call in calls.items():
        print(f"  {name:<24} first call {once(call):8.2f} s")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            seconds[name].append(once(call))
    return seconds


def report(seconds: dict[str, list[float]]) -> None:
    base_name, base = next((name, statistics.median(times)) for name, times in seconds.items())
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"  {name:<24} median {median * 1e3:10.3f} ms  [{min(times) * 1e3:.3f}, {max(times) * 1e3:.3f}]"
            f"  {median / base:6.2f} x {base_name}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("random", "step", "sample"), default=["random", "step", "sample"])
    parser.add_argument("--embed", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50, help="sampling steps")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a JSON file for all times, in seconds")
    args = parser.parse_args()
    if min(args.runs, args.batch, args.samples, args.steps, args.size) < 1:
        parser.error("--runs, --batch, --samples, --steps and --size must be at least 1")

    shape = (3, args.size, args.size)
    network = purevdm.networks.vdm_unet(args.embed, args.layers)
    model = purevdm.vdm(network, purevdm.schedules.learned_linear(), shape)
    key = random.key(0, device=args.device)
    params = model.init(key)
    x = random.randint(key, (args.batch, *shape), 0, 256)
    normal = torch.compile(lambda k: random.normal(k, (args.batch, *shape)), fullgraph=True)
    loss_and_grad = torch.func.grad_and_value(model.loss_fn)
    step, sample = (torch.compile(f, fullgraph=True) for f in (loss_and_grad, model.sample))
    count = torch.tensor(args.steps)
    parts: dict[str, dict[str, Callable[[], object]]] = {
        "random": {
            "torch.randn": lambda: torch.randn(args.batch, *shape, device=args.device),
            "normal, compiled": lambda: normal(key),
            "normal, eager": lambda: random.normal(key, (args.batch, *shape)),
        },
        "step": {
            "step, compiled": lambda: step(params, x, key),
            "step, eager": lambda: loss_and_grad(params, x, key),
        },
        "sample": {
            "sample, compiled": lambda: sample(params, key, args.samples, steps=count),
            "sample, eager": lambda: model.sample(params, key, args.samples, steps=count),
        },
    }
    results = {}
    for name in args.parts:
        print(name)
        results |= timed(parts[name], args.runs * (20 if name == "random" else 1), args.device)
        report({call: results[call] for call in parts[name]})
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
