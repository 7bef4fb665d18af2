#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: torch.while_loop passes gradients back, but two of them are wrong, without a warning, in eager mode and compiled.
# A loop multiplies z by w. Where the start of z requires no gradient, the gradient of three turns by w is 4.5, that of the last turn
# alone, for 13.5. Where the loop takes no turn, so that the result is the start, the gradient by w is 2 for 0. With a start that
# requires a gradient, three turns are right. The same numbers were seen with 2.15.0. A sampling loop over a network is the first case:
# latents begin as noise, and parameters are what one differentiates by. purevdm refuses derivatives of compiled loops unless it unrolls
# them (purevdm/_compile.py).
# Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 numpy
TORCHINDUCTOR_CACHE_DIR="$here/inductor" "$here/venv/bin/python" - <<'PY'
import torch


def power(turns):
    """z w**turns, by a loop."""

    def f(z, w):
        return torch.while_loop(lambda i, z: i < turns, lambda i, z: (i + 1, z * w), (torch.tensor(0), z))[1]

    return f


def by_w(f, start_requires_grad):
    z, w = torch.tensor(2.0, requires_grad=start_requires_grad), torch.tensor(1.5, requires_grad=True)
    return torch.autograd.grad(f(z, w), w)[0].item()


seen = {}
for turns in (3, 0):
    for start in (True, False):
        right = turns * 2.0 * 1.5 ** (turns - 1)
        for way, f in (("eager", power(turns)), ("compiled", torch.compile(power(turns), fullgraph=True))):
            torch._dynamo.reset()
            seen[turns, start, way] = by_w(f, start)
            found = seen[turns, start, way]
            print(f"{torch.__version__} {way}: {turns} turns, start requires a gradient: {start}; d/dw {found}, right {right}")
for way in ("eager", "compiled"):
    assert seen[3, True, way] == 13.5, "the behaviour changed"
    assert seen[3, False, way] == 4.5, "the behaviour changed"
    assert seen[0, True, way] == seen[0, False, way] == 2.0, "the behaviour changed"
PY
