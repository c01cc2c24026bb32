"""The result for others to read: a section for a model card in Markdown, and the fields of a RobustBench entry.

RobustBench (Croce et al., NeurIPS 2021 Datasets and Benchmarks) keeps an entry as model_info/DATASET/THREAT/NAME.json:
accuracies are percentages as text, the threat model is the folder. What only a model's authors know is null.
"""

from __future__ import annotations

import json
import re
from typing import Any

from epsball.report.page import counted, percent
from epsball.report.run import Run

STANDARD = ["standard"]
"""The protocol that is AutoAttack's list."""


def markdown(run: Run) -> str:
    """A section for a model card."""
    found, config = run.found, run.config
    low, high = found.interval
    rows = [
        ("threat model", f"{run.ball}, radii in the units of the data"),
        ("data", f"{config['data']['name']}, {counted(len(found))} examples"),
        ("clean accuracy", percent(found.clean_accuracy)),
    ]
    if run.target is not None:
        rows.append(("target", run.target))
    if config["min_norm"]:
        rows += [(f"{share:.0%} are misclassified within", f"{far:.4g}") for share, far in found.quantiles()]
    else:
        for eps, share in found.curve[:-1]:
            rows.append((f"{run.what} at {run.spelled(eps)}", percent(share)))
        share = percent(found.robust_accuracy)
        if found.robust_accuracy_at_most > found.robust_accuracy:
            share += f" to {percent(found.robust_accuracy_at_most)}"
        rows.append((f"**{run.what}**", f"**{share}**"))
        rows.append(("95 % interval", f"{100 * low:.1f} to {100 * high:.1f} %"))
        if found.certifies:
            rows.append(("**certified accuracy**", f"**{percent(found.certified_accuracy)}**"))
            rows.append(("undecided", f"{counted(found.undecided)} examples"))
    rows += [
        ("attacks (worst case per example)", ", ".join(dict.fromkeys(row.stage.attack for row in run.attacks))),
        ("model calls", f"{counted(found.forwards)} forward passes, {counted(found.backwards)} backward passes"),
        ("seed", str(config["seed"])),
        ("versions", f"epsball {config['epsball']}, torch {config['torch']}"),
    ]
    lines = ["## Adversarial robustness", "", "| what | value |", "| --- | --- |"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    lines += ["", " ".join(map(_text, (*run.caveats, *run.doubts)))]
    for test in (run.diagnosis, found.binarization_test):
        if test is not None:
            lines += ["", _text(test.sentence)]
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", run.command_line)), default=2))
    if run.command_line:
        lines += ["", "Measured with", "", f"{fence}console", run.command_line, fence]
    return "\n".join(lines) + "\n"


def robustbench(run: Run) -> dict[str, Any]:
    """The entry's fields; `autoattack_acc` is set where the run was AutoAttack's list, unchanged, on the model."""
    found, config = run.found, run.config
    standard = config["protocol"] == STANDARD and not (
        config["min_norm"]
        or config["target"]
        or config["source"]
        or config["storage"]["x_adv"] == "8bit"
        or config.get("reaction")
        or config["eot"] > 1
        or found.certifies  # which attacks with more than the list
    )
    robust = None if config["min_norm"] or config["target"] or found.exhausted else _points(found.robust_accuracy)
    eps = None if run.radius is None else run.spelled(run.radius)
    attacks = ", ".join(dict.fromkeys(row.stage.attack for row in run.attacks))
    return {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": None,
        "number_forward_passes": config["eot"],
        "dataset": config["data"]["name"],
        "venue": None,
        "architecture": run.model,
        "threat_model": config["ball"]["class"],
        "eps": eps,
        "clean_acc": _points(found.clean_accuracy),
        "reported": robust,
        "autoattack_acc": robust if standard else None,
        "external": None,
        "unreliable": None if run.diagnosis is None else run.diagnosis.unreliable,
        "footnote": f"Measured by epsball {config['epsball']} on {counted(len(found))} examples, seed "
        f"{config['seed']}: worst case of {attacks}.",
    }


def robustbench_text(run: Run) -> str:
    """The entry as a file."""
    return json.dumps(robustbench(run), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _points(share: float) -> str | None:
    return None if share != share else f"{100 * share:.2f}"


def _text(text: str) -> str:
    """A text in Markdown: nothing in it is markup."""
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", text.replace("\n", " "))


def _cell(text: str) -> str:
    bold = text.startswith("**") and text.endswith("**")
    inner = _text(text.strip("*") if bold else text)
    return f"**{inner}**" if bold else inner
