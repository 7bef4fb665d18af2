"""Small modules of every kind that a network is made of, for points (2,)."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import purevdm
from purevdm import networks, random, schedules


class Base(nn.Module):
    """A layer in, a body over four pairs of features, a layer out."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

    def body(self, h):
        return h

    def forward(self, z, gamma, cond=None):
        h = torch.tanh(self.into(torch.cat([z, gamma[:, None] / 5.0], 1)))
        return self.out(self.body(h))


class BatchNorm(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def body(self, h):
        return self.norm(h)


class Dropout(Base):
    """One dropout, twice."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def body(self, h):
        return self.drop(torch.relu(self.drop(h)))


class Functional(Base):
    def body(self, h):
        return F.dropout(h, 0.5, self.training)


class Attention(Base):
    """Multi-head attention with its weights and without."""

    def __init__(self, dropout=0.5, batch_first=True):
        super().__init__()
        self.heads = nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=batch_first)

    def body(self, h):
        tokens = h.unflatten(1, (2, 4))
        tokens = tokens if self.heads.batch_first else tokens.transpose(0, 1)
        tokens = self.heads(tokens, tokens, tokens)[0] + self.heads(tokens, tokens, tokens, need_weights=False)[0]
        return (tokens if self.heads.batch_first else tokens.transpose(0, 1)).flatten(1)


class Products(Base):
    """Scaled dot products."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.rate = dropout

    def body(self, h):
        q = h.unflatten(1, (2, 2, 2))
        return F.scaled_dot_product_attention(q, q, q, dropout_p=self.rate if self.training else 0.0).flatten(1)


class Recurrent(Base):
    def __init__(self, kind=nn.GRU, dropout=0.5, **options):
        super().__init__()
        self.layers = kind(4, 4, 2, batch_first=True, dropout=dropout, **options)

    def body(self, h):
        return self.layers(h.unflatten(1, (2, 4)))[0].flatten(1)[:, :8]


class Transformer(Base):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def body(self, h):
        return self.layers(h.unflatten(1, (2, 4))).flatten(1)


class Checkpointed(Base):
    """Two runs of one block, with dropout in it, each computed again (or not, for comparison)."""

    def __init__(self, reentrant=False):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 8))
        self.reentrant = reentrant

    def body(self, h):
        if self.reentrant is None:
            return self.block(self.block(h))
        return checkpoint(self.block, checkpoint(self.block, h, use_reentrant=self.reentrant), use_reentrant=self.reentrant)


class Block(nn.Module):
    """A block of a DiT: attention and a perceptron under a shift, a scale and a gate (Peebles & Xie 2023)."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.heads = nn.MultiheadAttention(width, 2, batch_first=True)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens, context):
        shift, scale, gate = self.modulation(F.silu(context))[:, None].chunk(3, -1)
        h = self.norm(tokens) * (1 + scale) + shift
        tokens = tokens + gate * self.heads(h, h, h, need_weights=False)[0]
        return tokens + gate * self.layers(tokens)


class DiT(nn.Module):
    """A small DiT of points' two numbers, with a class, a table of integers and an infinite mask as buffers."""

    def __init__(self, width=8, depth=2):
        super().__init__()
        self.into, self.out = nn.Linear(1, width), nn.Linear(width, 1)
        self.position = nn.Parameter(0.02 * torch.randn(2, width))
        self.level, self.label = nn.Linear(2, width), nn.Embedding(4, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.register_buffer("order", torch.arange(2))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    def forward(self, z, gamma, cond=None):
        h = self.into(z[..., None]) + self.position[self.order]
        context = self.level(torch.stack([gamma.sin(), gamma.cos()], -1))
        context = context if cond is None else context + self.label(cond)
        for block in self.blocks:
            h = block(h, context)
        return self.out(h)[..., 0]


class Everything(Base):
    """All that draws or keeps statistics, and a checkpoint, for few graphs; ``reentrant`` as in Checkpointed."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.heads, self.layers = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True), nn.GRU(4, 4, 2, dropout=0.3)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Tanh())
        self.reentrant = reentrant

    def body(self, h):
        h = self.drop(F.dropout(self.drop(self.norm(h)), 0.2, self.training))
        q = h.unflatten(1, (2, 4))
        q = q + self.heads(q, q, q)[0] + self.encoder(q)
        q = q + F.scaled_dot_product_attention(q, q, q, dropout_p=0.3 if self.training else 0.0)
        h = (q + self.layers(q.transpose(0, 1))[0].transpose(0, 1)).flatten(1)
        return self.block(h) if self.reentrant is None else checkpoint(self.block, h, use_reentrant=self.reentrant)


KINDS = {
    "batch norm": BatchNorm,
    "dropout": Dropout,
    "functional dropout": Functional,
    "attention": partial(Attention, dropout=0.0),
    "attention with dropout": Attention,
    "sequence-first attention with dropout": partial(Attention, batch_first=False),
    "products": partial(Products, dropout=0.0),
    "products with dropout": Products,
    "GRU": partial(Recurrent, dropout=0.0),
    "GRU with dropout": Recurrent,
    "LSTM with dropout, both ways": partial(Recurrent, nn.LSTM, bidirectional=True),
    "RNN with dropout": partial(Recurrent, nn.RNN),
    "transformer": Transformer,
    "checkpoint": Checkpointed,
    "reentrant checkpoint": partial(Checkpointed, True),
    "DiT": DiT,
}
KEY = random.key(2)
quiet = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of reentrant checkpoints


def made(module, **options):
    """A model of a module, its parameters and a batch."""
    model = purevdm.vdm(networks.from_module(module, **options), schedules.learned_linear(), (2,), 16)
    return model, model.init(random.key(0)), random.randint(random.key(1), (5, 2), 0, 16)
