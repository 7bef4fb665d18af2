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
from processes import call, small_flow
from processes import here as program

import purevdm
from purevdm import decoders, evaluation, interop, likelihood, networks, ode, random, schedules
from purevdm.training.data import Dataset


@pytest.fixture
def here(monkeypatch, capsys):
    """The program, on a small model of the digits or of real numbers, in this process."""
    small_flow(monkeypatch, methods)

    def prepared(real, *arguments):
        config = presets.Config(model=presets.Model(network="mlp", embed=8, layers=1, fourier=(), flag=False))
        if real:
            x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
            data, decoder = Dataset("rows", 7, (3,), None, lambda i: x[i], None, 0), decoders.gaussian()
        else:
            data, decoder = readers.digits(), decoders.discrete(17)
        model = purevdm.vdm(
            networks.mlp(8, 1, fourier=()), schedules.fixed_linear(-5.0, 4.0), data.event_shape, decoder=decoder
        )
        run = evaluate.Run(config, data, data, model, model.init(random.key(0)))
        monkeypatch.setattr(evaluate, "restored", lambda *_: run)
        monkeypatch.setattr(
            "sys.argv", ["evaluate.py", "somewhere", "--examples", "6", "--batch", "4", *map(str, arguments)]
        )
        evaluate.main()
        return run, capsys.readouterr().out.splitlines()

    return prepared


def test_methods_stand_beside_each_other(here, tmp_path):
    options = ("--method", "bound", "flow", "iwae", "--dequantisation", "uniform", "variational", "--samples", 1, 2)
    run, lines = here(False, *options, "--steps", 5, "--passes", 3, "--save", tmp_path / "new" / "values.npz")
    assert lines[0] == "digits: 6 examples, flow at rtol 1e-05, atol 1e-05, 1 probes"
    assert lines[1].split("  ")[0] == "method"
    assert "-log p, bits/dim" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["bound", *["flow"] * 4, *["iwae"] * 2]
    saved = np.load(tmp_path / "new" / "values.npz")
    names = ["bound", *(f"flow_{d}_K{k}" for d in ("uniform", "variational") for k in (1, 2)), "iwae_T5_K1", "iwae_T5_K2"]
    assert {name for name in saved if not name.endswith("_error")} == set(names)
    assert {name for name in saved if name.endswith("_error")} == {f"{name}_error" for name in names if name.endswith("K2")}
    for name, line in zip(names, lines[2:], strict=True):
        figure = line.split(" +- ")[0].split()[-1]
        assert float(figure) == pytest.approx(saved[name].mean() / 64 / math.log(2), abs=1e-3)
        gap = (saved[name] - saved["bound"]) / 64 / math.log(2)
        if name != "bound":
            assert f"{gap.mean():.4f} +- {gap.std(ddof=1) / math.sqrt(6):.4f}" in line
    # evaluations: of three passes, sixteen of the four steps, and those of the trajectories
    assert [line.split()[-3] for line in lines[2:]] == ["3", "16", "32", "16", "32", "5", "10"]
    # what the library says of the same
    data, key = evaluate.labelled(run.test, 6, 4, torch.device("cpu")), presets.stream("evaluate", 0, "cpu")
    call = partial(likelihood.log_prob, run.model, dequantisation="uniform", samples=2, integrator=ode.rk4(4), probes=1)

    def told(params, x, key, labels):
        return call(params, x, key)

    want = evaluation.per_example(run.model, run.params, data, key, method=told)
    np.testing.assert_allclose(saved["flow_uniform_K2"], want.nll, rtol=1e-5)
    np.testing.assert_allclose(saved["flow_uniform_K2_error"], want.result.error, rtol=1e-3)


def test_real_numbers_are_measured_in_nats(here):
    _, lines = here(True, "--method", "flow", "iwae", "bound", "--samples", 3, "--probes", 0)
    assert lines[0].endswith("no probes")
    assert "-log p, nats" in lines[1]
    assert "minus flow_none_K1" in lines[1]
    assert [line.split()[:2] for line in lines[2:4]] == [["flow", "none"], ["iwae", "3"]]
    assert " 100 " in lines[3]  # steps of a model in continuous time


def test_one_method_alone_is_a_table_too(here):
    _, lines = here(False, "--method", "iwae", "--steps", 2)
    assert len(lines) == 3
    assert "sampling" not in lines[1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--method",), "method: expected at least one"),
        (("--method", "flow", "--compare", "x"), "compare: expected method bound only"),
        (("--method", "bound", "flow", "--profile", "x.png"), "profile: expected method bound only"),
        (("--dequantisation", "uniform"), "dequantisation: expected method flow"),
        (("--samples", 3), "samples: expected method flow or iwae"),
        (("--method", "flow", "--steps", 3), "steps: expected method iwae"),
        (("--method", "iwae", "--steps", 0), "steps, chunk: expected at least 1"),
        (("--method", "flow", "--samples", 2, 0), "samples, steps, chunk: expected at least 1"),
        (("--method", "flow", "--chunk", 0), "chunk: expected at least 1"),
        (("--method", "flow", "--probes", -1), "probes: expected at least 0"),
        (("--method", "flow", "--quadrature", 5), "quadrature: expected 2, 3 or 4"),
        (("--method", "flow", "--rtol", 0), "rtol, atol: expected between 0 and 1"),
        (("--method", "flow", "--atol", "nan"), "rtol, atol: expected between 0 and 1"),
        (
            ("--method", "flow", "--dequantisation", "none"),
            "dequantisation: expected variational or truncated or uniform for discrete data, got none",
        ),
    ],
)
def test_options_that_do_not_go_together_are_named(here, arguments, word):
    with pytest.raises(SystemExit, match=word):
        here(False, *arguments)


def test_dequantisations_of_real_numbers(here):
    with pytest.raises(SystemExit, match="dequantisation: expected none or variational for real data, got uniform"):
        here(True, "--method", "flow", "--dequantisation", "uniform")


def test_lines_are_chosen_once():
    model = purevdm.vdm(networks.mlp(8), schedules.fixed_linear(), (2,), 16, timesteps=7)
    found = methods.chosen(model, ("iwae", "bound", "iwae"), (), (2, 2), None)
    assert found == [Method("iwae", samples=2, steps=7), Method("bound", steps=7)]
    assert methods.chosen(model, ("flow",), (), (), None) == [Method("flow", "variational", 1)]


def test_an_integration_that_fails_is_one_line(here, monkeypatch):
    monkeypatch.setattr(
        likelihood, "log_prob", lambda *_, **__: (_ for _ in ()).throw(ValueError("limit: example 3 stopped"))
    )
    with pytest.raises(SystemExit, match="limit: example 3 stopped"):
        here(False, "--method", "flow")


def test_the_parameters_of_the_digits_example_are_loaded(tmp_path):
    """With its split and its model: what the program itself has."""
    import digits

    model = digits.build()
    params = model.init(random.key(3))
    interop.save_params(tmp_path / "params.safetensors", params)
    _, train, test, found, loaded = runs.load(tmp_path / "params.safetensors", "cpu")
    assert found == model
    assert all(map(torch.equal, torch.utils._pytree.tree_leaves(loaded), torch.utils._pytree.tree_leaves(params)))
    want = digits.data(random.split(random.key(0), 5)[0])
    for data, images in zip((train, test), want, strict=True):
        assert torch.equal(torch.from_numpy(data.take(np.arange(data.size))).long(), images)


def test_several_processes_print_the_same_table(tmp_path):
    tiny = """digits --model.network mlp --model.embed 8 --model.layers 1 --model.labels --model.no-flag --optimizer.steps 2
     --batch 16 --save-every 2 --eval-every 2 --eval-passes 1 --samples 1 --sample-steps 1 --no-compile""".split()  # noqa: SIM905
    run = program("train.py", *tiny, "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    options = ("--method", "bound", "iwae", "--samples", 1, 4, "--steps", 3, "--examples", 20, "--batch", 5)
    outputs = []
    for run in (program("evaluate.py", tmp_path, *options), call("evaluate.py", tmp_path, *options, processes=2)):
        assert run.returncode == 0, run.stderr
        outputs.append([row.split()[:-2] for row in run.stdout.splitlines()])  # less the last two columns, of time
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 5


def test_programs_share_no_key_with_training():
    """Of one seed: the noise of a run's training and of programs that use the run."""
    own = [*presets.keys(0).values(), random.key(0), *random.split(random.key(0), 64), *random.split(random.key(0), 5)]
    other = [presets.stream(program, 0, "cpu") for program in ("evaluate", "sample")]
    own = {tuple(random.fold_in(key, i).tolist()) for key in own for i in range(40)} | {tuple(key.tolist()) for key in own}
    used = {tuple(random.fold_in(key, i).tolist()) for key in other for i in range(40)} | {tuple(k.tolist()) for k in other}
    assert len(used) == 82
    assert not own & used
