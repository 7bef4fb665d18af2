#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: torch.func.grad asks for a backward pass that can be differentiated again, even where nobody does. So group norm
# and SiLU run no native_group_norm_backward and silu_backward there, but a dozen elementwise operations each, with as many passes over
# memory. torch.autograd.grad on the same function runs one kernel for each. The gradients are equal up to rounding.
# Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 numpy
"$here/venv/bin/python" - <<'PY'
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

torch.manual_seed(0)
x = torch.randn(2, 8, 4, 4)


def loss(x):
    return F.silu(F.group_norm(x, 2)).square().sum()


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def outside(x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


seen, gradients = {}, {}
for name, gradient in (("torch.func.grad", torch.func.grad(loss)), ("torch.autograd.grad", outside)):
    with Names() as run:
        gradients[name] = gradient(x)
    seen[name] = run.names
    native = [n for n in run.names if n.endswith(("native_group_norm_backward", "silu_backward"))]
    print(f"{torch.__version__} {name}: {len(run.names)} operations, of which native backward kernels: {native}")
a, b = gradients.values()
assert (a - b).norm() < 1e-5 * b.norm(), "the gradients differ"
natives = {name: sum(n.endswith(("native_group_norm_backward", "silu_backward")) for n in names) for name, names in seen.items()}
assert natives == {"torch.func.grad": 0, "torch.autograd.grad": 2}, "the behaviour changed"
assert len(seen["torch.func.grad"]) >= len(seen["torch.autograd.grad"]) + 12, "the behaviour changed"
PY
