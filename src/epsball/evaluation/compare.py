"""Two runs side by side, example by example: which are robust in only one, and whether that is more than chance.

The examples are the same, so the runs are paired: McNemar's test (1947), here exact, asks whether the examples that are
robust in one run only are divided as a fair coin would divide them. Needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from epsball.common.errors import BadInput
from epsball.common.intervals import wilson
from epsball.common.record import Record
from epsball.evaluation.figures import optional
from epsball.evaluation.result import Evaluation

CHANCE = 0.05
"""At p-values above this a difference may well be chance."""


@dataclass(frozen=True)
class Comparison(Record):
    """Two runs on the same `n` examples, paired by id.

    `both`, `only_a`, `only_b` and `neither` count the examples that were robust in both runs, in the first only, in
    the second only, in none; `ids_only_a` and `ids_only_b` name them. `accuracy_a`, `accuracy_b` are the robust
    accuracies on these examples, `interval_a`, `interval_b` their 95 % intervals (Wilson). `difference` is that of
    B less that of A, `difference_interval` its 95 % interval (Newcombe 1998, Statistics in Medicine 17, 2635-2650,
    method 10: Wilson's intervals joined for pairs), `p_value` that of the exact McNemar test, two-sided. `differ`
    says what of the settings is not the same: what it names may be the cause. "data" is among them where neither
    the checksums of the common examples nor the digests of all are equal: then the same ids and labels may stand
    for other examples. `left_out_a`, `left_out_b` count the examples that only one run holds, that a targeted run
    sets apart, or whose query budget ran out in one. `doubtful` names the runs ("A", "B") whose result is not to be
    relied on (`Evaluation.doubts`). `certified_a`, `certified_b` are the shares that the runs prove robust, None where
    one did not certify; `contradicted` are examples of one model that one run proves robust in a ball in which the
    other broke them, which cannot be: one of the two is in error.
    """

    derived = ("sentence", "method")

    a: str
    b: str
    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    accuracy_a: float
    accuracy_b: float
    interval_a: tuple[float, float]
    interval_b: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    p_value: float
    ids_only_a: tuple[int, ...]
    ids_only_b: tuple[int, ...]
    differ: tuple[str, ...]
    left_out_a: int
    left_out_b: int
    doubtful: tuple[str, ...] = ()
    certified_a: float | None = None
    certified_b: float | None = None
    contradicted: tuple[int, ...] = ()

    @property
    def sentence(self) -> str:
        """What the difference means, in words: higher is better for a model, lower is better for an attack."""
        if self.only_a == self.only_b == 0:
            return "The same examples are robust in both runs."
        if self.difference == 0:
            return f"Equal robust accuracy; {self.only_a} examples are robust in A only, and as many in B only."
        higher, lower = ("B", "A") if self.difference > 0 else ("A", "B")
        more = f"More examples are robust in {higher}"
        causes = [name for name in self.differ if name not in ("data", "seed")]
        if self.p_value > CHANCE:
            sentence = f"{more}, but a difference of this size may be chance (p = {self.p_value:.2g})."
        elif causes == ["model"]:
            sentence = f"{more}: under the same attacks, {higher} is the more robust model."
        elif causes == ["attacks"]:
            sentence = f"{lower} has the stronger attacks: they broke more examples of the same model."
        elif causes:
            sentence = f"{more}: the runs differ in {', '.join(causes)}, so the cause may be any of these."
        elif "seed" in self.differ:
            sentence = f"{more}, with another seed: by the luck of restarts and noise."
        elif "data" in self.differ:
            sentence = f"{more}, with the same settings."
        else:
            sentence = f"{more}, with the same settings: by noise of the model or of the machine."
        if "data" in self.differ:
            sentence += " The data of the runs is not the same, which may be the cause."
        if self.doubtful:
            which = " and ".join(self.doubtful)
            sentence += f" The result of {which} is not to be relied on: its true robust accuracy may be lower."
        if self.contradicted:
            sentence += (
                f" {len(self.contradicted)} examples are proved robust in one run and broken in the other, of one "
                "model: recompute both with epsball verify."
            )
        return sentence

    @property
    def method(self) -> dict[str, str]:
        """Which test and intervals these are."""
        return {"p_value": "exact McNemar", "interval": "Wilson", "difference_interval": "Newcombe, method 10"}


def compare(a: Evaluation | str | Path, b: Evaluation | str | Path) -> Comparison:
    """Compare two evaluations, or run directories, over the examples that both hold, at the largest radius of each.

    Raises `BadInput` for a run that searched minimum-norm adversarial examples, and where the runs are not on the same
    data: neither the same checksums of their examples, nor the same digest, nor the same name and the same labels of
    the ids that both hold.
    """
    runs = [run if isinstance(run, Evaluation) else Evaluation.load(run) for run in (a, b)]
    names = [name if isinstance(run, Evaluation) else str(run) for name, run in (("A", a), ("B", b))]
    for run, name in zip(runs, ("a", "b"), strict=True):
        if run.config["min_norm"]:
            raise BadInput(
                f"`{name}` must be a run at a radius, got one with min_norm; `epsball report` puts "
                "the distances of two such runs side by side"
            )
    ids = [run.records["id"].to_numpy() for run in runs]
    common, *rows = np.intersect1d(*ids, assume_unique=True, return_indices=True)
    labels = [run.records["label"].to_numpy()[row] for run, row in zip(runs, rows, strict=True)]
    sums = [run.stored.checksums(part) for run, part in zip(runs, ids, strict=True)]
    same = len(common) > 0 and np.array_equal(*labels) and _equal(sums, rows)
    if not same:
        _same_data([run.config["data"] for run in runs], common, *labels)
    attacked = np.full(len(common), True)
    robust = []
    for run, row in zip(runs, rows, strict=True):
        status = run.records["status"].to_numpy(zero_copy_only=False)[row]
        robust.append(status == "robust")
        apart = ("exhausted",) if run.config["target"] is None else ("exhausted", "misclassified", "at-target")
        attacked &= ~np.isin(status, apart)
    certified = [_certified(run, row[attacked]) for run, row in zip(runs, rows, strict=True)]
    common, (in_a, in_b) = common[attacked], (part[attacked] for part in robust)
    if not len(common):
        raise BadInput(
            "`a` and `b` must hold an example in common that both attack, got none; is the target the same, and did "
            "the query budget suffice?"
        )
    both, only_a, only_b = (int(part.sum()) for part in (in_a & in_b, in_a & ~in_b, in_b & ~in_a))
    neither, n = len(common) - both - only_a - only_b, len(common)
    counts = both + only_a, both + only_b
    intervals = [wilson(count, n) for count in counts]
    settings = [_settings(run.config) | ({"data": True} if same else {}) for run in runs]
    return Comparison(
        a=names[0],
        b=names[1],
        n=n,
        both=both,
        only_a=only_a,
        only_b=only_b,
        neither=neither,
        accuracy_a=counts[0] / n,
        accuracy_b=counts[1] / n,
        interval_a=intervals[0],
        interval_b=intervals[1],
        difference=(only_b - only_a) / n,
        difference_interval=paired_interval(both, only_b, only_a, neither),
        p_value=mcnemar(only_a, only_b),
        ids_only_a=tuple(common[in_a & ~in_b].tolist()),
        ids_only_b=tuple(common[in_b & ~in_a].tolist()),
        differ=tuple(name for name, value in settings[0].items() if value != settings[1][name]),
        left_out_a=len(ids[0]) - n,
        left_out_b=len(ids[1]) - n,
        certified_a=certified[0],
        certified_b=certified[1],
        contradicted=_contradicted(runs, settings, same),
        doubtful=tuple(name for run, name in zip(runs, ("A", "B"), strict=True) if run.doubts),
    )


def _equal(sums: list[np.ndarray | None], rows: list[np.ndarray]) -> bool:
    """Whether two runs have the same checksums at the rows that they have in common."""
    first, second = (None if part is None else part[row] for part, row in zip(sums, rows, strict=True))
    return first is not None and second is not None and np.array_equal(first, second)


def _certified(run: Evaluation, rows: np.ndarray) -> float | None:
    """The share of these rows that a run proves robust, at its largest radius; None where it does not certify."""
    if not run.certifies:
        return None
    return float(run.records["certified"].to_numpy(zero_copy_only=False)[rows].mean())


def _contradicted(runs: list[Evaluation], settings: list[dict[str, Any]], same_data: bool) -> tuple[int, ...]:
    """The ids of examples that one run proves robust at a radius at which, or below which, the other broke them."""
    if not same_data or any(settings[0][part] != settings[1][part] for part in ("model", "ball")):
        return ()
    found: set[int] = set()
    for one, other in (runs, runs[::-1]):
        ids = [run.records["id"].to_numpy() for run in (one, other)]
        common, mine, theirs = np.intersect1d(*ids, assume_unique=True, return_indices=True)
        proved = optional(one.records, "certified_eps")[mine]
        found |= set(common[proved >= optional(other.records, "eps")[theirs]].tolist())
    return tuple(sorted(found))


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration decides the result, by the name that a reader is shown."""
    ball = config["ball"]
    return {
        "data": config["data"]["digest"],
        "model": config["model"],
        "ball": {part: value for part, value in ball.items() if part != "eps"},
        "radii": ball["eps"] if config["radii"] == [None] else config["radii"],
        "attacks": config["attacks"],
        "source model": config.get("source"),
        "eot": config.get("eot", 1),
        "target": config["target"],
        "success": config["success"],
        "storage": config.get("storage", {}).get("x_adv", "float"),
        "query budget": (config.get("black_box") or {}).get("budget"),
        "seed": config["seed"],
    }


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p-value of the exact McNemar test: `only_a` of `only_a + only_b` tosses of a fair coin.

    >>> mcnemar(1, 7), mcnemar(0, 0)
    (0.0703125, 1.0)
    """
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """The 95 % interval of the share of the first less that of the second, on the same examples.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data"
    (Statistics in Medicine 17, 1998), method 10: the two intervals of Wilson, joined with the correlation of the pairs,
    which is corrected for continuity where it is positive.

    >>> [round(end, 3) for end in paired_interval(1, 1, 7, 12)]
    [-0.507, -0.026]
    """
    n = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    spread = first * (n - first) * second * (n - second)
    product = both * neither - only_first * only_second
    phi = (max(product - n / 2, 0) if product > 0 else product) / math.sqrt(spread) if spread else 0.0
    p, q = first / n, second / n
    (p_low, p_high), (q_low, q_high) = wilson(first, n), wilson(second, n)
    down = math.sqrt((p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2)
    up = math.sqrt((p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2)
    return p - q - down, p - q + up


def _same_data(data: list[dict[str, Any]], common: np.ndarray, labels_a: np.ndarray, labels_b: np.ndarray) -> None:
    a, b = data
    if a["digest"] == b["digest"]:
        return
    if a["name"] != b["name"] or a["shape"] != b["shape"]:
        raise BadInput(
            f"`a` and `b` must be runs on the same data, got {a['name']} {tuple(a['shape'])} and {b['name']} "
            f"{tuple(b['shape'])}; evaluate both on the same examples"
        )
    if not len(common):
        raise BadInput(f"`a` and `b` must hold an example in common, got none of {a['name']}; evaluate the same rows")
    if (apart := np.flatnonzero(labels_a != labels_b)).size:
        first = apart[0]
        raise BadInput(
            f"`a` and `b` must be runs on the same data, but {apart.size} of {len(common)} ids have other labels "
            f"(id {common[first]}: {labels_a[first]} and {labels_b[first]}); is one another split?"
        )
