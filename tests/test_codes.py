"""Codes: MuLAN's official numbers, what they cost, what their distributions are."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree
import pytest
import torch
from backends import every_backend
from compare import close
from goldens import HERE, nchw, tree
from perturb import perturbed

import purevdm
from purevdm import (
    Noise,
    bound,
    codec,
    coded,
    codes,
    decoders,
    evaluation,
    interop,
    likelihood,
    networks,
    ode,
    random,
    sampling,
    schedules,
    testing,
)
from purevdm.codec import _chain, _codes
from purevdm.codec._network import denoiser_of
from purevdm.codec._stack import Stack
from purevdm.noise import CodedNoise

F32, F64 = torch.float32, torch.float64
SIZE, K = 10, 4


@functools.cache
def arrays(name):
    return dict(np.load(HERE / f"mulan_{name}.npz"))


@functools.cache
def golden(name, dtype=F32):
    """The official run's model, parameters, gradients, data and noise."""
    a, gaussian = arrays(name), name == "v_gaussian"
    encoder = networks.unet_encoder((3, 8, 8), (2 if gaussian else 1) * SIZE, 32, 1, dropout=0.0)
    code = codes.gaussian(encoder, SIZE) if gaussian else codes.k_hot(encoder, SIZE, K, penalty="softmax")
    options = dict(predicts="v" if gaussian else "eps", add_z=gaussian)
    network = networks.vdm_unet(32, 1, cond_dim=SIZE, dropout=0.0, **options)
    model = purevdm.vdm(network, schedules.polynomial((3, 8, 8), SIZE), (3, 8, 8), code=code, dtype=dtype)
    params, grads = (
        optree.tree_map(lambda leaf: leaf.to(dtype), interop.from_flax(tree(a, prefix))) for prefix in ("params", "grad")
    )
    own = torch.tensor(a[next(key for key in a if key.startswith("draw/1"))])
    if not gaussian:
        own = 10 / K * ((own * torch.arange(1, 11)[:, None, None] / K).sum(0) - math.log(10))
    t = (torch.tensor(a["draw/0_uniform"]) + torch.arange(4) / 4) % 1.0
    noise = CodedNoise(t, nchw(a["draw/2_normal"]), nchw(a["draw/3_normal"]), None, own)
    noise = CodedNoise(*(None if field is None else field.to(dtype) for field in noise))
    return model, params, grads, nchw(a["images"]), noise


def loss(name, dtype, params):
    model, _, _, x, noise = golden(name, dtype)
    return bound.bound(model, params, x, noise).total.mean() / (192 * math.log(2))


NAMES = ["eps_topk", "v_gaussian"]


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_the_official_ones(name):
    (model, params, _, x, noise), a = golden(name), arrays(name)
    terms = bound.bound(model, params, x, noise)
    close(terms.prior + terms.code, torch.tensor(a["out/loss_klz"]), 1e-5)
    close(terms.diffusion, torch.tensor(a["out/loss_diff"]), 2e-5)
    close(terms.total.mean() / (192 * math.log(2)), torch.tensor(a["out/bpd"]), 1e-5)
    exact = bound.bound(*golden(name, F64)[:2], x, golden(name, F64)[4]).recon.numpy()
    assert abs(terms.recon / exact - 1).max() < max(3e-5, abs(a["out/loss_recon"] / exact - 1).max())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_official_ones(name):
    """As in tests/test_bound.py: to 1e-4, or a few times the official error where that is larger."""
    _, params, official_grads, _, _ = golden(name)
    grads = torch.func.grad(functools.partial(loss, name, F32))(params)
    exact = torch.func.grad(functools.partial(loss, name, F64))(golden(name, F64)[1])
    assert optree.tree_structure(grads) == optree.tree_structure(official_grads)
    leaves = (optree.tree_leaves(tree) for tree in (grads, official_grads, exact))
    for label, got, official, true in zip(optree.tree_paths(grads), *leaves, strict=True):
        official = official.double()
        if true.norm() < 1e-9:  # no gradient but rounding
            assert got.norm() < max(2e-6, 3 * official.norm()), label
            continue
        tolerance = max(1e-4 * official.norm().item(), 3 * (official - true).norm().item())
        assert (got.double() - official).norm() <= tolerance, label
        assert (got.double() - true).norm() <= tolerance, label


@pytest.mark.parametrize("name", NAMES)
def test_encoder_and_schedule_are_the_official_ones(name):
    (model, params, _, x, _), a = golden(name), arrays(name)
    out = model.code.encode(params["code"], model.decoder.encode({}, x))
    if name == "v_gaussian":
        out = torch.cat(model.code.moments(out), 1)
    close(out, torch.tensor(a["encoder/out"]), 1e-5)
    t, context = torch.tensor(a["gamma/t"]), torch.tensor(a["gamma/context"])
    found = schedules.gamma_and_slope(model.schedule, params["schedule"], t, context)
    for value, of in zip(found, ("g", "dg"), strict=True):
        close(value, nchw(a[f"gamma/{of}"].reshape(4, 8, 8, 3)), 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_official_parameters_come_back_as_they_were(name):
    wanted = tree(arrays(name), "params")
    back = interop.to_flax(interop.from_flax(wanted))
    assert optree.tree_structure(back) == optree.tree_structure(wanted)
    assert all(map(np.array_equal, optree.tree_leaves(back), optree.tree_leaves(wanted)))
    own = golden(name)[0].init(random.key(0))
    assert optree.tree_map(lambda leaf: leaf.shape, own) == optree.tree_map(lambda leaf: leaf.shape, golden(name)[1])


# Any code


def code_of(kind, n=6, size=3):
    outs = 2 * size if kind == "gaussian" else size
    encoder = decoders.perceptron((n,), (8,), (outs,))
    more = {"one_hot": (size,), "gaussian": (size,)}.get(kind, (size, 2))
    return getattr(codes, kind)(encoder, *more)


KINDS = ["gaussian", "one_hot", "k_hot"]


def small(kind, **options):
    """A small model with a code, and data."""
    cond_dim = 3 + options.pop("cond_dim", 0)
    network = networks.mlp(16, fourier=(), cond_dim=cond_dim)
    model = purevdm.vdm(network, schedules.polynomial((6,), 3, hidden=5), (6,), 16, code=code_of(kind), **options)
    return model, perturbed(model.init(random.key(0)), 1, 0.2), random.randint(random.key(1), (5, 6), 0, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_a_code_keeps_the_laws(kind):
    model, params, x = small(kind)
    testing.check_model(model, params, x, passes=3)
    for timesteps in (0, 20):
        varied = model._replace(timesteps=timesteps)
        grads = torch.func.grad(varied.loss_fn)(params, x, random.key(2))
        assert all(leaf.isfinite().all() for leaf in optree.tree_leaves(grads))
        assert all(leaf.any() for leaf in optree.tree_leaves(grads["code"]))
    total, stats = model.loss_and_stats(params, x, random.key(2))
    torch.testing.assert_close(total, sum(stats[name] for name in ("recon", "prior", "diffusion", "code")))
    found = evaluation.evaluate(model, params, [x], random.key(3), passes=2)
    assert list(found.terms) == ["recon", "prior", "diffusion", "code"]
    assert found.nll.mean == pytest.approx(sum(term.mean for term in found.terms.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_s_seeds_and_explicit_noise_give_the_same_codes(kind):
    model, params, x = small(kind)
    seeds, whole = model.seeds(random.key(2), 5), model.nll_bound(params, x, random.key(2)).total
    part = model.nll_bound(params, x[1:3], seeds.rows(slice(1, 3))).total
    torch.testing.assert_close(part, whole[1:3], rtol=1e-5, atol=1e-5)
    noise = model.draw(random.key(2), 5, train=False)
    torch.testing.assert_close(bound.bound(model, params, x, noise).total, whole, rtol=1e-5, atol=1e-5)
    one = model.nll_bound_of_one(params, x[0], CodedNoise(*(None if field is None else field[0] for field in noise)))
    torch.testing.assert_close(one.total, whole[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match=r"noise: expected a purevdm\.noise\.CodedNoise"):
        bound.bound(model, params, x, Noise(*noise[:4]))
    with pytest.raises(ValueError, match=r"noise\.code: expected shape"):
        bound.bound(model, params, x, noise._replace(code=noise.code[:, 1:]))
    plain = purevdm.vdm(networks.mlp(4), schedules.fixed_linear(), (6,), 16)
    with pytest.raises(TypeError, match=r"noise: expected a purevdm\.Noise"):
        bound.bound(plain, plain.init(random.key(0)), x, noise)


def test_a_condition_of_numbers_stands_before_the_code_and_others_are_refused():
    model, params, x = small("gaussian", cond_dim=2)
    cond = random.normal(random.key(3), (5, 2))
    a, b = (model.nll_bound(params, x, random.key(2), c).total for c in (cond, cond + 1.0))
    assert (a != b).all()
    assert model.sample(params, random.key(4), 5, steps=3, cond=cond).shape == (5, 6)
    for bad in (torch.arange(5), torch.ones(5), torch.ones(4, 2), networks.Condition(vector=cond)):
        with pytest.raises((TypeError, ValueError), match="cond"):
            model.nll_bound(params, x, random.key(2), bad)


def test_one_hot_codes_have_the_distribution_of_their_logits():
    code, n = codes.one_hot(decoders.perceptron((2,), (), (3,)), 3, 0.7), 20000
    logits = torch.tensor([0.5, -1.0, 1.2]).expand(n, 3)
    noise = torch.func.vmap(lambda k: code.noise(k, F32))(random.split(random.key(0), n))
    drawn = code.draw(logits, noise)
    p = torch.softmax(logits[0], 0)
    assert ((drawn.mean(0) - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()
    # E log q / p is the KL, and the weights' mean is 1
    ratio = code.log_ratio(logits, drawn)
    kl = code.kl(logits[:1]).sum()
    assert abs(-ratio.mean() - kl) < 4.5 * ratio.std() / math.sqrt(n)
    assert abs(ratio.exp().mean() - 1) < 4.5 * ratio.exp().std() / math.sqrt(n)


def test_gaussian_codes_have_the_distribution_of_their_moments():
    code, n = codes.gaussian(decoders.perceptron((2,), (), (4,)), 2), 20000
    out = torch.tensor([0.3, -0.8, 0.2, -1.0], dtype=F64).expand(n, 4)
    noise = torch.func.vmap(lambda k: code.noise(k, F64))(random.split(random.key(0), n))
    drawn, variance = code.draw(out, noise), torch.nn.functional.softplus(out[0, 2:])
    q = torch.distributions.Normal(out[0, :2], variance.sqrt())
    p = torch.distributions.Normal(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64))
    torch.testing.assert_close(code.kl(out[:1])[0], torch.distributions.kl_divergence(q, p))
    torch.testing.assert_close(code.log_ratio(out, drawn), (p.log_prob(drawn) - q.log_prob(drawn)).sum(1))
    assert ((drawn.mean(0) - out[0, :2]).abs() < 4.5 * (variance / n).sqrt()).all()


@pytest.mark.parametrize("perturbation", ["gamma", "gumbel"])
def test_k_hot_codes_hold_k_ones_of_the_largest(perturbation):
    code = codes.k_hot(decoders.perceptron((2,), (), (5,)), 5, 2, perturbation=perturbation)
    noise = torch.func.vmap(lambda k: code.noise(k, F32))(random.split(random.key(0), 4000))
    logits = torch.tensor([0.0, 60.0, 20.0, -40.0, 10.0]).expand(4000, 5) / (30.0 if perturbation == "gumbel" else 1.0)
    drawn = code.draw(logits, noise)
    assert ((drawn == 0) | ((drawn - 1).abs() < 1e-6)).all()
    torch.testing.assert_close(drawn.sum(1), torch.full((4000,), 2.0))
    assert drawn.mean(0).argsort(descending=True).tolist() == [1, 2, 4, 0, 3]
    far = code.draw(100 * logits, noise)
    assert far.mean(0).round().tolist() == [0, 1, 1, 0, 0]
    torch.testing.assert_close(code.kl(logits[:1]).sum(), torch.tensor(math.log(10)))
    own = torch.func.vmap(lambda k: code.prior(k, F32))(random.split(random.key(1), 4000))
    assert (own.sum(1) == 2).all()
    assert ((own.mean(0) - 0.4).abs() < 4.5 * math.sqrt(0.24 / 4000)).all()


@pytest.mark.parametrize("k", [1, 4, 15])
def test_the_noise_of_sums_of_gammas_has_their_moments(k):
    code, n = codes.k_hot(decoders.perceptron((2,), (), (15,)), 15, k), 2000
    noise = torch.func.vmap(lambda key: code.noise(key, F64))(random.split(random.key(0), n)).reshape(-1)
    weights = torch.arange(1, 11, dtype=F64) / k
    mean, std = 10 / k * (weights.sum() / k - math.log(10)), 10 / k * (weights.square().sum() / k).sqrt()
    spread = std / math.sqrt(len(noise))
    assert abs(noise.mean() - mean) < 4.5 * spread
    # a sum of gammas: the fourth cumulant says how well its variance is known
    fourth = 6 / k * (10 / k * weights).pow(4).sum()
    assert abs(noise.var() - std**2) < 4.5 * ((2 * std**4 + fourth) / len(noise)).sqrt()


def test_codes_are_drawn_for_samples_and_change_them():
    model, params, _ = small("one_hot")
    z = torch.zeros(8, 6)
    drawn = model.sample(params, random.key(0), 8, steps=4, z=z)
    assert len(drawn.unique(dim=0)) > 1  # the same latents, so what differs are codes
    assert torch.equal(drawn, model.sample(params, random.key(0), 8, steps=4, z=z))


@dataclass(frozen=True)
class Own(codes.Code):
    """A code that files do not know."""

    encoder: Any
    size: int


def test_what_has_no_formula_for_codes_is_refused():
    model, params, x = small("gaussian")
    with pytest.raises(ValueError, match="code"):
        model.vlb_and_variance_grads(params, x, random.key(0))
    with pytest.raises(ValueError, match="without a code"):
        likelihood.flow.to_noise(model, params, torch.zeros(5, 6), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="expected a code of purevdm"):
        codec.encode(model._replace(code=Own(model.code.encoder, 3)), params, x)
    with pytest.raises(ValueError, match="cond"):
        sampling.invert(model, params, x)
    with pytest.raises(TypeError, match="code: expected a purevdm"):
        model._replace(code=networks.mlp(8)).init(random.key(0))
    narrow = model._replace(code=codes.gaussian(decoders.perceptron((6,), (8,), (5,)), 3))
    own = narrow.init(random.key(0))
    with pytest.raises(ValueError, match=r"code\.encoder: expected shape"):
        narrow.nll_bound(own, x, random.key(0))


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda e: codes.gaussian(None, 3), TypeError, "encoder"),
        (lambda e: codes.gaussian(e, 0), ValueError, "size"),
        (lambda e: codes.one_hot(e, 3, 0.0), ValueError, "temperature"),
        (lambda e: codes.k_hot(e, 3, 4), ValueError, "k:"),
        (lambda e: codes.k_hot(e, 3, 2, penalty="kl"), ValueError, "penalty"),
        (lambda e: codes.k_hot(e, 3, 2, perturbation="none"), ValueError, "perturbation"),
        (lambda e: networks.unet_encoder((3, 8), 4), ValueError, "event_shape"),
        (lambda e: networks.unet_encoder((3, 8, 8), 4, 33), ValueError, "groups"),
    ],
)
def test_bad_arguments_are_refused(make, error, word):
    with pytest.raises(error, match=word):
        make(decoders.perceptron((6,), (), (3,)))


def test_dropout_in_the_encoder_goes_by_key():
    encoder = networks.unet_encoder((1, 4, 4), 3, 8, 1, groups=4, dropout=0.5)
    params = perturbed(encoder.init(random.key(0)), 1, 0.3)
    f, keys = random.normal(random.key(2), (2, 1, 4, 4)), random.split(random.key(3), 2)
    still = encoder.apply(params, f)
    assert torch.equal(still, encoder.apply(params, f))
    assert (encoder.apply(params, f, keys) != still).any(1).all()
    torch.testing.assert_close(encoder.apply(params, f[1:], keys[1:]), encoder.apply(params, f, keys)[1:])


# A mixture of two normals, whose component is the code, and its ideal network

STD, CENTRE = 0.5, 0.3


def given_component(params, z, gamma, cond=None, key=None):
    """E[x given z, c] for x ~ N(CENTRE c_0 - CENTRE c_1, STD**2)."""
    mean, alpha, sigma2 = CENTRE * (cond[0] - cond[1]), torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma)
    return mean + alpha * STD**2 * (z - alpha * mean) / (alpha.square() * STD**2 + sigma2)


def mixture():
    """The model, parameters whose encoder is near to the posterior but not at it, data, and log p of these."""
    code = codes.one_hot(decoders.perceptron((2,), (), (2,)), 2)
    network = networks.Network.of(lambda key, shape: {}, given_component, predicts="x")
    schedule, decoder = schedules.polynomial((2,), 2, hidden=4, gamma_min=-14.0, gamma_max=20.0), decoders.gaussian()
    model = purevdm.vdm(network, schedule, (2,), decoder=decoder, code=code, dtype=F64)
    params = perturbed(model.init(random.key(0)), 1, 0.3)
    kernel = torch.tensor([[0.9, -0.9], [0.8, -0.8]], dtype=F64)
    params["code"] = {"dense1": {"kernel": kernel, "bias": torch.tensor([0.4, 0.0], dtype=F64)}}
    sign = torch.where(random.bernoulli(random.key(2), 0.5, (300, 1)), 1.0, -1.0).double()
    x = CENTRE * sign + STD * random.normal(random.key(3), (300, 2), F64)
    normal = torch.distributions.Normal(torch.tensor([[[CENTRE]], [[-CENTRE]]], dtype=F64), STD)
    return model, params, x, normal.log_prob(x).sum(-1).logsumexp(0) - math.log(2)


def test_the_likelihood_of_a_mixture_by_codes_is_its_own():
    model, params, x, log_p = mixture()
    how = dict(samples=4, probes="exact", integrator=ode.dopri5(1e-6, 1e-6))
    flow = likelihood.log_prob(model, params, x, random.key(4), **how)
    ratio = torch.exp(flow.log_prob - log_p)  # the mean of weights has the mean p(x)
    assert ratio.std() > 0.05
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(len(x))
    few = likelihood.importance_bound(model, params, x, random.key(5), timesteps=60)
    gap = few.log_prob - log_p
    assert gap.mean() < 0
    more = likelihood.importance_bound(model, params, x, random.key(5), timesteps=60, samples=16)
    assert gap.mean() < (more.log_prob - log_p).mean() < 0.02
    # the bound lies above the truth by what the codes' distribution misses of the posterior
    bounds = torch.stack([model.nll_bound(params, x, k).total for k in random.split(random.key(6), 64)])
    logits = model.code.encode(params["code"], x)
    odds = (2 * CENTRE / STD**2 * x.sum(1))[:, None] * torch.tensor([[1.0, 0.0]], dtype=F64)
    q, p = torch.log_softmax(logits, 1), torch.log_softmax(odds, 1)
    missed = (bounds.mean(1) + log_p.mean()).double()
    wanted = (q.exp() * (q - p)).sum(1).mean()
    assert abs(missed.mean() - wanted) < 4.5 * missed.std() / 8


def test_samples_of_a_mixture_by_codes_have_its_moments():
    model, params, _, _ = mixture()
    x = model.sample(params, random.key(7), 4000, steps=60)
    assert abs(x.mean()) < 4.5 * math.hypot(CENTRE, STD) / math.sqrt(4000)
    assert abs((x[:, 0] * x[:, 1]).mean() - CENTRE**2) < 4.5 * (CENTRE**2 + STD**2) / math.sqrt(4000)
    assert abs(x.square().mean() - CENTRE**2 - STD**2) < 0.02


def test_the_model_given_codes_is_an_ordinary_one():
    model, params, x, _ = mixture()
    c = coded.posterior(model, params, x[:3], random.key(1))
    given, its = coded.conditional(model, params)
    assert set(its) == {"network", "schedule"}
    z_1 = sampling.invert(given, its, x[:3], c, steps=200)
    back = given.sample(its, random.key(2), 3, z=z_1, cond=c, steps=200)
    assert (back - x[:3]).abs().max() < 0.02
    torch.testing.assert_close(
        sampling.invert(model, params, x[:3], c, steps=5), sampling.invert(given, its, x[:3], c, steps=5)
    )
    with pytest.raises(ValueError, match="model: expected one with a code"):
        coded.conditional(given, its)


# Files


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_codes(kind):
    for options in ({}, dict(cond_dim=2)):
        model, params, x = small(kind, **options)
        x = random.randint(random.key(9), (40, 6), 0, 16)
        cond = random.normal(random.key(3), (40, 2)) if options else None
        data = codec.encode(model, params, x, cond, timesteps=6, lanes=7)
        assert torch.equal(codec.decode(model, params, data, cond, lanes=7), x)
        other = optree.tree_map(lambda leaf: leaf + 0.01, params["code"])
        with pytest.raises(codec.CodecError, match="another digest"):
            codec.decode(model, params | {"code": other}, data, cond)
        damaged = bytearray(data)
        for at in range(len(data) - 40, len(data) - 24):
            damaged[at] ^= 85
        with pytest.raises(codec.CodecError):
            codec.decode(model, params, bytes(damaged), cond)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_cost_their_divergence_in_a_file(kind):
    """What the stack holds more after codes were popped under q and pushed under p. Giving them back leaves it as it was."""
    model, params, _ = small(kind, dtype=F64)
    params = params | {"code": perturbed(params["code"], 2, 0.4)}
    x = random.randint(random.key(9), (3000, 6), 0, 16)
    rows, denoise = x.numpy().astype(np.int64), denoiser_of(model, params, True, 500, False)
    words = _chain.initial_words(0, 0, 3000)
    stack = Stack(words)
    before = stack.bits
    taken = _codes.take(stack, denoise, rows, None)
    _codes.put(stack, denoise, taken)
    cost = (stack.bits - before) * math.log(2) / len(x)
    out = model.code.encode(params["code"], model.decoder.encode({}, x, dtype=F64))
    kl = model.code.kl(out).sum(1).mean()
    noise = torch.func.vmap(lambda k: model.code.noise(k, F64))(random.split(random.key(1), len(x)))
    error = model.code.log_ratio(out, model.code.draw(out, noise)).std() / math.sqrt(len(x))
    assert abs(cost - kl) < 4.5 * error + 0.005 * kl < 0.4 * kl, (cost, kl, error)
    codes, dithers = _codes.get(stack, denoise, len(x))
    order = (lambda a: np.sort(a, 1)) if kind == "k_hot" else np.asarray
    assert np.array_equal(order(codes), order(taken.codes))
    _codes.give_back(stack, denoise, rows, None, codes, dithers)
    assert np.array_equal(stack.words(), words)


@every_backend
def test_a_compiled_bound_is_the_eager_one(backend):
    model, params, x = small("k_hot")
    noise = model.draw(random.key(2), 5, train=False)

    def loss(params, x, noise):
        return bound.bound(model, params, x, noise).total.mean()

    eager = torch.func.grad_and_value(loss)
    compiled = torch.compile(eager, fullgraph=True, backend=backend)
    close(compiled(params, x, noise), eager(params, x, noise), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_losses_and_samples_are_the_eager_ones(kind):
    model, params, x = small(kind)
    loss = torch.compile(model.loss_fn, fullgraph=True)
    close(loss(params, x, random.key(2)), model.loss_fn(params, x, random.key(2)), 1e-4)
    sample = torch.compile(lambda params, key: model.sample(params, key, 4, steps=5, until=0.2), fullgraph=True)
    with torch.no_grad():
        close(sample(params, random.key(3)), model.sample(params, random.key(3), 4, steps=5, until=0.2), 1e-4)
