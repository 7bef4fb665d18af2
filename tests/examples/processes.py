"""The programs by their command lines: in a process of their own, or, sooner, in this one. What their tests share."""

import importlib
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from purevdm import ode

ROOT = Path(__file__).parents[2]
PROGRAMS = {path.name: path for path in (ROOT / "examples").glob("*/*.py")}
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(program, *arguments):
    return [sys.executable, str(PROGRAMS[program]), *map(str, arguments)]


def call(program, *arguments, processes=1):
    """Returns what a program printed; of several processes, as ``torchrun`` starts them."""
    line = command(program, *arguments)
    if processes > 1:
        line[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--"]
    done = subprocess.run(line, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def here(program, *arguments):
    """Runs a program in this process. ``sys.exit`` with a text prints it, and is the status 1."""
    line, out, err = command(program, *arguments)[1:], io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", line), redirect_stdout(out), redirect_stderr(err):
        try:
            status = importlib.import_module(Path(program).stem).main() or 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
    return subprocess.CompletedProcess(line, status, out.getvalue(), err.getvalue())


def printed(program, *arguments):
    """Returns what a program that succeeds printed."""
    done = here(program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(program, *arguments):
    """Returns the line that a program ends with where it fails, as a user can mend it."""
    done = here(program, *arguments)
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


def figures(program, *arguments):
    """Returns the lines of what a program prints, by the words that they begin with."""
    return dict(line.split("  ", 1) for line in printed(program, *arguments).splitlines() if "  " in line)


def small_flow(monkeypatch, module):
    """Makes adaptive integrators of a module take few steps whatever the tolerance."""
    monkeypatch.setattr(module, "ode", type("Few", (), {"dopri5": staticmethod(lambda rtol, atol, **options: ode.rk4(4))}))
