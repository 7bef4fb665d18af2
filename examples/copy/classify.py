"""Train a diffusion model of scikit-learn's digits given their class, and classify test images by their likelihood.

    python classify.py

Each test image is bounded under each of the ten classes, with the same times and noise, which then cancel in what is
compared. Prints the accuracy of the class with the lowest bound, the same with a key for each class, and that of two
classifiers of scikit-learn; and the mutual information of image and class, in bits: how far above their frequency are the
right classes' probabilities, in proportion to exp(-bound). With any other probabilities than the true ones it is too low.

Of seeds 1 and 2: 0.943 and 0.949 (each +- 0.013), 0.330 with a key for each class, logistic regression 0.949 and 0.970,
support vectors 0.976 and 0.993, information 2.85 +- 0.16 and 3.07 +- 0.08 bits of 3.32. The network was chosen on seed 0,
where it has 0.973.
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
    """Makes the model. A small network of dense layers learns classes soon, though its bound is none of the best."""
    network = purevdm.networks.mlp(256, layers=3, fourier=(), classes=CLASSES)
    schedule = purevdm.schedules.learned_linear(gamma_min=-8.0, gamma_max=4.0)
    return purevdm.vdm(network, schedule, event_shape=SHAPE, vocab_size=LEVELS)


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


def accuracy(right):
    """Writes the share of right answers, and its binomial error."""
    share = right.double().mean().item()
    return f"{share:.3f} +- {math.sqrt(share * (1 - share) / len(right)):.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3500, help="training steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--passes", type=int, default=10, help="passes of times over the test set (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    k_data, k_init, k_train, k_test = random.split(random.key(args.seed), 4)
    (x, label), (test, truth) = data(k_data)
    model = build()

    def draw(key):
        rows = random.randint(key, (args.batch,), 0, len(x))
        return x[rows], label[rows]

    params, _ = train(model, draw, k_init, k_train, args.steps, compile=False)

    def bounds(keys):
        """Bounds each test image under each class, nats: (images, classes)."""
        each = []
        for c, key in enumerate(keys):
            batch = test, torch.full_like(truth, c)
            each.append(evaluation.per_example(model, params, [batch], key, passes=args.passes).nll)
        return torch.stack(each, 1)

    nll, unpaired = bounds([k_test] * CLASSES), bounds(random.split(k_test, CLASSES))
    print(f"lowest bound, one key     {accuracy(nll.argmin(1) == truth)} ({args.steps} steps, {TEST} images)")
    print(f"a key for each class      {accuracy(unpaired.argmin(1) == truth)}")
    for name, other in (("logistic regression", LogisticRegression(max_iter=5000)), ("support vectors", SVC())):
        guess = other.fit(x.flatten(1) / (LEVELS - 1), label).predict(test.flatten(1) / (LEVELS - 1))
        print(f"{name:25} {accuracy(torch.from_numpy(guess) == truth)}")
    # log of p(class given image) / p(class)
    bits = math.log2(CLASSES) + torch.log_softmax(-nll, 1).gather(1, truth[:, None])[:, 0] / math.log(2)
    error = bits.std() / math.sqrt(TEST)
    print(f"mutual information        {bits.mean():.3f} +- {error:.3f} bits, of at most {math.log2(CLASSES):.3f}")


if __name__ == "__main__":
    main()
