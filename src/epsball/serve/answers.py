"""The answers of the page: the library's attacks on one image, with pictures of what they found.

Models answer one question at a time, since an attack freezes and thaws them.
"""

from __future__ import annotations

import threading
import time
import warnings
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.balls.ball import Ball
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.shapes import column
from epsball.evaluation.point_storage import towards
from epsball.problem.losses import cross_entropy, margin
from epsball.problem.objective import Objective, changes_prediction, prediction
from epsball.problem.task import Task, task_of
from epsball.serve.exhibit import Exhibit, Shown
from epsball.serve.images import amplified, decode, from_base64, looks, png, url
from epsball.serve.menu import chosen
from epsball.serve.path import Path, path
from epsball.serve.questions import MOST_POINTS, Looking, Question


@dataclass(frozen=True, eq=False)
class CheckedQuestion:
    """A question, checked: the image x (1, *shape), its label or None, the ball and the attack."""

    question: Question
    x: Float[Tensor, "1 *shape"]
    label: int | None
    ball: Ball
    attack: Attack


@dataclass(frozen=True, eq=False)
class AttackedImage:
    """The adversarial image of one model, its task, and the attack's path where the question asks for it."""

    task: Task
    x_adv: Float[Tensor, "1 *shape"]
    path: Path | None


class Answers:
    """Answers questions about an exhibit; it remembers nothing between two of them."""

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit = exhibit
        self._one_at_a_time = threading.Lock()

    def answer(self, question: Question) -> dict[str, Any]:
        """Pictures, logits and probabilities before and after the attack, for each model."""
        start = time.perf_counter()
        checked = self._check(question)
        with self._one_at_a_time, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = self._found(checked)
            columns = [self._column(shown, checked, part) for shown, part in zip(self._models, found, strict=True)]
        return {
            "original": url(png(self._looks(checked.x))),
            "label": checked.label,
            "models": columns,
            "warnings": sorted({str(warning.message) for warning in caught}),
            "seconds": time.perf_counter() - start,
        }

    def file(self, question: Question, of: int) -> bytes:
        """The adversarial image of a model as a PNG file: 8 bits a value, each rounded towards the image."""
        checked = self._check(question)
        self._model("of", of)
        with self._one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x_adv = self._found(checked)[of].x_adv
        return png(towards(x_adv[0].cpu().numpy(), checked.x[0].cpu().numpy(), self.exhibit.table))

    def look(self, looking: Looking) -> dict[str, Any]:
        """Each model's prediction of a PNG file, whether it is fooled, and the file's distance from the image."""
        checked = self._check(looking.question)
        z = self._decoded(from_base64("file", looking.file))
        with self._one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            columns = []
            for shown in self._models:
                with Objective(shown.model, cross_entropy) as objective:
                    columns.append(prediction_of(objective.forward(z), self._task(shown, checked)))
        inside = bool(checked.ball.contains(z, checked.x))
        return {"models": columns, "distance": float(checked.ball.distance(z, checked.x)), "inside": inside}

    @property
    def _models(self) -> tuple[Shown, ...]:
        return self.exhibit.models

    def _model(self, argument: str, number: int) -> Shown:
        if not 0 <= number < len(self._models):
            raise BadInput(f"`{argument}` must be a model's number, 0 to {len(self._models) - 1}, got {number}")
        return self._models[number]

    def _check(self, question: Question) -> CheckedQuestion:
        exhibit = self.exhibit
        for name, value in (("label", question.label), ("target", question.target)):
            if value is not None and not 0 <= value < exhibit.classes:
                raise BadInput(f"`{name}` must be a class, 0 to {exhibit.classes - 1}, got {value}")
        if question.made_on is not None:
            self._model("made_on", question.made_on)
        if not 0 <= question.points <= MOST_POINTS:
            raise BadInput(f"`points` must be 0 to {MOST_POINTS}, got {question.points}; 0 is for no line")
        if not 0 < question.reach < float("inf"):
            raise BadInput(f"`reach` must be > 0 and finite, got {question.reach}; it is a distance")
        if question.iterate is not None and question.iterate < 0:
            raise BadInput(f"`iterate` must be >= 0, got {question.iterate}; 0 is the attack's start")
        if not isfinite(question.eps):
            raise BadInput(f"`eps` must be a finite number on this page, got {question.eps}")
        attack = chosen(question.attack)
        ball = exhibit.around(check_one_of("norm", question.norm, attack.norms()), question.eps)
        if question.png is not None:
            return CheckedQuestion(
                question, self._decoded(from_base64("png", question.png)), question.label, ball, attack
            )
        row = 0 if question.row is None else question.row
        if not 0 <= row < len(exhibit.examples):
            raise BadInput(f"`row` must be an example's, 0 to {len(exhibit.examples) - 1}, got {row}")
        label = int(exhibit.examples.y[row]) if question.label is None else question.label
        return CheckedQuestion(question, exhibit.examples.x[row : row + 1], label, ball, attack)

    def _decoded(self, file: bytes) -> Float[Tensor, "1 *shape"]:
        pixels = decode(file, self.exhibit.shape).pixels
        return torch.as_tensor(self.exhibit.table[pixels]).to(self.exhibit.examples.x)[None]

    def _looks(self, x: Float[Tensor, "1 *shape"]) -> Any:
        return looks(x[0].cpu().numpy(), self.exhibit.lo, self.exhibit.hi)

    def _task(self, shown: Shown, checked: CheckedQuestion) -> Task:
        """Away from the image's label (the model's prediction where it has none), or towards the target."""
        label = checked.label
        if label is None:
            with Objective(shown.model, cross_entropy) as objective:
                label = int(prediction(objective.forward(checked.x)))
        row = checked.question.row
        ids = torch.tensor([int(self.exhibit.examples.ids[row]) if row is not None else 0])
        return task_of(
            checked.x, label, checked.ball, target=checked.question.target, ids=ids, seed=checked.question.seed
        )

    def _found(self, checked: CheckedQuestion) -> list[AttackedImage]:
        """The adversarial image for each model: its own, or that of the one it is made on."""
        made_on = checked.question.made_on
        tasks = [self._task(shown, checked) for shown in self._models]
        if made_on is None:
            pairs = zip(self._models, tasks, strict=True)
            return [self._attacked(shown, checked, task) for shown, task in pairs]
        made = self._attacked(self._models[made_on], checked, tasks[made_on])
        return [
            made if number == made_on else AttackedImage(task, made.x_adv, None) for number, task in enumerate(tasks)
        ]

    def _attacked(self, shown: Shown, checked: CheckedQuestion, task: Task) -> AttackedImage:
        attack, question = checked.attack, checked.question
        if checked.label is None and bool((task.target == task.y).all()):
            return AttackedImage(task, checked.x, None)  # the prediction is the target already
        if question.iterate is None:
            target = question.target
            ids, seed = task.noise.ids, question.seed
            x_adv = attack(shown.model, checked.x, task.y, checked.ball, target=target, ids=ids, seed=seed)
            return AttackedImage(task, x_adv, None)
        attack.check_ball(checked.ball)
        with Objective(shown.model, attack.loss, needs=attack.needs) as objective:
            if attack.n_targets or attack.reads_clean:
                clean = objective.forward(checked.x)
                task = replace(task, clean=clean)
            way = path(attack, objective, task)
        at = min(question.iterate, len(way) - 1)
        return AttackedImage(task, way.z[at : at + 1], way)

    def _column(self, shown: Shown, checked: CheckedQuestion, found: AttackedImage) -> dict[str, Any]:
        """All that the page shows of a model; image, adversarial image and the line between share a model call."""
        x, x_adv = checked.x, found.x_adv
        distance = float(checked.ball.distance(x_adv, x))
        at, line = self._line(checked, x_adv, distance)
        with Objective(shown.model, cross_entropy) as objective:
            logits = objective.forward(torch.cat([x, x_adv, line]))
        pixels, factor = amplified((x_adv - x)[0].cpu().numpy(), self.exhibit.lo, self.exhibit.hi)
        return {
            "label": int(found.task.y),
            "before": prediction_of(logits[:1], found.task),
            "after": prediction_of(logits[1:2], found.task),
            "adversarial": url(png(self._looks(x_adv))),
            "perturbation": url(png(pixels)),
            "factor": factor,
            "distance": distance,
            "inside": bool(checked.ball.contains(x_adv, x)),
            "line": {"at": at, "logits": logits[2:].T.tolist(), "here": distance} if at else None,
            "path": None if found.path is None else self._way(found.path, checked),
        }

    def _line(
        self, checked: CheckedQuestion, x_adv: Float[Tensor, "1 *shape"], distance: float
    ) -> tuple[list[float], Float[Tensor, "k *shape"]]:
        """Points of the line from the image through the adversarial one, clipped to the box; none at distance 0."""
        x, points, reach = checked.x, checked.question.points, checked.question.reach
        if points == 0 or distance == 0:
            return [], x[:0]
        at = torch.linspace(-reach, reach, points, dtype=torch.float64)
        return at.tolist(), checked.ball.clip(x + column((at / distance).to(x), x.ndim) * (x_adv - x))

    def _way(self, way: Path, checked: CheckedQuestion) -> list[dict[str, Any]]:
        confidence, predicted = way.logits.softmax(1).max(1)
        distances = [float(checked.ball.distance(z[None], checked.x)) for z in way.z]
        columns = (way.margin.tolist(), predicted.tolist(), confidence.tolist(), distances)
        return [
            {"margin": gap, "prediction": label, "confidence": confidence, "distance": distance}
            for gap, label, confidence, distance in zip(*columns, strict=True)
        ]


def prediction_of(logits: Float[Tensor, "1 classes"], task: Task) -> dict[str, Any]:
    """A model's logits and prediction, and whether the attack succeeded; then `margin` > 0, too."""
    return {
        "logits": logits[0].tolist(),
        "probabilities": logits.softmax(1)[0].tolist(),
        "prediction": int(prediction(logits)),
        "margin": float(margin(logits, task)),
        "fooled": bool(changes_prediction(logits, task) & logits.isfinite().all()),
    }
