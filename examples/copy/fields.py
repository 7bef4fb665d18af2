"""Train a variational diffusion model of periodic fields given blurred, noisy maps, and hold it against the exact posterior.

    python fields.py

Fields of 16 x 16 are Gaussian with a known power spectrum; maps are blurred by a Gaussian beam, with white noise added. In
the basis of cosines plus sines all is independent: the posterior of a mode given its map is a known normal distribution.
Prints the test bound beside the known conditional entropy; shares of true modes within central intervals of samples, with
binomial errors, and the chi-square of their ranks (19 degrees of freedom), beside those of exact samples. Writes fields.png.
"""

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import optree
import torch
from tqdm import tqdm

import purevdm
from purevdm import decoders, evaluation, networks, random, schedules, training

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHAPE, NOISE, SAMPLES = (1, 16, 16), 0.3, 19
K = torch.hypot(*torch.meshgrid(*[torch.fft.fftfreq(16, 1 / 16)] * 2, indexing="ij"))  # wave numbers
POWER, BEAM = 20.0 * (1.0 + (K / 1.5) ** 2) ** -1.5, torch.exp(-0.5 * (K / 4.0) ** 2)  # of each mode
GAIN, VARIANCE = (part / (POWER * BEAM**2 + NOISE**2) for part in (POWER * BEAM, POWER * NOISE**2))


def modes(x):
    """Transforms to the orthonormal basis of cosines plus sines (Hartley's), and back."""
    f = torch.fft.fft2(x, norm="ortho")
    return f.real - f.imag


def draw_fields(key, n):
    """Draws fields, (n, 1, 16, 16), and their maps, of the same shape."""
    field, noise = random.normal(key, (2, n, *SHAPE))
    x = modes(POWER.sqrt() * field)
    return x, modes(BEAM * modes(x)) + NOISE * noise


def train(model, draw, k_init, k_train, steps, lr=2e-3, decay=0.01, compile=None):
    """Trains on the batches that ``draw(key)`` gives; returns the averaged parameters and the losses, bits/dim."""
    params = model.init(k_init)
    ema = optree.tree_map(torch.clone, params)
    leaves, average = optree.tree_leaves(params), optree.tree_leaves(ema)
    optimizer = torch.optim.AdamW(leaves, lr=lr, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    # A compiler takes as long as it saves in some 3000 steps, whatever the machine.
    compile = steps >= 3000 if compile is None else compile
    # What torch.func.grad_and_value(model.loss_fn) computes; it compiles sooner, and is faster in eager mode.
    gradients = training.gradients(model, compile=compile)
    losses = []
    for i in (bar := tqdm(range(steps), desc="train (the first step compiles)" if compile else "train (not compiled)")):
        k_batch, k_loss = random.split(random.fold_in(k_train, i))
        grads, (loss, _) = gradients(params, draw(k_batch), k_loss)
        for leaf, grad in zip(leaves, optree.tree_leaves(grads), strict=True):
            leaf.grad = grad
        # a warm-up, then a cosine down to a hundredth
        rate = min((i + 1) / max(1, steps // 20), 0.505 + 0.495 * math.cos(math.pi * i / steps))
        optimizer.param_groups[0]["lr"] = lr * rate
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, leaves, max(0.01, 1 / (i + 1)))
        losses.append(loss.item())
        bar.set_postfix_str(f"{np.mean(losses[-50:]):.3f} bits/dim", refresh=False)
    return ema, losses


def calibration(x, samples):
    """Ranks modes of fields among those of samples, (n, 19, 1, 16, 16): independent ranks, if these are of the posterior."""
    ranks = (modes(samples) < modes(x)[:, None]).sum(1).flatten()
    counts, n = torch.bincount(ranks, minlength=SAMPLES + 1), len(ranks)
    shares = {0.5: counts[5:15].sum() / n, 0.9: counts[1:19].sum() / n}
    of = ", ".join(f"{share:.4f} +- {math.sqrt(p * (1 - p) / n):.4f} (nominal {p})" for p, share in shares.items())
    return f"within {of}, chi-square {((counts - n / len(counts)) ** 2).sum() * len(counts) / n:.1f}"


def picture(path, images, spectra):
    figure, axes = plt.subplots(1, 6, figsize=(14, 2.6), width_ratios=[1] * 5 + [1.7], layout="constrained")
    for ax, (name, image) in zip(axes, images.items(), strict=False):
        ax.imshow(image[0], vmin=-3, vmax=3, cmap="RdBu_r")
        ax.set(title=name, xticks=[], yticks=[])
    rings = K.round().long().flatten()
    for style, (name, power) in zip(("k-", "C3o"), spectra.items(), strict=True):
        axes[5].semilogy(torch.bincount(rings, power.flatten()) / torch.bincount(rings), style, label=name)
    axes[5].set(xlabel="wave number", title="power of a mode")
    axes[5].legend()
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="training steps (default: %(default)s)")
    parser.add_argument("--maps", type=int, default=64, help="test maps (default: %(default)s)")
    compile = "whether to compile a step, which pays from some 3000 steps on (default: then)"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help=compile)
    parser.add_argument("--out", type=Path, default=Path("runs/fields"), help="where the picture goes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    k_init, k_train, k_test, k_bound, k_exact, k_sample = random.split(random.key(0), 6)
    network = networks.unet(16, (1, 2), 1, groups=4, padding="circular", map_channels=1, predicts="v")
    model = purevdm.vdm(network, schedules.learned_linear(-8.0, 5.0), SHAPE, decoder=decoders.gaussian())
    params, _ = train(model, lambda key: draw_fields(key, 32), k_init, k_train, args.steps, compile=args.compile)
    x, maps = draw_fields(k_test, args.maps)
    bound = evaluation.evaluate(model, params, [*zip(x.split(64), maps.split(64), strict=True)], k_bound, passes=128)
    print(f"test bound  {bound.nll} nats a field ({args.steps} steps, {args.maps} fields)")
    print(f"entropy     {0.5 * torch.log(2 * math.pi * math.e * VARIANCE).sum():.3f} nats a field, given its map")
    mean = modes(GAIN * modes(maps))
    exact = mean[:, None] + modes(VARIANCE.sqrt() * random.normal(k_exact, (args.maps, SAMPLES, *SHAPE)))
    given = maps.repeat_interleave(SAMPLES, 0)
    drawn = model.sample(params, k_sample, len(given), steps=20, cond=given).unflatten(0, exact.shape[:2])
    print(f"model       {calibration(x, drawn)}\nexact       {calibration(x, exact)}")
    images = dict(field=x[0], map=maps[0], sample=drawn[0, 0], mean=drawn[0].mean(0)) | {"exact mean": mean[0]}
    picture(args.out / "fields.png", images, {"known": POWER, "samples": modes(drawn).square().mean((0, 1, 2))})


if __name__ == "__main__":
    main()
