"""The certificates that a run has stored, evaluated anew with a fresh model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from epsball.evaluation.certify_stage import certifier_for
from epsball.evaluation.stored_run import StoredRun
from epsball.problem.row_limit import out_of_memory
from epsball.problem.task import Task


def rechecked(
    run: StoredRun, task: Task, certificates: Sequence[bytes], ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The margins (n,) that certificates prove for the rows of `task`, in real arithmetic and as the network runs.

    What cannot be read as a certificate of its row is a difference, and proves nothing: minus infinity.
    """
    certifier = certifier_for(run.objective.model, task.x[:1])
    try:
        found = certifier.recheck(task, certificates)
        return found.margin.cpu().numpy(), found.margin_as_run.cpu().numpy()
    except (ValueError, LookupError, RuntimeError) as error:  # the bytes may be anything
        if out_of_memory(error):
            raise
        if len(ids) == 1:
            run.differences.add(ids[0], "damaged", "a certificate", error)
            return np.full(1, -np.inf), np.full(1, -np.inf)
    rows = [
        rechecked(run, task.rows(torch.tensor([row], device=task.x.device)), [one], ids[row : row + 1])
        for row, one in enumerate(certificates)
    ]
    margin, as_run = (np.concatenate(part) for part in zip(*rows, strict=True))
    return margin, as_run
