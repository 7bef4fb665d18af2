#!/usr/bin/env bash
# diffusers 0.42.1: DDPMScheduler(variance_type="fixed_large_log") samples NaN from the first step with noise. Of its two log kinds,
# "fixed_small_log" gives a step the standard deviation, and "fixed_large_log" the logarithm of the variance, whose square root the step
# takes as if it were the variance. The other three kinds are finite. The setting is in the scheduler's documentation, and in configurations.
# Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy
"$here/venv/bin/python" - <<'PY' 2>/dev/null
import diffusers
import torch

print("diffusers", diffusers.__version__)
x = torch.ones(1, 1, 2, 2)
finite = {}
for kind in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"):
    scheduler = diffusers.DDPMScheduler(variance_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    step = scheduler.step(torch.zeros_like(x), 500, x, generator=torch.Generator().manual_seed(0)).prev_sample
    finite[kind] = bool(step.isfinite().all())
    print(f"{kind}: a step at time 500 gives {step.flatten()[0].item():.4f}")
assert finite == {"fixed_small": True, "fixed_small_log": True, "fixed_large": True, "fixed_large_log": False}, "the behaviour changed"
PY
