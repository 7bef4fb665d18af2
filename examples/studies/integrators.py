"""Evaluations against the error of log p, for each integrator, by the model that ``examples/copy/digits.py`` trained.

    python examples/copy/digits.py
    python examples/studies/integrators.py runs/digits
    python examples/studies/integrators.py runs/digits --probes 0   # the exact divergence

Latents of test images go along the probability flow in float64, with one probe each for the divergence. The error is against
``dopri5`` at a far smaller tolerance with the same probes, so that it is that of the integration only. The first row's time
is the unit of all.

Time is what makes the flow rough: the paper's networks take sinusoids of 1000 times the normalised gamma, of which the
fastest goes through 159 periods from time 0 to 1. Small tolerances resolve them all, from end to end. So this takes a while.

With --images 8 it found, among others (two AVX-512 cores):

    integrator          setting     evaluations   error, nats   time
    dopri5              1e-4                248          0.53   1.00
    dopri5              1e-5                656          0.25   2.57
    dopri5, 2 points    1e-5                396          0.64   0.95
    dopri5, 3 points    1e-5                462          0.42   1.18
    dopri5, 4 points    1e-5                528          0.37   1.44
    heun                80 steps            160          0.17   0.58
    heun                160 steps           320          0.28   1.19
    rk4                 160 steps           640          0.11   2.19
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import programs
import torch
from tqdm import tqdm

from purevdm import likelihood, ode
from purevdm.ode import Integrator

ADAPTIVE: dict[str, Callable[[Any], Integrator]] = {
    "dopri5": lambda tolerance: ode.dopri5(tolerance, tolerance),
    "dopri5, 2 points": lambda tolerance: ode.dopri5(tolerance, tolerance, quadrature=2),
    "dopri5, 3 points": lambda tolerance: ode.dopri5(tolerance, tolerance, quadrature=3),
    "dopri5, 4 points": lambda tolerance: ode.dopri5(tolerance, tolerance, quadrature=4),
}
FIXED: dict[str, Callable[[Any], Integrator]] = {"heun": ode.heun, "rk4": ode.rk4}


@programs.program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder that examples/copy/digits.py wrote, with params.safetensors")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--probes", type=int, default=1, help="for the divergence; 0 computes it exactly")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-2, 1e-3, 1e-4, 1e-5])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40, 80, 160])
    parser.add_argument("--reference", type=float, default=1e-7, help="the reference's tolerance")
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    args = parser.parse_args()
    if min(args.images, *args.steps) < 1 or args.probes < 0 or min(args.reference, *args.tolerances) <= 0.0:
        parser.error("--images and --steps must be at least 1, --probes at least 0, --tolerances and --reference above 0")
    programs.file(args.out)
    model, params, z, probes = common.latents(args.run, args.images, args.probes, dtype=torch.float64)
    log_p = partial(likelihood.log_prob_latent, model, params, z, probe_noise=probes)
    ways = [(name, f"{t:.0e}", make(t)) for name, make in ADAPTIVE.items() for t in args.tolerances]
    ways += [(name, f"{n} steps", make(n)) for name, make in FIXED.items() for n in args.steps]
    rows, times = [], []
    with torch.no_grad():
        exact = log_p(integrator=ode.dopri5(args.reference, args.reference, limit=100_000)).log_prob
        for name, setting, integrator in tqdm(ways, desc="integrate"):
            started = time.perf_counter()
            estimate = log_p(integrator=integrator)
            times.append(time.perf_counter() - started)
            off, count = (estimate.log_prob - exact).abs(), estimate.evaluations.double()
            figures = count.mean().item(), count.max().item(), off.mean().item(), off.max().item()
            rows.append((name, setting, *figures, times[-1] / times[0]))
    print("| integrator | tolerance or steps | evaluations | most | error, nats | worst | time |")
    print("|---|---|---|---|---|---|---|")
    for name, setting, mean, most, error, worst, took in rows:
        print(f"| {name} | {setting} | {mean:.0f} | {most:.0f} | {error:.1e} | {worst:.1e} | {took:.2f} |")
    if args.out:
        columns = ["integrator", "setting", "evaluations", "most", "error", "worst", "time"]
        programs.write(args.out, json.dumps({"columns": columns, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
