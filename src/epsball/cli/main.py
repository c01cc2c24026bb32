"""The command line: one command per file, each parses, calls one library function, and prints.

`EXIT_CODES` lists what a command exits with. No module here imports torch before a command runs, so that `--help`
answers at once.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence

import cyclopts
from rich.console import Console
from rich.markup import escape

from epsball.cli.attack import attack
from epsball.cli.attacks import attacks
from epsball.cli.certify import certify
from epsball.cli.compare import compare
from epsball.cli.evaluate import evaluate
from epsball.cli.explain import explain
from epsball.cli.filling import fill
from epsball.cli.linear import linear
from epsball.cli.models import models
from epsball.cli.report import report
from epsball.cli.reproduce import reproduce
from epsball.cli.serve import serve
from epsball.cli.status import status
from epsball.cli.train import train
from epsball.cli.verify import verify
from epsball.common.errors import BadInput
from epsball.common.printable import printable
from epsball.common.version import __version__

EXIT_CODES = {
    0: "done",
    1: "a result that does not hold: robust accuracy below --fail-under or not to be relied on, a run that does not "
    "verify, or is not finished (status)",
    2: "bad usage, or a file that cannot be read or written",
    70: "a crash: an error in your model, or in epsball",
    130: "interrupted",
}
BAD_USAGE = 2
INTERRUPTED = 130
CRASHED = 70
"""Neither bad usage nor a result: an error in the user's model, or in epsball."""
LINES = "\n\t"
"""What messages have beside printed characters; anything else of a file may be an order to the terminal."""

app = cyclopts.App(
    name="epsball",
    help="Measure robust accuracy: attack each example within a ball, and re-verify what is found.",
    help_epilogue="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    version=__version__,
    help_format="markdown",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command(evaluate, config=fill)
app.command(status)
app.command(verify)
app.command(compare)
app.command(report)
app.command(train, config=fill)
app.command(attack)
app.command(attacks)
app.command(certify)
app.command(models)
app.command(explain)
app.command(reproduce)
app.command(linear)
app.command(serve)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    errors = Console(stderr=True, highlight=False, emoji=False)
    warnings.showwarning = lambda message, *_, **__: errors.print(
        f"[yellow]warning:[/] {escape(printable(str(message), keep=LINES))}", soft_wrap=True
    )
    try:
        return app(arguments, exit_on_error=False, print_error=False, error_console=errors) or 0
    except cyclopts.CycloptsError as error:
        return _refused(errors, error)
    except BadInput as error:
        return _refused(errors, in_flags(str(error), arguments))
    except (OSError, ArithmeticError) as error:
        return _refused(errors, error)
    except MemoryError as error:
        return _refused(errors, str(error) or "there is not enough memory; take fewer or smaller examples")
    except KeyboardInterrupt as interrupt:
        where, how = (*interrupt.args, None, None)[:2]
        remedy = f" What is finished is in {where}; {how or 'the same command'} resumes it." if where else ""
        errors.print(f"interrupted.{remedy}", markup=False, soft_wrap=True)
        return INTERRUPTED
    except Exception:
        errors.print_exception(width=None)
        return CRASHED


def in_flags(message: str, arguments: Sequence[str]) -> str:
    """An error of the library in the words of the command line: a name in backticks that is a flag becomes the flag.

    Of a flag with several names it is the one that was given.

    >>> in_flags("`batch_size` must be a whole number >= 1, got 0", ["evaluate", "--batch-size", "0"])
    '`--batch-size` must be a whole number >= 1, got 0'
    >>> in_flags("`limit` must be a whole number >= 1, got 0", ["evaluate", "--sample=0"])
    '`--sample` must be a whole number >= 1, got 0'
    """
    _, commands, _ = app.parse_commands(arguments)
    given = {argument.split("=")[0] for argument in arguments}
    flags: dict[str, str] = {}
    for argument in commands[-1].assemble_argument_collection():
        same = [name for name in argument.names if name not in argument.negatives]
        flags |= {name: name for name in argument.names}
        flags |= {name: next((one for one in same if one in given), name) for name in same}

    def written(match: re.Match[str]) -> str:
        flag = flags.get(f"--{match[1].replace('_', '-')}")
        return match[0] if flag is None else f"`{flag}{match[2]}`"

    return re.sub(r"`(\w+)([^`]*)`", written, message)


def _refused(errors: Console, error: Exception | str) -> int:
    errors.print(f"[red]epsball:[/] {escape(printable(str(error), keep=LINES))}", soft_wrap=True)
    return BAD_USAGE
