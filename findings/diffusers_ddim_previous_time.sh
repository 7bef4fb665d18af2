#!/usr/bin/env bash
# diffusers 0.42.1: DDIMScheduler takes a step to the level t - T // N, and not to that of the next time in its own list. With
# timestep_spacing="linspace", T = 1000 and 7 steps, the first step goes to level 857, and the network is then told 832 of latents whose
# noise is that of 857: some 0.5 in the log signal-to-noise ratio. The lists of "leading" do agree. DDPMScheduler goes by its list.
# Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy
"$here/venv/bin/python" - <<'PY' 2>/dev/null
import diffusers
import torch

print("diffusers", diffusers.__version__)
x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
off = {}
for spacing in ("leading", "linspace"):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(7)
    first, second = scheduler.timesteps[:2].tolist()
    # With a predicted noise of 0, a step multiplies by the ratio of the levels' alphas, which says where it went.
    ratio = scheduler.step(torch.zeros_like(x), first, x).prev_sample.flatten()[0].item()
    bar = scheduler.alphas_cumprod.double()
    went = int((bar - bar[first] * ratio**2).abs().argmin())
    log_snr = torch.log(bar / (1 - bar))
    off[spacing] = float(log_snr[second] - log_snr[went])
    print(f"{spacing}: from {first}, next in its list {second}, went to {went}; log-SNR differs by {off[spacing]:.3f}")
assert abs(off["leading"]) < 1e-6 and abs(off["linspace"]) > 0.3, "the behaviour changed"
PY
