"""The benchmark's program: what it prints and writes, on parts that compile in seconds."""

import json

import benchmark
import digits
import peers
import pytest
import torch

import purevdm
from purevdm import interop, likelihood, networks, ode, random, schedules
from purevdm.likelihood import flow


def test_the_program_prints_ratios_and_writes_every_time(tmp_path, monkeypatch, capsys):
    """With the compiler left out."""
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    out = tmp_path / "times.json"
    sizes = ["--batch", "2", "--size", "4", "--embed", "32", "--layers", "1", "--steps", "2", "--runs", "2"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *sizes, "--out", str(out)])
    benchmark.main()
    printed = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["torch"] == torch.__version__
    for part in ("step", "sample"):
        for name, row in results[part].items():
            assert name in printed
            assert len(row["seconds"]) == 2
            assert min(row["first"], *row["seconds"]) > 0


def test_ways_are_held_against_the_peaks(tmp_path, monkeypatch, capsys):
    """With the compiler left out."""
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    out = tmp_path / "times.json"
    sizes = "--batch 2 --size 4 --embed 32 --layers 1 --samples 2 --steps 2 --runs 1".split()  # noqa: SIM905
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--parts", "ways", *sizes, "--out", str(out)])
    benchmark.main()
    printed, results = capsys.readouterr().out, json.loads(out.read_text())["ways"]
    for part in ("step", "sample"):
        assert list(results[part])[:3] == ["float32", "bfloat16", "bfloat16, reduce-overhead"]
        assert all(row["flops"] > 0 for row in results[part].values())
        assert f" {part}\n" in printed
    assert printed.count("of the peaks") == 6


def test_flows_are_timed_and_held_against_a_finer_one(tmp_path, monkeypatch, capsys):
    """With the compiler left out."""
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    interop.save_params(tmp_path / "params.safetensors", digits.build().init(random.key(0)))
    out = tmp_path / "times.json"
    sizes = ["--batch", "2", "--size", "4", "--embed", "32", "--layers", "1", "--runs", "1"]
    about = ["--digits", str(tmp_path), "--images", "2", "--piece", "1", "--tolerance", "1e-2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--parts", "flow", *sizes, *about])
    benchmark.main()
    results = json.loads(out.read_text())
    assert len(results["flow"]) == 5
    printed = capsys.readouterr().out
    for name, row in results["flow"].items():
        assert f"  {name}" in printed
        assert 0 < row["error"] <= row["worst"] < 30
        assert row["evaluations"] <= row["most"]


def test_the_flow_of_others_ends_in_the_same_log_p():
    model = purevdm.vdm(networks.mlp(8, fourier=()), schedules.fixed_linear(-4.0, 3.0), (3,), dtype=torch.float64)
    params, z = model.init(random.key(0)), 0.5 * random.normal(random.key(1), (4, 3), torch.float64)
    params["network"]["dense3"]["kernel"] = random.normal(random.key(2), (8, 3), torch.float64)
    probes = flow.draw_probes(random.split(random.key(3), 4), 1, (3,), torch.float64)
    ours = likelihood.log_prob_latent(model, params, z, probe_noise=probes, integrator=ode.dopri5(1e-9, 1e-9))
    theirs, evaluations = peers.score_sde(
        lambda z, gamma: flow.velocity(model, params, z, gamma), z, probes[0], -4.0, 3.0, 1e-9
    )
    torch.testing.assert_close(theirs, ours.log_prob, rtol=0, atol=1e-6)
    assert evaluations > 20


def test_a_flow_without_a_trained_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--parts", "flow", "--digits", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"python examples/copy/digits\.py makes it"):
        benchmark.main()


def test_a_line_has_medians_ratios_rates_and_shares(capsys):
    benchmark.report(
        {
            "ours": {"first": 9.0, "seconds": [0.3, 0.1, 0.2], "flops": 1e9},
            "theirs": {"first": 0.5, "seconds": [0.5, 0.4, 0.6]},
            "peak: product": {"first": 0.0, "seconds": [0.1], "flops": 1e9},
        }
    )
    ours, theirs, peak = (" ".join(line.split()) for line in capsys.readouterr().out.splitlines())
    assert ours == "ours 200.00 ms [100.00, 300.00] 1.00 x 5.0 GFLOP/s = 50% of the peaks (first call 9.0 s)"
    assert theirs == "theirs 500.00 ms [400.00, 600.00] 2.50 x (first call 0.5 s)"
    assert peak == "peak: product 100.00 ms [100.00, 100.00] 0.50 x 10.0 GFLOP/s (first call 0.0 s)"


def test_products_and_convolutions_are_counted():
    calls, flops = benchmark.peaks(torch.float32, "cpu", embed=8, batch=2, size=4)
    for name, call in calls.items():
        assert flops[name] == pytest.approx(benchmark.counted(call), rel=1e-6)


@pytest.mark.parametrize(("argument", "message"), [("--runs", "must be at least 1"), ("--steps", "must be at least 1")])
def test_bad_arguments_are_refused(argument, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark.py", argument, "0"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert message in capsys.readouterr().err
