"""What the tests share: fresh compilers, Hypothesis profiles, tiny models."""

import os

# Inductor goes by the processor's flags alone: to try each instruction set, it builds a library, and starts a process that
# imports torch, for every empty cache. Before torch is imported, and for the processes that tests start.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("purevdm", deadline=None, max_examples=30, derandomize=True, database=None)
settings.load_profile("purevdm")
# Where several processes share the tests (pytest -n), each has one thread.
torch.set_num_threads(int(os.environ.get("PUREVDM_TEST_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")))


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Each test counts its own graphs."""
    torch._dynamo.reset()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Lets a process that is done take over the tests of another: those that compile take far longer than most."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None
