"""What a command line leaves out, out of a file: --config, and the training that --resume continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from epsball.cli.common import TRUST, limited_as_before
from epsball.common.config import read_toml
from epsball.common.errors import BadInput
from epsball.models.doors import needs_trust

COMMAND = "command.json"
OWN = {"config", "json", "list", "out", "resume", "tensorboard", TRUST}
"""What a command line says for itself, and no file."""
OUT = Path("trained")
"""The folder of a trained model, unless --out names one."""


def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the options that the command line leaves out the values of the files; cyclopts converts and checks them."""
    known = {
        name.removeprefix("--").replace("-", "_"): argument
        for argument in arguments
        for name in argument.names
        if name.startswith("--") and not name.startswith("--no-")
    }

    def take(values: dict[str, Any], source: Path) -> None:
        for name in reversed(commands):  # else an option with the name of a command, such as certify, is left out
            values = {name: values}
        Dict(values, source=str(source))(app, commands, arguments)

    def given(name: str) -> str | None:
        tokens = known[name].tokens if name in known else ()
        return tokens[-1].value if tokens else None

    if (config := given("config")) is not None:
        take(read_toml(config, sorted(set(known) - {"config", TRUST})), Path(config))
    if "resume" in known and known["resume"].tokens and str(given("resume")).lower() != "false":
        out = Path(given("out") or OUT).expanduser()
        if (out / COMMAND).exists():
            asked = asked_before(out)
            before = {name: value for name, value in asked.items() if value is not None and name in set(known) - OWN}
            spec = before.get("model")
            if spec is not None and given("model") is None and not known[TRUST].tokens and needs_trust(str(spec)):
                raise BadInput(
                    f"{out / COMMAND} names the network {spec}, which is code that was not run; where you trust it, "
                    f"add --model {spec}, or --trust"
                )
            take(before, out / COMMAND)


def asked_before(out: Path) -> dict[str, Any]:
    """The options of the training in a folder."""
    from epsball.common.json_files import read_json

    asked = read_json(out / COMMAND, "choose a new directory").get("asked")
    if not isinstance(asked, dict):
        raise BadInput(f"{out / COMMAND} must be that of a training, and is not; choose a new directory")
    return limited_as_before(asked)
