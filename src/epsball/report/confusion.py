"""Which class is predicted as which under attack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from epsball.report.run import Run

SHOWN = 20
"""The most classes of a matrix; of more, those in most mistakes are shown."""
PAIRS = 12


@dataclass(frozen=True)
class Confusion:
    """Counts (k, k) of the classes named, label by row, prediction under attack by column.

    `pairs` are the most frequent mistakes, (label, prediction, count), with the counts of the matrix; `classes` is the
    number of classes, `left_out` that of the examples without a prediction.
    """

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[str, str, int], ...]
    classes: int
    left_out: int

    @property
    def largest(self) -> int:
        """The largest count off the diagonal."""
        return max((c for i, row in enumerate(self.counts) for j, c in enumerate(row) if i != j), default=0)


def confusion(run: Run) -> Confusion | None:
    """The matrix of a run; None where no prediction is known."""
    records = run.found.records
    label = records["label"].to_numpy()
    status = records["status"].to_numpy(zero_copy_only=False)
    clean = records["clean_prediction"].to_numpy(zero_copy_only=False).astype(float)
    adversarial = records["adversarial_prediction"].to_numpy(zero_copy_only=False).astype(float)
    predicted = np.where(status == "fooled", adversarial, clean)
    known = ~np.isnan(predicted)
    if not known.any():
        return None
    label, predicted = label[known].astype(int), predicted[known].astype(int)
    wrong = predicted != label
    classes = int(max(label.max(), predicted.max())) + 1
    pairs, counts = np.unique(np.stack([label[wrong], predicted[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:PAIRS]
    top = tuple(
        (run.label(int(a)), run.label(int(b)), int(c)) for (a, b), c in zip(pairs.T[order], counts[order], strict=True)
    )
    shown = np.arange(classes)
    if classes > SHOWN:
        often = np.bincount(label[wrong], minlength=classes) + np.bincount(predicted[wrong], minlength=classes)
        shown = np.sort(np.argsort(-often, kind="stable")[:SHOWN])
    place = np.full(classes, -1)
    place[shown] = np.arange(len(shown))
    inside = (place[label] >= 0) & (place[predicted] >= 0)
    matrix = np.zeros((len(shown), len(shown)), np.int64)
    np.add.at(matrix, (place[label[inside]], place[predicted[inside]]), 1)
    names = tuple(run.label(int(c)) for c in shown)
    return Confusion(names, tuple(map(tuple, matrix.tolist())), top, classes, int((~known).sum()))
