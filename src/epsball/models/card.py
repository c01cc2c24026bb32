"""The model card of a folder: Markdown for people, with the YAML header that the Hugging Face Hub reads.

Every text in the header is written as JSON, which is valid YAML: no name can break it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epsball.models.model_record import Accuracies, ModelRecord, is_factory

ATTACKS = {"clean": "clean", "fgsm": "FGSM", "pgd": "PGD-10"}
DATA_OPTIONS = ("data", "data_config", "image_column", "label_column", "ball", "lo", "hi")
"""The options that an evaluation shares with the training."""


def evaluate_command(path: str | Path, options: Mapping[str, Any], *, spec: str = "") -> list[str]:
    """The command that evaluates a folder, whose network is `spec`, on the data and in the ball of its training.

    >>> evaluate_command("runs/a", {"data": "digits", "ball": "linf:0.1", "lo": -1.0, "hi": None})
    ['epsball', 'evaluate', '--model', 'runs/a', '--data', 'digits', '--ball', 'linf:0.1', '--lo=-1.0']
    """
    words = ["epsball", "evaluate", "--model", str(path)]
    for name in DATA_OPTIONS:
        if (value := options.get(name)) is not None:
            flag = f"--{name.replace('_', '-')}"
            words += [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
    return [*words, "--trust"] if is_factory(spec) else words


def markdown(record: ModelRecord, path: Path) -> str:
    """The card of the model in the folder `path`."""
    name = path.resolve().name or "model"
    config, options = record.training["config"], record.options
    objective, ball = options.get("objective") or config["objective"], options.get("ball") or config["ball"]
    in_ball = f" in the ball `{ball}`" if ball else ""
    shape = "x".join(map(str, record.shape))
    command = shlex.join(evaluate_command(path, options, spec=record.spec))
    trust = ", trust=True" if is_factory(record.spec) else ""
    sections = [
        _header(record, name),
        f"# {name}",
        f"A classifier of {record.classes} {'logit' if record.classes == 1 else 'logits'} for examples of {shape}: "
        f"`{record.spec}` with {config['parameters']:,} trained parameters, trained by epsball with the objective "
        f"`{objective}`{in_ball}. Radii are in the units of the data.",
    ]
    if record.accuracies:
        sections += ["## Accuracy", _accuracy_table(record.accuracies)]
    if any(part.fgsm is not None for part in record.accuracies):
        sections.append(f"FGSM and PGD-10 attack each example{in_ball}: upper bounds, a stronger attack may find more.")
    if record.label_names and record.label_names != tuple(map(str, range(record.classes))):
        sections += ["## Classes", ", ".join(f"{i}: {label}" for i, label in enumerate(record.label_names))]
    sections += [
        "## Evaluate",
        "From where it was trained; elsewhere, name this folder and the data as they are found there.",
        f"```console\n{command}\n{command} --attacks standard  # AutoAttack's list\n```",
        "## Load",
        "```python\nfrom epsball.models.folder import read_model_folder\n\n"
        f"model = read_model_folder({json.dumps(str(path))}{trust})  # a torch module: examples to logits\n```",
    ]
    if trust:
        sections.append(
            f"The network is made by `{record.spec}`, which has to be importable: this folder lacks it. It is code, "
            "and runs only where it is trusted."
        )
    return "\n\n".join([*sections, "## Training", _training_table(record)]) + "\n"


def _header(record: ModelRecord, name: str) -> str:
    task = "image-classification" if len(record.shape) in (2, 3) else "tabular-classification"
    lines = ["---", "library_name: pytorch", f"pipeline_tag: {task}"]
    lines += ["tags:", "- epsball", "- adversarial-training", "- adversarial-robustness"]
    if record.accuracies:
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
    data = str(record.options.get("data") or record.training["config"]["data"])
    for part in record.accuracies:
        lines += ["  - task:", f"      type: {task}", "    dataset:"]
        lines += [f"      type: {json.dumps(data)}", f"      name: {json.dumps(f'{data}, {part.on}')}", "    metrics:"]
        for attack, attack_name in ATTACKS.items():
            if (share := getattr(part, attack)) is not None:
                metric = f"accuracy, {attack_name}, {part.examples} examples"
                lines += ["    - type: accuracy", f"      name: {json.dumps(metric)}", f"      value: {share:.6g}"]
    return "\n".join([*lines, "---"])


def _accuracy_table(accuracies: tuple[Accuracies, ...]) -> str:
    columns = [name for name in ATTACKS if any(getattr(part, name) is not None for part in accuracies)]
    lines = [f"| examples | n | {' | '.join(ATTACKS[name] for name in columns)} |"]
    lines.append(f"| --- | ---: | {' | '.join('---:' for _ in columns)} |")
    for part in accuracies:
        shares = [getattr(part, name) for name in columns]
        cells = " | ".join("" if share is None else f"{share:.2%}" for share in shares)
        lines.append(f"| {part.on} | {part.examples:,} | {cells} |")
    return "\n".join(lines)


def _training_table(record: ModelRecord) -> str:
    """The options of the training command, its configuration, and how long it took."""
    training, config = record.training, record.training["config"]
    rows = {**config, **record.options, "seconds": f"{training['seconds']:.1f}"}
    versions = rows.pop("versions", {})
    rows["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = ["| what | value |", "| --- | --- |"]
    for name, value in rows.items():
        if value is not None and not isinstance(value, dict):
            text = str(value).replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {name.replace('_', ' ')} | {text} |")
    return "\n".join(lines)
