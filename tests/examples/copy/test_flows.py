"""The Bayesian flow example: a short run, and what it leaves."""

from processes import figures

from purevdm import interop


def test_a_short_run(tmp_path):
    lines = figures("flows.py", "--eager", "--steps", 2, "--batch", 4, "--passes", 1, "--out", tmp_path)
    assert "2 steps, 297 images" in lines["test bound"]
    assert float(lines["test bound"].split()[0]) > 0
    assert (tmp_path / "samples.png").stat().st_size > 5_000
    assert "network" in interop.load_params(tmp_path / "params.safetensors")
