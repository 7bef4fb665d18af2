"""Characters: a text that comes with Python, what n-grams spend on it, and a transformer to model it with."""

import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pydoc_data import topics
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import purevdm
from purevdm import bfn, decoders, masked, networks, random, schedules
from purevdm import nn as layers

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
LENGTH, TEST = 64, 256  # of a window, and how many are held out
STRETCHES, RUN = 40, 24
BITS = 5  # enough for a character
BETA_1, GAMMA = 0.75**2, (-4.0, 6.0)  # the paper's for 27 classes; for bits, where the endpoints of gamma start
EMBEDDING = 16  # numbers of a character
WIDTH, BLOCKS, STEPS, BATCH, LR = 96, 4, 800, 32, 2e-3


class Split(NamedTuple):
    """A text in parts.

    Attributes:
        pieces: the training text, each (n,), codes in [0, 27).
        train: its windows, one from every character, (n, LENGTH), in no order.
        test: windows side by side of the held-out text, (TEST, LENGTH).
    """

    pieces: list[Tensor]
    train: Tensor
    test: Tensor


def read() -> str:
    """Reads Python's language reference, as ``help`` shows it by topic, in letters and spaces. Topics repeat one another,
    so a paragraph that came before is left out."""
    paragraphs = {}
    for _, topic in sorted(topics.topics.items()):
        for paragraph in re.split(r"\n\s*\n", topic):
            paragraphs.setdefault(re.sub("[^a-z]+", " ", paragraph.lower()).strip())
    return " ".join(filter(None, paragraphs))


def split(key: Tensor) -> Split:
    """Holds out a tenth of the text, in stretches drawn by the key. The reference uses many a phrase again, so windows
    with a run of ``RUN`` characters that the training text has, too, are left out of the test set."""
    k_stretches, k_windows, k_train = random.split(key.cpu(), 3)
    codes = torch.tensor([ALPHABET.index(c) for c in read()], dtype=torch.uint8)
    stretches = codes.tensor_split(STRETCHES)
    chosen = set(random.permutation(k_stretches, STRETCHES)[: STRETCHES // 10].tolist())
    together = groupby(range(STRETCHES), chosen.__contains__)
    pieces = [torch.cat([stretches[i] for i in stretch]) for out, stretch in together if not out]
    known = {run for piece in pieces for run in texts(piece.unfold(0, RUN, 1))}
    windows = torch.cat([stretches[i].unfold(0, LENGTH, LENGTH) for i in sorted(chosen)])
    new = [i for i, window in enumerate(windows) if known.isdisjoint(texts(window.unfold(0, RUN, 1)))]
    test = windows[new][random.permutation(k_windows, len(new))[:TEST]]
    train = torch.cat([piece.unfold(0, LENGTH, 1) for piece in pieces])
    return Split(pieces, train[random.permutation(k_train, len(train))], test)


def texts(codes: Tensor) -> list[str]:
    """Writes rows of codes, (n, length), as strings."""
    return ["".join(ALPHABET[c] for c in row) for row in codes.tolist()]


def as_bits(codes: Tensor) -> Tensor:
    """Makes bits of codes, on a new last axis."""
    return codes[..., None] >> torch.arange(BITS, dtype=codes.dtype, device=codes.device) & 1


def from_bits(bits: Tensor) -> Tensor:
    """Inverts :func:`as_bits`. Bits that stand for no character give a space."""
    codes = (bits << torch.arange(BITS, dtype=bits.dtype, device=bits.device)).sum(-1)
    return torch.where(codes < len(ALPHABET), codes, 0)


def ngram_bits(parts: list[Tensor], test: Tensor, order: int, characters: int = len(ALPHABET)) -> Tensor:
    """Measures bits per character of each window under n-grams interpolated with the shorter ones (Witten & Bell 1991), down
    to the uniform distribution. A window's first characters have as much of a past as the window shows."""
    counts: Counter = Counter()
    for part in (part.tolist() for part in parts):
        counts.update(tuple(part[i : i + n]) for n in range(1, order + 1) for i in range(len(part) - n + 1))
    followers = Counter(gram[:-1] for gram in counts)
    totals = Counter()
    for gram, count in counts.items():
        totals[gram[:-1]] += count

    def p(past: tuple, character: int) -> float:
        shorter = p(past[1:], character) if past else 1.0 / characters
        if past not in totals:
            return shorter
        return (counts[(*past, character)] + followers[past] * shorter) / (totals[past] + followers[past])

    bits = [
        [-math.log2(p(tuple(row[max(0, i - order + 1) : i]), c)) for i, c in enumerate(row)]
        for row in test.flatten(1).tolist()
    ]
    return torch.tensor(bits).mean(1)


class Block(nn.Module):
    """Attention of all to all and two layers, each after a norm, shifted and scaled by the time (Peebles & Xie 2023).

    A head adds a number for every distance, learned, to what it attends by. At first that makes all look near by, each twice
    as far as the one before (Press et al. 2022).
    """

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 4 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.near = nn.Parameter(-(0.5 ** torch.arange(heads)[:, None]) * torch.arange(1 - length, length).abs())

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        scale_1, shift_1, scale_2, shift_2 = self.modulation(time)[:, None].chunk(4, -1)
        x = F.layer_norm(h, h.shape[-1:]) * (1.0 + scale_1) + shift_1
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        i = torch.arange(h.shape[1], device=h.device)
        near = self.near[:, i[:, None] - i + h.shape[1] - 1]
        seen = F.scaled_dot_product_attention(q, k, v, near[None])
        h = h + self.out(seen.transpose(1, 2).flatten(2))
        x = F.layer_norm(h, h.shape[-1:]) * (1.0 + scale_2) + shift_2
        return h + self.narrow(F.gelu(self.wide(x)))


class Transformer(nn.Module):
    """A transformer over a line of tokens, (B, length, numbers) at a time (B,) in [0, 1], to the same shape or to other
    outputs. Its last layer starts at zero."""

    def __init__(self, numbers: int, width: int, blocks: int, length: int = LENGTH, outputs: int | None = None) -> None:
        super().__init__()
        self.into = nn.Conv1d(numbers, width, 7, padding=3)
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width, max(1, width // 32), length) for _ in range(blocks))
        self.out = nn.Linear(width, numbers if outputs is None else outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        waves = t[:, None] * math.pi * 2.0 ** torch.arange(-1, 7, device=t.device)
        time = self.time(torch.cat([waves.sin(), waves.cos()], 1))
        h = self.into(x.mT).mT
        for block in self.blocks:
            h = block(h, time)
        return self.out(F.layer_norm(h, h.shape[-1:]))


def logits(transformer: Callable[..., Tensor], seen: Tensor, t: Tensor, cond: None) -> Tensor:
    """Makes logits of classes from 2 theta - 1. By itself a character has the posterior p(class) theta, so log theta is
    added: the transformer has to say what the characters around, and their frequencies, make of it."""
    theta = (seen + 1.0) / 2.0
    return transformer(5.0 * theta, t) + torch.log(theta.clamp(min=1e-7))


def bits(transformer: Callable[..., Tensor], z: Tensor, gamma: Tensor, cond: None) -> Tensor:
    """Makes a diffusion model's estimate of bits, likewise: by itself a bit, +-1/2, has the log odds alpha z / sigma**2."""
    low, high = GAMMA
    alone = z * (torch.exp(-gamma) * torch.sqrt(1.0 + torch.exp(gamma)))[:, None, None]
    return torch.sigmoid(transformer(2.0 * z, (gamma - low) / (high - low)) + alone) - 0.5


def flow(width: int, blocks: int, beta_1: float = BETA_1) -> bfn.BFN:
    """Makes a Bayesian Flow Network of windows of characters, codes (n, LENGTH)."""
    network = networks.from_module(partial(Transformer, len(ALPHABET), width, blocks), call=logits)
    return bfn.discrete(network, (LENGTH,), len(ALPHABET), beta_1, classes_last=True)


def diffusion(width: int, blocks: int) -> purevdm.VDM:
    """Makes a diffusion model of windows of characters as bits, (n, LENGTH, BITS) (Chen, Zhang, Hinton 2022, arXiv
    2208.04202). What it spends on the bits of a character bounds what it spends on the character."""
    network = networks.from_module(partial(Transformer, BITS, width, blocks), call=bits, predicts="x")
    return purevdm.vdm(network, schedules.learned_linear(*GAMMA), (LENGTH, BITS), vocab_size=2)


def table() -> Tensor:
    """Makes the vectors of the characters, (27, EMBEDDING): random directions, all of the length of so many ones."""
    return F.normalize(random.normal(random.key(0, device="cpu"), (len(ALPHABET), EMBEDDING))) * EMBEDDING**0.5


def embedded(params: dict, x: Tensor) -> Tensor:
    """Embeds unit vectors of characters."""
    return x @ table().to(x)


def vectors(transformer: Callable[..., Tensor], z: Tensor, gamma: Tensor, cond: None) -> Tensor:
    """Makes a diffusion model's estimate of the vectors, a mean over characters, likewise: by itself a character has the
    log probability alpha z . e / sigma**2, up to a constant."""
    (low, high), e = GAMMA, table().to(z)
    alone = (torch.exp(-gamma) * torch.sqrt(1.0 + torch.exp(gamma)))[:, None, None] * (z @ e.T)
    return torch.softmax(transformer(z, (gamma - low) / (high - low)) + alone, -1) @ e


def embeddings(width: int, blocks: int) -> purevdm.VDM:
    """Makes a diffusion model of windows of characters as vectors, the network's estimate a mean over characters (Gulrajani
    & Hashimoto 2023, arXiv 2305.18619). The vectors are fixed: learned ones, with v predicted, had collapsed after so few
    steps, and cost 4.118 bits, what characters do one by one."""
    letters = len(ALPHABET)
    into = decoders.Map(lambda key: {}, embedded)
    out = decoders.Map(partial(layers.dense_init, n_in=EMBEDDING, n_out=letters), layers.dense)
    decoder = decoders.learned(decoders.categorical(letters), into, out, latent=(LENGTH, EMBEDDING), event_shape=(LENGTH,))
    transformer = partial(Transformer, EMBEDDING, width, blocks, outputs=letters)
    network = networks.from_module(transformer, call=vectors, predicts="x")
    return purevdm.vdm(network, schedules.fixed_linear(*GAMMA), (LENGTH,), decoder=decoder)


def tokens(width: int, blocks: int, corruption: str) -> masked.MaskedDiffusion:
    """Makes a masked diffusion of windows of characters, codes (n, LENGTH), or one with uniform noise."""
    symbols = len(ALPHABET) + (corruption == "masking")
    network = networks.from_module(partial(Transformer, symbols, width, blocks), call=unit_vectors)
    return masked.diffusion(network, None, (LENGTH,), len(ALPHABET), corruption=corruption, classes_last=True)


def unit_vectors(transformer: Callable[..., Tensor], seen: Tensor, gamma: Tensor, cond: None) -> Tensor:
    """Gives logits of symbols, which are shown as 2 e - 1; the time is the probability that a character is noised."""
    return transformer(2.5 * (seen + 1.0), torch.sigmoid(gamma))
