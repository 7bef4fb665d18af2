"""Evaluation by several methods: one table and one file, options that go together, digits.py's parameters."""

import math
from functools import partial

import evaluate
import methods
import numpy as np
import presets
import pytest
import readers
import runs
import torch
from methods import Method
from processes import printed, refused, small_flow

import purevdm
from purevdm import decoders, evaluation, interop, likelihood, networks, ode, random, schedules
from purevdm.training.data import Dataset


def run_of(data, decoder):
    config = presets.Config(model=presets.Model(network="mlp", embed=8, layers=1, fourier=(), flag=False))
    network, schedule = networks.mlp(8, 1, fourier=()), schedules.fixed_linear(-5.0, 4.0)
    model = purevdm.vdm(network, schedule, data.event_shape, decoder=decoder)
    return runs.Run(config, data, data, model, model.init(random.key(0)))


ROWS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
DIGITS = run_of(readers.digits(), decoders.discrete(17))
REAL = run_of(Dataset("rows", 7, (3,), None, lambda i: ROWS[i], None, 0), decoders.gaussian())
CALL = ("evaluate.py", "somewhere", "--examples", 6, "--batch", 4)


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    """The program's model, of the digits unless told otherwise; its flow takes few steps."""
    small_flow(monkeypatch, methods)
    monkeypatch.setattr(evaluate, "restored", lambda *_: DIGITS)
    return lambda run: monkeypatch.setattr(evaluate, "restored", lambda *_: run)


def test_methods_stand_beside_each_other(tmp_path):
    options = ("--method", "bound", "flow", "iwae", "--dequantisation", "uniform", "variational", "--samples", 1, 2)
    file = tmp_path / "new" / "values.npz"
    lines = printed(*CALL, *options, "--steps", 5, "--passes", 3, "--save", file).splitlines()
    assert lines[0] == "digits: 6 examples, flow at rtol 1e-05, atol 1e-05, 1 probes"
    assert lines[1].split("  ")[0] == "method"
    assert "-log p, bits/dim" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["bound", *["flow"] * 4, *["iwae"] * 2]
    saved = np.load(file)
    names = ["bound", *(f"flow_{d}_K{k}" for d in ("uniform", "variational") for k in (1, 2)), "iwae_T5_K1", "iwae_T5_K2"]
    assert {*saved} == {*names, *(f"{name}_error" for name in names if name.endswith("K2"))}
    for name, line in zip(names, lines[2:], strict=True):
        figure = line.split(" +- ")[0].split()[-1]
        assert float(figure) == pytest.approx(saved[name].mean() / 64 / math.log(2), abs=1e-3)
        gap = (saved[name] - saved["bound"]) / 64 / math.log(2)
        if name != "bound":
            assert f"{gap.mean():.4f} +- {gap.std(ddof=1) / math.sqrt(6):.4f}" in line
    # evaluations: of three passes, sixteen of the four steps, and those of the trajectories
    assert [line.split()[-3] for line in lines[2:]] == ["3", "16", "32", "16", "32", "5", "10"]
    # what the library says of the same
    batches, key = presets.batches(DIGITS.config, DIGITS.test, 6, 4, "cpu"), presets.stream("evaluate", 0, "cpu")
    flow = partial(likelihood.log_prob, DIGITS.model, dequantisation="uniform", samples=2, integrator=ode.rk4(4), probes=1)
    want = evaluation.per_example(DIGITS.model, DIGITS.params, batches, key, method=flow)
    np.testing.assert_allclose(saved["flow_uniform_K2"], want.nll, rtol=1e-5)
    np.testing.assert_allclose(saved["flow_uniform_K2_error"], want.result.error, rtol=1e-3)


def test_real_numbers_are_measured_in_nats(loaded):
    loaded(REAL)
    lines = printed(*CALL, "--method", "flow", "iwae", "bound", "--samples", 3, "--probes", 0).splitlines()
    assert lines[0].endswith("no probes")
    assert "-log p, nats" in lines[1]
    assert "minus flow_none_K1" in lines[1]
    assert [line.split()[:2] for line in lines[2:4]] == [["flow", "none"], ["iwae", "3"]]
    assert " 100 " in lines[3]  # steps of a model in continuous time
    message = refused(*CALL, "--method", "flow", "--dequantisation", "uniform")
    assert message == "dequantisation: expected none or variational for real data, got uniform"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--method", "method: expected at least one"),
        ("--method flow --compare x", "compare: expected method bound only"),
        ("--compare x --save y.npz", "save: expected no compare"),
        ("--method bound flow --profile x.png", "profile: expected method bound only"),
        ("--dequantisation uniform", "dequantisation: expected method flow"),
        ("--samples 3", "samples: expected method flow or iwae"),
        ("--method flow --steps 3", "steps: expected method iwae"),
        ("--method flow --samples 2 0", "samples, steps, chunk: expected at least 1"),
        ("--method flow --probes -1", "probes: expected at least 0"),
        ("--method flow --quadrature 5", "quadrature: expected 2, 3 or 4"),
        ("--method flow --atol nan", "rtol, atol: expected between 0 and 1"),
        ("--method flow --dequantisation none", "dequantisation: expected variational or truncated or uniform for discrete"),
    ],
)
def test_options_that_do_not_go_together_are_named(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert refused(*CALL, *arguments.split()).startswith(words)


def test_lines_are_chosen_once():
    model = purevdm.vdm(networks.mlp(8), schedules.fixed_linear(), (2,), 16, timesteps=7)
    lines = methods.chosen(model, ("iwae", "bound", "iwae"), (), (2, 2), None)
    assert lines == [Method("iwae", samples=2, steps=7), Method("bound", steps=7)]
    assert methods.chosen(model, ("flow",), (), (), None) == [Method("flow", "variational", 1)]


def test_an_integration_that_fails_is_one_line(monkeypatch):
    def failing(*_, **__):
        raise ValueError("limit: example 3 stopped")

    monkeypatch.setattr(likelihood, "log_prob", failing)
    assert "limit: example 3 stopped" in refused(*CALL, "--method", "flow")


def test_the_parameters_of_the_digits_example_are_loaded(tmp_path):
    """With its split and its model: what the program itself has."""
    import digits

    model = digits.build()
    params = model.init(random.key(3))
    interop.save_params(tmp_path / "params.safetensors", params)
    _, train, test, restored, loaded = runs.load(tmp_path / "params.safetensors", "cpu")
    assert restored == model
    assert all(map(torch.equal, torch.utils._pytree.tree_leaves(loaded), torch.utils._pytree.tree_leaves(params)))
    want = digits.data(random.split(random.key(0), 5)[0])
    for data, images in zip((train, test), want, strict=True):
        assert torch.equal(torch.from_numpy(data.take(np.arange(data.size))).long(), images)


def test_programs_share_no_key_with_training():
    """Of one seed: the noise of a run's training and of programs that use the run."""
    own = [*presets.keys(0).values(), random.key(0), *random.split(random.key(0), 64), *random.split(random.key(0), 5)]
    other = [presets.stream(program, 0, "cpu") for program in ("evaluate", "sample")]
    of = lambda keys: {tuple(k.tolist()) for key in keys for k in (key, *(random.fold_in(key, i) for i in range(40)))}  # noqa: E731
    assert len(of(other)) == 82
    assert not of(own) & of(other)
