"""The command line in this process, so that not every call has to import torch anew."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from epsball.cli import main as cli


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`epsball ARGUMENTS` in `cwd`, in a terminal of 80 columns: the result that a separate process would give.

    A user's modules in `cwd` do not stay imported.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        warnings.catch_warnings(),  # the command line takes over how they are shown
        chdir(cwd or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patched.setenv("COLUMNS", "80")
        patched.setattr(sys, "argv", ["epsball", *arguments])
        patched.setattr(sys, "path", sys.path[:])
        warnings.simplefilter("default")
        code = cli.run(arguments)
    for name, module in list(sys.modules.items()):
        if cwd is not None and str(getattr(module, "__file__", None)).startswith(f"{cwd}{os.sep}"):
            del sys.modules[name]
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
