"""Masks, subspaces, variances of the reverse process, weightings; decoders with parameters and latents of another shape."""

import math
from dataclasses import dataclass

import optree
import perturb
import pytest
import torch
from compare import close
from hypothesis import given
from hypothesis import strategies as st

import purevdm
from purevdm import bound, codec, decoders, evaluation, likelihood, networks, parts, random, sampling, schedules, solvers
from purevdm.decoders import Decoder
from purevdm.noise import Noise

F64 = torch.float64
KEY = random.key(0)


def per_point(width=8):
    """A network that moves each point of (points, 2) by itself and by the mean of those that exist."""

    def init(key, event_shape):
        k_1, k_2 = random.split(key)
        return {"in": random.normal(k_1, (5, width)), "out": random.normal(k_2, (width, 2))}

    def apply(params, z, gamma, cond=None, key=None, mask=None):
        here = torch.ones_like(z[:, :1]) if mask is None else mask[:, :1].to(z.dtype)
        mean = (z * here).sum(0) / here.sum()
        features = torch.cat([z, mean.expand_as(z), (gamma / 10.0).expand(z.shape[0], 1)], 1)
        return torch.tanh(features @ params["in"]) @ params["out"]

    return networks.Network.of(init, apply, masked=True)


def sets(points, decoder=None, schedule=None, **options):
    decoder = decoders.gaussian() if decoder is None else decoder
    schedule = schedules.fixed_linear(-6.0, 4.0) if schedule is None else schedule
    return purevdm.vdm(per_point(), schedule, (points, 2), decoder=decoder, dtype=F64, **options)


def cut(noise, points):
    return Noise(noise.t, noise.eps_0[:, :points], noise.eps[:, :points], noise.key)


DECODERS = {"real": decoders.gaussian(loc=0.5, scale=2.0), "discrete": decoders.discrete(16)}


# Masks


@pytest.mark.parametrize("timesteps", [0, 7])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_padded_example_has_the_bound_of_the_unpadded_one(kind, timesteps):
    """With the same noise; whatever the padding holds, values that are no data among them."""
    wide, narrow = (sets(n, DECODERS[kind], timesteps=timesteps) for n in (5, 3))
    params = wide.init(KEY)
    x = random.normal(random.key(1), (4, 5, 2), F64) if kind == "real" else random.randint(random.key(1), (4, 5, 2), 0, 16)
    x[:, 3:] = math.nan if kind == "real" else -9
    mask = (torch.arange(5) < 3)[None, :, None]
    noise = wide.draw(random.key(2), 4)
    padded = bound.bound(wide, params, x, noise, mask=mask)
    close(padded, bound.bound(narrow, params, x[:, :3], cut(noise, 3)), 1e-14)
    seeds = wide.seeds(random.key(3), 4)
    terms = wide.terms(params, x, seeds, mask=mask)
    assert terms.diffusion.shape == x.shape
    assert not any(term[:, 3:].any() for term in terms)
    close(bound.summed(terms), wide.nll_bound(params, x, seeds, mask=mask), 1e-14)


def test_sizes_may_differ_and_each_example_counts_its_own_dimensions():
    model, sizes = sets(4), torch.tensor([1, 4, 2])
    params, x = model.init(KEY), random.normal(random.key(1), (3, 4, 2), F64)
    mask = (torch.arange(4) < sizes[:, None])[..., None]
    noise = model.draw(random.key(2), 3)
    terms = bound.bound(model, params, x, noise, mask=mask)
    for i, n in enumerate(sizes.tolist()):
        one = Noise(*(None if part is None else part[i : i + 1] for part in noise))
        alone = bound.bound(sets(n), params, x[i : i + 1, :n], cut(one, n))
        close(optree.tree_map(lambda term, i=i: term[i : i + 1], terms), alone, 1e-13)
    seeds = model.seeds(random.key(3), 3)
    each = bound.bound(model, params, x, model.draw(seeds, 3), mask=mask).total / (2.0 * sizes)
    torch.testing.assert_close(model.loss_fn(params, x, seeds, mask=mask), each.mean() / math.log(2), rtol=1e-13, atol=0)
    grads = torch.func.grad(model.loss_fn)(params, x, seeds, mask=mask)
    other = torch.where(mask, x, 7.0)
    close(torch.func.grad(model.loss_fn)(params, other, seeds, mask=mask), grads, 1e-14)


def test_a_mask_of_all_is_none():
    model = sets(3)
    params, x = model.init(KEY), random.normal(random.key(1), (4, 3, 2), F64)
    full = torch.ones(1, 3, 1, dtype=torch.bool)
    close(model.nll_bound(params, x, KEY, mask=full), model.nll_bound(params, x, KEY), 1e-14)
    close(model.loss_fn(params, x, KEY, mask=full), model.loss_fn(params, x, KEY), 1e-14)


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.ones(4, 3, 1), TypeError),
        (torch.ones(3, dtype=torch.bool), ValueError),
        (torch.ones(4, 2, 1, dtype=torch.bool), ValueError),
        (torch.zeros(4, 3, 1, dtype=torch.bool), ValueError),
        (torch.ones(4, 3, 1, dtype=torch.bool, device="meta"), ValueError),
        ([True], TypeError),
    ],
)
def test_masks_of_another_form_are_refused(mask, error):
    model = sets(3)
    with pytest.raises(error, match=r"^mask: expected"):
        model.loss_fn(model.init(KEY), torch.zeros(4, 3, 2, dtype=F64), KEY, mask=mask)


def test_masks_compile():
    model = sets(3)
    params, x = model.init(KEY), random.normal(random.key(1), (4, 3, 2), F64)
    mask = (torch.arange(3) < torch.tensor([1, 3, 2, 2])[:, None])[..., None]
    compiled = torch.compile(torch.func.grad_and_value(model.loss_fn), fullgraph=True, backend="aot_eager")
    close(compiled(params, x, KEY, mask=mask), torch.func.grad_and_value(model.loss_fn)(params, x, KEY, mask=mask), 1e-10)


@pytest.mark.parametrize("kind", DECODERS)
def test_an_evaluation_counts_what_exists(kind):
    """Each example by its own dimensions; all of them by total nats over total dimensions."""
    model, sizes = sets(4, DECODERS[kind]), torch.tensor([1, 4, 2])
    params, x = model.init(KEY), random.randint(random.key(1), (3, 4, 2), 0, 16)
    x = x.to(F64) if kind == "real" else x
    mask = (torch.arange(4) < sizes[:, None])[..., None]
    each = evaluation.per_example(model, params, [(x, None, mask)], KEY, passes=2)
    keys = random.split(random.fold_in(KEY, 0), 2)
    want = sum(model.nll_bound(params, x, key, mask=mask).total for key in keys) / 2
    torch.testing.assert_close(each.nll, want, rtol=1e-13, atol=0)
    assert each.dims.tolist() == [2, 8, 4]
    found, bits = each.summary(), math.log(2) if kind == "discrete" else 1.0
    of_each = (want / (2 * sizes * math.log(2))).mean() if kind == "discrete" else want.mean()
    torch.testing.assert_close(found.nll.mean, of_each.item())
    torch.testing.assert_close(found.pooled.mean, want.sum().item() / (14 * bits))
    profile = evaluation.profile(model, params, [(x, None, mask)], KEY, bins=2, passes=2)
    torch.testing.assert_close(profile.diffusion.mean, found.terms["diffusion"].mean)
    with pytest.raises(TypeError, match=r"batches\[0\]: mask: expected a bool tensor that broadcasts to \(3, 4, 2\)"):
        evaluation.evaluate(model, params, [(x, None, mask.double())], KEY)


def test_an_evaluation_in_a_subspace_counts_its_dimensions():
    model = sets(3, subspace=parts.zero_centre())
    x = model.subspace.project(random.normal(KEY, (2, 3, 2), F64))
    assert evaluation.per_example(model, model.init(KEY), [x], KEY).dims.tolist() == [4, 4]


# One denoiser


def test_a_denoiser_is_the_model_s_prediction():
    model = sets(3)
    params, z = model.init(KEY), random.normal(random.key(1), (4, 3, 2), F64)
    gamma = torch.linspace(-5.0, 3.0, 4, dtype=F64)
    denoise = model.denoiser(params, n=4)
    assert torch.equal(denoise(z, gamma).eps, model.eps_hat(params, z, gamma))
    assert torch.equal(denoise.eps(z, gamma), model.eps_hat(params, z, gamma))
    torch.testing.assert_close(purevdm.process.diffuse(denoise(z, gamma).x, gamma[:, None, None], denoise(z, gamma).eps), z)
    with pytest.raises(ValueError, match=r"params\.network\.in: expected finite"):
        model.denoiser(optree.tree_map(lambda leaf: leaf * math.nan, params), n=4)


# A subspace


def gaussian_on(points, std, **options):
    """The ideal denoiser of points whose coordinates within the subspace are independent of this deviation."""

    def apply(params, z, gamma, cond=None, key=None):
        alpha, sigma = purevdm.process.alpha(gamma), purevdm.process.sigma(gamma)
        return sigma * z / (alpha**2 * std**2 + sigma**2)

    network, schedule = networks.Network.of(lambda key, shape: {}, apply), schedules.fixed_linear(-8.0, 8.0)
    return purevdm.vdm(network, schedule, (points, 2), decoder=decoders.gaussian(), dtype=F64, **options)


@pytest.mark.parametrize("timesteps", [0, 400])
def test_the_bound_in_a_subspace_is_the_entropy_of_its_dimensions(timesteps):
    """n points in the plane with their centre at 0, standard normal within: (n - 1) 2 dimensions of entropy."""
    points, std = 4, 1.3
    model = gaussian_on(points, std, subspace=parts.zero_centre(), timesteps=timesteps)
    x = std * random.normal(KEY, (4000, points, 2), F64)
    x = x - x.mean(1, keepdim=True)
    params = {"network": {}, "schedule": {}}
    terms = model.nll_bound(params, x, random.key(1)).total
    entropy = (points - 1) * 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(std))
    # the bound is of data with the noise of gamma_0 added, and has the prior's gap
    wide = (points - 1) * 2 * 0.5 * math.log1p(math.exp(-8.0) / std**2)
    mean, error = terms.mean().item(), terms.std().item() / math.sqrt(len(x))
    gap = 0.05 if timesteps else 1e-3
    assert -4 * error < mean - entropy - wide < 4 * error + gap
    loss = model.loss_fn(params, x, random.key(1))
    torch.testing.assert_close(loss, terms.mean() / (2 * (points - 1) * math.log(2)), rtol=1e-12, atol=0)


def test_a_subspace_follows_a_mask_and_data_out_of_it_are_refused():
    model = sets(5, subspace=parts.zero_centre())
    params, x = model.init(KEY), random.normal(random.key(1), (2, 5, 2), F64)
    mask = (torch.arange(5) < torch.tensor([3, 5])[:, None])[..., None]
    with pytest.raises(ValueError, match=r"^x: expected data in the model's subspace, ZeroCentre\(axis=0, columns=None\)"):
        model.nll_bound(params, x, KEY, mask=mask)
    x = model.subspace.project(x, mask)
    noise = model.draw(random.key(2), 2)
    one = Noise(*(None if part is None else part[:1] for part in noise))
    alone = sets(3, subspace=parts.zero_centre())
    padded = optree.tree_map(lambda term: term[:1], bound.bound(model, params, x, noise, mask=mask))
    close(padded, bound.bound(alone, params, x[:1, :3], cut(one, 3)), 1e-13)
    assert model.subspace.rank(mask.expand_as(x)).tolist() == [4, 8]
    with pytest.raises(ValueError, match=r"subspace: expected a decoders\.gaussian with one scale"):
        sets(5, decoders.discrete(4), subspace=parts.zero_centre())


@given(st.integers(2, 5), st.integers(1, 3))
def test_a_projection_is_one(points, coordinates):
    subspace, v = parts.zero_centre(), random.normal(KEY, (3, points, coordinates), F64)
    once = subspace.project(v)
    torch.testing.assert_close(subspace.project(once), once, rtol=0, atol=1e-15)
    assert once.mean(1).abs().max() < 1e-15
    full = torch.ones_like(v, dtype=torch.bool)
    torch.testing.assert_close(subspace.project(v, full), once, rtol=0, atol=1e-15)
    assert (subspace.rank(full) == (points - 1) * coordinates).all()


# The variance of the reverse process


def test_another_variance_costs_the_divergence_of_two_normals():
    """KL(q(z_s given z_t, x) || p(z_s given z_t)) by torch.distributions, times T."""
    plain, upper = (sets(3, timesteps=5, reverse=r) for r in (parts.posterior(), parts.upper()))
    params, x = plain.init(KEY), random.normal(random.key(1), (4, 3, 2), F64)
    noise = plain.draw(random.key(2), 4)
    gamma_t, gamma_s = (plain.gamma(params, t)[:, None, None] for t in (noise.t, noise.t - 0.2))
    z_t = purevdm.process.diffuse(x, gamma_t, noise.eps)
    eps_hat = plain.eps_hat(params, z_t, gamma_t[:, 0, 0])
    q = purevdm.process.posterior(z_t, x, gamma_t, gamma_s)
    p = purevdm.process.posterior_from_eps(z_t, eps_hat, gamma_t, gamma_s)
    wide = purevdm.process.transition(z_t, gamma_s, gamma_t).std
    for model, std in ((plain, p.std), (upper, wide)):
        normals = (torch.distributions.Normal(q.mean, q.std), torch.distributions.Normal(p.mean, std))
        want = 5 * torch.distributions.kl_divergence(*normals).sum((1, 2))
        found = bound.bound(model, params, x, noise).diffusion
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


def test_in_continuous_time_the_variances_meet():
    plain, upper = (sets(3, reverse=r) for r in (parts.posterior(), parts.upper()))
    params, x = plain.init(KEY), random.normal(random.key(1), (4, 3, 2), F64)
    assert torch.equal(plain.loss_fn(params, x, KEY), upper.loss_fn(params, x, KEY))


# Weightings


def test_a_weighting_weighs_the_loss_and_never_the_bound():
    plain = sets(3)
    params, x = plain.init(KEY), random.normal(random.key(1), (4, 3, 2), F64)
    doubled = plain._replace(weighting=parts.Weighting.of(lambda gamma: torch.full_like(gamma, 2.0)))
    stats = plain.loss_and_stats(params, x, KEY)[1]
    loss, others = doubled.loss_and_stats(params, x, KEY)
    torch.testing.assert_close(loss, stats["recon"] + stats["prior"] + 2.0 * stats["diffusion"], rtol=1e-13, atol=0)
    close({name: others[name] for name in stats}, stats, 1e-14)
    assert torch.equal(doubled.nll_bound(params, x, KEY).total, plain.nll_bound(params, x, KEY).total)
    weighed, noise = plain._replace(weighting=parts.sigmoid(1.5)), plain.draw(KEY, 4)
    terms = bound.bound(plain, params, x, noise)
    weight = torch.sigmoid(plain.gamma(params, noise.t) + 1.5)
    want = (terms.recon + terms.prior + weight * terms.diffusion).mean() / (6 * math.log(2))
    torch.testing.assert_close(weighed.loss_fn(params, x, KEY), want, rtol=1e-12, atol=0)
    with pytest.raises(TypeError, match=r"weighting: expected a purevdm\.parts\.Weighting"):
        plain._replace(weighting=lambda gamma: gamma).loss_fn(params, x, KEY)


# Decoders with parameters, conditions, estimates, and latents of another shape


@dataclass(frozen=True)
class OneHot(Decoder):
    """Classes as unit vectors times a learned size; p(x given z_0) by the sizes of the latent's numbers."""

    classes: int
    vocab_size: int

    def init(self, key):
        return {"size": torch.ones(())}

    def latent_shape(self, event_shape):
        return (*event_shape, self.classes)

    def latent_mask(self, mask):
        return mask[..., None]

    def check(self, x):
        return (x >= 0) & (x < self.classes)

    def encode(self, params, x, cond=None, dtype=torch.float32):
        return params["size"].to(dtype) * torch.nn.functional.one_hot(x.long(), self.classes).to(dtype)

    def log_probs(self, params, z, gamma_0, cond=None, estimate=None):
        logits = z if estimate is None else estimate
        return torch.log_softmax(params["size"] * logits * torch.exp(-gamma_0.reshape(gamma_0.shape[0], 1, 1)), -1)

    def log_prob(self, params, x, z, gamma_0, cond=None, estimate=None):
        return self.log_probs(params, z, gamma_0, cond, estimate).gather(-1, x[..., None].long())[..., 0]

    def mode(self, params, z, cond=None, estimate=None):
        return z.argmax(-1)

    def sample(self, params, key, z, gamma_0, cond=None, estimate=None):
        return random.categorical(key, self.log_probs(params, z, gamma_0, cond, estimate))


@dataclass(frozen=True)
class Estimating(OneHot):
    takes_estimate = True


def classes(decoder=None, **options):
    decoder = OneHot(4, 4) if decoder is None else decoder
    return purevdm.vdm(networks.mlp(16), schedules.learned_linear(-0.5, 4.0), (3,), decoder=decoder, **options)


def test_a_decoder_may_learn_and_have_latents_of_another_shape():
    model = classes()
    params = perturb.perturbed(model.init(KEY), 1, 0.1)
    assert set(params) == {"network", "schedule", "decoder"}
    x = random.randint(random.key(1), (6, 3), 0, 4)
    grads, loss = torch.func.grad_and_value(model.loss_fn)(params, x, random.key(2))
    assert grads["decoder"]["size"].abs() > 0
    terms = model.terms(params, x, random.key(2))
    assert (terms.recon.shape, terms.diffusion.shape) == ((6, 3), (6, 3, 4))
    assert loss.isfinite()
    torch.testing.assert_close(model.nll_bound(params, x, random.key(2)).recon, terms.recon.sum(1))
    params["decoder"]["size"] = torch.tensor(math.nan)
    with pytest.raises(ValueError, match=r"params\.decoder\.size: expected finite"):
        model.loss_fn(params, x, random.key(2))


def test_a_decoder_may_take_the_network_s_estimate():
    model, plain = classes(Estimating(4, 4)), classes()
    params = perturb.perturbed(model.init(KEY), 1, 0.1)
    x, noise = random.randint(random.key(1), (6, 3), 0, 4), model.draw(random.key(2), 6)
    gamma_0 = model.gamma(params, torch.tensor(0.0))
    f = model.decoder.encode(params["decoder"], x)
    z_0 = purevdm.process.diffuse(f, gamma_0, noise.eps_0)
    estimate = model.denoiser(params, n=6)(z_0, gamma_0.expand(6)).x
    z = f + torch.exp(0.5 * gamma_0) * noise.eps_0
    want = -model.decoder.log_prob(params["decoder"], x, z, gamma_0.expand(6), None, estimate).sum(1)
    found = bound.bound(model, params, x, noise._replace(key=None))
    torch.testing.assert_close(found.recon, want, rtol=1e-5, atol=1e-5)
    other = bound.bound(plain, params, x, noise._replace(key=None))
    torch.testing.assert_close(found.diffusion, other.diffusion)
    assert not torch.allclose(found.recon, other.recon)


# Samples


def test_samples_of_a_padded_batch_are_those_of_the_unpadded_one():
    wide, narrow = sets(5), sets(3)
    params, z = wide.init(KEY), random.normal(random.key(1), (4, 5, 2), F64)
    mask = (torch.arange(5) < 3)[None, :, None].expand(4, 5, 1)
    with pytest.raises(ValueError, match=r"^z: expected latents in the model's subspace, and 0 where nothing exists"):
        wide.sample(params, KEY, 4, z=z, mask=mask)
    options = dict(steps=8, solver=solvers.ddim())
    padded = wide.sample(params, KEY, 4, z=torch.where(mask, z, 0.0), mask=mask, trajectory=True, **options)
    alone = narrow.sample(params, KEY, 4, z=z[:, :3], trajectory=True, **options)
    torch.testing.assert_close(padded.x[:, :3], alone.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(padded.z[:, :, :3], alone.z, rtol=1e-12, atol=1e-12)
    assert not padded.x[:, 3:].any()
    assert not padded.z[:, :, 3:].any()
    drawn = wide.sample(params, KEY, 4, steps=8, solver=solvers.ancestral(), mask=mask)
    assert not drawn[:, 3:].any()
    assert drawn[:, :3].all()
    with pytest.raises(ValueError, match=r"^mask: expected a tensor that broadcasts to \(4, 5, 2\)"):
        wide.sample(params, KEY, 4, mask=mask[:, :3])


def test_samples_in_a_subspace_have_its_dimensions_and_deviation():
    points, std, n = 4, 1.3, 2000
    model, params = gaussian_on(points, std, subspace=parts.zero_centre()), {"network": {}, "schedule": {}}
    for solver, steps in ((solvers.ancestral(), 1600), (solvers.dpmpp_2m(), 100)):
        x = model.sample(params, KEY, n, steps=steps, solver=solver)
        assert x.mean(1).abs().max() < 1e-12
        degrees = (points - 1) * 2 * n
        variance = x.square().sum().item() / degrees
        # The mean of squares of normal numbers deviates by sqrt(2 / degrees) of itself; the steps cost a little more.
        assert abs(variance / std**2 - 1.0) < 5.0 * math.sqrt(2.0 / degrees) + 0.02
    z = sampling.invert(model, params, x[:5])
    assert z.mean(1).abs().max() < 1e-12
    torch.testing.assert_close(model.sample(params, KEY, 5, z=z), x[:5], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [OneHot, Estimating])
def test_samples_come_through_a_decoder_s_parameters_and_latents(kind):
    model = classes(kind(4, 4))
    params = model.init(KEY)
    drawn = model.sample(params, KEY, 5, steps=3, decode="sample", trajectory=True)
    assert (drawn.x.shape, drawn.z.shape) == ((5, 3), (4, 5, 3, 4))
    assert torch.equal(model.sample(params, KEY, 5, steps=3), drawn.z[-1].argmax(-1))
    assert sampling.invert(model, params, drawn.x, steps=3).shape == (5, 3, 4)
    mask = (torch.arange(3) < 2)[None]
    masked = model.sample(params, KEY, 5, steps=3, mask=mask, trajectory=True)
    assert not masked.z[:, :, 2].any()
    assert masked.z[:, :, :2].all()


REFUSED = {
    "subspace": (sets(3, subspace=parts.zero_centre()), "one without a subspace"),
    "decoder": (classes(), "a decoder without parameters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_formula_for_other_latents_refuses_them(name, tmp_path):
    model, wanted = REFUSED[name]
    params = model.init(KEY)
    x = torch.zeros(2, *model.event_shape, dtype=torch.int64 if name != "subspace" else F64)
    z = torch.zeros(2, *purevdm.model.latent_shape(model), dtype=model.dtype)
    calls = [
        lambda: likelihood.importance_bound(model, params, x, KEY, timesteps=3),
    ]
    if name != "subspace":  # which the flow stays in
        calls += [
            lambda: likelihood.log_prob(model, params, x, KEY),
            lambda: likelihood.log_prob_latent(model, params, z, probe_noise="exact"),
            lambda: likelihood.to_noise(model, params, z),
            lambda: codec.write(tmp_path / "x.vdm", model, params, x),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=f"^model: expected {wanted}"):
            call()


def test_the_variance_s_gradients_know_masks_and_learned_decoders():
    model = classes(dtype=torch.float64)
    params, x = model.init(KEY), random.randint(random.key(1), (4, 3), 0, 4)
    seeds, mask = model.seeds(random.key(2), 4), (torch.arange(3) < 2)[None]
    for there in (None, mask):
        grads, _ = model.vlb_and_variance_grads(params, x, seeds, mask=there)
        want = torch.func.grad(model.loss_fn)(params, x, seeds, mask=there)
        close(
            {"network": grads["network"], "decoder": grads["decoder"]}, {n: want[n] for n in ("network", "decoder")}, 1e-12
        )


def test_the_bound_of_one_has_noise_of_the_latents():
    model = classes()
    params, x = model.init(KEY), random.randint(random.key(1), (4, 3), 0, 4)
    noise = model.draw(random.key(2), 4)
    want = bound.bound(model, params, x, noise)
    one = model.nll_bound_of_one(params, x[1], Noise(*(part[1] for part in noise)))
    close(one, optree.tree_map(lambda term: term[1], want), 1e-5)
