"""Train a diffusion model of scikit-learn's digits given their class, and classify test images by their likelihood.

    python classify.py

Each test image is bounded under each of the ten classes, with the same times and noise, which then cancel in what is
compared. Prints the accuracy of the class with the lowest bound, beside two classifiers of scikit-learn; and the mutual
information of image and class in bits, in two ways: what the classes' probabilities, in proportion to exp(-bound), say of
the right one, and how far the bound rises where the class is left out.
"""

import argparse
import math

import numpy as np
import optree
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from tqdm import tqdm

import purevdm
from purevdm import evaluation, random, training

CLASSES, LEVELS, SHAPE, TEST = 10, 17, (1, 8, 8), 297


def data(key):
    """Splits the images and their classes by a key, for training and for the test: integers (n, 1, 8, 8) and (n,)."""
    digits = load_digits()
    x, label = torch.from_numpy(digits.images).long()[:, None], torch.from_numpy(digits.target).long()
    order = random.permutation(key.cpu(), len(x))
    return (x[order[TEST:]], label[order[TEST:]]), (x[order[:TEST]], label[order[:TEST]])


def build():
    """Makes the model, which sees no class in a tenth of the examples, so that it knows images of all classes, too."""
    conditions = dict(classes=CLASSES, cond_drop=0.1)
    network = purevdm.networks.vdm_unet(embed=64, layers=2, fourier=(1, 2, 3), dropout=0.0, groups=16, **conditions)
    schedule = purevdm.schedules.learned_linear(gamma_min=-8.0, gamma_max=4.0)
    return purevdm.vdm(network, schedule, event_shape=SHAPE, vocab_size=LEVELS)


def train(model, draw, k_init, k_train, steps, lr=2e-3, decay=0.01, compile=True):
    """Trains on the batches that ``draw(key)`` gives; returns the averaged parameters and the losses, bits/dim."""
    params = model.init(k_init)
    ema = optree.tree_map(torch.clone, params)
    leaves, average = optree.tree_leaves(params), optree.tree_leaves(ema)
    optimizer = torch.optim.AdamW(leaves, lr=lr, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    # What torch.func.grad_and_value(model.loss_fn) computes; it compiles faster.
    gradients = training.gradients(model, compile=compile)
    losses = []
    for i in (bar := tqdm(range(steps), desc="train (the first step compiles)" if compile else "train")):
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


def accuracy(right):
    """Writes the share of right answers, and its binomial error."""
    share = right.double().mean().item()
    return f"{share:.3f} +- {math.sqrt(share * (1 - share) / len(right)):.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=550, help="training steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--passes", type=int, default=10, help="passes of times over the test set (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="train without compiling")
    args = parser.parse_args()

    k_data, k_init, k_train, k_test = random.split(random.key(args.seed), 4)
    (x, label), (test, truth) = data(k_data)
    model = build()

    def draw(key):
        rows = random.randint(key, (args.batch,), 0, len(x))
        return x[rows], label[rows]

    params, _ = train(model, draw, k_init, k_train, args.steps, compile=not args.eager)

    def bounds(cond):
        """Bounds each test image by the noise of one key, whatever the condition."""
        return evaluation.per_example(model, params, [(test, cond)], k_test, passes=args.passes)

    nll = torch.stack([bounds(torch.full_like(truth, c)).nll for c in tqdm(range(CLASSES), desc="classes")], 1)
    print(f"accuracy by the bound        {accuracy(nll.argmin(1) == truth)} ({args.steps} steps, {TEST} images)")
    for name, other in (("logistic regression", LogisticRegression(max_iter=5000)), ("support vectors", SVC())):
        guess = other.fit(x.flatten(1) / (LEVELS - 1), label).predict(test.flatten(1) / (LEVELS - 1))
        print(f"{name:28} {accuracy(torch.from_numpy(guess) == truth)}")
    # log p(class given image) / p(class), from below on average; and -log p(image) without the class minus that with it
    known = math.log2(CLASSES) + torch.log_softmax(-nll, 1).gather(1, truth[:, None])[:, 0] / math.log(2)
    free, given = bounds(None).nll, nll.gather(1, truth[:, None])[:, 0]
    for name, bits in (("by the classes", known), ("by two bounds", (free - given) / math.log(2))):
        error = bits.std() / math.sqrt(TEST)
        print(f"information {name:16} {bits.mean():.2f} +- {error:.2f} bits, of at most {math.log2(CLASSES):.2f}")


if __name__ == "__main__":
    main()
