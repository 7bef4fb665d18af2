#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: torch.exp takes many times as long where its result underflows to 0, although 0 is all there is to compute: a
# million numbers in [-10000, 0] take some 28 times as long as a million in [-1, 0] on one core of a Xeon with AVX-512, in float64 some
# 20 times. torch.logsumexp takes 12 times as long, torch.exp2 7, torch.softmax 5; torch.erf no longer. Densities far from their mean,
# as of pixels under a small noise, are such numbers. Clamped to [-80, 0] they take as long as others.
# Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 numpy
"$here/venv/bin/python" - <<'PY'
import statistics
import time

import torch

torch.set_num_threads(1)
torch.manual_seed(0)
near = -torch.rand(2**12, 2**8)
far = 10000.0 * near


def seconds(f, x):
    begin = time.perf_counter()
    f(x)
    return time.perf_counter() - begin


def ratio(f, a, b):
    f(a), f(b)
    times = [(seconds(f, a), seconds(f, b)) for _ in range(15)]
    return statistics.median(slow / quick for quick, slow in times)


assert (torch.exp(far) == 0).float().mean() > 0.98
ratios = {
    "exp": ratio(torch.exp, near, far),
    "exp, float64": ratio(torch.exp, near.double(), far.double()),
    "logsumexp": ratio(lambda x: torch.logsumexp(x, -1), near, far),
    "exp, clamped": ratio(torch.exp, near, far.clamp(min=-80.0)),
    "exp2": ratio(torch.exp2, near, far),
    "softmax": ratio(lambda x: torch.softmax(x, -1), near, far),
    "erf": ratio(torch.erf, near, far),
}
for name, value in ratios.items():
    print(f"{torch.__version__} {name}: {value:.1f} times as long")
assert ratios["exp"] > 8, "the behaviour changed"
assert ratios["exp, clamped"] < ratios["exp"] / 4, "the behaviour changed"
PY
