"""One model by every ruler: the table and its file, what other repositories print against closed forms, and bad input."""

import json
import math
import warnings
from functools import partial

import conventions
import methods
import numpy as np
import presets
import pytest
import readers
import referee
import rulers
import runs
import torch
from processes import here, printed, refused, small_flow

import purevdm
from purevdm import bfn, decoders, evaluation, interop, networks, ode, process, random, schedules
from purevdm.training.data import Dataset

BARE = presets.Model(network="mlp", embed=8, layers=1, fourier=(), flag=False)
MEAN, STD = -0.4, 0.75  # of the digits in [-1, 1]


class Gaussian(torch.nn.Module):
    """What predicts the noise best in independent N(MEAN, STD**2) at the time of a DDPM."""

    def __init__(self, betas):
        super().__init__()
        self.register_buffer("bar", torch.cumprod(1.0 - betas, 0))

    def forward(self, x, t):
        bar = self.bar[t.round().long()].reshape(-1, 1, 1, 1).to(x.dtype)
        return (1.0 - bar).sqrt() * (x - bar.sqrt() * MEAN) / (bar * STD**2 + 1.0 - bar)


def of_ddpm(*, shape=(1, 8, 8), values=17, n=12, clip=False, dtype=torch.float64, decoder=None):
    betas = interop.betas("linear", n, 0.001, 0.5)
    decoder = decoders.discretised_gaussian(values) if decoder is None else decoder
    return interop.adapt(Gaussian(betas), interop.ddpm(betas), shape, decoder=decoder, clip=clip, dtype=dtype)


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A folder as diffusers saves one, whose model is that of a closed form."""
    small_flow(monkeypatch, methods)
    small_flow(monkeypatch, rulers)
    (tmp_path / "model_index.json").write_text("{}")
    made = lambda path, decoder, clip=False: of_ddpm(decoder=decoder, clip=clip)  # noqa: E731
    monkeypatch.setattr(interop, "from_diffusers", made)
    return tmp_path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes the program find a run of some data and decoder."""
    small_flow(monkeypatch, methods)
    small_flow(monkeypatch, rulers)

    def made(data, decoder, model=None):
        network, schedule = networks.mlp(8, 1, fourier=()), schedules.fixed_linear(-8.0, 4.0)
        model = purevdm.vdm(network, schedule, data.event_shape, decoder=decoder) if model is None else model
        found = runs.Run(presets.Config(model=BARE), data, data, model, model.init(random.key(0)))
        monkeypatch.setattr(referee, "load", lambda *_, **__: found)
        return found

    return made


def by_name(path):
    return {row["name"]: row for row in json.loads(path.read_text())["rows"]}


FEW = ("--images", 4, "--batch", 3, "--times", 2, "--samples", 2)


def test_every_ruler_of_a_pipeline_stands_in_one_table(pipeline):
    output = printed("referee.py", pipeline, "digits", *FEW, "--steps", 4)
    rows, lines = by_name(pipeline / "referee.json"), output.splitlines()
    assert lines[0] == f"{pipeline}: 4 examples of digits test, 64 dimensions each"
    names = ["bound, 12 steps", "bound, clamped", "bound, 4 steps", "bound, continuous time"]
    names += [f"flow, {kind}" for kind in ("variational", "truncated", "uniform", "variational, 2 weights")]
    names += ["bound, 12 steps, 2 weights", "file, 12 steps", "score_sde's", "density", "z_0 only", "improved-diffusion's"]
    assert [*rows] == names
    for line, (name, row) in zip(lines[2:], rows.items(), strict=False):
        assert line.startswith(f"{name}  ")
        if "failed" not in row:
            assert float(line[len(name) :].split()[0]) == pytest.approx(row["mean"], abs=1e-4)
            assert row["error"] > 0
            assert row["unit"] == "bits/dim"
            assert row["seconds"] > 0
    for name in ("bound, 12 steps", "bound, clamped", "bound, 4 steps", "z_0 only", "improved-diffusion's"):
        assert sum(term["mean"] for term in rows[name]["terms"].values()) == pytest.approx(rows[name]["mean"])
    # the network's applications: two in a bound, one where the decoder takes no estimate, those of whole trajectories
    counts = {name: row.get("evaluations") for name, row in rows.items()}
    assert counts["bound, 12 steps"] == 4
    assert counts["z_0 only"] == 2
    assert counts["bound, 12 steps, 2 weights"] == 24
    assert all(f"{name}: " in output for name in ("score_sde's", "density", "z_0 only", "flow, truncated"))
    # what the library says of the same
    model, params = of_ddpm()
    data = referee.read("digits")[1]
    x = torch.from_numpy(data.take(np.arange(4)))
    call = partial(rulers.spread, model, model.nll_bound, 2)
    want = evaluation.evaluate(model, params, x.split(3), presets.stream("referee", 0, "cpu"), method=call)
    assert rows["bound, 12 steps"]["mean"] == pytest.approx(want.nll.mean, rel=1e-9)
    assert rows["bound, 12 steps"]["error"] == pytest.approx(want.nll.error, rel=1e-9)


@pytest.mark.parametrize("steps", [0, 11])
def test_the_times_of_each_example_are_spread(steps):
    """Every step once; in continuous time as far apart as they can be."""
    model, params = of_ddpm()
    model, times = model._replace(timesteps=steps), []

    def bound(params, x, seeds, cond):
        times.append(seeds.t)
        return purevdm.NLLBound(*(k * seeds.t for k in (1.0, 2.0, 3.0)))

    found = rulers.spread(model, bound, 11, params, torch.zeros(5), KEY)
    times = torch.stack(times)
    torch.testing.assert_close(times.diff(dim=0), torch.full((10, 5), 1 / 11, dtype=torch.float64))
    if steps:
        torch.testing.assert_close(times[-1], torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(found.total, 6.0 * times.mean(0))


def test_a_run_is_measured_on_its_own_data(run, tmp_path):
    run(readers.digits(), decoders.discrete(17))
    printed(
        "referee.py",
        tmp_path,
        *FEW[:4],
        "--times",
        40,
        "--samples",
        1,
        "--chain",
        40,
        "--out",
        tmp_path / "new" / "table.json",
    )
    rows = by_name(tmp_path / "new" / "table.json")
    assert [*rows][:2] == ["bound, continuous time", "bound, 40 steps"]
    assert not {"bound, clamped", "z_0 only", "improved-diffusion's"} & {*rows}
    file, bound = rows["file, 40 steps"], rows["bound, 40 steps"]
    net = float(file["note"].split()[0])
    assert net < file["mean"]
    assert net == pytest.approx(bound["mean"], abs=5 * math.hypot(file["error"], bound["error"]))
    assert file["gap"]["mean"] == pytest.approx(file["mean"] - rows["bound, continuous time"]["mean"])


def test_real_numbers_have_densities_and_no_file(run, tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    run(Dataset("rows", 7, (3,), None, lambda i: values[i], None, 0), decoders.gaussian())
    output = printed("referee.py", tmp_path, *FEW, "--chain", 5)
    assert "-log p, nats" in output
    names = ["bound, continuous time", "bound, 5 steps", "flow, none", "flow, variational"]
    assert [*by_name(tmp_path / "referee.json")] == [*names, "flow, variational, 2 weights", "bound, 5 steps, 2 weights"]


# What other repositories print

X = random.randint(random.key(5), (16, 1, 4, 4), 96, 180)
KEY = random.key(6)


def ideal():
    """The same Gaussian as a model in continuous time, with an end at which its latents are N(0, 1)."""

    def apply(params, z, gamma, cond=None, key=None):
        alpha, sigma = process.alpha(gamma), process.sigma(gamma)
        return sigma * (z - alpha * MEAN) / (alpha.square() * STD**2 + sigma.square())

    network = networks.Network.of(lambda key, shape: {}, apply)
    decoder = decoders.discretised_gaussian()
    schedule = schedules.fixed_linear(-9.0, 30.0)
    model = purevdm.vdm(network, schedule, (1, 4, 4), decoder=decoder, dtype=torch.float64)
    return model, model.init(random.key(0))


@pytest.mark.parametrize("noise", [False, True])
def test_densities_are_those_of_the_latents(noise):
    """log N(z; alpha_0 m, alpha_0**2 s**2 + sigma_0**2) of the data as they are, and log2(128) for a bin of width 1/128."""
    model, params = ideal()
    found = conventions.density(model, params, X, KEY, noise=noise, integrator=ode.dopri5(1e-8, 1e-8))
    z = 2.0 * X.double() / 255.0 - 1.0
    if noise:
        z = 2.0 * (X + random.uniform(random.split(KEY)[0], tuple(X.shape), torch.float64)) / 256.0 - 1.0
    gamma_0 = torch.tensor(-9.0, dtype=torch.float64)
    alpha, sigma = process.alpha(gamma_0), process.sigma(gamma_0)
    source = torch.distributions.Normal(alpha * MEAN, (alpha.square() * STD**2 + sigma.square()).sqrt())
    want = source.log_prob(z).sum((1, 2, 3)) - noise * 16 * math.log(128.0)
    torch.testing.assert_close(found.log_prob, want, rtol=0, atol=1e-4)


def test_the_last_step_by_tanh_is_the_normal_one_within_its_error(monkeypatch):
    (model, params), bins = of_ddpm(shape=(1, 4, 4), values=256), torch.linspace(-6.0, 6.0, 4001, dtype=torch.float64)
    off = (conventions.normal_by_tanh(bins) - torch.special.ndtr(bins)).abs().max()
    assert 1e-4 < off < 1.8e-4
    ours, theirs = model.nll_bound(params, X, KEY), conventions.improved_diffusion(model, params, X, model.seeds(KEY, 16))
    assert torch.equal(ours.diffusion, theirs.diffusion)
    assert torch.equal(ours.prior, theirs.prior)
    # a mass of a bin, some 0.1, is off by less than twice that error
    gap = (ours.recon - theirs.recon).abs() / 16
    assert 1e-5 < gap.max() < 0.02
    # its floor, where the estimate is far off
    monkeypatch.setattr(Gaussian, "forward", lambda self, x, t: 1000.0 + 0.0 * x)
    floor = torch.full((16,), 16 * math.log(1e12), dtype=torch.float64)
    assert (model.nll_bound(params, X, KEY).recon > 1.1 * floor).all()
    torch.testing.assert_close(conventions.improved_diffusion(model, params, X, model.seeds(KEY, 16)).recon, floor)


def test_a_decoder_of_the_latent_costs_what_its_noise_hides():
    model, params = of_ddpm(shape=(1, 4, 4), values=256)
    ours, blind = (m.nll_bound(params, X, KEY) for m in (model, conventions.sees_z_0(model)))
    assert torch.equal(ours.diffusion, blind.diffusion)
    gamma_0 = model.gamma(params, torch.zeros((), dtype=torch.float64)).item()
    want = decoders.reconstruction_bits(256, gamma_0, 255 / 256)
    bits = blind.recon / 16 / math.log(2)
    assert bits.mean().item() == pytest.approx(want, abs=5 * bits.std().item() / 4)


def test_conventions_are_for_data_from_minus_one_to_one():
    model, params = of_ddpm(shape=(1, 4, 4), decoder=decoders.discretised_gaussian(loc=-255 / 256, scale=2 * 255 / 256))
    with pytest.raises(ValueError, match=r"model\.decoder: expected values from -1 to 1"):
        conventions.density(model, params, X, KEY, noise=True, integrator=ode.rk4(4))


# Bad input


def test_bad_input_is_named(pipeline, run, tmp_path):
    call = ("referee.py", pipeline)
    assert refused("referee.py", tmp_path / "none").startswith("model: expected a pipeline's folder or a run, got")
    assert refused(*call).startswith('data: expected "digits" or SOURCE:PATH')
    assert refused(*call, "numbers").startswith("data.source: expected one of")
    assert "expected where the data of data.source idx are" in refused(*call, "idx")
    assert "nowhere" in refused(*call, "array:nowhere.npy")
    np.save(tmp_path / "x.npy", np.zeros((400, 1, 5, 5), np.uint8))
    expected = "data: expected the network's 256 values in shape (1, 8, 8), got 256 values in shape (1, 5, 5) in"
    assert expected in refused(*call, f"array:{tmp_path / 'x.npy'}")
    np.save(tmp_path / "real.npy", np.zeros((400, 1, 8, 8), np.float32))
    assert "data: expected integers" in refused(*call, f"array:{tmp_path / 'real.npy'}")
    assert "at least 1, got 0" in refused(*call, "digits", "--images", 0)
    flows = bfn.discretised(networks.mlp(8, 1, fourier=(), outputs=2), sigma_1=0.1, bins=17, event_shape=(1, 8, 8))
    (tmp_path / "run").mkdir()
    run(readers.digits(), None, flows)
    assert refused("referee.py", tmp_path / "run").startswith("model: expected a diffusion model, got a Bayesian flow")


def test_data_of_another_range_are_warned_of(pipeline, monkeypatch):
    wrong = decoders.discretised_gaussian(17, loc=-16 / 17, scale=2 * 16 / 17)
    monkeypatch.setattr(interop, "from_diffusers", lambda path, decoder, clip=False: of_ddpm(decoder=wrong, clip=clip))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = here("referee.py", pipeline, "digits", "--images", 2, "--times", 1, "--samples", 1)
    assert done.returncode == 0
    rows = by_name(pipeline / "referee.json")
    assert rows["score_sde's"]["failed"].startswith("batches[0]: model.decoder: expected values from -1 to 1")


def test_a_saved_pipeline_is_read(tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    small_flow(monkeypatch, methods)
    small_flow(monkeypatch, rulers)
    torch.manual_seed(0)
    options = dict(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, sample_size=8, in_channels=1)
    kinds = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    network = diffusers.UNet2DModel(out_channels=1, **options, **kinds)
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(20)).save_pretrained(tmp_path)
    printed("referee.py", tmp_path, "digits", *FEW)
    rows = by_name(tmp_path / "referee.json")
    assert [name for name, row in rows.items() if "failed" in row] == []
    assert rows["bound, 20 steps"]["evaluations"] == 4
