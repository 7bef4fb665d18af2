"""The official code's numbers (MD4, MDLM, DUO), and exact results of a Markov chain, float64."""

import math

import chains
import pytest
import torch
import torch.nn.functional as F
from chains import F64, FLAT
from goldens import masked_case

from purevdm import masked, random, schedules
from purevdm.masked import corruptions
from purevdm.networks import Network

MD4 = {
    "linear_cont": schedules.power(floor=1e-4),
    "cosine_cont": schedules.cosine(floor=1e-4),
    "poly2_t10": schedules.power(2.0, floor=1e-4),
    "linear_t1000": schedules.power(floor=1e-4),
}


def same(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=atol)


def answers(logits):
    """A network that returns these logits of the classes, whatever it is asked."""
    padded = torch.cat([logits, torch.full_like(logits[..., :1], 7.0)], -1)  # and something for the mask
    return Network.of(lambda key, shape: {}, lambda params, z, gamma, cond=None, key=None: padded, batched=True)


@pytest.mark.parametrize("name", MD4)
def test_md4_schedules(name):
    a = masked_case("md4", name)
    gamma, slope = schedules.gamma_and_slope(MD4[name], {}, a["schedule/t"])
    same(torch.sigmoid(-gamma), a["schedule/alpha"])
    same(-torch.sigmoid(-gamma) * slope, a["schedule/weight"], atol=1e-8)


@pytest.mark.parametrize("name", MD4)
def test_md4_losses(name):
    """Its masks hide where u >= alpha. Its prior term is 0; ours is what it leaves out."""
    a = masked_case("md4", name)
    options = dict(timesteps=a["settings/timesteps"].item(), classes_last=True, dtype=F64)
    model = masked.diffusion(answers(a["logits"]), MD4[name], (8,), 5, **options)
    terms = masked.bound.bound(model, FLAT, a["x"], masked.Noise(a["draw/t_used"], 1.0 - a["draw/u"]))
    same(terms.diffusion, a["out/loss_diff"])
    same(terms.recon, a["out/loss_recon"].expand(6))
    same(terms.prior, torch.full((6,), 8 * 1e-4 * math.log(5.0), dtype=F64))


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
@pytest.mark.parametrize("name", MD4)
def test_md4_steps(name, grid):
    """The probability that a mask shows itself, and the frequencies of what is drawn given its network's probabilities."""
    a, schedule, draws, noise = masked_case("md4", name), MD4[name], 4000, corruptions.Masking(5)
    for i in (0, 3, 9):
        t = torch.tensor([10 - i, 9 - i], dtype=F64) / 10
        t = torch.cos(0.5 * math.pi * (1.0 - t)) if grid == "cosine" else t
        step = corruptions.between(*schedules.gamma(schedule, {}, t))
        probs = a[f"step_{grid}/{i}/probs"]
        same(noise.shows(step), 1.0 - probs[0, 0, 5])
        log_p = torch.log_softmax(probs[..., :5].log(), -1)
        drawn = noise.back(random.key(i), log_p.expand(draws, -1, -1, -1), a["draw/z_t"].expand(draws, -1, -1), step)
        want = torch.where((a["draw/z_t"] == 5)[..., None], probs, torch.eye(6, dtype=F64)[a["draw/z_t"]])
        found = torch.eye(6, dtype=F64)[drawn].sum(0)
        assert ((found - draws * want).abs() <= 6 * (draws * want * (1 - want)).sqrt() + 6).all()  # Bernstein's


def at(a, t):
    """The level and the slope of MDLM's alpha at its times."""
    kind = str(a["settings/noise"])
    if kind == "loglinear":
        lost, slope = (1 - 1e-3) * t, torch.full_like(t, 1 - 1e-3)
    elif kind == "cosine":
        lost = 1 - (1e-3 + (1 - 1e-3) * torch.cos(0.5 * math.pi * t))
        slope = (1 - 1e-3) * 0.5 * math.pi * torch.sin(0.5 * math.pi * t)
    else:
        low, high = a["settings/noise_args"]
        sigma = low ** (1 - t) * high**t
        lost, slope = -torch.expm1(-sigma), torch.exp(-sigma) * sigma * torch.log(high / low)
    return torch.logit(lost), slope / (lost * (1 - lost))


@pytest.mark.parametrize("name", ["loglinear", "cosine", "geometric"])
def test_mdlm_losses(name):
    """Of each token, and the mean over those attended to."""
    a = masked_case("mdlm", name)
    gamma, weight = at(a, times(a))
    step = corruptions.weighted(gamma[:, None], weight[:, None], 0)
    noise = corruptions.Masking(5)
    same(noise.noised(a["x"], gamma[:, None], a["draw/u"], None), a["draw/x_t"])
    loss = a["attention_mask"] * noise.loss(a["out/log_p"][..., :5], a["x"], a["draw/x_t"], step)
    same(loss, a["out/nlls"])
    same(loss.sum() / a["attention_mask"].sum(), a["out/loss"])


def times(a):
    """Its times: one uniform in each of B strata, from [1e-3, 1]."""
    t, n = a["draw/t_raw"], len(a["draw/t_raw"])
    if a["settings/antithetic"]:
        t = (t + torch.arange(n)) / n % 1.0
    return 1e-3 + (1 - 1e-3) * t


def test_mdlm_losses_in_steps():
    """They take alpha = 1 - t, with t at most 1 - 1e-4, also where tokens are hidden with probability 0.999 t; at t = 1 / T
    they are NaN."""
    a, steps = masked_case("mdlm", "loglinear_t10"), 10
    t = ((times(a) * steps).floor() / steps + 1 / steps).clamp(max=1 - 1e-4)
    gamma_t, gamma_s = (torch.logit(v.clamp(1e-300, 1 - 1e-15)) for v in (t, t - 1 / steps))
    weight = steps * torch.expm1((gamma_t - gamma_s).clamp(max=600.0))
    step = corruptions.weighted(gamma_t[:, None], weight[:, None], steps)
    loss = corruptions.Masking(5).loss(a["out/log_p"][..., :5], a["x"], a["draw/x_t"], step)
    torch.testing.assert_close(a["attention_mask"] * loss, a["out/nlls_limit"], rtol=1e-9, atol=1e-9)
    assert a["out/nlls"][0].isnan().any()


@pytest.mark.parametrize("name", ["uniform_loglinear", "uniform_cosine", "masked_loglinear", "masked_cosine"])
def test_duo_losses_and_steps(name):
    a, uniform = masked_case("duo", name), name.startswith("uniform")
    noise = corruptions.Uniform(5) if uniform else corruptions.Masking(5)
    gamma = torch.logit(1 - a["alpha"])[:, None]
    weight = (-a["dalpha"] / (a["alpha"] * (1 - a["alpha"])))[:, None]
    same(noise.noised(a["x"], gamma, a["draw/u"], a.get("draw/token")), a["draw/x_t"])
    log_p = a["out/log_p"][..., :5]
    loss = noise.loss(log_p, a["x"], a["draw/x_t"], corruptions.weighted(gamma, weight, 0))
    same(loss, a["out/nll_per_token"])
    same((a["attention_mask"] * loss).sum() / a["out/num_tokens"], a["out/loss"])
    if not uniform:
        return
    # A step from another time, which its network sees by 1 / (1 + sigma).
    eps, i, v = a["settings/noise_eps"], torch.arange(8)[:, None], torch.arange(5)
    line = a["settings/noise"] == "log-linear"
    alphas = (1 - (1 - eps) * t if line else 1 - torch.cos(0.5 * math.pi * (1 - (1 - eps) * t)) for t in times_of_step(a))
    gamma_t, gamma_s = (torch.logit(1 - alpha)[:, None] for alpha in alphas)
    seen = 1 / (1 + F.softplus(gamma_t)) - 1 / (1 + a["draw/sigma"][:, None])  # sigma = -log alpha
    p = torch.softmax(log_p + a["net/b"][2] * seen[..., None] * torch.cos((i + v).double()), -1)
    moves = noise.rates(p, a["draw/x_t"], corruptions.between(gamma_t, gamma_s))
    own = torch.eye(5, dtype=torch.bool)[a["draw/x_t"]]
    same(torch.where(own, 1 - moves.sum(-1, keepdim=True), moves), a["step/q_xs"])


def times_of_step(a):
    return a["step/t"], a["step/t"] - a["step/dt"]


def chain():
    a = masked_case("markov_ideal")
    return a, chains.ideal(a["start"], a["transition"])


def model(network, schedule, **options):
    return masked.diffusion(network, schedule, (8,), 4, classes_last=True, dtype=F64, **options)


def test_the_ideal_predictor_of_a_chain():
    a, network = chain()
    z = torch.where(a["mask"], 4, a["x"])
    log_p = model(network, None).log_probs(FLAT, z, torch.zeros(32, dtype=F64))
    same(log_p.exp(), a["conditional"])
    uniform = model(chains.ideal(a["start"], a["transition"], uniform=True), None, corruption="uniform")
    for alpha, z, want in zip(a["uniform/alpha"], a["uniform/z"], a["uniform/denoiser"], strict=True):
        rest = uniform.log_probs(FLAT, z[None], torch.logit(1 - alpha)[None])[0]  # p(x_i given all but z_i)
        own = alpha * torch.eye(4, dtype=F64)[z] + (1 - alpha) / 4
        same(torch.softmax(rest + own.log(), -1), want)


@pytest.mark.parametrize("eps", [None, 0.0001, 0.01])
def test_the_continuous_bound_of_a_chain_is_its_log_probability(eps):
    """Of each sequence; and from alpha = 1 - eps to eps, as MD4 computes it. The integrand is a polynomial of degree 7."""
    a, network = chain()
    line = model(network, schedules.power(floor=1e-60 if eps is None else eps))
    terms = chains.expected_bound(line, a["x"][:8], *chains.gauss(4))
    if eps is None:
        same(terms.total, -a["log_p"][:8])
    else:
        same(terms.diffusion, a[f"bound_continuous_eps{eps}"][:8])
        same(terms.recon, a[f"recon_eps{eps}"].expand(8))


@pytest.mark.parametrize("steps", [1, 2, 4, 16])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_bound_of_a_chain_in_steps(name, steps):
    a, network = chain()
    schedule = schedules.power(floor=1e-60) if name == "linear" else schedules.cosine(floor=1e-60)
    t = torch.arange(1, steps + 1, dtype=F64) / steps
    x, weight = a["x"][:4], torch.full((steps,), 1 / steps, dtype=F64)
    terms = chains.expected_bound(model(network, schedule, timesteps=steps), x, t, weight)
    same(terms.total, a[f"bound_{name}_T{steps}"][:4])
