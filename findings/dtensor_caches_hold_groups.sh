#!/usr/bin/env bash
# PyTorch 2.13.0, CPU, gloo: destroy_process_group() ends the threads that served a group only when nothing holds the group any more. A
# DeviceMesh holds its groups, and the caches by which DTensor propagates shardings hold the meshes of every operation they have seen,
# for as long as the process lives. So after one operation on a DTensor gloo's threads go on after the group is destroyed and every
# tensor and mesh of the program is deleted; a thread that frees a tensor while Python shuts down can abort the exit. Without DTensor
# they end. Runs one process, a group of one. Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 numpy
cat > "$here/threads.py" <<'PY'
import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a group: its functions keep the group of that moment
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor


def threads():
    return [name for name in (p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm")) if "gloo" in name]


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.all_reduce(torch.ones(2))
if sys.argv[1] == "dtensor":
    mesh = init_device_mesh("cpu", (1,))
    x = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    (x + x).full_tensor()
    del x, mesh
before = threads()
dist.destroy_process_group()
gc.collect()
print(len(before), len(threads()))
PY
plain=$("$here/venv/bin/python" "$here/threads.py" plain)
dtensor=$("$here/venv/bin/python" "$here/threads.py" dtensor)
echo "gloo's threads before and after the group was destroyed: $plain; once a DTensor was used: $dtensor"
test "${plain% *}" -gt 0 -a "${plain#* }" -eq 0 -a "${dtensor#* }" -gt 0
