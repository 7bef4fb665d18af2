"""Peak memory of training on volumes, with blocks computed again in the backward pass (``remat``) and without.

    python examples/studies/volumes.py                       # in eager mode
    python examples/studies/volumes.py --compile             # compiled
    python examples/studies/volumes.py --steps 160 --remat   # trains longer, with remat only

Volumes are smooth, periodic Gaussian random fields, drawn anew for each step. Each way runs in a process of its own, on as
many threads as OMP_NUM_THREADS says. The peak is that of the whole process, less what it held before the first step.

On two AVX-512 cores, one thread, in eager mode:

    remat     peak, MiB     time of a step
    no             1015          1
    yes             443          1.2

160 steps with remat take the bound from 1.98 bits/dim (the mean of the first fifth) to 0.85 (of the last).
"""

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import purevdm
from purevdm import decoders, networks, random, schedules, training


def fields(key: torch.Tensor, n: int, size: int) -> torch.Tensor:
    """Draws fields (n, 1, size, size, size) of variance 1, whose power falls as (1 + (k / 2)**2)**-2."""
    k = torch.fft.fftfreq(size, 1 / size)
    power = (1.0 + (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2) / 4.0) ** -2.0
    modes = torch.fft.fftn(random.normal(key, (n, 1, size, size, size)), dim=(2, 3, 4))
    return torch.fft.ifftn(modes * (power / power.mean()).sqrt(), dim=(2, 3, 4)).real


def peak() -> float:
    """Reads the most memory that this process has held so far, MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def run(size: int, batch: int, embed: int, steps: int, remat: bool, compile: bool) -> str:
    """Trains, and returns a row of the table."""
    adapter = "c d h w -> (d h w) c"
    network = networks.unet(embed, (1, 2, 4), 1, adapter=adapter, padding="circular", predicts="v", remat=remat)
    shape = (1, size, size, size)
    model = purevdm.vdm(network, schedules.learned_linear(-8.0, 5.0), shape, decoder=decoders.gaussian())
    gradients = training.gradients(model, compile=compile, remat=remat)
    settings, state, k_train = training.AdamW(lr=1e-3, warmup=10), training.init(model, random.key(0)), random.key(1)
    x = fields(random.key(2), batch, size)
    before, times, losses = peak(), [], []
    for step in tqdm(range(steps), disable=steps < 20):
        started = time.perf_counter()
        state, metrics = training.train_step(settings, gradients, state, x, k_train)
        times.append(time.perf_counter() - started)
        losses.append(metrics["loss"])
        x = fields(random.fold_in(random.key(2), step + 1), batch, size)
    fifth = max(1, steps // 5)
    first, last = (sum(part) / len(part) for part in (losses[:fifth], losses[-fifth:]))
    way = f"{'compiled' if compile else 'eager'}, remat={remat}"
    return f"| {way} | {peak() - before:.0f} | {min(times):.1f} | {first:.3f} | {last:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--embed", type=int, default=16, help="width of the network")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--remat", action="store_true", help="only that way")
    parser.add_argument("--here", action="store_true", help="one way, in this process; prints its row only")
    args = parser.parse_args()
    if min(args.size, args.batch, args.embed, args.steps) < 1:
        parser.error("--size, --batch, --embed and --steps must be at least 1")
    if args.here:
        print(run(args.size, args.batch, args.embed, args.steps, args.remat, args.compile))
        return
    print(f"{args.batch} volumes of {args.size}^3, {math.prod((args.size,) * 3) * args.batch * 4 / 2**20:.1f} MiB")
    print("| | peak, MiB | a step, s | bits/dim, first fifth of steps | last fifth |\n|---|---|---|---|---|")
    for extra in [["--remat"]] if args.remat else [[], ["--remat"]]:
        line = [sys.executable, __file__, *sys.argv[1:], "--here", *extra]
        print(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
