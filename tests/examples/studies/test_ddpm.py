"""A DDPM by diffusers' own code: a pipeline that is there to be measured, and what is refused."""

import pytest
from processes import printed, refused

pytest.importorskip("diffusers")


def test_a_pipeline_is_saved(tmp_path):
    few = ("--steps", 2, "--batch", 4, "--width", 8, 16)
    output = printed("ddpm.py", tmp_path / "made", *few)
    assert output.splitlines()[-1].startswith(f"{tmp_path / 'made'}: 0.0")
    assert (tmp_path / "made" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert "--overwrite" in refused("ddpm.py", tmp_path / "made", *few)
    assert "steps: expected an integer of at least 1" in refused("ddpm.py", tmp_path / "other", "--steps", 0)
