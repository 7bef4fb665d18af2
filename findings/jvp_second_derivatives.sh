#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: the gradient of a forward-mode derivative (torch.func.grad of torch.func.jvp) is silently wrong for
# layer_norm and linalg.solve. The first derivative itself is right, and the gradient of a reverse-mode derivative
# (torch.func.grad of torch.func.vjp) agrees with differences. Divergences and Hutchinson traces are often written with jvp.
# Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 numpy
"$here/venv/bin/python" - <<'PY'
import torch
from torch.func import grad, jvp, vjp

torch.manual_seed(0)
x, v = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
matrix = torch.randn(5, 5, dtype=torch.float64) + 5 * torch.eye(5, dtype=torch.float64)
cases = {
    "layer_norm": lambda z: torch.nn.functional.layer_norm(z, (5,)),
    "linalg.solve": lambda z: torch.linalg.solve(matrix + torch.diag(z.sin()), z),
    "tanh": torch.tanh,
}
print(torch.__version__)
for name, f in cases.items():
    forward = lambda z: (v * jvp(f, (z,), (v,))[1]).sum()
    reverse = lambda z: (v * vjp(f, z)[1](v)[0]).sum()
    assert torch.allclose(forward(x), reverse(x), rtol=1e-10)  # the first derivatives agree
    step = 1e-6
    basis = torch.eye(5, dtype=torch.float64)
    differences = torch.stack([(reverse(x + step * e) - reverse(x - step * e)) / (2 * step) for e in basis])
    off = [((grad(g)(x) - differences).norm() / differences.norm()).item() for g in (forward, reverse)]
    print(f"{name}: gradient of jvp off by {off[0]:.1e}, of vjp by {off[1]:.1e}")
    assert off[1] < 1e-5
    assert (off[0] > 1e-2) == (name != "tanh"), "the behaviour changed"
PY
