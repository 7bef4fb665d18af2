"""One log w of the flow's likelihood, with all noise explicit."""

from purevdm import likelihood
from purevdm._masks import zeroed
from purevdm.likelihood import _dequantise


def log_weight(model, params, x, eps, cond=None, *, mask=None, dequantisation=None, **options):
    """Takes the noise that latents are made of, and what ``likelihood.log_prob_latent`` takes; gives its estimate."""
    kind, mask = _dequantise.fitting(model.decoder, dequantisation), None if mask is None else mask.expand_as(x)
    q = _dequantise.dequantised(kind, model, params, zeroed(x, mask), cond, mask)
    z_0, extra = q.latents(q.denoise.within(eps))
    found = likelihood.log_prob_latent(model, params, z_0, cond, mask=q.denoise.mask, **options)
    return found._replace(log_prob=found.log_prob + extra)
