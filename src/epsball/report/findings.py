"""One page for a folder of findings: each hypothesis, the sentence that answers it, and the figure.

It reads PNG files and text, and needs no torch.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epsball.common.version import __version__
from epsball.report import page

INDEX, PAGE = "index.md", "index.html"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A hypothesis and what became of it: a `sentence` and a figure `NAME.png`, or the `reason` why there is none."""

    name: str
    title: str
    claim: str
    sentence: str
    reason: str


def write_findings(entries: Sequence[Entry], about: Sequence[tuple[str, str]], out: Path) -> None:
    """Write OUT/index.html, one file with the figures in it, and OUT/index.md, which names them.

    `about` are (what, value) pairs: the model, the data, the ball. The figures of the entries with a sentence must be
    in `out` already.
    """
    page.write(out / INDEX, markdown(entries, about))
    pictures = {
        entry.name: base64.b64encode((out / f"{entry.name}.png").read_bytes()).decode()
        for entry in entries
        if entry.sentence
    }
    text = page.render(
        "findings.html",
        charts=(),
        title="Why there are adversarial examples",
        made_by=f"epsball {__version__}",
        entries=entries,
        about=about,
        pictures=pictures,
    )
    page.write(out / PAGE, text)


def markdown(entries: Sequence[Entry], about: Sequence[tuple[str, str]]) -> str:
    """The same as Markdown, with links to the figures.

    >>> entry = Entry(name="l1", title="L1", claim="It is.", sentence="It is not.", reason="")
    >>> print(markdown([entry], [("data", "x")]))
    # Why there are adversarial examples
    <BLANKLINE>
    - data: `x`
    <BLANKLINE>
    ## L1
    <BLANKLINE>
    *It is.*
    <BLANKLINE>
    It is not.
    <BLANKLINE>
    ![L1](l1.png)
    <BLANKLINE>
    """
    lines = ["# Why there are adversarial examples", ""]
    lines += [f"- {what}: `{value}`" for what, value in about]
    for entry in entries:
        lines += ["", f"## {entry.title}", "", f"*{entry.claim}*", ""]
        lines += [entry.sentence, "", f"![{entry.title}]({entry.name}.png)"] if entry.sentence else [_not(entry)]
    return "\n".join(lines) + "\n"


def _not(entry: Entry) -> str:
    return f"Not measured: {entry.reason}"
