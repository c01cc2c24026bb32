"""`report.html`: what an evaluation found, in one file; or several runs side by side.

Everything is read from run directories; no model, no data and no torch are needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from epsball.balls.written import ball_text
from epsball.common.errors import BadInput
from epsball.common.version import __version__
from epsball.evaluation.compare import Comparison, compare
from epsball.evaluation.result import Evaluation
from epsball.report import page
from epsball.report.card import markdown, robustbench_text
from epsball.report.charts import curve, distances, together
from epsball.report.confusion import confusion
from epsball.report.gallery import SHOWN, gallery
from epsball.report.page import Table, counted, percent
from epsball.report.run import Run

REPORT, CARD, ROBUSTBENCH, COMPARISON = "report.html", "card.md", "robustbench.json", "comparison.html"


@dataclass(frozen=True)
class NearerRun:
    """Two minimum-norm runs on the same `n` examples: how often is which run's adversarial example the nearer one?"""

    n: int
    a: int
    b: int
    ratio: float
    """The median of B's distance over A's, where both are above 0 and finite."""


@dataclass(frozen=True)
class Pair:
    """Two runs: their comparison, or why there is none."""

    a: str
    b: str
    found: Comparison | None
    why: str
    nearer: NearerRun | None = None


def write_report(
    run: str | Path, out: str | Path | None = None, *, found: Evaluation | None = None, examples: int = SHOWN
) -> Path:
    """Write the report of the run in a directory; where it is.

    It goes to `out`, a file, or into the run's directory, then with `card.md`, a section for a model card, and
    `robustbench.json`, the fields of a RobustBench entry, beside it. `found` is what `Evaluation.load(run)` would
    give, where that is there already; `examples` is the most that the gallery shows. Of a run that is not finished the
    page rests on the finished shards, and begins with how many examples those are; there is no card and no entry.

    Raises `BadInput` for a directory that holds no run, or one of which no shard is finished.
    """
    if examples < 0:
        raise BadInput(f"`examples` must be >= 0, got {examples}; 0 leaves the gallery out")
    read = Run.load(run, found or Evaluation.load(run, partial=True))
    at = read.path / REPORT if out is None else Path(out)
    page.write(at, of_run(read, examples))
    if out is None and not read.found.shards_missing:
        page.write(read.path / CARD, markdown(read))
        page.write(read.path / ROBUSTBENCH, robustbench_text(read))
    return at


def write_comparison(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write one file that puts several finished runs side by side; where it is.

    The first run is compared with each of the others. Runs on other data are shown, and not compared.

    Raises `BadInput` for a directory that holds no finished run, and for fewer than two.
    """
    if len(runs) < 2:
        raise BadInput(f"`runs` must be two runs or more, got {len(runs)}; epsball report RUN is for one")
    page.write(Path(out), of_runs([Run.load(run) for run in runs]))
    return Path(out)


def of_run(run: Run, examples: int = SHOWN) -> str:
    """The report of one run, as HTML."""
    charts = [chart for chart in (curve(run), distances(run)) if chart is not None]
    return page.render(
        "run.html",
        charts=charts,
        title=f"{run.name}: robustness report",
        run=run,
        found=run.found,
        curve=charts[0],
        distances=charts[1] if len(charts) > 1 else None,
        tiles=_tiles(run),
        costs=_costs(run),
        confusion=confusion(run),
        gallery=gallery(run, examples),
        settings=_settings(run),
        config_text=(run.path / "config.json").read_text(),
        made_by=f"epsball {__version__}",
    )


def of_runs(runs: Sequence[Run]) -> str:
    """The comparison of several runs, as HTML."""
    names = _names(runs)
    named = list(zip(names, runs, strict=True))

    def comparable(pair: tuple[str, Run]) -> tuple[str, str]:
        return pair[1].norm, pair[1].what

    groups = groupby(sorted(named, key=comparable), key=comparable)
    charts = [together(list(group), norm, what) for (norm, what), group in groups]
    return page.render(
        "comparison.html",
        charts=charts,
        title=f"{', '.join(names)}: comparison",
        named=named,
        shown=charts,
        pairs=[_pair(named[0], other) for other in named[1:]],
        made_by=f"epsball {__version__}",
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' names: their directories, or their whole paths where directories are called alike."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    return names


def _pair(first: tuple[str, Run], second: tuple[str, Run]) -> Pair:
    minimum_norm = [name for name, run in (first, second) if run.config["min_norm"]]
    if len(minimum_norm) == 2 and (nearer := _nearer(first[1], second[1])) is not None:
        return Pair(first[0], second[0], None, "", nearer)
    if minimum_norm:
        why = f"{' and '.join(minimum_norm)} searched minimum-norm adversarial examples; the curves above show them"
        return Pair(first[0], second[0], None, why)
    try:
        return Pair(first[0], second[0], compare(first[1].found, second[1].found), "")
    except BadInput as error:
        return Pair(first[0], second[0], None, str(error))


def _nearer(a: Run, b: Run) -> NearerRun | None:
    if a.norm != b.norm or a.config["data"]["digest"] != b.config["data"]["digest"]:
        return None
    one, two = a.found.distances, b.found.distances
    known = ~(np.isnan(one) | np.isnan(two))
    both = known & np.isfinite(one) & np.isfinite(two) & (one > 0) & (two > 0)
    ratio = float(np.median(two[both] / one[both])) if both.any() else math.nan
    return NearerRun(int(known.sum()), int((one < two)[known].sum()), int((two < one)[known].sum()), ratio)


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """The figures at the top: what, the figure, and what belongs to it."""
    found = run.found
    tiles = [("clean accuracy", percent(found.clean_accuracy), f"{counted(len(found))} examples")]
    if run.config["min_norm"]:
        tiles += [
            (f"{share:.0%} are misclassified within", f"{far:.4g}", run.symbol)
            for share, far in found.quantiles((0.25, 0.5))
        ]
    else:
        low, high = found.interval
        tiles.append((run.what, percent(found.robust_accuracy), f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"))
        if found.certifies:
            low, high = found.certified_interval
            interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
            tiles.append(("certified accuracy", percent(found.certified_accuracy), interval))
            tiles.append(("undecided", counted(found.undecided), "examples neither broken nor proved robust"))
        ball = ball_text(run.symbol, run.config["radii"][-1], *(run.box or ()))
        tiles.append(("ball", ball, "radius in the units of the data"))
    backwards = f"{counted(found.backwards)} backward passes, {found.seconds:.1f} s"
    tiles.append(("forward passes", counted(found.forwards), backwards))
    if (box := run.config.get("black_box")) is not None:
        limit = "no budget" if box["budget"] is None else f"budget {counted(box['budget'])} per example and radius"
        tiles.append(("queries", counted(found.queries), limit))
    return tiles


def _costs(run: Run) -> Table:
    """The forward passes by purpose."""
    purposes = {
        "clean": "clean predictions",
        "attack": "attacks, up to each answer",
        "speculative": "jobs that a lower restart made needless",
        "padding": "rows that only filled a batch",
        "verification": "verification of stored adversarial examples",
        "probes": "checks of the model before the run",
    }
    rows = tuple((purposes[name], counted(count)) for name, count in run.found.cost.items())
    return Table(
        ("forward passes", "examples"),
        (*rows, ("all", counted(run.found.forwards))),
        f"Backward passes: {counted(run.found.backwards)}.",
    )


def _search(seconds: float | None) -> str | None:
    """What was spent on proofs, for people."""
    if seconds is None:
        return None
    return f"{seconds:g} s per example" if seconds else "none: bounds alone"


def _settings(run: Run) -> list[tuple[str, str]]:
    """The configuration, for people."""
    config, data = run.config, run.config["data"]
    ends = config["ball"]["lo"], config["ball"]["hi"]
    box = "" if run.box else ", no box" if ends == ("-inf", "inf") else f", box {ends[0]} to {ends[1]}"
    plan = config.get("acceleration")
    rows: list[tuple[str, Any]] = [
        ("model", run.model),
        ("model's fingerprint", config["model"]),
        ("attacked instead (transfer)", config["source"]),
        ("data", f"{data['name']}: {counted(data['n'])} examples, {'x'.join(map(str, data['shape'])) or 'numbers'}"),
        ("data's fingerprint", f"{data['digest']}, {data['dtype']}"),
        ("ball", run.ball + box),
        ("mask", config["ball"]["mask"]),
        ("radii", ", ".join(run.spelled(eps) for eps in config["radii"]) if len(config["radii"]) > 1 else None),
        ("protocol", ", ".join(config["protocol"])),
        ("target", run.target),
        ("success", config["success"]),
        ("storage", f"adversarial examples {config['storage']['x_adv']}, their originals {config['storage']['x']}"),
        ("forward passes averaged (eot)", config["eot"]),
        ("seed", config["seed"]),
        ("batch size", (config.get("batch_size_found") or {}).get("why") or config["batch_size"]),
        ("drafts", config.get("draft")),
        ("search for proofs", _search(config.get("certify"))),
        ("accelerated", None if plan is None else f"{plan['rewriting']}, {plan['ratio']:.2f} of the original's time"),
        ("machine", config["machine"]),
        ("versions", f"epsball {config['epsball']}, torch {config['torch']}"),
        ("directory", run.path.resolve()),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]
