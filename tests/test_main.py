"""`python -m purevdm` says what a report of an error needs."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import torch

import purevdm
from purevdm import __main__ as main

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def names(requirements):
    return {re.match(r"[\w-]+", line)[0] for line in requirements}


def test_the_report_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-m", "purevdm"], capture_output=True, text=True, check=True)
    lines = dict(re.split(r"\s+", line, maxsplit=1) for line in done.stdout.splitlines())
    assert list(lines) == list(main.report())
    assert lines["purevdm"] == purevdm.__version__
    assert lines["torch"].startswith(torch.__version__)
    assert lines["optree"] == metadata.version("optree")
    assert lines["CPU"].endswith(torch.backends.cpu.get_cpu_capability())
    assert int(lines["threads"]) >= 1
    assert lines["devices"].startswith("cpu")
    assert not done.stderr


def test_it_names_every_package_that_the_library_needs_or_may_use():
    extras = [PROJECT["optional-dependencies"][name] for name in ("flax", "train", "huggingface", "codec", "loops")]
    assert {"torch", *main.NEEDED} == names(PROJECT["dependencies"])
    assert set(main.OPTIONAL) == set.union(*map(names, extras))


def test_packages_and_accelerators_that_are_not_here(monkeypatch):
    assert main.version("no-such-package-as-this") == "not installed"
    card = SimpleNamespace(name="Card", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: card)
    assert "cpu; cuda:0 Card, capability 9.0, 80 GiB; cuda:1 Card" in main.report()["devices"]
