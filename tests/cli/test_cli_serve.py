"""`epsball serve` as a process: its address, reached from this machine only, its end, its refusals before training."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest

from epsball.cli import main as cli

COMMAND = [sys.executable, "-m", "epsball", "serve"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process when it listens, its address, and the lines that it printed before."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--epochs", "1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"http://\S+", line):
                yield process, found[0], lines
                break
        else:
            pytest.fail(f"it printed no address: {lines} {process.communicate()[1]}")
    finally:
        process.kill()
        process.communicate()


def ask(address: str, path: str, question: dict[str, Any] | None = None) -> Any:
    body = None if question is None else json.dumps(question).encode()
    with urlopen(Request(address + path, body, {"content-type": "application/json"})) as answer:
        return json.load(answer)


def test_with_no_argument_a_plain_and_a_trained_network_on_digits_are_served_until_ctrl_c():
    with started() as (process, address, lines):
        about = ask(address, "api/about")
        assert [model["name"] for model in about["models"]] == ["plain", "trained against attacks"]
        assert about["data"]["name"] == "digits"
        assert about["ball"] == {"norm": "linf", "eps": 0.1}
        assert "fgsm-mix against linf:0.1" in "".join(lines)
        found = ask(address, "api/attack", {"row": 0, "eps": 0.1})["models"]
        assert found[0]["adversarial"] != found[1]["adversarial"]
        port = int(address.rstrip("/").rpartition(":")[2])
        for family, host in other_addresses():
            with socket.socket(family) as beyond, pytest.raises(OSError, match="refused"):
                beyond.connect((host, port))
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "stopped" in rest
        assert "Traceback" not in errors


def other_addresses() -> list[tuple[socket.AddressFamily, str]]:
    """This machine's addresses besides 127.0.0.1."""
    found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    hosts = {(family, str(place[0])) for family, *_, place in found if family == socket.AF_INET}
    return [(socket.AF_INET, "127.0.0.2"), *sorted(hosts - {(socket.AF_INET, "127.0.0.1")})]


def test_a_model_and_data_are_named_in_their_order_and_a_second_model_beside(tmp_path: Path):
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "def one():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4))\n"
        "two = one()\n"
    )
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.integers(0, 256, (5, 3, 4, 4), np.uint8), y=rng.integers(0, 4, 5))
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        with started("nets:one", "data.npz", "--beside", "nets:two", "--ball", "l2:0.5") as (_, address, _lines):
            about = ask(address, "api/about")
            assert [model["name"] for model in about["models"]] == ["nets:one", "nets:two"]
            assert (about["data"]["count"], about["data"]["shape"]) == (5, [3, 4, 4])
            assert about["ball"] == {"norm": "l2", "eps": 0.5}
        with started("nets:one", "data.npz") as (_, address, _lines):
            assert len(ask(address, "api/about")["models"]) == 1
    finally:
        os.chdir(before)


def test_a_port_in_use_is_refused_with_the_remedy_before_anything_is_trained(capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.run(["serve", "--port", str(port)]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert f"`--port` must be free, got {port}, which another program uses; choose another, or --port 0" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "`--port` must be 0 to 65535, got 70000"),
        (["--beside-weights", "a.safetensors"], "`--beside` must name the network"),
        (["--ball", "l3:1"], "`--ball` must be one of linf, l2, l1, l0"),
        (["no-such-model"], "`--model` must be one of"),
        (["small-mlp", "./no-such-data"], "`--data` must be"),
    ],
)
def test_arguments_that_cannot_be_served_are_refused_and_the_port_is_free_again(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    assert cli.run(["serve", *(arguments if "--port" in arguments else [*arguments, "--port", str(port)])]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_help_loads_neither_a_server_nor_torch():
    code = (
        "import sys\nfrom epsball.cli import main as cli\ncli.run(['--help'])\ncli.run(['serve', '--help'])\n"
        "print('LOADED', *(name for name in ('torch', 'fastapi', 'uvicorn', 'PIL') if name in sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENV).stdout
    assert "127.0.0.1 alone" in printed
    assert printed.rstrip().endswith("LOADED")
