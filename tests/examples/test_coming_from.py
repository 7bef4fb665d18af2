"""The page for those who come from other programs: every row of its tables runs, and does what it says."""

import ast
import inspect
import re
import shlex
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import torch
import train
from goldens import CASES, case, tree
from optree import tree_map
from presets import PRESETS
from processes import ROOT

import purevdm
from purevdm import interop, process, schedules, solvers

KEY = purevdm.random.key(0)
PAGE = (ROOT / "examples" / "docs" / "coming_from.md").read_text()
# The fields of the official configuration of CIFAR-10, and those that its code reads besides.
MODEL = """vocab_size sample_softmax antithetic_time_sampling with_fourier_features with_attention gamma_type gamma_min
    gamma_max sm_n_timesteps sm_n_embd sm_n_layer sm_pdrop sm_kernel_init"""
OTHER = """exp_name model_type ckpt_restore_dir data.dataset data.ignore_cache training.seed training.substeps
    training.num_steps_lr_warmup training.num_steps_train training.num_steps_eval training.batch_size_train
    training.batch_size_eval training.steps_per_logging training.steps_per_eval training.steps_per_save training.profile
    optimizer.name optimizer.args.b1 optimizer.args.b2 optimizer.args.eps optimizer.args.weight_decay optimizer.learning_rate
    optimizer.lr_decay optimizer.ema_rate optimizer.gradient_clip_norm"""


def code(text):
    return re.findall(r"`([^`]+)`", text)


def tables():
    """The rows of each table by its first heading: (theirs, ours), each the code in a cell."""
    found = {}
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.M):
        head, _, *rows = ([cell.strip() for cell in line.strip("|\n").split(" | ")] for line in table.splitlines())
        for row in rows:
            assert len(row) in (2, 3), row
        found[head[0].replace("`", "")] = [(code(row[0]), code(row[1]) or [row[1]]) for row in rows]
    return found


TABLES = tables()
OPTIONS = {"other fields": ["cifar10"], "the trainer": ["digits", "--data.source", "folder", "--model.network", "unet"]}
ROWS = [(name, theirs, ours) for name, rows in TABLES.items() for theirs, ours in rows]
CODE = [(theirs[0], ours) for name, theirs, ours in ROWS if name not in OPTIONS and ours != ["nothing"]]


@pytest.fixture(scope="module")
def scope():
    """The names of the page: what its blocks of code define, but for the one that reads a file."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        if "load_flax" not in block:
            exec(block, names)
    return names


def samples(low=0, high=255, shape=(2, 3, 4, 4)):
    return lambda x: x.shape == shape and low <= int(x.min()) and int(x.max()) <= high


def network(**settings):
    return lambda made: all(getattr(made, name) == value for name, value in settings.items())


def curve(schedule, t):
    params = tree_map(lambda leaf: leaf.double(), schedule.init(KEY))
    return schedules.gamma(schedule, params, torch.as_tensor(t, dtype=torch.float64))


def ends(low, high, params):
    """A schedule with exact endpoints, and these parameters."""

    def holds(made):
        off = curve(made, [0.0, 1.0]) - torch.tensor([low, high])
        return bool(off.abs().max() < 1e-5) and set(made.init(KEY)) == params

    return holds


def runs_from(gamma):
    """A schedule that equals a formula in float64."""
    return lambda made: torch.allclose(curve(made, TIMES), gamma(TIMES), rtol=1e-9, atol=1e-9)


def ratio(gamma_t, gamma_s):
    """alpha_s / alpha_t: what a step makes of latents without noise, where the prediction is zero."""
    alpha_t, alpha_s = process.alpha(torch.tensor([gamma_t, gamma_s]))
    return float(alpha_s / alpha_t)


MONOTONE = {"l1", "l2", "l3"}
TIMES = torch.linspace(0, 0.999, 50, dtype=torch.float64)
BETAS = {
    "linear": torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64),
    "scaled_linear": torch.linspace(1e-4**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2,
}
THEIRS = "ContinuousTimeGaussianDiffusion(unet, image_size=32, "
GAUSSIAN = "GaussianDiffusion(unet, image_size=32, "
# What must hold of what the middle column makes, by the left column's first piece of code.
CHECKS = {
    "vocab_size=256": lambda m: (m.decoder.vocab_size, m.event_shape) == (256, (3, 32, 32)),
    "sample_softmax=False": samples(),
    "antithetic_time_sampling=True": lambda m: m.antithetic is True,
    "with_fourier_features=True": network(fourier=(6, 7)),
    "with_attention=False": network(attention=()),
    "gamma_type='fixed'": ends(-13.3, 5.0, set()),
    "gamma_type='learnable_scalar'": ends(-13.3, 5.0, {"w", "b"}),
    "gamma_type='learnable_nnet'": lambda s: s.endpoints == (-13.3, 5.0) and set(s.init(KEY)) == MONOTONE,
    "gamma_min=-13.3": lambda s: s.endpoints == (-13.3, 5.0),
    "gamma_max=5.0": lambda s: s.endpoints[1] == 5.0,
    "sm_n_timesteps=0": lambda m: m.timesteps == 0,
    "sm_n_embd=128": network(embed=128),
    "sm_n_layer=32": network(blocks=32, multipliers=(1,)),
    "sm_pdrop=0.1": network(dropout=0.1),
    "images": lambda x: x.shape == (2, 3, 4, 4),
    "kernel": lambda kernel: kernel.shape == (7, 5, 3, 3),
    "conditioning": lambda n: n.condition.cond_dim == 1,
    "outputs.loss_recon": lambda terms: terms._fields[:3] == ("recon", "prior", "diffusion") and terms.prior.shape == (2,),
    "bpd": lambda loss: loss.shape == () and bool(loss.isfinite()),
    "deterministic=True": lambda loss: loss.shape == () and bool(loss.isfinite()),
    "outputs.var_0": lambda var: torch.allclose(var, torch.sigmoid(torch.tensor([-9.21, 10.0]))),
    "rngs={'sample': ..., 'dropout': ...}": lambda key: key.tolist() == [0, 1],
    "score_model(z, g_t, conditioning)": lambda eps: eps.shape == (2, 3, 4, 4),
    "sample_fn": samples(),
    "state.ema_params": lambda params: set(params) == {"network", "schedule"},
    "DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02)": lambda p: p.timesteps == 999,
    'DDPMScheduler(beta_schedule="linear")': lambda b: torch.allclose(b, BETAS["linear"], rtol=1e-12, atol=0),
    'DDPMScheduler(beta_schedule="scaled_linear")': lambda b: torch.allclose(b, BETAS["scaled_linear"], rtol=1e-12, atol=0),
    'DDPMScheduler(beta_schedule="squaredcos_cap_v2")': lambda b: float(b[-1]) == 0.999,
    'DDPMScheduler(beta_schedule="sigmoid")': lambda b: abs(float(b[0] + b[-1]) - 0.0201) < 1e-12,
    "DDIMScheduler(rescale_betas_zero_snr=True)": lambda b: float(b[-1]) == 1.0,
    'DDPMScheduler(prediction_type="epsilon")': lambda p: p.predicts == "eps",
    'DDPMScheduler(prediction_type="sample")': lambda p: p.predicts == "x",
    'DDPMScheduler(prediction_type="v_prediction")': lambda p: p.predicts == "v",
    'DDPMScheduler(variance_type="fixed_small")': lambda p: type(p.reverse).__name__ == "Posterior",
    "EDMEulerScheduler(sigma_data=0.5)": lambda p: p.timesteps == 0,
    "FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)": lambda p: p.timesteps == 0,
    "DDPMScheduler()": lambda s: s == solvers.ancestral(),
    "EulerAncestralDiscreteScheduler()": lambda s: s == solvers.ancestral(),
    "DDIMScheduler()": lambda s: s == solvers.ddim(),
    "EulerDiscreteScheduler()": lambda s: s == solvers.ddim(),
    'DPMSolverMultistepScheduler(solver_order=2, algorithm_type="dpmsolver++")': lambda s: s == solvers.dpmpp_2m(),
    "EulerDiscreteScheduler(use_karras_sigmas=True)": samples(),
    'DPMSolverMultistepScheduler(timestep_spacing="linspace")': samples(),
    "DDPMScheduler(clip_sample=True)": samples(),
    "DDIMInverseScheduler()": lambda z: z.shape == (2, 3, 4, 4) and z.is_floating_point(),
    "RePaintScheduler()": lambda s: isinstance(s, solvers.Solver),
    "pipeline(num_inference_steps=50)": samples(),
    "pipeline(guidance_scale=4.0)": samples(),
    "pipeline(class_labels=[3, 7])": samples(),
    "pipeline(generator=generator)": samples(),
    'pipeline(output_type="np")': lambda x: x.shape == (2, 4, 4, 3) and float(x.min()) >= 0 and float(x.max()) <= 1,
    "scheduler.add_noise(original_samples, noise, timesteps)": lambda z: z[0, 0, 0, 0] == process.alpha(torch.tensor(1.0)),
    "scheduler.get_velocity(sample, noise, timesteps)": lambda v: v[0, 0, 0, 0] == -process.sigma(torch.tensor(1.0)),
    "scheduler.step(model_output, timestep, sample)": lambda z: torch.allclose(z, torch.full_like(z, ratio(1.0, 0.5))),
    GAUSSIAN.replace("Gaussian", "ContinuousTimeGaussian", 1).removesuffix(", ") + ")": (
        lambda m: m.decoder.encode({}, torch.tensor([0, 255])).tolist() == [-1.0, 1.0]
    ),
    THEIRS + 'noise_schedule="linear")': runs_from(lambda t: torch.log(torch.expm1(1e-4 + 10 * t**2))),
    THEIRS + 'noise_schedule="cosine")': runs_from(
        lambda t: torch.log(torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** -2 - 1)
    ),
    THEIRS + 'noise_schedule="learned")': ends(-9.21, 10.0, MONOTONE),
    THEIRS + "learned_schedule_net_hidden_dim=1024)": lambda s: s.hidden == 1024,
    THEIRS + "learned_noise_schedule_frac_gradient=0.5)": lambda settings: settings.schedule_lr == 0.5,
    THEIRS + "num_sample_steps=500)": samples(),
    THEIRS + "clip_sample_denoised=True)": samples(),
    THEIRS + "min_snr_loss_weight=True, min_snr_gamma=5)": lambda w: torch.allclose(
        w.weight(TIMES * 8 - 4), (4 - TIMES * 8).exp().clamp(max=5) / (4 - TIMES * 8).exp()
    ),
    "diffusion.forward(img)": lambda loss: loss.shape == (),
    "diffusion.sample(batch_size=16)": samples(shape=(16, 3, 4, 4)),
    GAUSSIAN + "timesteps=1000)": lambda m: m.timesteps == 999,
    GAUSSIAN + 'objective="pred_v")': network(predicts="v"),
    GAUSSIAN + 'beta_schedule="linear")': lambda p: p.timesteps == 999,
    GAUSSIAN + "sampling_timesteps=250, ddim_sampling_eta=0.0)": samples(),
    "Unet(dim=64, dim_mults=(1, 2, 4, 8))": network(embed=64, multipliers=(1, 2, 4, 8), blocks=2),
    "Unet(dim=64, channels=1)": lambda m: m.event_shape == (1, 32, 32),
    "Unet(dim=64, self_condition=True)": network(self_condition=True),
    "Unet(dim=64, learned_variance=True)": lambda reverse: reverse.takes_range,
    "Unet(dim=64, random_fourier_features=True)": network(time_scale=20.0),
    "Unet(dim=64, dropout=0.1)": network(dropout=0.1),
    "Unet(dim=64, attn_heads=4)": network(heads=4),
    "Unet(dim=64, full_attn=(False, False, False, True))": network(attention=(3,)),
}


def test_every_row_is_run():
    assert len(TABLES) == 8
    assert sorted(theirs for theirs, _ in CODE) == sorted(CHECKS)
    assert [theirs[0].split("=")[0] for _, theirs, ours in ROWS if ours == ["nothing"]] == [
        "sm_kernel_init", "data.ignore_cache", "training.substeps", "training.profile", "optimizer.name",
        'Trainer(diffusion, "images", calculate_fid',
    ]  # fmt: skip
    for table, fields in (("config.model", MODEL), ("other fields", OTHER)):
        assert list(dict.fromkeys(theirs[0].split("=")[0] for theirs, _ in TABLES[table])) == fields.split()


@pytest.mark.parametrize(("theirs", "ours"), CODE, ids=[theirs for theirs, _ in CODE])
def test_a_row_runs_and_does_what_it_says(theirs, ours, scope):
    (expression,) = ours
    if "_steps=" in theirs:  # as many
        assert re.search(r"_steps=(\d+)", theirs)[1] == re.search(r"\bsteps=(\d+)", expression)[1]
    few = re.sub(r"\bsteps=\d+", "steps=3", expression)  # none needs more here
    assert CHECKS[theirs](eval(few, dict(scope)))


@pytest.mark.parametrize("table", OPTIONS)
def test_options_are_train_s_and_have_the_values_of_the_other_side(table):
    start = OPTIONS[table]
    for theirs, ours in TABLES[table]:
        if ours == ["nothing"]:
            continue
        (options,) = ours
        config = train.parse([*start, *shlex.split(options)])
        train.check(replace(config, device="cpu"))
        if table == "other fields":  # the values of the row are the official ones, and so are the preset's
            out = config.out if "--out" in options else PRESETS["cifar10"][1].out
            assert config == replace(PRESETS["cifar10"][1], out=out), options
        given, own = (
            {float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-\d+)?", text)}
            for text in (theirs[0], re.sub(r"--\S+", "", options))
        )
        if "ema_update_every" in theirs[0]:
            assert list(own) == [pytest.approx(0.995**0.1, rel=1e-5)]
        elif not theirs[0].startswith(("training.num_steps_eval", 'Trainer(diffusion, "images", save_best')):
            assert own <= given, options


# The official code


@pytest.mark.parametrize("name", CASES)
def test_the_official_configurations_by_the_page_s_function(name, scope):
    kinds = dict(scalar="learnable_scalar", fixed="fixed", nnet="learnable_nnet")
    config = dict(
        **dict(vocab_size=256, sample_softmax=False, antithetic_time_sampling="naive_time" not in name),
        **dict(with_fourier_features=name != "fixed_t0", with_attention="attn" in name),
        **dict(gamma_type=kinds[name.split("_")[0]], gamma_min=-13.3, gamma_max=5.0),
        **dict(sm_n_timesteps=10 if "t10" in name else 0, sm_n_embd=32, sm_n_layer=2, sm_pdrop=0.0),
    )
    # tests/test_bound.py holds that model's losses against the official ones.
    assert scope["vdm_of"](config, (3, 8, 8)) == case(name).model


def test_a_checkpoint_in_three_lines(tmp_path, monkeypatch, scope):
    def pack(branch):
        if isinstance(branch, dict):
            return {name: pack(entry) for name, entry in branch.items()}
        fields = (branch.shape, branch.dtype.name, branch.tobytes())
        return msgpack.ExtType(1, msgpack.packb(fields, use_bin_type=True))

    official = tree(case("fixed_t0").arrays, "params")
    state = dict(step=7, params=pack({"gamma": {}} | official), ema_params=pack(official))
    (tmp_path / "checkpoint.flax").write_bytes(msgpack.packb(state))
    monkeypatch.chdir(tmp_path)
    (lines,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "load_flax" in block)
    assert len(lines.splitlines()) == 3
    names = dict(scope)
    exec(lines, names)
    params = interop.load_params("params.safetensors", case("fixed_t0").params)
    for tensors in (names["params"], params):
        kernel = tensors["network"]["conv_in"]["kernel"]
        np.testing.assert_array_equal(kernel.permute(2, 3, 1, 0), official["score_model"]["conv_in"]["kernel"])


# The other packages themselves, where they are installed


def check_names(package, tables, instances):
    """Whether the calls of the left column are of functions that a package has, with arguments that they take."""
    seen = 0
    for table in tables:
        for text in (text for theirs, _ in TABLES[table] for text in theirs):
            call = ast.parse(text, mode="eval").body
            if not isinstance(call, ast.Call):
                continue
            root, *rest = ast.unparse(call.func).split(".")
            target = instances.get(root) or getattr(package, root)
            for name in rest:
                target = getattr(target, name)
            known = inspect.signature(target).parameters
            assert {keyword.arg for keyword in call.keywords} <= set(known), text
            seen += 1
    assert seen > 20


def test_names_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    instances = dict(pipeline=diffusers.DiTPipeline.__call__, scheduler=diffusers.DDPMScheduler)
    check_names(diffusers, ["process", "sampling"], instances)


def test_steps_of_diffusers():
    """A step of each scheduler that the page pairs with a solver, from its own levels, in float32."""
    diffusers = pytest.importorskip("diffusers")
    generator = torch.Generator().manual_seed(0)
    x, outs = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(3, 2, 3, 4, 4, generator=generator)
    for name in ("DDPM", "EulerAncestralDiscrete", "EulerDiscrete", "DPMSolverMultistep"):
        scheduler = getattr(diffusers, f"{name}Scheduler")(**(dict(clip_sample=False) if name == "DDPM" else {}))
        scheduler.set_timesteps(10)
        if name == "DDPM":
            bar = scheduler.alphas_cumprod[scheduler.timesteps]
            gammas = torch.log((1 - bar) / bar)
        else:
            gammas = 2 * scheduler.sigmas[:-1].log()
        z, last = x, (torch.zeros_like(x), torch.tensor(torch.inf))
        for i in range(3):
            gamma_t, gamma_s = gammas[i], gammas[i + 1]
            wide = 1.0 if name in ("DDPM", "DPMSolverMultistep") else 1 / process.alpha(gamma_t)  # z, or z / alpha
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
            options = dict(generator=torch.Generator().manual_seed(i)) if name in ("DDPM", "EulerAncestralDiscrete") else {}
            theirs = scheduler.step(outs[i], scheduler.timesteps[i], z * wide, **options).prev_sample
            x_hat = process.x_from_eps(z, outs[i], gamma_t)
            if options:
                ours = solvers.ancestral_step(z, outs[i], gamma_t, gamma_s, noise)
            elif name == "EulerDiscrete":
                ours = solvers.ddim_step(x_hat, outs[i], gamma_s)
            else:
                ours = solvers.dpmpp_2m_step(z, x_hat, gamma_t, gamma_s, *last)
            wide = 1.0 if name in ("DDPM", "DPMSolverMultistep") else 1 / process.alpha(gamma_s)
            torch.testing.assert_close(ours * wide, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
            z, last = ours, (x_hat, gamma_t)


def test_names_of_denoising_diffusion_pytorch():
    package = pytest.importorskip("denoising_diffusion_pytorch")
    instances = dict(diffusion=package.ContinuousTimeGaussianDiffusion)
    check_names(package, ["the diffusion", "the U-Net", "the trainer"], instances)


@pytest.mark.parametrize("kind", ["linear", "cosine", "learned"])
def test_a_trained_model_of_denoising_diffusion_pytorch(kind, scope):
    """The page's schedules and its network give their loss, times and noise given."""
    package = pytest.importorskip("denoising_diffusion_pytorch")
    torch.manual_seed(0)
    unet = package.Unet(8, dim_mults=(1, 2), channels=1, random_fourier_features=True)
    theirs = package.ContinuousTimeGaussianDiffusion(unet, image_size=8, channels=1, noise_schedule=kind)
    row = "" if kind == "learned" else dict(CODE)[f'{THEIRS}noise_schedule="{kind}")'][0]
    own = schedules.Schedule.of(lambda key: {}, lambda params, t: -theirs.log_snr(t))
    schedule = eval(row, dict(scope)) if row else own
    model = scope["vdm_of_theirs"](theirs, schedule)
    params = model.init(KEY)
    x = torch.randint(0, 256, (5, 1, 8, 8))
    t, eps = torch.linspace(0.1, 0.9, 5), torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        want = theirs.p_losses(x / 127.5 - 1, t, noise=eps, loss_reduction="none")
        gamma = model.gamma(params, t)
        torch.testing.assert_close(gamma, -theirs.log_snr(t), rtol=1e-5, atol=2e-4)
        z = process.diffuse(model.decoder.encode({}, x), process.align(gamma, x), eps)
        got = (model.eps_hat(params, z, gamma) - eps).square().flatten(1).mean(1)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=0)
    if kind == "learned":
        assert (theirs.log_snr(torch.tensor([0.0, 1.0])) - torch.tensor([9.21, -10.0])).abs().max() < 1e-3
