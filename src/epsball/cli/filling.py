"""What a command line leaves out, out of a file: --config, and the training that --resume goes on with."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput

COMMAND = "command.json"
OUT = Path("trained")
"""Where a model is kept, if nothing is said."""


def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the options that the command line leaves out the values of the files; cyclopts converts and checks them."""
    known = {
        name.removeprefix("--"): argument
        for argument in arguments
        for name in argument.names
        if name.startswith("--") and not name.startswith("--no-")
    }

    def take(values: dict[str, Any], source: str) -> None:
        Dict(values, source=source, use_commands_as_keys=False)(app, commands, arguments)

    def said(name: str) -> str | None:
        tokens = known[name].tokens
        return tokens[-1].value if tokens else None

    if (config := said("config")) is not None:
        take(_named(Path(config).expanduser(), set(known) - {"config"}), config)
    if known["resume"].tokens and str(said("resume")).lower() != "false":
        out = Path(said("out") or OUT).expanduser()
        if (out / COMMAND).exists():
            kept = {name: value for name, value in asked_before(out).items() if value is not None}
            take({name: value for name, value in kept.items() if name.replace("_", "-") in known}, str(out / COMMAND))


def asked_before(out: Path) -> dict[str, Any]:
    """What the training in a folder was asked for."""
    from epsball.common.json_files import read_json

    asked = read_json(out / COMMAND, "choose a new directory").get("asked")
    if not isinstance(asked, dict):
        raise BadInput(f"{out / COMMAND} must be that of a training, and is not; choose a new directory")
    return asked


def _named(path: Path, known: set[str]) -> dict[str, Any]:
    """The values of a TOML file, whose names must be those of options."""
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise BadInput(f"`--config` must be a TOML file, got {path}: {error}; a line of it is epochs = 5") from error
    for name in values:
        check_one_of(f"--config {path}: name", name.replace("_", "-"), sorted(known))
    return values
