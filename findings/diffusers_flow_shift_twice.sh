#!/usr/bin/env bash
# diffusers 0.42.1: FlowMatchEulerDiscreteScheduler(shift=3.0) shifts its least noise level twice. The constructor shifts the table of 1000
# levels, so that the least is 0.00299, from 0.001; set_timesteps spaces its steps down to that number, and shifts them again: the last
# level before data is 0.00893. The last step is then three times as long as the settings say. With shift=1.0 nothing changes.
# Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy
"$here/venv/bin/python" - <<'PY' 2>/dev/null
import diffusers

print("diffusers", diffusers.__version__)
least = {}
for shift in (1.0, 3.0):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    made = scheduler.sigmas[-1].item()
    scheduler.set_timesteps(8)
    least[shift] = made, scheduler.sigmas[-2].item()
    print(f"shift {shift:g}: the table's least level {made:.5f}, the last level before data of 8 steps {least[shift][1]:.5f}")


def shifted(s, k=3.0):
    return k * s / (1 + (k - 1) * s)


assert abs(least[1.0][1] - 0.001) < 1e-6, "the behaviour changed"
assert abs(least[3.0][0] - shifted(0.001)) < 1e-6 and abs(least[3.0][1] - shifted(shifted(0.001))) < 1e-5, "the behaviour changed"
PY
