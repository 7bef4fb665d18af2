"""On a GPU, what the CPU computes; compiled loops that never wait for the host; memory; the programs.

    python -m pytest -m cuda

Without a GPU these tests are skipped. PUREVDM_TEST_DEVICE=cpu runs them on the CPU, against itself, but for those that are
about a GPU's memory and waiting. That shows that the tests are sound, and nothing of a GPU.
"""

import contextlib
import math
import os
from functools import partial

import optree
import perturb
import pytest
import torch
from compare import close, decoded_alike, moved_alike
from goldens import CASES, case, flow_case, nchw
from processes import call

import purevdm
from purevdm import bfn, bound, likelihood, networks, ode, random, schedules, solvers, training
from purevdm.evaluation import evaluate
from purevdm.likelihood import flow
from purevdm.training import checkpoint

DEVICE = os.environ.get("PUREVDM_TEST_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="this PyTorch sees no GPU"),
]
gpu_alone = pytest.mark.skipif(not ON_GPU, reason="about a GPU only")


@pytest.fixture(autouse=True)
def exact_products():
    """float32 that is float32: no products in TF32."""
    kinds = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    yield
    for kind, allowed in zip(kinds, before, strict=True):
        kind.allow_tf32 = allowed


def there(tree):
    """A tree's tensors on the device."""
    return optree.tree_map(lambda leaf: leaf.to(DEVICE) if isinstance(leaf, torch.Tensor) else leaf, tree)


def back(tree):
    return optree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, tree)


@contextlib.contextmanager
def no_waiting():
    """Any wait of the host for the GPU is an error inside."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def images(dtype=torch.float32, **options):
    """A small U-Net with dropout, Fourier features, attention and a condition."""
    network = networks.vdm_unet(8, 1, groups=4, dropout=0.1, fourier=(0,), attention=True, cond_dim=1, **options)
    model = purevdm.vdm(network, schedules.learned_linear(-8.0, 4.0), (1, 8, 8), 16, dtype=dtype)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.05)
    x, cond = random.randint(random.key(1), (4, 1, 8, 8), 0, 16), random.normal(random.key(2), (4, 1), dtype)
    return model, params, x, cond


# Draws


DRAWS = {
    "bits": random.bits,
    "permutation": lambda key, shape: random.permutation(key, math.prod(shape)),
    "randint": lambda key, shape: random.randint(key, shape, -5, 1000),
    "rademacher": random.rademacher,
    "uniform": random.uniform,
    "uniform, float64": lambda key, shape: random.uniform(key, shape, torch.float64),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("shape", [(7,), (3, 1000)])
def test_draws_are_the_same_bit_for_bit(name, shape):
    key = random.key(3)
    assert torch.equal(DRAWS[name](there(key), shape).cpu(), DRAWS[name](key, shape))


@pytest.mark.parametrize(("dtype", "units"), [(torch.float32, 8), (torch.float64, 64)])
def test_normals_are_the_same_to_rounding(dtype, units):
    """They pass through a logarithm, which devices round in ways of their own."""
    key = random.key(4)
    got, want = random.normal(there(key), (10_000,), dtype).cpu(), random.normal(key, (10_000,), dtype)
    assert ((got - want).abs() <= units * torch.finfo(dtype).eps * want.abs().clamp(min=1.0)).all()


def test_compiled_draws_are_those_of_eager():
    key = there(random.key(5))
    draw = torch.compile(lambda key: (random.bits(key, (50,)), random.normal(key, (50,))), fullgraph=True)
    bits, normal = draw(key)
    assert torch.equal(bits, random.bits(key, (50,)))
    torch.testing.assert_close(normal, random.normal(key, (50,)), rtol=1e-5, atol=1e-6)


# The bound, its gradients, a step of training


@pytest.mark.parametrize("name", CASES)
def test_the_official_bound_and_its_gradients(name):
    c = case(name, torch.float64)

    def loss(params, x, noise, cond):
        return bound.bound(c.model, params, x, noise, cond).total.mean()

    arguments = c.params, c.x, c.noise, c.cond
    grads, got = torch.func.grad_and_value(loss)(*there(arguments))
    want_grads, want = torch.func.grad_and_value(loss)(*arguments)
    assert abs(got.item() / want.item() - 1) < 1e-12
    close(back(grads), want_grads, 1e-9)
    bits = got.item() / (192 * math.log(2.0))
    assert abs(bits - c.arrays["out/bpd"]) < 1e-3 * bits  # official float32, whose reconstruction cancels


@pytest.mark.parametrize("ways", [{}, {"compile": True}, {"compile": True, "variance": True}], ids=str)
def test_gradients_of_training(ways):
    model, params, x, cond = images()
    grad_fn = training.gradients(model, **ways)
    grads, (loss, _) = grad_fn(*there((params, x, random.key(3), cond)))
    exact, (want, _) = training.gradients(model, variance=ways.get("variance", False))(params, x, random.key(3), cond)
    assert abs(loss.item() / want.item() - 1) < 1e-4
    close(back(grads), exact, 1e-3)


def test_steps_of_training():
    model, params, x, cond = images()
    grad_fn = training.gradients(model)
    settings = training.AdamW(lr=1e-2, warmup=0, clip_norm=1.0, ema_rate=0.9)
    start = training.init(model, random.key(0))._replace(params=params, ema_params=params)
    here, away = start, there(start)
    for _ in range(3):
        here, metrics = training.train_step(settings, grad_fn, here, x, random.key(5), cond)
        away, others = training.train_step(settings, grad_fn, away, *there((x, random.key(5), cond)))
        assert others["loss"] == pytest.approx(metrics["loss"], rel=1e-3)
    assert away.step == 3
    moved_alike(back(away.params), here.params, start.params)


def test_half_precision_is_close():
    """bfloat16 has 8 bits: the bound is off by parts in a thousand, its noise aside."""
    model, params, x, cond = images()
    mixed = model._replace(network=networks.mixed(model.network, torch.bfloat16))
    arguments = there((params, x, random.key(3), cond))
    half, whole = mixed.nll_bound(*arguments).total, model.nll_bound(*arguments).total
    assert half.dtype == torch.float32
    assert ((half / whole - 1).abs() < 0.02).all()


def test_an_evaluation():
    model, params, x, cond = images(torch.float64)
    got = evaluate(model, there(params), [there((x, cond))], there(random.key(1)), passes=2)
    want = evaluate(model, params, [(x, cond)], random.key(1), passes=2)
    assert got.nll.mean == pytest.approx(want.nll.mean, rel=1e-10)


# Sampling, flows


SOLVERS = {"ancestral": solvers.ancestral, "ddim": solvers.ddim, "dpmpp_2m": solvers.dpmpp_2m}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_samples(name, compiled):
    model, params, _, cond = images(torch.float64)

    def sample(params, key, cond, steps):
        return model.sample(params, key, 4, cond=cond, steps=steps, solver=SOLVERS[name]())

    arguments = params, random.key(6), cond
    run = torch.compile(sample, fullgraph=True) if compiled else sample
    for steps in (3, 5):
        decoded_alike(run(*there(arguments), torch.tensor(steps)).cpu(), sample(*arguments, steps))


@pytest.mark.parametrize("name", ["fixed_t0", "nnet_t0_attn"])
def test_the_official_velocities(name):
    c, a = case(name, torch.float64), flow_case(name)
    z, gamma = nchw(c.arrays["score/z"])[:2].double(), torch.tensor(c.arrays["score/g"])[:2].double()
    found = flow.velocity(c.model, *there((c.params, z, gamma, c.cond[:2])))
    torch.testing.assert_close(found.cpu(), nchw(a["flow/velocity"])[:2], rtol=0, atol=1e-9)


INTEGRATORS = {"rk4": ode.rk4(5), "dopri5": ode.dopri5(1e-3, 1e-3), "points": ode.dopri5(1e-3, 1e-3, quadrature=3)}


@pytest.mark.parametrize("name", INTEGRATORS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_log_p(name, compiled):
    model, params, x, cond = images(torch.float64)

    def log_p(params, x, key, cond):
        return likelihood.log_prob(model, params, x, key, cond, integrator=INTEGRATORS[name], probes=1).log_prob

    arguments = params, x, random.key(7), cond
    run = torch.compile(log_p, fullgraph=True) if compiled else log_p
    # Rounding moves adaptive steps, and those log p, by a part of the tolerance.
    off = 1e-8 if name == "rk4" else 1e-4
    with torch.no_grad():
        torch.testing.assert_close(run(*there(arguments)).cpu(), log_p(*arguments), rtol=off, atol=off)


def test_bayesian_flows():
    model = bfn.discretised(networks.mlp(8, outputs=2), (2,), 16, sigma_1=0.1, dtype=torch.float64)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.05)
    x = random.randint(random.key(1), (4, 2), 0, 16)
    arguments = params, x, random.key(2)
    assert model.loss_fn(*there(arguments)).item() == pytest.approx(model.loss_fn(*arguments).item(), rel=1e-10)
    got, want = (model.sample(p, k, 4, steps=5) for p, k in (there((params, random.key(3))), (params, random.key(3))))
    decoded_alike(got.cpu(), want)


# Never waiting for the host; memory


@gpu_alone
def test_a_compiled_step_does_not_wait():
    model, *arguments = images()
    params, x, cond = there(tuple(arguments))
    grad_fn, key = training.gradients(model, compile=True), there(random.key(3))
    grad_fn(params, x, key, cond)
    with no_waiting():
        grad_fn(params, x, key, cond)


@gpu_alone
@pytest.mark.parametrize("name", SOLVERS)
def test_a_compiled_sampler_does_not_wait(name):
    model, params, _, cond = images()
    sample = torch.compile(partial(model.sample, solver=SOLVERS[name]()), fullgraph=True)
    params, key, cond = there((params, random.key(6), cond))
    sample(params, key, 4, cond=cond, steps=torch.tensor(3))
    with no_waiting():
        sample(params, key, 4, cond=cond, steps=torch.tensor(5))


@gpu_alone
def test_blocks_computed_again_need_less_memory():
    peaks = []
    for remat in (False, True):
        network = networks.vdm_unet(64, 8, remat=remat)
        model = purevdm.vdm(network, schedules.learned_linear(), (3, 32, 32))
        params, key = there((model.init(random.key(0)), random.key(1)))
        x = random.randint(key, (16, 3, 32, 32), 0, 256)
        grad_fn = training.gradients(model, remat=remat)
        grad_fn(params, x, key)
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        grad_fn(params, x, key)
        peaks.append(torch.cuda.max_memory_allocated() - held)
    assert peaks[1] < 0.6 * peaks[0]


# The programs


TINY = """digits --model.network mlp --model.embed 16 --model.layers 1 --optimizer.steps 4 --optimizer.warmup 1 --batch 16
 --save-every 4 --eval-every 4 --log-every 1 --eval-passes 1 --samples 4 --sample-steps 3 --no-compile""".split()  # noqa: SIM905


def test_models_are_trained_evaluated_sampled_and_compressed(tmp_path):
    run, file, where = tmp_path / "run", tmp_path / "x.pvdm", ("--device", DEVICE)
    call("train.py", *TINY, "--out", run, *where)
    assert "step 4 of 4" in call("train.py", *TINY, "--out", run, "--resume", *where)
    assert "bits/dim" in call("evaluate.py", run, *where)
    call("sample.py", run, "--out", tmp_path / "samples", "--n", 4, "--steps", 3, *where)
    few = ("--examples", 4, "--timesteps", 3, "--passes", 1, "--no-peers")
    call("compress.py", "encode", run, file, *few, *where)
    assert "4 examples intact" in call("compress.py", "test", run, file, *where)


@pytest.mark.parametrize("program", ["digits.py", "flows.py", "editing.py"])
def test_programs_that_train_their_own(program, tmp_path):
    assert call(program, "--steps", 2, "--out", tmp_path, "--device", DEVICE)


@gpu_alone
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="about several GPUs")
@pytest.mark.parametrize("shards", [1, 2])
def test_gpus_that_share_the_state_train_as_one(shards, tmp_path):
    """By nccl. Another number of processes reads what they save."""
    options = ("--device", DEVICE, "--steps", 4, "--batch", 16)
    one = call("sharded.py", *options, "--out", tmp_path / "one").split()[2]
    both = call("sharded.py", *options, "--out", tmp_path / "both", "--shards", shards, processes=2).split()[2]
    assert float(both) == pytest.approx(float(one), rel=1e-3)
    folders = [checkpoint.latest(tmp_path / name) for name in ("one", "both")]
    network = networks.unet(32, (1, 2), 1, groups=8, fourier=(1, 2, 3))
    model = purevdm.vdm(network, schedules.learned_linear(-8.0, 4.0), event_shape=(1, 8, 8), vocab_size=17)
    start = training.init(model, random.key(0))
    alone, together = (checkpoint.load(folder, start).params for folder in folders)
    moved_alike(together, alone, start.params)
