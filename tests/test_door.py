"""What every function of a model is given, held against its parameters and its settings."""

import functools
import math

import optree
import pytest
import torch

import purevdm
from purevdm import Noise, Seeds, _compile, bfn, decoders, likelihood, networks, ode, random, sampling, schedules, training
from purevdm import bound as diffusion_bound
from purevdm.bfn import bound
from purevdm.bfn.flows import Normal
from purevdm.likelihood import flow

KEY = random.key(0)
NETWORK = functools.partial(networks.mlp, 4, 1, fourier=())
LINE = schedules.learned_linear(-4.0, 4.0)
VDM = purevdm.vdm(NETWORK(cond_dim=1), LINE, (2,), 8)
FLOW = bfn.discrete(NETWORK(cond_dim=1), (2,), 3, 1.0)
REAL = purevdm.vdm(NETWORK(), schedules.fixed_linear(-4.0, 4.0), (2,), decoder=decoders.gaussian())
X, COND = random.randint(random.key(1), (3, 2), 0, 3), torch.ones(3, 1)
Z = random.normal(random.key(2), (3, 2))
MODELS = pytest.mark.parametrize("model", [VDM, FLOW], ids=["vdm", "bfn"])


def moved(tree, path, **to):
    """A tree with one leaf taken to another device or dtype."""
    paths, leaves, spec = optree.tree_flatten_with_path(tree)
    return optree.tree_unflatten(spec, [leaf.to(**to) if p == path else leaf for p, leaf in zip(paths, leaves, strict=True)])


def of_noise(model, params, noise, x=X):
    """The bound of explicit noise."""
    return (diffusion_bound if model is VDM else bound).bound(model, params, x, noise, COND)


@MODELS
def test_every_tensor_is_on_one_device(model):
    params, seeds, noise = model.init(KEY), model.seeds(KEY, 3), model.draw(KEY, 3)
    for path in optree.tree_paths(params):
        with pytest.raises(ValueError, match=f"^params.{'.'.join(path)}: expected a tensor on cpu, as the rest, got .* on"):
            model.loss_fn(moved(params, path, device="meta"), X, KEY, COND)
    for name in seeds._fields:
        with pytest.raises(ValueError, match=rf"^key\.{name}: expected a tensor on cpu.* on meta"):
            model.nll_bound(params, X, seeds._replace(**{name: getattr(seeds, name).to("meta")}), COND)
    for name in ("t", "eps", "key"):
        with pytest.raises(ValueError, match=rf"^noise\.{name}: expected a tensor on cpu"):
            of_noise(model, params, noise._replace(**{name: getattr(noise, name).to("meta")}))
    for x, cond, name in ((X.to("meta"), COND, "x"), (X, COND.to("meta"), "cond")):
        with pytest.raises(ValueError, match=f"^{name}: expected a tensor on cpu"):
            model.nll_bound(params, x, KEY, cond)
    away = optree.tree_map(lambda leaf: leaf.to("meta"), (params, X, seeds, COND))
    assert model.nll_bound(*away).total.is_meta


def test_likelihoods_tensors_are_on_one_device():
    params = VDM.init(KEY)
    for call, name in (
        (lambda: likelihood.log_prob_latent(VDM, params, Z, COND, probe_noise=Z[None].to("meta")), "probe_noise"),
        (lambda: likelihood.log_prob(VDM, params, X, KEY.to("meta"), COND), "key"),
        (lambda: likelihood.to_noise(VDM, params, Z, COND.to("meta")), "cond"),
        (lambda: VDM.eps_hat(params, Z, Z[:, 0].to("meta"), COND), "gamma"),
        (lambda: VDM.gamma(params, torch.tensor(0.5, device="meta")), "t"),
        (lambda: VDM.sample(params, KEY.to("meta"), 3, steps=2, cond=COND), "key"),
        (lambda: VDM.sample(params, KEY, 3, steps=2, z=Z.to("meta"), cond=COND), "z"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected a tensor on cpu"):
            call()


@MODELS
def test_seeds_and_noise_are_those_of_the_model(model):
    params, seeds, noise = model.init(KEY), model.seeds(KEY, 3), model.draw(KEY, 3)
    steps = model._replace(timesteps=10)
    for own, times, wanted in (
        (model, [2.0, 0.1, 0.2], r"times in \[0, 1\).*got values from .* to 2"),
        (model, [math.nan, 0.1, 0.2], r"times in \[0, 1\).*got NaN"),
        (model, [0.1, 0.5, 1.0], r"times in \[0, 1\)"),
        (steps, [0.1, 0.5, 0.55], r"times of 10 steps, each one of 1/10, \.\.\., 1"),
        (steps, [0.0, 0.5, 1.0], "times of 10 steps"),
    ):
        for call in (own.nll_bound, own.loss_fn, own.update):
            with pytest.raises(ValueError, match=f"^key.t: expected {wanted}"):
                call(params, X, seeds._replace(t=torch.tensor(times)), COND)
        with pytest.raises(ValueError, match=f"^key.t: expected {wanted}"):
            own.draw(seeds._replace(t=torch.tensor(times)), 3)
    every = torch.arange(1, 11) / 10
    assert steps.draw(steps.seeds(KEY, 10)._replace(t=every), 10).t is every
    inner = steps.seeds(KEY, 3)._replace(t=torch.tensor([0.1, 0.5, 0.9]))  # times of either kind
    for own, drawn in ((model, inner), (model._replace(timesteps=20), inner), (steps, seeds._replace(t=inner.t))):
        with pytest.raises(ValueError, match=rf"^key\.timesteps: expected {own.timesteps}, as the model's"):
            own.nll_bound(params, X, drawn.rows(slice(0, 3)), COND)
        assert own.nll_bound(params, X, Seeds(drawn.t, drawn.key), COND).total.shape == (3,)
    for harm, word in (
        (dict(eps=noise.eps[:, :1]), r"noise\.eps: expected shape"),
        (dict(eps=noise.eps.double()), r"noise\.eps: expected torch.float32"),
        (dict(eps=noise.eps * math.nan), r"noise\.eps: expected finite numbers, got NaN"),
        (dict(t=noise.t + 1), r"noise\.t: expected times"),
        (dict(key=noise.key[:, 0]), r"noise\.key: expected shape \(3, 2\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{word}"):
            of_noise(model, params, noise._replace(**harm))
    with pytest.raises(ValueError, match=r"^x: expected integers"):
        of_noise(model, params, noise, X + 9)


@pytest.mark.parametrize("recon_std", [1e-30, -1.0])
def test_a_reconstructions_deviation_is_held_by_the_models_dtype(recon_std):
    model = bfn.continuous(NETWORK(), (2,), 0.1)
    with pytest.raises(ValueError, match=r"^recon_std: expected"):
        model._replace(output=model.output._replace(recon_std=recon_std)).init(KEY)


def test_a_loss_in_steps_takes_the_senders_noise():
    model = FLOW._replace(timesteps=4)
    noise, params = model.draw(KEY, 3), model.init(KEY)
    assert torch.isfinite(bound.bound(model, params, X, noise, COND).total).all()
    with pytest.raises(ValueError, match=r"^noise\.sender: expected the sender's noise"):
        bound.bound(model, params, X, noise._replace(sender=None), COND)


def test_explicit_noise_of_one_example_is_the_models():
    params, noise = VDM.init(KEY), Noise(torch.tensor(0.3), Z[0], Z[1])
    assert torch.isfinite(VDM.nll_bound_of_one(params, X[0], noise, COND[0]).total)
    for harm in (dict(t=torch.tensor(2.0)), dict(eps=Z[0].double()), dict(eps_0=Z[0] * math.inf)):
        with pytest.raises((TypeError, ValueError), match=rf"^noise\.{next(iter(harm))}: expected"):
            VDM.nll_bound_of_one(params, X[0], noise._replace(**harm), COND[0])


@MODELS
def test_conditions_are_numbers_that_the_model_holds(model):
    params = model.init(KEY)
    with pytest.raises(ValueError, match=r"^cond: expected finite numbers, got one that torch.float32 does not hold"):
        model.nll_bound(params, X, KEY, COND.double() * 1e300)
    with pytest.raises(TypeError, match=r"^cond: expected real numbers, got a complex64 tensor"):
        model.nll_bound(params, X, KEY, COND * 1j)
    assert torch.equal(model.nll_bound(params, X, KEY, COND.double()).total, model.nll_bound(params, X, KEY, COND).total)


def test_real_data_are_numbers_that_the_model_holds():
    params, far = REAL.init(KEY), 1e300 * (1.0 + Z.double())
    for x in (far, torch.full((3, 2), 1e20)):  # whose square float32 does not hold
        with pytest.raises(ValueError, match=r"^x: expected numbers whose latents torch.float32 holds, got values from"):
            REAL.nll_bound(params, x, KEY)
    wide = REAL._replace(decoder=decoders.gaussian(loc=1e300, scale=1e300), dtype=torch.float64)
    double = optree.tree_map(torch.Tensor.double, params)
    near, own = wide.nll_bound(double, far, KEY), REAL._replace(dtype=torch.float64).nll_bound(double, Z.double(), KEY)
    torch.testing.assert_close(near.diffusion, own.diffusion, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.gaussian(scale=1e-50),
        decoders.gaussian(loc=1e300),
        decoders.discrete(8, scale=1e-50),
        decoders.discrete(8, loc=(0.0, 1e60)),
    ],
    ids=repr,
)
def test_a_decoders_numbers_are_held_by_the_models_dtype(decoder):
    with pytest.raises(ValueError, match=r"^decoder: expected a loc and scale from which data come back in torch.float32"):
        purevdm.vdm(NETWORK(), LINE, (2,), decoder=decoder)
    with pytest.raises(ValueError, match=r"^decoder: expected a loc and scale from which data come back in torch.float32"):
        bfn.continuous(NETWORK(), (2,), 0.1, decoder=decoder)


REPLACED = [
    (dict(timesteps=-5), "timesteps: expected an integer at least 0"),
    (dict(timesteps=10**9), "timesteps: expected an integer .* at most 100663"),
    (dict(dtype=torch.float16), "dtype: expected one of torch.float32, torch.float64"),
    (dict(event_shape=(0,)), "event_shape: expected"),
    (dict(network=None), "network: expected a purevdm Network"),
    (dict(network=NETWORK(cond_dim=1)), "network: expected one that knows"),
]
OF_VDM = [
    (dict(schedule=schedules.learned_linear(-8.0, 3.0)), "network: it normalises gamma between -4.0 and 4.0, but"),
    (dict(schedule=0), "schedule: expected a purevdm Schedule"),
    (dict(decoder=decoders.gaussian(scale=1e-50)), "decoder: expected a loc and scale"),
    (dict(decoder=decoders.gaussian(loc=(0.0,) * 3)), "decoder: expected a loc and scale that broadcast"),
]
OF_BFN = [
    (dict(draws=0), "draws: expected an integer at least 1"),
    (dict(reconstruction=1), "reconstruction: expected True or False"),
    (dict(flow=Normal(0.1)), "flow: expected a Categorical flow"),
    (dict(flow=FLOW.flow._replace(classes=4)), "flow, output: expected as many classes"),
    (dict(flow=FLOW.flow._replace(beta_1=2e38)), "beta_1: expected a signal-to-noise ratio of at most"),
]


@pytest.mark.parametrize(
    ("model", "changes", "word"),
    [(VDM, *case) for case in REPLACED + OF_VDM] + [(FLOW, *case) for case in REPLACED + OF_BFN],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_replaced_settings_are_held_against_one_another(model, changes, word):
    params, seeds, other = model.init(KEY), model.seeds(KEY, 3), model._replace(**changes)
    for call in (
        lambda: other.init(KEY),
        lambda: other.nll_bound(params, X, seeds, COND),
        lambda: other.loss_fn(params, X, seeds, COND),
        lambda: other.sample(params, KEY, 3, steps=2, cond=COND),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{word}"):
            call()


@pytest.mark.parametrize(
    ("x", "options"), [(torch.tensor([1, 5, 3]), dict(vocab_size=8)), (Z[:, 0], dict(decoder=decoders.gaussian()))]
)
def test_an_event_without_axes_is_one_of_one_number(x, options):
    """In every function of a model; the noise is the same."""
    flat, one = (purevdm.vdm(NETWORK(), LINE, shape, **options) for shape in ((), (1,)))
    params, exact = flat.init(KEY), dict(integrator=ode.heun(4))
    for call in (
        lambda model, x, z: model.nll_bound(params, x, KEY).total,
        lambda model, x, z: likelihood.log_prob(model, params, x, KEY, **exact).log_prob,
        lambda model, x, z: likelihood.log_prob(model, params, x, KEY, probes=1, **exact).log_prob,
        lambda model, x, z: likelihood.log_prob(model, params, x, KEY, probes=2, **exact).log_prob,
        lambda model, x, z: likelihood.importance_bound(model, params, x, KEY, timesteps=3, samples=2).log_prob,
        lambda model, x, z: likelihood.log_prob_latent(model, params, z, probe_noise="exact", **exact).log_prob,
        lambda model, x, z: likelihood.to_noise(model, params, z, **exact).flatten(),
        lambda model, x, z: model.eps_hat(params, z, torch.zeros(3)).flatten(),
        lambda model, x, z: sampling.invert(model, params, x, steps=2).flatten(),
        lambda model, x, z: model.sample(params, KEY, 3, steps=2).flatten(),
    ):
        assert torch.equal(call(flat, x, Z[:, 1]), call(one, x[:, None], Z[:, 1:]))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.1))

    def forward(self, z, gamma):
        return self.layers(torch.cat([z, gamma[:, None]], 1))


def test_parameters_made_in_inference_mode_are_as_any_others():
    model = purevdm.vdm(networks.from_module(Net), LINE, (2,), 8)
    params, integrator = model.init(KEY), ode.heun(2)
    with torch.inference_mode():
        made = model.init(KEY)

    def log_p(params):
        return likelihood.log_prob(model, params, X, KEY, integrator=integrator, probes=1).log_prob

    for call in (
        lambda params: torch.func.grad(model.loss_fn)(params, X, KEY),
        lambda params: training.gradients(model, remat=True)(params, X, KEY)[0],
        lambda params: model.update(params, X, KEY),
        lambda params: model.sample(params, KEY, 2, steps=2),
        lambda params: model.eps_hat(params, Z, Z[:, 0]),
        log_p,
        lambda params: likelihood.importance_bound(model, params, X, KEY, timesteps=2).log_prob,
        lambda params: sampling.invert(model, params, X, steps=2),
    ):
        assert all(map(torch.equal, optree.tree_leaves(call(made)), optree.tree_leaves(call(params))))
    if not _compile.ZEROS:
        with torch.inference_mode():
            assert torch.equal(log_p(made), log_p(params))


def test_inference_mode_is_refused_where_derivatives_would_be_zero(monkeypatch):
    monkeypatch.setattr(_compile, "ZEROS", True)
    model = purevdm.vdm(networks.mlp(8), LINE, (2,), 8)
    params = model.init(KEY)
    with torch.inference_mode():
        model.sample(params, KEY, 2, steps=2)  # which needs none
        for call in (
            lambda: model.nll_bound(params, X, KEY),
            lambda: model.vlb_and_variance_grads(params, X, KEY),
            lambda: likelihood.log_prob(model, params, X, KEY),
            lambda: flow.divergence(torch.sin, Z, "exact"),
        ):
            with pytest.raises(RuntimeError, match=r"^torch.inference_mode: .* use torch.no_grad\(\)$"):
                call()


def test_large_parameters_are_finite():
    """The sum of their squares is not, in float32."""
    model = purevdm.vdm(networks.mlp(8), schedules.learned_linear(), (2,), 16)
    params = model.init(random.key(0))
    params["network"]["dense1"]["bias"][:2] = torch.tensor([1e30, -3e38])
    params["network"]["dense1"]["kernel"].zero_()
    assert model.loss_fn(params, torch.zeros(1, 2, dtype=torch.int64), random.key(1)) > 0
    params["network"]["dense1"]["bias"][0] = torch.inf
    with pytest.raises(ValueError, match=r"params\.network\.dense1\.bias: expected finite numbers, got an infinity"):
        model.loss_fn(params, torch.zeros(1, 2, dtype=torch.int64), random.key(1))


def test_batches_hold_at_least_one_example():
    params, none, seeds = VDM.init(KEY), Z[:0], VDM.seeds(KEY, 3)
    for call, name in (
        (lambda: likelihood.to_noise(VDM, params, none, COND[:0]), "z_0"),
        (lambda: likelihood.to_data(VDM, params, none, COND[:0]), "z_1"),
        (lambda: likelihood.log_prob_latent(VDM, params, none, COND[:0], probe_noise="exact"), "z_0"),
        (lambda: VDM.eps_hat(params, none, none[:, 0], COND[:0]), "z"),
        (lambda: sampling.invert(VDM, params, cond=COND[:0], z=none), "z"),
        (lambda: VDM.draw(seeds.rows(slice(0, 0)), 0), "n"),
        (lambda: diffusion_bound.bound(VDM, params, X[:0], VDM.draw(KEY, 3), COND), "x"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected .*at least"):
            call()


def test_conditions_and_data_of_another_form_are_named():
    model = purevdm.vdm(networks.unet(8, (1,), 1, cond_dim=2, groups=4), LINE, (3, 4, 4), 8)
    params, x = model.init(KEY), random.randint(KEY, (2, 3, 4, 4), 0, 8)
    told = r"got a dict of y: a float32 tensor of shape \(2,\)$"
    with pytest.raises(TypeError, match=rf"^cond: expected a Condition with vector \(cond_dim=2\), {told}"):
        model.nll_bound(params, x, KEY, {"y": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"^x: expected shape \(B, 3, 4, 4\), got .* \(2, 4, 4, 3\); channels come first"):
        model.nll_bound(params, x.movedim(1, -1), KEY, torch.ones(2, 2))


def test_the_default_device_is_not_that_of_a_model():
    """Inside a block that makes tensors without values, those of a model keep theirs."""
    params, noise = VDM.init(KEY), VDM.draw(KEY, 3)
    for call in (
        lambda: VDM.init(KEY),
        lambda: VDM.loss_fn(params, X, KEY, COND),
        lambda: diffusion_bound.bound(VDM, params, X, noise, COND),
        lambda: VDM.sample(params, KEY, 3, steps=2, cond=COND),
        lambda: likelihood.log_prob(VDM, params, X, KEY, COND, integrator=ode.heun(2)).log_prob,
        lambda: likelihood.log_prob(VDM, params, X, KEY, COND, integrator=ode.dopri5()).log_prob,
        lambda: purevdm.vdm(NETWORK(), schedules.monotone_mlp(hidden=4), (2,), 8).init(KEY),
        lambda: bfn.discrete(NETWORK(), (2,), 3, 1.0).init(KEY),
    ):
        outside = call()
        with torch.device("meta"):
            inside = call()
        assert all(map(torch.equal, optree.tree_leaves(inside), optree.tree_leaves(outside)))
