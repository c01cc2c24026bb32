"""`verify`: a run recomputed from its files alone, with a fresh model; each difference, by the id of its example.

No stored result is trusted. The adversarial examples are decoded from the stages' files and put to the model once more,
containment and distances come from the examples stored beside them and the ball's own file, and the records follow from
the stages as they did in the run. What cannot be recomputed without the data, the clean predictions of examples that
were not fooled, is compared with the stored logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch

from epsball.common import fingerprint
from epsball.common.checks import check_whole_or
from epsball.common.errors import BadInput
from epsball.common.record import Record
from epsball.data.examples import Examples
from epsball.evaluation.differences import Difference
from epsball.evaluation.figures import Figures
from epsball.evaluation.point_storage import Storage
from epsball.evaluation.run_directory import read_config
from epsball.evaluation.stored_run import StoredRun
from epsball.evaluation.verify_shard import VerifiedShard, verified_shard
from epsball.models.given import as_model
from epsball.problem.inputs import data_for, examples_for
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective, Success, changes_prediction
from epsball.problem.task import AWAY


@dataclass(frozen=True)
class Verification(Record):
    """What was recomputed of a run, and every difference from what its files say.

    `n` examples, `fooled` of which the run counts as fooled; `confirmed` of these are so: the stored point is in the
    ball and the model misclassifies it. `clean_checked` clean predictions were made anew: those of the fooled, from the
    examples stored beside them, or, with the data (`with_data`), all. The accuracies are those found, at the largest
    radius. `eot` model calls were averaged; where it is more than 1 the model is stochastic, and predictions near the
    decision boundary need not repeat. The run counts `certified` examples as proved robust, at some radius, and
    `recertified` certificates were evaluated anew and prove it; None where it certified none. `differences` are sorted
    by id, those of the whole run first.
    """

    derived = ("agrees",)

    n: int
    fooled: int
    confirmed: int
    clean_checked: int
    with_data: bool
    clean_accuracy: float
    robust_accuracy: float
    eot: int
    differences: tuple[Difference, ...]
    certified: int | None = None
    recertified: int | None = None
    certified_accuracy: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether there is no difference at all."""
        return not self.differences


def verify(
    run_dir: str | Path,
    model: Model,
    *,
    data: Examples | tuple[Any, Any] | Any = None,
    success: Success = changes_prediction,
    batch_size: int | Literal["auto"] = 128,
) -> Verification:
    """Recompute everything that a run directory says of `model`, from its files.

    `model` is the one that the run was made with, loaded anew. With `data`, as handed to `evaluate`
    (more rows do no harm), the stored examples are compared with its rows, and all clean predictions are made anew.
    `success` is what the run was given. `batch_size` rows share a model call ("auto": a number that
    is found in a few seconds). The model comes back as it was.

    Raises `BadInput` for a directory that holds no run, or one without the examples beside their adversarial examples,
    for another `success`, and for a model that does not take the run's examples.
    """
    check_whole_or("batch_size", batch_size, 1, "auto")
    path = Path(run_dir)
    try:
        config = read_config(path)
        storage, n = Storage(**config["storage"]), config["data"]["n"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"`run_dir` must be the directory of a run that stored its examples (evaluate(run_dir=...), or --out), got "
            f"{path}: {type(error).__name__} {error}; make runs of older versions anew"
        ) from error
    if config["success"] != fingerprint.described(success):
        raise BadInput(
            f"`success` must be that of the run, {config['success']}, got {fingerprint.described(success)}; hand over "
            "the function that evaluate was given"
        )
    model = as_model(model)
    examples = None if data is None else data_for(model, data)
    if isinstance(examples, Examples):
        examples = examples_for(model, examples, None)
    with Objective(model, cross_entropy, needs="label", success=success, eot=config["eot"]) as objective:
        run = StoredRun(path, config, storage, objective, batch_size, examples)
        run.differences.add(None, "model", config["model"], fingerprint.of_model(model))
        size = config["shard_size"]
        found = [verified_shard(run, i, start, min(size, n - start)) for i, start in enumerate(range(0, n, size))]
    shards = [shard for shard in found if shard is not None]
    if not shards:
        raise BadInput(f"`run_dir` {path} holds no records that can be read; was the run finished?")
    return _verification(run, shards)


def _verification(run: StoredRun, shards: list[VerifiedShard]) -> Verification:
    """The counts and accuracies of the whole run, and all differences by id."""
    add, config = run.differences.add, run.config
    stored, confirmed = (
        Figures(config, pa.concat_tables([part.replace_schema_metadata() for part in parts]))
        for parts in ([shard.stored for shard in shards], [shard.confirmed_records() for shard in shards])
    )
    _check_fingerprints(run, stored.records)
    _check_radii(run)
    add(None, "accuracy", f"clean {stored.clean_accuracy}", f"clean {confirmed.clean_accuracy}")
    for (eps, accuracy), (_, again) in zip(stored.curve, confirmed.curve, strict=True):
        add(None, "accuracy", f"robust at {eps}: {accuracy}", f"robust at {eps}: {again}")
    if stored.certifies:
        for (eps, accuracy), (_, again) in zip(stored.certified_curve, confirmed.certified_curve, strict=True):
            add(None, "accuracy", f"certified at {eps}: {accuracy}", f"certified at {eps}: {again}")
    return Verification(
        n=len(stored),
        fooled=stored.count("fooled"),
        confirmed=confirmed.count("fooled"),
        clean_checked=sum(shard.clean_checked for shard in shards),
        with_data=run.data is not None,
        clean_accuracy=confirmed.clean_accuracy,
        robust_accuracy=confirmed.robust_accuracy,
        certified=sum(shard.certified for shard in shards) if stored.certifies else None,
        recertified=sum(int(shard.proved.sum()) for shard in shards) if stored.certifies else None,
        certified_accuracy=confirmed.certified_accuracy if stored.certifies else None,
        eot=config["eot"],
        differences=run.differences.sorted(),
    )


def _check_fingerprints(run: StoredRun, records: pa.Table) -> None:
    """The fingerprints of labels, targets and data against those in the configuration."""
    add, config = run.differences.add, run.config
    ids, labels = (torch.tensor(records[name].to_numpy()) for name in ("id", "label"))
    lazy = not config["data"]["labels"]  # their examples have checksums, one by one
    if not lazy:
        add(None, "label", config["data"]["labels"], fingerprint.of_tensors(labels, ids))
    target = torch.from_numpy(records["target"].fill_null(AWAY).to_numpy().copy())
    add(None, "target", config["target"], None if (target == AWAY).all() else fingerprint.of_tensors(target))
    if isinstance(run.data, Examples) and not lazy:
        order = run.data.ids.cpu().argsort(stable=True)
        order = order[torch.isin(run.data.ids.cpu()[order], ids)]
        rows = run.data.rows(order.to(run.data.x.device))
        add(None, "data", config["data"]["digest"], fingerprint.of_tensors(rows.x, rows.y, rows.ids))


def _check_radii(run: StoredRun) -> None:
    """The radii and the ball of the configuration against its stages."""
    add, config = run.differences.add, run.config
    radii, largest = list(dict.fromkeys(stage["eps"] for stage in config["stages"])), None
    if config["min_norm"]:  # minimum-norm adversarial examples are searched everywhere
        radii, largest = [radius for radius in radii if radius not in (None, math.inf)] or [math.inf], math.inf
    elif None not in radii:
        largest = radii[-1]
    add(None, "eps", f"radii {config['radii']}", f"radii {radii}")
    if largest is not None:
        add(None, "eps", f"ball {_number(config['ball']['eps'])}", f"ball {largest}")


def _number(value: Any) -> Any:
    """A number out of JSON: 1 and 1.0 are the same, infinity is text; anything else as it is."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
