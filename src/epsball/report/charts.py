"""The figures of a report: robust accuracy after each attack or over the radius, and distances.

Plain dictionaries as plotly's script reads them. Each comes with a sentence and a table that state the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from epsball.common.intervals import wilson
from epsball.report.page import Chart, Table, begun, counted, percent, plain
from epsball.report.run import Run

STEPS = 400
"""The most points that a curve over distances is drawn with."""
BINS = 30
"""Columns of the records, in the order in which one takes the place of another."""
AXIS = {"gridcolor": "--line", "zerolinecolor": "--line", "linecolor": "--line", "automargin": True, "fixedrange": True}
LINES = ("--series-1", "--series-2", "--series-3", "--series-4", "--series-5")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def curve(run: Run) -> Chart:
    """Robust accuracy: after each attack, over radii, or over distances, as the run was."""
    if run.config["min_norm"]:
        return _over_distances(run)
    return _over_radii(run) if len(run.config["radii"]) > 1 else _after_each(run)


def _after_each(run: Run) -> Chart:
    rows = run.attacks
    low, high = run.found.interval
    ends = [(len(rows), run.found.robust_accuracy, (low, high))]
    whole = 1.0 if run.config["target"] else run.found.clean_accuracy
    bars = [("before attacks" if run.config["target"] else "clean", whole, "--clean")]
    for at, row in enumerate(rows):
        worst = at == len(rows) - 1
        name = f"after {row.stage.attack}" + " (control)" * row.control + " = worst case" * worst
        bars.append((name, row.accuracy, "--worst" if worst else "--control" if row.control else "--series-3"))
    roles = [("clean", ""), *((row.stage.attack, ", control" * row.control) for row in rows)]
    roles[-1] = (roles[-1][0], roles[-1][1] + ", worst case" * bool(rows))
    if run.found.certifies:
        bars.append(("proved robust", run.found.certified_accuracy, "--good"))
        roles.append(("proved robust", ", lower end"))
        ends.append((len(rows) + 1, run.found.certified_accuracy, run.found.certified_interval))
    ticks = [(tick if at else bars[0][0], role, bars[at]) for at, (tick, role) in enumerate(roles)]
    names, shares, colours = (list(part) for part in zip(*bars, strict=True))
    at = [f"{n}" for n in range(len(bars))]  # attacks of one name are bars of their own
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "y": at,
            "x": _finite(shares),
            "marker": {"color": colours},
            "customdata": [plain(name) for name in names],
            "hovertemplate": "%{customdata}: %{x:.2%}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": _finite([share for _, share, _ in ends]),
            "y": [at[bar] for bar, _, _ in ends],
            "marker": {"color": "--ink", "size": 2},
            "hoverinfo": "skip",
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": _finite([upper - share for _, share, (_, upper) in ends]),
                "arrayminus": _finite([share - lower for _, share, (lower, _) in ends]),
                "color": "--ink",
            },
        },
    ]
    axis = AXIS | {
        "range": [0, 1],
        "tickformat": ".0%",
        "title": {"text": run.what if run.config["target"] else "accuracy"},
    }
    layout = {
        "xaxis": axis,
        "yaxis": AXIS
        | {
            "autorange": "reversed",
            "tickvals": at,
            "ticktext": [f"{plain(_short(tick))}<br>{percent(bar[1])}{role}" for tick, role, bar in ticks],
            "showgrid": False,
            "type": "category",
        },
        "showlegend": False,
        "bargap": 0.35,
    }
    table = Table(
        ("examples", run.what if run.config["target"] else "accuracy"),
        tuple((name, percent(share)) for name, share in zip(names, shares, strict=True)),
        f"The worst case has the 95 % interval {100 * low:.1f} to {100 * high:.1f} %.",
    )
    listed = ", ".join(f"{name} {percent(share)}" for name, share in zip(names, shares, strict=True))
    return Chart(
        id="curve",
        title="Both ends of the robust accuracy" if run.found.certifies else "Robust accuracy after each attack",
        description=f"Bars: {listed}.",
        data=data,
        layout=layout,
        table=table,
        height=90 + 48 * len(bars),
        notes=("Bars are cumulative, not the strength of an attack on its own.",),
    )


def _over_radii(run: Run) -> Chart:
    found, radii = run.found, [float(eps) for eps in run.config["radii"] if eps is not None]
    whole = 1.0 if run.config["target"] else found.clean_accuracy
    start = ([0.0], [whole])
    lines: list[tuple[str, list[float], bool]] = []
    for name in dict.fromkeys(row.stage.attack for row in run.attacks):
        rows = {row.stage.eps: row for row in run.attacks if row.stage.attack == name}
        control = any(row.control for row in rows.values())
        if control:  # what it broke on its own
            broke = np.cumsum([rows[eps].stage.fooled if eps in rows else 0 for eps in radii])
            lines.append((f"{name} alone (control)", (whole - broke / max(run.attackable, 1)).tolist(), True))
        else:
            left = dict(found.curve)  # at radii where no example was left to attack
            lines.append((f"after {name}", [rows[e].accuracy if e in rows else left[e] for e in radii], False))
    data: list[dict[str, Any]] = []
    last = "" if not lines or lines[-1][2] else lines.pop()[0]  # the accuracy after it is the worst case
    for at, (name, shares, control) in enumerate(lines):
        colour = "--control" if control else LINES[at % len(LINES)]
        data.append(_line(name, start[0] + radii, start[1] + shares, colour, DASHES[(at + 1) % len(DASHES)], 1.5))
    worst = [accuracy for _, accuracy in found.curve]
    ends = [wilson(round(share * run.attackable), run.attackable) for share in worst]
    name = f"worst case, {last}" if last else "worst case"
    line = _line(name, start[0] + radii, start[1] + worst, "--worst", "solid", 3)
    data.append(line | _intervals(worst, run.attackable, "--worst"))
    proved = [accuracy for _, accuracy in found.certified_curve] if found.certifies else []
    if proved:
        line = _line("proved robust", start[0] + radii, start[1] + proved, "--good", "solid", 3)
        data.append(line | _intervals(proved, run.attackable, "--good") | {"fill": "tonexty", "fillcolor": "--band"})
    table = Table(
        ("eps", *(name for name, _, _ in lines), "worst case", "95 % interval", *["proved robust"] * bool(proved)),
        (
            ("0", *("" for _ in lines), percent(whole), "", *[percent(whole)] * bool(proved)),
            *(
                (
                    run.spelled(eps),
                    *(percent(shares[at]) for _, shares, _ in lines),
                    percent(worst[at]),
                    f"{100 * ends[at][0]:.1f} to {100 * ends[at][1]:.1f} %",
                    *([percent(proved[at])] if proved else []),
                )
                for at, eps in enumerate(radii)
            ),
        ),
    )
    listed = ", ".join(f"{percent(share)} at {run.spelled(eps)}" for eps, share in zip(radii, worst, strict=True))
    if proved:
        below = zip(radii, proved, strict=True)
        listed += "; proved robust are " + ", ".join(f"{percent(share)} at {run.spelled(eps)}" for eps, share in below)
    return Chart(
        id="curve",
        title="Robustness curve",
        description=f"Lines over the radius: {percent(whole)} without attack; in the worst case {listed}.",
        data=data,
        layout=_share_layout(f"radius, {run.symbol}"),
        table=table,
        height=400,
        notes=(
            "A line “after” an attack is the robust accuracy after it and those before it at that radius; an example "
            "that was broken at a smaller radius counts as broken.",
            *["The band between the worst case and what is proved holds the undecided examples."] * bool(proved),
        ),
    )


def _over_distances(run: Run) -> Chart:
    known = np.sort(run.found.distances)
    known = known[~np.isnan(known)]
    at = known[np.isfinite(known)]
    n = max(len(known), 1)
    corners = np.unique(np.linspace(0, len(at) - 1, min(STEPS, len(at))).round().astype(int)) if len(at) else []
    x, y = [0.0], [run.found.accuracy_at(0.0)]
    for corner in corners:
        x.append(float(at[corner]))
        y.append(float((known > at[corner]).sum() / n))
    line = _line("worst case", x, y, "--worst", "solid", 2.5, steps=True)
    quantiles = run.found.quantiles((0.05, 0.25, 0.5, 0.75, 0.95))
    rows = tuple(
        (f"{share:.0%}", f"{far:.4g}" if math.isfinite(far) else "not found", percent(run.found.accuracy_at(far)) if
         math.isfinite(far) else "") for share, far in quantiles
    )  # fmt: skip
    listed = ", ".join(f"{share:.0%} within {far:.4g}" for share, far in quantiles if math.isfinite(far))
    return Chart(
        id="curve",
        title="Robust accuracy at any radius",
        description=f"A falling line: misclassified are {listed}.",
        data=[line],
        layout=_share_layout(f"radius, {run.symbol}") | {"showlegend": False},
        table=Table(("share misclassified", f"within ({run.symbol})", "robust accuracy there"), rows),
        height=400,
    )


def distances(run: Run) -> Chart | None:
    """The distances of the adversarial examples; None where there are none.

    Attacks of a fixed radius end at its edge, where a histogram is a single bar: then the first other norm in which
    the distances differ is drawn.
    """
    known = {column: run.distances(column) for column in ("distance", *run.norms)}
    if not len(known["distance"]):
        return None
    apart = [column for column, far in known.items() if np.quantile(far, 0.05) < 0.99 * far.max()]
    column = apart[0] if apart else "distance"
    own, norm, far = column == "distance", run.norm if column == "distance" else column, known[column]
    top = float(far.max()) or 1.0
    if norm in run.counts:
        edges = np.arange(-0.5, math.floor(top) + 1, max(1, math.ceil(top / BINS)))
        edges = np.append(edges, edges[-1] + max(1, math.ceil(top / BINS)))
    else:
        edges = np.linspace(0 if own else far.min(), top * 1.0001, BINS + 1)
    counts, _ = np.histogram(far, edges)
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    data = [
        {
            "type": "bar",
            "x": middle.tolist(),
            "y": counts.tolist(),
            "width": (width * 0.94).tolist(),
            "marker": {"color": "--series-1"},
            "customdata": [[float(a), float(b)] for a, b in pairwise(edges)],
            "hovertemplate": "%{customdata[0]:.4g} to %{customdata[1]:.4g}: %{y}<extra></extra>",
        }
    ]
    layout: dict[str, Any] = {
        "xaxis": AXIS | {"title": {"text": f"distance, {run.norms[norm]}"}},
        "yaxis": AXIS | {"title": {"text": "examples"}, "rangemode": "tozero"},
        "showlegend": False,
    }
    if run.radius is not None and own:
        line = {"type": "line", "x0": run.radius, "x1": run.radius, "yref": "paper", "y0": 0, "y1": 1}
        layout["shapes"] = [line | {"line": {"color": "--worst", "width": 2, "dash": "dash"}}]
        layout["annotations"] = [
            {"x": run.radius, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "right", "showarrow": False,
             "text": f"eps {run.spelled(run.radius)}", "font": {"color": "--worst"}}
        ]  # fmt: skip
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    rows = tuple(
        (run.norms[name], *(f"{float(np.quantile(known[name], share, method='inverted_cdf')):.4g}" for share in shares))
        for name in run.norms
    )
    notes = []
    if not run.config["min_norm"]:
        drawn = "" if own else f", so that {run.norms[norm]} is drawn"
        edge = f"Attacks of a fixed radius end at its edge ({run.symbol}, ε = {run.spelled(run.radius)}){drawn}"
        notes.append(f"{edge}; epsball evaluate --min-norm searches minimum-norm adversarial examples.")
    return Chart(
        id="distances",
        title="Distances of the adversarial examples",
        description=f"A histogram of {counted(len(far))} distances in {run.norms[norm]} from {far.min():.4g} to "
        f"{far.max():.4g}, half of them within {float(np.median(far)):.4g}.",
        data=data,
        layout=layout,
        table=Table(("norm", *(f"{share:.0%} within" for share in shares)), rows),
        notes=tuple(notes),
    )


def together(runs: Sequence[tuple[str, Run]], norm: str, what: str) -> Chart:
    """The curves of several runs in balls of one norm; `what` is what their figure is called."""
    data, rows = [], []
    for at, (name, run) in enumerate(runs):
        colour, dash = LINES[at % len(LINES)], DASHES[(at + at // len(LINES)) % len(DASHES)]
        if run.config["min_norm"]:
            trace = _over_distances(run).data[0]
            data.append(trace | {"name": plain(_short(name)), "line": trace["line"] | {"color": colour, "dash": dash}})
            points = [(far, 1 - share) for share, far in run.found.quantiles((0.25, 0.5, 0.75)) if math.isfinite(far)]
        else:
            whole = 1.0 if run.config["target"] else run.found.clean_accuracy
            points = [(0.0, whole), *run.found.curve]
            drawn = [(float(eps), share) for eps, share in points if eps is not None]
            line = _line(name, [x for x, _ in drawn], [y for _, y in drawn], colour, dash, 2.5)
            data.append(line | _intervals([share for _, share in drawn[1:]], run.attackable, colour))
            if run.found.certifies:
                proved = [(float(eps), share) for eps, share in run.found.certified_curve if eps is not None]
                data.append(
                    _line(
                        f"{name}, proved",
                        [0.0, *(x for x, _ in proved)],
                        [whole, *(y for _, y in proved)],
                        colour,
                        dash,
                        1,
                    )
                )
        rows += [(name, "0" if eps == 0 else run.spelled(eps), percent(share)) for eps, share in points]
    listed = "; ".join(
        f"{name}, clean {percent(run.found.clean_accuracy)}"
        + ("" if run.config["min_norm"] else f", worst case {percent(run.found.robust_accuracy)}")
        for name, run in runs
    )
    return Chart(
        id=f"curve-{norm}" + "-target" * (what != "robust accuracy"),
        title=f"{begun(what)} over the radius, {norm}",
        description=f"One line for each run: {listed}.",
        data=data,
        layout=_share_layout(f"radius, {norm}", what),
        table=Table(("run", "eps", what), tuple(rows)),
        height=400,
        notes=("Points are the radii of the runs, with 95 % intervals; lines only connect them.",),
    )


def _line(
    name: str, x: Sequence[float], y: Sequence[float], colour: str, dash: str, width: float, *, steps: bool = False
):
    return {
        "type": "scatter",
        "mode": "lines" if steps else "lines+markers",
        "name": plain(_short(name)),
        "x": list(x),
        "y": _finite(y),
        "line": {"color": colour, "width": width, "dash": dash, "shape": "hv" if steps else "linear"},
        "hovertemplate": f"{plain(name)}, %{{x:.4g}}: %{{y:.2%}}<extra></extra>".replace("%{x", "eps %{x"),
    }


def _intervals(shares: Sequence[float], n: int, colour: str) -> dict[str, Any]:
    """The 95 % intervals of a line's points but for its first, which is not attacked."""
    ends = [wilson(round(share * n), n) for share in shares]
    return {
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [0, *_finite([high - share for share, (_, high) in zip(shares, ends, strict=True)])],
            "arrayminus": [0, *_finite([share - low for share, (low, _) in zip(shares, ends, strict=True)])],
            "color": colour,
            "thickness": 1.5,
        }
    }


def _share_layout(x: str, y: str = "accuracy") -> dict[str, Any]:
    return {
        "xaxis": AXIS | {"title": {"text": plain(x)}, "rangemode": "tozero"},
        "yaxis": AXIS | {"title": {"text": y}, "range": [0, 1.02], "tickformat": ".0%"},
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    }


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _finite(values: Sequence[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
