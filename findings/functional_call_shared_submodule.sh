#!/usr/bin/env bash
# PyTorch 2.13.0: torch.func.functional_call leaves the parameters that it was given in a module whose submodule has two names
# (self.block = self.again = Linear(...)). After a call the module's own parameter is the tensor that was passed, and later
# calls of the module itself use it. With tie_weights=False and one name for each tensor the module stays as it was.
# Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 numpy
"$here/venv/bin/python" - <<'PY'
import torch
from torch.func import functional_call


class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block = torch.nn.Linear(2, 2, bias=False)
        self.again = self.block

    def forward(self, x):
        return self.again(self.block(x))


print(torch.__version__)
x = torch.ones(1, 2)
for options, stays in (({}, False), ({"tie_weights": False}, True)):
    module = Twice()
    own = module.block.weight
    before = module(x).detach().clone()
    functional_call(module, {"block.weight": torch.zeros(2, 2)}, (x,), **options)
    same = module.block.weight is own and torch.equal(module(x), before)
    print(f"{options or 'defaults'}: the module is {'as it was' if same else 'changed'} after the call")
    assert same == stays, "the behaviour changed"
PY
