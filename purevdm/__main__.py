"""Prints what a report of an error needs: versions, processor, threads and devices: ``python -m purevdm``."""

import os
import platform
from importlib import metadata

import torch

import purevdm

NEEDED = ("einops", "optree")
OPTIONAL = ("accelerate", "constriction", "datasets", "lightning", "msgpack", "numpy", "safetensors")


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def devices() -> list[str]:
    """Lists the accelerators that this PyTorch sees."""
    found = []
    for i in range(torch.cuda.device_count()):
        own = torch.cuda.get_device_properties(i)
        found.append(f"cuda:{i} {own.name}, capability {own.major}.{own.minor}, {own.total_memory / 2**30:.0f} GiB")
    return found + ["mps"] * torch.backends.mps.is_available() + ["xpu"] * torch.xpu.is_available()


def report() -> dict[str, str]:
    """Collects the lines of the report by their names."""
    builds = [f"{name} {build}" for name, build in (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip)) if build]
    lines = {"purevdm": purevdm.__version__, "torch": f"{torch.__version__} ({', '.join(builds) or 'CPU'})"}
    lines |= {package: version(package) for package in NEEDED + OPTIONAL}
    lines["python"] = f"{platform.python_version()} ({platform.python_implementation()})"
    lines["platform"] = platform.platform()
    lines["CPU"] = f"{os.cpu_count()} logical cores, instruction set {torch.backends.cpu.get_cpu_capability()}"
    lines["threads"] = str(torch.get_num_threads())
    lines["devices"] = "; ".join(["cpu", *devices()])
    return lines


if __name__ == "__main__":
    for name, value in report().items():
        print(f"{name:<14}{value}")
