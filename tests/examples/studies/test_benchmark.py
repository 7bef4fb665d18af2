"""The benchmark's program: what it prints and writes, on small parts, with the compiler left out."""

import json

import benchmark
import peers
import pytest
import torch
from processes import here, printed, refused

import purevdm
from purevdm import likelihood, networks, ode, random, schedules
from purevdm.likelihood import flow


@pytest.fixture
def results(tmp_path, monkeypatch):
    """What the program prints and writes for some parts."""
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)

    def results(*options):
        sizes = "--batch 2 --size 4 --embed 32 --layers 1 --samples 2 --steps 2 --runs 2 --out".split()  # noqa: SIM905
        output = printed("benchmark.py", *sizes, tmp_path / "times.json", *options)
        return output, json.loads((tmp_path / "times.json").read_text())

    return results


def test_the_program_prints_ratios_and_writes_every_time(results):
    output, times = results()
    assert times["torch"] == torch.__version__
    for part in ("step", "sample"):
        for name, row in times[part].items():
            assert name in output
            assert len(row["seconds"]) == 2
            assert min(row["first"], *row["seconds"]) > 0


def test_ways_are_compared_with_the_peaks(results):
    output, times = results("--parts", "ways")
    for part in ("step", "sample"):
        assert list(times["ways"][part])[:3] == ["float32", "bfloat16", "bfloat16, reduce-overhead"]
        assert all(row["flops"] > 0 for row in times["ways"][part].values())
        assert f" {part}\n" in output
    assert output.count("of the peaks") == 6


def test_flows_are_timed_and_compared_with_a_finer_one(results, monkeypatch):
    model = purevdm.vdm(networks.mlp(8, 1, fourier=()), schedules.fixed_linear(-4.0, 3.0), (1, 8, 8), 17)
    x = random.randint(random.key(0), (2, 1, 8, 8), 0, 17)
    monkeypatch.setattr(benchmark.common, "trained", lambda *_: (model, model.init(random.key(0)), x))
    output, times = results("--parts", "flow", "--images", 2, "--piece", 1, "--tolerance", "1e-2")
    assert len(times["flow"]) == 5
    for name, row in times["flow"].items():
        assert f"  {name}" in output
        assert 0 < row["error"] <= row["worst"] < 30
        assert row["evaluations"] <= row["most"]


def test_the_flow_of_others_ends_in_the_same_log_p():
    model = purevdm.vdm(networks.mlp(8, fourier=()), schedules.fixed_linear(-4.0, 3.0), (3,), dtype=torch.float64)
    params, z = model.init(random.key(0)), 0.5 * random.normal(random.key(1), (4, 3), torch.float64)
    params["network"]["dense3"]["kernel"] = random.normal(random.key(2), (8, 3), torch.float64)
    probes = flow.draw_probes(random.split(random.key(3), 4), 1, (3,), torch.float64)
    ours = likelihood.log_prob_latent(model, params, z, probe_noise=probes, integrator=ode.dopri5(1e-9, 1e-9))
    velocity = lambda z, gamma: flow.velocity(model, params, z, gamma)  # noqa: E731
    theirs, evaluations = peers.score_sde(velocity, z, probes[0], -4.0, 3.0, 1e-9)
    torch.testing.assert_close(theirs, ours.log_prob, rtol=0, atol=1e-6)
    assert evaluations > 20


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


def test_bad_arguments_are_refused(tmp_path):
    assert "must be at least 1" in here("benchmark.py", "--runs", 0).stderr
    assert "python examples/copy/digits.py makes it" in refused("benchmark.py", "--parts", "flow", "--digits", tmp_path)
