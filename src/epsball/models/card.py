"""The model card of a folder: Markdown for people, with the YAML header that the Hugging Face Hub reads.

Every text in the header is written as JSON, which YAML reads as it is: no name can break it.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epsball.models.folder import Accuracies, ModelRecord

ATTACKS = {"clean": "clean", "fgsm": "FGSM", "pgd": "PGD-10"}
OF_THE_DATA = ("data", "image_column", "label_column", "ball", "lo", "hi")
"""What an evaluation has to be asked in the same words as the training."""


def evaluation(path: str | Path, asked: dict[str, Any]) -> list[str]:
    """The command that evaluates a folder on the data and in the ball of its training.

    >>> evaluation("runs/a", {"data": "digits", "ball": "linf:0.1", "lo": -1.0, "hi": None})
    ['epsball', 'evaluate', '--model', 'runs/a', '--data', 'digits', '--ball', 'linf:0.1', '--lo=-1.0']
    """
    words = ["epsball", "evaluate", "--model", str(path)]
    for name in OF_THE_DATA:
        if (value := asked.get(name)) is not None:
            flag = f"--{name.replace('_', '-')}"
            words += [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
    return words


def markdown(record: ModelRecord, path: Path) -> str:
    """The card of a model that is kept in `path`."""
    name = path.resolve().name or "model"
    config, asked = record.training["config"], record.asked
    objective, ball = asked.get("objective") or config["objective"], asked.get("ball") or config["ball"]
    within = f" in the ball `{ball}`" if ball else ""
    size = "x".join(map(str, record.shape))
    lines = [
        *_header(record, name),
        "",
        f"# {name}",
        "",
        f"A classifier of {record.classes} {'logit' if record.classes == 1 else 'logits'} for examples of {size}: "
        f"`{record.spec}` with {config['parameters']:,} trained parameters, trained by epsball with the objective "
        f"`{objective}`{within}. Radii are in the units of the data.",
    ]
    if record.accuracies:
        lines += ["", "## Accuracy", "", *_table(record.accuracies)]
    if any(part.fgsm is not None for part in record.accuracies):
        lines += ["", f"FGSM and PGD-10 attack each example{within}: upper bounds, a stronger attack may find more."]
    if record.label_names and record.label_names != tuple(map(str, range(record.classes))):
        lines += ["", "## Classes", "", ", ".join(f"{i}: {label}" for i, label in enumerate(record.label_names))]
    command = shlex.join(evaluation(path, asked))
    lines += [
        "",
        "## Evaluate",
        "",
        "From where it was trained; elsewhere, name this folder and the data as they are found there.",
        "",
        "```console",
        command,
        f"{command} --attacks standard  # AutoAttack's list",
        "```",
        "",
        "## Load",
        "",
        "```python",
        "from epsball.models.folder import read_model_folder",
        "",
        f"model = read_model_folder({json.dumps(str(path))})  # a torch module: examples to logits",
        "```",
    ]
    if ":" in record.spec and "=" not in record.spec:
        lines += ["", f"The network is made by `{record.spec}`, which has to be importable; it is not in this folder."]
    lines += ["", "## Training", "", *_training(record)]
    return "\n".join(lines) + "\n"


def _header(record: ModelRecord, name: str) -> list[str]:
    task = "image-classification" if len(record.shape) in (2, 3) else "tabular-classification"
    lines = ["---", "library_name: pytorch", f"pipeline_tag: {task}"]
    lines += ["tags:", "- epsball", "- adversarial-training", "- adversarial-robustness"]
    if not record.accuracies:
        return [*lines, "---"]
    data = str(record.asked.get("data") or record.training["config"]["data"])
    lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
    for part in record.accuracies:
        lines += ["  - task:", f"      type: {task}", "    dataset:"]
        lines += [f"      type: {json.dumps(data)}", f"      name: {json.dumps(f'{data}, {part.on}')}", "    metrics:"]
        for attack, said in ATTACKS.items():
            if (share := getattr(part, attack)) is not None:
                what = f"accuracy, {said}, {part.examples} examples"
                lines += ["    - type: accuracy", f"      name: {json.dumps(what)}", f"      value: {share:.6g}"]
    return [*lines, "---"]


def _table(accuracies: tuple[Accuracies, ...]) -> list[str]:
    shown = [name for name in ATTACKS if any(getattr(part, name) is not None for part in accuracies)]
    lines = [f"| examples | n | {' | '.join(ATTACKS[name] for name in shown)} |"]
    lines.append(f"| --- | ---: | {' | '.join('---:' for _ in shown)} |")
    for part in accuracies:
        shares = (getattr(part, name) for name in shown)
        said = " | ".join("" if share is None else f"{share:.2%}" for share in shares)
        lines.append(f"| {part.on} | {part.examples:,} | {said} |")
    return lines


def _training(record: ModelRecord) -> list[str]:
    """What it was asked for, what it was made with, and how long it took."""
    training, config = record.training, record.training["config"]
    told = {**config, **record.asked, "seconds": f"{training['seconds']:.1f}"}
    versions = told.pop("versions", {})
    told["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = ["| what | value |", "| --- | --- |"]
    for name, value in told.items():
        if value is not None and not isinstance(value, dict):
            text = str(value).replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {name.replace('_', ' ')} | {text} |")
    return lines
