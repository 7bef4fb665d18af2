#!/usr/bin/env bash
# datasets 5.2.0 keeps set_format through save_to_disk: a set saved after set_format("torch") gives tensors to whoever loads it,
# whose code expects Python objects or arrow values. with_format(None) gives the plain values back.
# Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 datasets==5.2.0
cd "$here"
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - <<'PY'
import datasets
import torch

made = datasets.Dataset.from_dict({"label": [3, 1, 2]})
made.set_format("torch")
made.save_to_disk("set")
loaded = datasets.load_from_disk("set")
print("datasets", datasets.__version__, type(loaded["label"][:]).__name__, loaded.format["type"])
assert isinstance(loaded["label"][:], torch.Tensor), "the behaviour changed"
assert loaded.with_format(None)["label"][:] == [3, 1, 2], "the behaviour changed"
PY
