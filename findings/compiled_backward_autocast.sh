#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: a compiled function called under torch.autocast has its backward pass compiled under that autocast, too.
# PyTorch's documentation asks for backward() outside of autocast; where that is done, the eager backward pass keeps float32 for
# an operation that its forward pass kept out of autocast, and the compiled one computes it in bfloat16. The switch is
# torch._functorch.config.backward_pass_autocast ("same_as_forward" by default, "off" equals eager).
# Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 numpy
"$here/venv/bin/python" - <<'PY'
import torch
from torch._functorch import config

torch.manual_seed(0)
w, x = torch.randn(64, 64), torch.randn(16, 64)


def f(w):
    with torch.autocast("cpu", enabled=False):
        return (x @ w).square().sum()


def gradient(function):
    leaf = w.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = function(leaf)
    loss.backward()
    return leaf.grad


print(torch.__version__, "backward_pass_autocast =", config.backward_pass_autocast)
eager = gradient(f)
off = ((gradient(torch.compile(f, backend="aot_eager")) - eager).norm() / eager.norm()).item()
torch._dynamo.reset()
with config.patch(backward_pass_autocast="off"):
    same = ((gradient(torch.compile(f, backend="aot_eager")) - eager).norm() / eager.norm()).item()
print(f"compiled gradient off by {off:.1e} of its norm; with the switch off by {same:.1e}")
assert off > 1e-4, "the behaviour changed"
assert same < 1e-6, "the behaviour changed"
PY
