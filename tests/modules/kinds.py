"""Small modules of every kind that a network is made of, for points (2,)."""

from functools import partial

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
    def __init__(self, dropout=0.0):
        super().__init__()
        self.layers = nn.GRU(4, 4, 2, batch_first=True, dropout=dropout)

    def body(self, h):
        return self.layers(h.unflatten(1, (2, 4)))[0].flatten(1)


class Transformer(Base):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def body(self, h):
        return self.layers(h.unflatten(1, (2, 4))).flatten(1)


class DiT(nn.Module):
    """A small transformer of two numbers, gated by its level and a class, with a parameter of its own, and a table of
    integers and an infinite mask as buffers."""

    def __init__(self, width=8, depth=2):
        super().__init__()
        self.into, self.out = nn.Linear(1, width), nn.Linear(width, 1)
        self.position = nn.Parameter(0.02 * torch.randn(2, width))
        self.level, self.label = nn.Linear(2, width), nn.Embedding(4, width)
        self.heads = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(depth))
        self.gate = nn.Linear(width, width)
        nn.init.zeros_(self.gate.weight)
        self.register_buffer("order", torch.arange(2))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    def forward(self, z, gamma, cond=None):
        h = self.into(z[..., None]) + self.position[self.order]
        context = self.level(torch.stack([gamma.sin(), gamma.cos()], -1))
        context = context if cond is None else context + self.label(cond)
        for heads in self.heads:
            h = h + context[:, None] * (1.0 + self.gate(h)) + heads(h, h, h, attn_mask=self.mask, need_weights=False)[0]
        return self.out(h)[..., 0]


class Everything(Base):
    """All that draws or keeps statistics, for few graphs; and a checkpoint, reentrant or not, or None for none."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.heads, self.encoder = nn.MultiheadAttention(4, 2, 0.3, batch_first=True), nn.TransformerEncoderLayer(4, 2, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Tanh())
        self.reentrant = reentrant

    def body(self, h):
        h = self.drop(F.dropout(self.drop(self.norm(h)), 0.2, self.training))
        q = h.unflatten(1, (2, 4))
        q = q + self.heads(q, q, q)[0] + self.encoder(q.transpose(0, 1)).transpose(0, 1)
        h = (q + F.scaled_dot_product_attention(q, q, q, dropout_p=0.3 if self.training else 0.0)).flatten(1)
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
    "GRU": Recurrent,
    "transformer": Transformer,
    "DiT": DiT,
}
KEY = random.key(2)


def made(module, **options):
    """A model of a module, its parameters and a batch."""
    model = purevdm.vdm(networks.from_module(module, **options), schedules.learned_linear(), (2,), 16)
    return model, model.init(random.key(0)), random.randint(random.key(1), (5, 2), 0, 16)
