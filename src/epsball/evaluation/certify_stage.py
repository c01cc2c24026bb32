"""The stages of a run that prove examples robust: which models they take, their work, and the stage's table.

A proof is about exactly the function that is attacked, in the ball of the stage. Its certificate is kept beside the
example it is about, so that `verify` can check it again from the files alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from epsball.certify.certifier import Certifier, Proofs
from epsball.common.errors import BadInput
from epsball.engine.stages import PlannedCertificate
from epsball.evaluation import run_directory
from epsball.evaluation.attack_stage import Verified, verified
from epsball.evaluation.plan import EvaluationPlan, numbers
from epsball.evaluation.point_storage import checksums
from epsball.evaluation.stage_record import Stage
from epsball.models.black_box import BlackBox
from epsball.models.given import logits_in
from epsball.problem.objective import Model, changes_prediction
from epsball.problem.task import Task

ROWS = 128
"""Examples between two reports. Bounds of a batch round as its examples have it: it does not follow `batch_size`."""
PROBED = 32
"""Examples that are shown to the model twice: a proof is about one function."""
FIRST = 0.25
"""Share of an example's seconds that are searched before the attacks, which it spares model calls."""
DTYPES = (torch.float32, torch.float64)


def check_certifiable(plan: EvaluationPlan) -> None:
    """Raise `BadInput` where a run certifies, and a proof would not be about what its attacks are asked."""
    if not plan.settings.certifies:
        return
    model, x = plan.model, plan.rows.first.x
    if isinstance(model, BlackBox):
        raise BadInput(
            "`certify` needs the layers of the model, and a black box shows none; randomised smoothing certifies any "
            "model in L2: epsball.certify with method=Smoothing(sigma=0.25)"
        )
    ball = plan.rows.first.ball
    if "dual norm" not in ball.traits:
        raise BadInput(f"`certify` needs an L-inf, L2 or L1 ball, got {ball}; leave `certify` out")
    if plan.success is not changes_prediction:
        raise BadInput(
            "`certify` must be left out with a `success` of your own: a proof says that the prediction does not "
            "change, which is the default; leave `success` out"
        )
    if plan.eot > 1:
        raise BadInput(
            f"`certify` must be left out where {plan.eot} model calls are averaged, as protocols do for a stochastic "
            "model, whose logits have no bounds; fix its random numbers, or smooth it"
        )
    if x.dtype not in DTYPES:
        raise BadInput(
            f"`certify` needs a model in float32 or float64, got {str(x.dtype).removeprefix('torch.')}, whose rounding "
            "is as large as the margins to be proved; cast it: model.float()"
        )
    with plan.evaluator() as evaluator:
        if not evaluator.check_deterministic(x[:PROBED]):
            raise BadInput(
                "`certify` needs a model that answers the same in every call: a proof is about one function; fix its "
                "random numbers, or smooth it"
            )
    certifier_of(plan)


def certifier_of(plan: EvaluationPlan) -> Certifier | None:
    """What proves that predictions of the plan's model do not change; None where the run does not certify.

    Raises `BadInput` that names the layer where the model has one that certificates do not cover.
    """
    return certifier_for(plan.model, plan.rows.first.x[:1]) if plan.settings.certifies else None


def certifier_for(model: Model, x: Tensor) -> Certifier:
    """The same for any model, at examples like `x`: it may return its logits in whatever the objective reads."""
    return Certifier(lambda x: logits_in(model(x)), x)


@dataclass(frozen=True, eq=False)
class CertifyStage:
    """A certification at one radius of the rows of `task`, whose ball has that radius.

    `bounds` is the table of the stage that a search continues from, None for the bounds themselves.
    """

    plan: EvaluationPlan
    stage: PlannedCertificate
    certifier: Certifier
    task: Task
    bounds: pa.Table | None

    def run(self, on_proved: Callable[[int], None]) -> pa.Table:
        """The stage's table: a row per example, with the certificates and their examples.

        `on_proved` is told the number of proofs so far, after each batch.
        """
        began = time.perf_counter()
        parts: list[Proofs] = []
        points: dict[int, Tensor] = {}
        for rows in torch.arange(len(self.task.x)).split(ROWS):
            task = self.task.rows(rows.to(self.task.x.device))
            parts.append(self.prove(task))
            points |= {int(rows[row]): point for row, point in parts[-1].points.items()}
            on_proved(sum(int(part.verified.sum()) for part in parts))
        proofs = joined(parts)
        return self.table(proofs, self.broken(points, proofs), began)

    def prove(self, task: Task) -> Proofs:
        """The proofs of some rows: by bounds and a short search before the attacks, or by a long search after them.

        Bounds take no longer than a search would, where there is one.
        """
        seconds = self.plan.settings.search_seconds
        if self.bounds is not None:
            return self.certifier.search(task, proofs_in(self.bounds, task.noise.ids.cpu().numpy()), seconds)
        proofs = self.certifier.bounds(task, deadline=time.monotonic() + seconds * len(task.x) if seconds else None)
        return self.certifier.search(task, proofs, FIRST * seconds) if seconds else proofs

    def broken(self, points: dict[int, Tensor], proofs: Proofs) -> Verified:
        """The examples that are not proved, and that the model misclassifies at the `points` that a search met."""
        rows = [row for row in sorted(points) if not proofs.verified[row]]
        hit = torch.tensor(rows, dtype=torch.long, device=self.task.x.device)
        x_adv = torch.stack([points[row] for row in rows]).to(self.task.x) if rows else self.task.x[hit]
        with self.plan.evaluator() as evaluator:
            return verified(self.plan, self.task, hit, x_adv, np.full(len(self.task.x), np.inf), evaluator)

    def table(self, proofs: Proofs, broken: Verified, began: float) -> pa.Table:
        """The table of the stage, with its summary in the notes."""
        proved, n = proofs.verified, len(proofs.verified)
        fooled = np.zeros(n, dtype=bool)
        fooled[broken.rows] = True
        x = self.plan.storage.keep_x(numbers(self.task.x)[proved | fooled])
        crc32 = np.zeros(n, np.uint32)
        crc32[proved] = checksums(x[proved[proved | fooled]])
        crc32[fooled] = checksums(broken.points["x_adv"], x[fooled[proved | fooled]])
        none = np.zeros(n, dtype=np.int64)
        columns: dict[str, Any] = {
            "id": self.task.noise.ids.cpu().numpy(),
            "fooled": fooled,
            "invalid": np.zeros(n, dtype=bool),
            "exhausted": np.zeros(n, dtype=bool),
            "adversarial_prediction": run_directory.nested(broken.answers["prediction"], fooled),
            "adversarial_confidence": run_directory.nested(broken.answers["confidence"], fooled),
            **dict.fromkeys(("forwards", "backwards", "queries"), none),
            "verified": proved,
            "margin": proofs.margin,
            "method": pa.array(proofs.method, pa.string(), mask=~proved),
            "seconds": proofs.seconds,
            "reason": pa.array(proofs.reason, pa.string(), mask=proved),
            "as_run": proofs.as_run,
            "rivals": run_directory.nested(proofs.rivals.astype(np.uint8), np.full(n, True)),
            "certificate": pa.array(proofs.certificates, pa.binary()),
            "crc32": pa.array(crc32, mask=~(proved | fooled)),
            "x_adv": run_directory.stored(broken.points["x_adv"], fooled),
            "x": run_directory.stored(x, proved | fooled),
        }
        summary = Stage(
            name=self.stage.name,
            attack=self.stage.label,
            eps=self.stage.eps,
            attacked=n,
            fooled=len(broken.rows),
            certified=int(proved.sum()),
            verification=broken.forwards,
            seconds=time.perf_counter() - began,
        )
        table = run_directory.table(columns, dict.fromkeys(("x_adv", "x"), x.shape[1:]))
        return run_directory.with_notes(table, {"stage": vars(summary)})


def proofs_in(table: pa.Table, ids: np.ndarray) -> Proofs:
    """The proofs of the examples with these ids, which are in the order of the table, out of the table of a stage."""
    rows = table.take(pa.array(np.flatnonzero(np.isin(table["id"].to_numpy(), ids))))

    def column(name: str) -> np.ndarray:
        return rows[name].to_numpy(zero_copy_only=False).copy()

    return Proofs(
        verified=column("verified"),
        margin=column("margin"),
        method=column("method"),
        seconds=column("seconds"),
        reason=column("reason"),
        rivals=run_directory.points(rows["rivals"], (-1,)).astype(bool),
        as_run=column("as_run"),
        certificates=rows["certificate"].to_pylist(),
    )


def joined(parts: Sequence[Proofs]) -> Proofs:
    """The proofs of all parts, of one row at least."""
    names = [field.name for field in fields(Proofs) if field.name not in ("certificates", "points")]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Proofs(**arrays, certificates=[one for part in parts for one in part.certificates])
