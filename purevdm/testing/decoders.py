"""Laws of decoders."""

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm.decoders import Decoder, Product
from purevdm.testing._law import initialised, require, trying, wide
from purevdm.types import Key, Params, Shape

__all__ = ["check_decoder"]

DRAWS = 4096


def check_decoder(
    decoder: Decoder, event_shape: Shape = (), *, gamma_0: tuple[float, ...] = (-8.0, -2.0, 2.0), key: Key | None = None
) -> None:
    """Checks a decoder against the laws of a likelihood, in float64; of a product, each part.

    p(x given z_0) sums or integrates to one. ``log_prob``, ``log_probs`` and ``reconstruction`` agree. The likeliest data of
    a latent at a value's position are that value. ``sample`` draws from p. Discrete values whose latents have the data's
    shape have rising positions within the bounds, and a latent within 0.4 of a step of a position decodes to its value.

    Args:
        decoder: the decoder.
        event_shape: of the data, where ``loc`` and ``scale`` differ between dimensions.
        gamma_0: the noise levels to try.
        key: a key.

    Raises:
        LawError: a law does not hold; the message says which, by how much, and how to see it.

    >>> from purevdm import decoders, testing
    >>> testing.check_decoder(decoders.discrete(17))
    >>> testing.check_decoder(decoders.gaussian(loc=3.0, scale=0.1))
    """
    _checks.instance("decoder", decoder, Decoder, "a Decoder such as purevdm.decoders.discrete()")
    if not gamma_0:
        raise ValueError("gamma_0: expected at least one noise level, got none")
    key, event_shape = random.key(0) if key is None else key, tuple(event_shape)
    if isinstance(decoder, Product):
        for i, part in enumerate(decoder.parts):
            check_decoder(part.decoder, (part.width,), gamma_0=gamma_0, key=random.fold_in(key, i))
        return
    params = wide(initialised("decoder", decoder.init, key))
    check = _discrete if decoder.log_probs is not None else _integers if decoder.integral else _real
    for i, level in enumerate(gamma_0):
        check(decoder, params, event_shape, torch.tensor(level, dtype=torch.float64), random.fold_in(key, i))


def _agree(
    decoder: Decoder, params: Params, x: Tensor, z: Tensor, eps: Tensor, gamma_0: Tensor, own: Tensor, name: str
) -> None:
    for other, found, see in (
        ("log_prob", decoder.log_prob(params, x, z, gamma_0), "decoder.log_prob(params, x, z, gamma_0)"),
        (
            "-reconstruction",
            -decoder.reconstruction(params, x, eps, gamma_0),
            "-decoder.reconstruction(params, x, eps_0, gamma_0)",
        ),
    ):
        # Below exp(-50) a sum of probabilities may be cut short.
        missed = ((found - own).abs() / (1 + own.abs())).max().item()
        text = f"off by {missed:.2g} at gamma_0 = {gamma_0:g}"
        require(missed <= 1e-8, f"{other} must agree with {name}", text, see)


def _discrete(decoder: Decoder, params: Params, event_shape: Shape, gamma_0: Tensor, key: Key) -> None:
    assert decoder.log_probs is not None
    n, at = decoder.vocab_size or 0, f"at gamma_0 = {gamma_0:g}"
    require(n >= 2, "vocab_size must be at least 2", f"{decoder.vocab_size}", "decoder.vocab_size")
    values = torch.arange(n).reshape(-1, *[1] * len(event_shape)).expand(n, *event_shape)
    see = "decoder.check(torch.arange(-1, vocab_size + 1))"
    inside = trying("check must take integers", see, lambda: decoder.check(values))
    require(inside.all(), "check must accept every value", f"{int((~inside).sum())} refused", see)
    outside = decoder.check(torch.tensor([-1, n]))
    require(not outside.any(), "check must refuse values beyond the vocabulary", f"accepted {outside.tolist()}", see)

    f = decoder.encode(params, values, dtype=torch.float64)
    see = "decoder.encode(params, torch.arange(vocab_size), dtype=torch.float64)"
    require(f.dtype == torch.float64, "encode must give the dtype asked for", f"{f.dtype}", see)
    ordered = f.shape == values.shape
    rising = (f.diff(dim=0) > 0).all() | (not ordered)
    require(rising, "positions must rise with the value", "a fall, or a tie", see)
    if ordered and (limits := decoder.bounds(f)) is not None:
        low, high = limits
        holds = ((f >= low) & (f <= high)).all() and torch.equal(f[0], low[0]) and torch.equal(f[-1], high[-1])
        require(holds, "bounds must be the first and the last position", "others", "decoder.bounds(f)")
    step = f.diff(dim=0).amin(0) if ordered else torch.ones_like(f[0])
    for part in (-0.4, 0.0, 0.4) if ordered else (0.0,):
        law = "a latent within 0.4 steps of a value's position must decode to it"
        see = f"decoder.mode(params, decoder.encode(params, x, dtype=torch.float64) + {part:g} * step)"
        text = f"value {{}} decodes to {{}}, {part:g} steps from its position"
        _same(decoder.mode(params, f + part * step), values, law, text, see)

    eps = random.normal(key, f.shape, torch.float64)
    z = f + torch.exp(0.5 * gamma_0) * eps
    probs = decoder.log_probs(params, z, gamma_0)
    total = probs.logsumexp(-1).abs().max().item()
    see = "decoder.log_probs(params, z, gamma_0).logsumexp(-1)"
    require(total <= 1e-9, "p(x given z_0) must sum to one", f"log sum off by {total:.2g} {at}", see)
    own = probs.gather(-1, values[..., None])[..., 0]
    _agree(decoder, params, values, z, eps, gamma_0, own, "log_probs")
    see = "decoder.log_probs(params, f, gamma_0).argmax(-1)"
    law = "the likeliest value at a value's position must be that value"
    _same(decoder.log_probs(params, f, gamma_0).argmax(-1), values, law, f"for {{}} {{}} {at}", see)

    middle = z[n // 2].expand(DRAWS, *z.shape[1:])
    drawn = decoder.sample(params, random.fold_in(key, 1), middle, gamma_0)
    _frequencies(torch.nn.functional.one_hot(drawn, n).double().sum(0), probs[n // 2].exp(), at)


def _frequencies(counts: Tensor, p: Tensor, at: str) -> None:
    excess = ((counts - DRAWS * p).abs() / ((DRAWS * p * (1 - p)).sqrt() + 1)).max().item()
    text = f"a frequency {excess:.1f} standard errors off {at}, of {DRAWS} draws"
    require(excess <= 7, "sample must draw from p(x given z_0)", text, "decoder.sample(params, key, z, gamma_0)")


def _same(found: Tensor, values: Tensor, law: str, text: str, see: str) -> None:
    """Checks that every value decodes to itself; ``text`` is given the first that does not, and what it decodes to."""
    if len(wrong := (found != values).nonzero()):
        first = tuple(wrong[0].tolist())
        require(False, law, text.format(int(values[first]), int(found[first])), see)


def _integers(decoder: Decoder, params: Params, event_shape: Shape, gamma_0: Tensor, key: Key) -> None:
    """Checks a decoder of integers without a vocabulary."""
    (k_z, k_draw), at = random.split(key), f"at gamma_0 = {gamma_0:g}"
    z, see = random.normal(k_z, event_shape, torch.float64), "decoder.sample(params, key, z, gamma_0)"
    latents = z.expand(DRAWS, *event_shape)
    drawn = trying("sample must take latents", see, lambda: decoder.sample(params, k_draw, latents, gamma_0))
    inside = trying("check must take what sample draws", "decoder.check(x)", lambda: decoder.check(drawn))
    require(inside.all(), "check must accept what sample draws", f"{int((~inside).sum())} refused", see)
    reach = 12 * int(drawn.double().std(0).amax() + 1)
    values = torch.arange(int(drawn.min()) - reach, int(drawn.max()) + reach + 1)
    values = values[decoder.check(values)].reshape(-1, *[1] * len(event_shape))
    x = values.expand(-1, *event_shape)
    log_p = decoder.log_prob(params, x, z.expand(x.shape), gamma_0)
    missed = (log_p.exp().sum(0) - 1).abs().max().item()
    see_sum = "decoder.log_prob(params, x, z, gamma_0).exp().sum(0)"
    require(missed <= 1e-8, "p(x given z_0) must sum to one", f"off by {missed:.2g} {at}", see_sum)
    _frequencies((drawn == values[:, None]).double().sum(1), log_p.exp(), at)
    f = decoder.encode(params, x, dtype=torch.float64)
    see, law = (
        "decoder.mode(params, decoder.encode(params, x, dtype=torch.float64))",
        "a latent at a value must decode to it",
    )
    _same(decoder.mode(params, f), x, law, "value {} decodes to {}", see)
    _agree(decoder, params, x, z.expand(x.shape), (z - f) * torch.exp(-0.5 * gamma_0), gamma_0, log_p, "log_prob")


def _real(decoder: Decoder, params: Params, event_shape: Shape, gamma_0: Tensor, key: Key) -> None:
    (k_z, k_draw), at = random.split(key), f"at gamma_0 = {gamma_0:g}"
    z = random.normal(k_z, event_shape, torch.float64)
    see = "decoder.sample(params, key, z, gamma_0)"
    latents = z.expand(DRAWS, *event_shape)
    drawn = trying("sample must take latents", see, lambda: decoder.sample(params, k_draw, latents, gamma_0))
    inside = trying("check must take what sample draws", "decoder.check(x)", lambda: decoder.check(drawn))
    require(inside.all(), "check must accept what sample draws", f"{int((~inside).sum())} refused", see)
    centre, spread = drawn.mean(0), drawn.std(0)

    grid = torch.linspace(-12.0, 12.0, 4001, dtype=torch.float64).reshape(-1, *[1] * len(event_shape))
    x, cell = centre + grid * spread, spread * 24.0 / 4000
    log_p = decoder.log_prob(params, x, z.expand(x.shape), gamma_0)
    total = log_p.exp().sum(0) * cell
    worst = total.flatten()[int((total - 1).abs().argmax())]
    see_sum = "decoder.log_prob(params, x, z, gamma_0).exp().sum(0) * (x[1] - x[0])"
    require((worst - 1).abs() <= 1e-4, "p(x given z_0) must integrate to one", f"{worst:.6g} {at}", see_sum)
    peak = x.gather(0, log_p.argmax(0, keepdim=True))[0]
    missed = ((peak - decoder.mode(params, z)).abs() / spread).max().item()
    text = f"off by {missed:.2g} standard deviations {at}"
    require(missed <= 0.01, "mode must be the likeliest data", text, "decoder.mode(params, z)")

    entropy = -(log_p.exp() * log_p).sum(0) * cell
    surprise = -decoder.log_prob(params, drawn, latents, gamma_0)
    excess = ((surprise.mean(0) - entropy).abs() / (surprise.std(0) / DRAWS**0.5)).max().item()
    moved = ((centre - (log_p.exp() * x).sum(0) * cell).abs() / (spread / DRAWS**0.5)).max().item()
    text = f"the mean log-density {excess:.1f}, the mean {moved:.1f} standard errors off {at}"
    require(max(excess, moved) <= 7, "sample must draw from p(x given z_0)", text, see)
    eps = (z - decoder.encode(params, drawn, dtype=torch.float64)) * torch.exp(-0.5 * gamma_0)
    _agree(decoder, params, drawn, latents, eps, gamma_0, -surprise, "log_prob")
