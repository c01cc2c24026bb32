"""No image is safe: can every image, whatever its class, be driven to every other class?

Linear behaviour in high dimensions makes any class reachable from anywhere, "regardless of the image" (Goodfellow,
Shlens and Szegedy, ICLR 2015, sections 3 and 10). Each correctly classified example is attacked once for each other
class as a target, at several radii; so are images that show nothing: one colour, and uniform noise. Success is counted
on the point as it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.record import Record
from epsball.data.examples import Examples
from epsball.evaluation.evaluate import evaluate
from epsball.explain.config import Progress, TargetsConfig, configured, silent
from epsball.explain.finding import Finding, made_of, nested, percent
from epsball.explain.inputs import box_of, class_names, evenly, radii_of, radius_of
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective

BLANK = ("black", "grey", "white", "noise")
"""Images that show nothing: the box's lower end, its middle, its upper end, and uniform noise."""
NOISES = 16
FACTORS = (0.5, 1.0, 2.0, 3.0, 4.0)
"""The radii, in units of the ball's."""


@dataclass(frozen=True)
class Reach(Record):
    """What a targeted attacker of radius `eps` reaches from the correctly classified examples, as shares from 0 to 1.

    `mean` of all pairs of an example and another class, `everywhere` of the examples every other class, `somewhere` at
    least one; `blank` of all pairs of an image that shows nothing and a class, None without such images.
    """

    eps: float
    mean: float
    everywhere: float
    somewhere: float
    blank: float | None


@dataclass(frozen=True, kw_only=True)
class Targets(Finding):
    """What `targets` found: a `Reach` per radius, and counts per source and target at the ball's own.

    `sources` are the names of the classes, then of images that show nothing; `targets` the names of the classes.
    `attempts` and `successes` (sources, targets) count the examples that are not the target already, and those of them
    that reached it. `reached` (classes,) counts the correctly classified examples by the number of other classes that
    they were driven to, from 0 to all.
    """

    curve: tuple[Reach, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    attempts: tuple[tuple[int, ...], ...]
    successes: tuple[tuple[int, ...], ...]
    reached: tuple[int, ...]

    @property
    def at_ball(self) -> Reach:
        """What is reached within the ball's own radius."""
        return next(reach for reach in self.curve if reach.eps == self.config["eps"])

    @property
    def shares(self) -> np.ndarray:
        """(sources, targets): the share that was driven to the target, NaN where there was no attempt."""
        attempts, successes = np.array(self.attempts, dtype=float), np.array(self.successes, dtype=float)
        return np.divide(successes, attempts, out=np.full_like(attempts, np.nan), where=attempts > 0)

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        reach, last, others = self.at_ball, self.curve[-1], len(self.targets) - 1
        count, within = f"{sum(self.reached):,} correctly classified examples", self.config["ball_name"]
        if others == 1:
            text = f"Of {count} {percent(reach.mean)} can be driven to the other class within {within}"
            return text + (f", {percent(last.mean)} within {last.eps:.3g}." if last.eps > reach.eps else ".")
        text = (
            f"On average {count} can be driven to {percent(reach.mean)} of the {others} other classes within {within}, "
            f"{percent(reach.somewhere)} of them to some class and {percent(reach.everywhere)} to every one"
        )
        if last.eps > reach.eps:
            text += f"; within {last.eps:.3g} to {percent(last.mean)}, {percent(last.everywhere)} to every one"
        if reach.blank is not None:
            text += f". Inputs that show nothing can be driven to {percent(reach.blank)} within {reach.eps:.3g}"
        return text + "."


@configured(TargetsConfig)
def targets(
    model: Model, data: Examples, ball: Ball, *, config: TargetsConfig, on_progress: Progress = silent
) -> Targets:
    """Attack each correctly classified example once for each other class, and count successes on the stored points.

    `model` is a torch module or a callable x -> logits; `ball` has one radius, in the units of `data`, of which at most
    `rows` examples are taken, spread evenly. `eps` are the radii (default: the ball's times `FACTORS`), to which the
    ball's is added. `attack` is a name of `epsball attacks` with its options; an example misclassified as the target at
    one radius is not attacked again at the next. Where the box is finite, images that show nothing are attacked too;
    their label is what the model predicts. `on_progress` is called with the count of finished targets, that of all, and
    what is next. The model comes back as it was.

    Raises `BadInput` where there are no two classes, or the model returns no logits for one of them.

    Logits that are the three features: at x, the margin of class 0 is .1 over class 1 and .5 over class 2.

    >>> from epsball.balls.linf import Linf
    >>> from epsball.data.arrays import from_arrays
    >>> data = from_arrays(torch.tensor([[0.5, 0.4, 0.0]]), [0], classes=3)
    >>> found = targets(lambda x: x, data, Linf(eps=0.1), eps=(0.2, 0.3))
    >>> found.successes[0], found.reached, [reach.mean for reach in found.curve]
    ((0, 1, 0), (0, 1, 0), [0.5, 0.5, 1.0])
    """
    if data.classes < 2:
        raise BadInput(f"`data` must have at least two classes, got {data.classes}; there is no other to go to")
    radius, examples = radius_of(ball), evenly(data, config.rows)
    factors = tuple(factor * radius for factor in FACTORS)
    radii = radii_of((radius, *(factors if config.eps is None else config.eps)))
    names, blanks = class_names(data), _blanks(examples, ball, config.seed)
    sources = examples if blanks is None else _joined(model, examples, blanks)
    attacked = np.zeros((len(sources), data.classes), dtype=bool)
    broken_at = np.full((len(sources), data.classes), np.inf)
    backwards = 0
    for target in range(data.classes):
        on_progress(target, data.classes, names[target])
        if bool((sources.y == target).all()):
            continue  # no example has another label, and could be driven to this class
        found = evaluate(
            model,
            sources,
            ball,
            config.attack,
            eps=radii,
            target=target,
            seed=config.seed,
            batch_size=config.batch_size,
            diagnose=0,
            accelerate=False,
        )
        place = {int(id): row for row, id in enumerate(found.records["id"].to_pylist())}
        order = [place[id] for id in sources.ids.tolist()]
        status, eps = (found.records[name].to_numpy(zero_copy_only=False)[order] for name in ("status", "eps"))
        attacked[:, target] = np.isin(status, ("robust", "fooled"))
        broken_at[status == "fooled", target] = eps[status == "fooled"]
        backwards += found.backwards
    on_progress(data.classes, data.classes, "")
    count = len(examples)
    correct = attacked[:count].any(1)
    if not correct.any():
        raise BadInput(f"`model` must be right about some of the {count} examples, got none; look at its data")
    source = np.minimum(data.classes + np.arange(len(sources)) - count, data.classes + len(BLANK) - 1)
    source[:count] = examples.y.cpu().numpy()
    attempts = np.zeros((data.classes + (0 if blanks is None else len(BLANK)), data.classes), dtype=int)
    successes = np.zeros_like(attempts)
    np.add.at(attempts, source, attacked)
    np.add.at(successes, source, broken_at <= radius)
    classes_reached = (broken_at[:count] <= radius).sum(1)[correct]
    return Targets(
        curve=tuple(_reach(each, attacked, broken_at, count) for each in radii),
        sources=(*names, *(() if blanks is None else BLANK)),
        targets=names,
        attempts=nested(attempts),
        successes=nested(successes),
        reached=nested(np.bincount(classes_reached, minlength=data.classes)),
        config=made_of(model, examples, ball, config, eps=radius, backwards=backwards),
    )


def _reach(eps: float, attacked: np.ndarray, broken_at: np.ndarray, count: int) -> Reach:
    """The shares at one radius, of the examples before `count` and of the images that show nothing after them."""
    correct, blank = attacked[:count].any(1), attacked[count:]
    success = broken_at <= eps
    reached = success[:count][correct].sum(1)
    return Reach(
        eps=eps,
        mean=float(reached.sum() / attacked[:count].sum()),
        everywhere=float((reached == attacked[:count][correct].sum(1)).mean()),
        somewhere=float((reached > 0).mean()),
        blank=float(success[count:].sum() / blank.sum()) if blank.any() else None,
    )


def _blanks(data: Examples, ball: Ball, seed: int) -> Float[Tensor, "k *shape"] | None:
    """Images of one colour and of noise, in the ball's box; None where a side of it is not one finite number."""
    box = box_of(ball)
    if box is None:
        return None
    lo, hi = box
    colours = [torch.full((1, *data.shape), value) for value in (lo, (lo + hi) / 2, hi)]
    index = torch.arange(NOISES)
    noise = Noise(seed, index, torch.zeros_like(index)).uniform(data.shape) * (hi - lo) + lo
    return torch.cat([*colours, noise]).to(data.x).clamp(lo, hi)


def _joined(model: Model, data: Examples, blanks: Float[Tensor, "k *shape"]) -> Examples:
    """The examples, and after them the images that show nothing, labelled with what the model predicts."""
    with Objective(model, cross_entropy, needs="logits") as objective:
        output = objective.forward(blanks)
    label = output.argmax(1) if output.is_floating_point() else output
    ids = int(data.ids.max()) + 1 + torch.arange(len(blanks), device=data.ids.device)
    return replace(data, x=torch.cat([data.x, blanks]), y=torch.cat([data.y, label]), ids=torch.cat([data.ids, ids]))
