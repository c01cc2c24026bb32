"""No image is safe: can every image, whatever its class, be driven to every other class?

Linear behaviour in high dimensions makes any class reachable from anywhere, "regardless of the image" (Goodfellow,
Shlens and Szegedy, ICLR 2015, sections 3 and 10). Each example that is classified correctly is attacked once for each
other class as a target, at several radii; so are images that show nothing: one colour, and uniform noise. Success is
counted on the point as it is stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.examples import Examples
from epsball.evaluation.evaluate import evaluate
from epsball.explain.record import box_of, class_names, evenly, percent, radius_of, said, versions
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective

ATTACK = "pgd"
NOTHING = ("black", "grey", "white", "noise")
"""Images that show nothing: the box's lower end, its middle, its upper end, and uniform noise."""
NOISES = 16
FACTORS = (0.5, 1.0, 2.0, 3.0, 4.0)
"""The radii, in units of the ball's."""


@dataclass(frozen=True)
class Reach:
    """What an attacker of radius `eps` reaches from the correct examples, as shares from 0 to 1.

    `mean` of all pairs of an example and another class, `everywhere` of the examples every other class, `somewhere` at
    least one; `nothing` of all pairs of an image that shows nothing and a class, None without such images.
    """

    eps: float
    mean: float
    everywhere: float
    somewhere: float
    nothing: float | None


@dataclass(frozen=True)
class Targets:
    """What `targets` found: a `Reach` per radius, and counts per source and target at the ball's own.

    `sources` are the names of the classes, then of images that show nothing; `targets` the names of the classes.
    `asked` and `driven` (sources, targets) count the examples that are not the target already, and those of them that
    reached it. `reached` (classes,) counts the correct examples by how many of the other classes they were driven to,
    from 0 to all.
    """

    curve: tuple[Reach, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    asked: tuple[tuple[int, ...], ...]
    driven: tuple[tuple[int, ...], ...]
    reached: tuple[int, ...]
    config: dict[str, Any]

    @property
    def at_ball(self) -> Reach:
        """What is reached within the ball's own radius."""
        return next(one for one in self.curve if one.eps == self.config["eps"])

    @property
    def shares(self) -> np.ndarray:
        """(sources, targets): the share that was driven to the target, NaN where none was asked."""
        asked, driven = np.array(self.asked, dtype=float), np.array(self.driven, dtype=float)
        return np.divide(driven, asked, out=np.full_like(asked, np.nan), where=asked > 0)

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        one, last, others = self.at_ball, self.curve[-1], len(self.targets) - 1
        count, within = f"{sum(self.reached):,} rightly classified examples", self.config["said"]
        if others == 1:
            said = f"Of {count} {percent(one.mean)} can be driven to the other class within {within}"
            return said + (f", {percent(last.mean)} within {last.eps:.3g}." if last.eps > one.eps else ".")
        said = (
            f"On average {count} can be driven to {percent(one.mean)} of the {others} other classes within {within}, "
            f"{percent(one.somewhere)} of them to some class and {percent(one.everywhere)} to every one"
        )
        if last.eps > one.eps:
            said += f"; within {last.eps:.3g} to {percent(last.mean)}, {percent(last.everywhere)} to every one"
        if one.nothing is not None:
            said += f". Inputs that show nothing can be driven to {percent(one.nothing)} within {one.eps:.3g}"
        return said + "."

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON can hold them."""
        return {"sentence": self.sentence} | asdict(self)

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal record."""
        return json.dumps(self.summary(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Targets:
        """The record that `to_json` wrote."""
        record = json.loads(text)
        return cls(
            curve=tuple(Reach(**one) for one in record["curve"]),
            sources=tuple(record["sources"]),
            targets=tuple(record["targets"]),
            asked=tuple(map(tuple, record["asked"])),
            driven=tuple(map(tuple, record["driven"])),
            reached=tuple(record["reached"]),
            config=record["config"],
        )

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: the matrix of shares, and how many classes an example reaches."""
        from epsball.explain.pictures_attacks import draw_targets

        draw_targets(self, path)


def targets(
    model: Model,
    data: Examples,
    ball: Ball,
    *,
    eps: Sequence[float] | None = None,
    attack: str = ATTACK,
    rows: int = 500,
    seed: int = 0,
    batch_size: int = 128,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Targets:
    """Attack each correctly classified example once for each other class, and count what the stored points show.

    `model` is a torch module or a callable x -> logits; `ball` has one radius, in the units of `data`, of which at most
    `rows` examples are taken, spread evenly. `eps` are the radii, from small to large (default: the ball's times
    `FACTORS`), to which the ball's is added. `attack` is a name of `epsball attacks` with its options; an example that
    fell at one radius is not attacked again at the next. Where the box is finite, images that show nothing are attacked
    too; what the model calls them is their label. `on_progress` is called
    with the count of finished targets, that of all, and what is next. The model comes back as it was.

    Raises `BadInput` where there are no two classes, or the model returns no logits for one of them.

    Logits that are the three features: at x, class 0 leads by .1 over class 1 and by .5 over class 2.

    >>> from epsball.balls.linf import Linf
    >>> from epsball.data.arrays import from_arrays
    >>> data = from_arrays(torch.tensor([[0.5, 0.4, 0.0]]), [0], classes=3)
    >>> found = targets(lambda x: x, data, Linf(eps=0.1), eps=(0.2, 0.3))
    >>> found.driven[0], found.reached, [one.mean for one in found.curve]
    ((0, 1, 0), (0, 1, 0), [0.5, 0.5, 1.0])
    """
    check_whole("rows", rows, 1)
    if data.classes < 2:
        raise BadInput(f"`data` must have at least two classes, got {data.classes}; there is no other to go to")
    radius, kept = radius_of(ball), evenly(data, rows)
    radii = sorted({radius, *((factor * radius for factor in FACTORS) if eps is None else map(float, eps))})
    if radii[0] <= 0 or not np.isfinite(radii[-1]):
        raise BadInput(f"`eps` must be radii > 0 and finite, got {radii}; write for example (0.05, 0.1)")
    names, blanks = class_names(data), _nothing(kept, ball, seed)
    shown = kept if blanks is None else _joined(model, kept, blanks)
    classes, count = data.classes, len(kept)
    attacked = np.zeros((len(shown), classes), dtype=bool)
    fell = np.full((len(shown), classes), np.inf)
    backwards = 0
    for target in range(classes):
        if on_progress is not None:
            on_progress(target, classes, names[target])
        found = evaluate(
            model,
            shown,
            ball,
            attack,
            eps=radii,
            target=target,
            seed=seed,
            batch_size=batch_size,
            diagnose=0,
            accelerate=False,
        )
        place = {int(id): row for row, id in enumerate(found.records["id"].to_pylist())}
        order = [place[id] for id in shown.ids.tolist()]
        status, at = (found.records[name].to_numpy(zero_copy_only=False)[order] for name in ("status", "eps"))
        attacked[:, target] = np.isin(status, ("robust", "fooled"))
        fell[status == "fooled", target] = at[status == "fooled"]
        backwards += found.backwards
    if on_progress is not None:
        on_progress(classes, classes, "")
    correct = attacked[:count].any(1)
    if not correct.any():
        raise BadInput(f"`model` must be right about some of the {count} examples, got none; look at its data")
    source = np.minimum(classes + np.arange(len(shown)) - count, classes + len(NOTHING) - 1)
    source[:count] = kept.y.cpu().numpy()
    asked = np.zeros((classes + (0 if blanks is None else len(NOTHING)), classes), dtype=int)
    driven = np.zeros_like(asked)
    np.add.at(asked, source, attacked)
    np.add.at(driven, source, fell <= radius)
    config = {
        "model": fingerprint.of_model(model),
        "data": data.name,
        "rows": count,
        "ball": fingerprint.described(ball),
        "said": said(ball),
        "eps": radius,
        "attack": attack,
        "seed": seed,
        "backwards": backwards,
        "versions": versions(),
    }
    hits = (fell[:count] <= radius).sum(1)[correct]
    return Targets(
        curve=tuple(_reach(each, attacked, fell, count) for each in radii),
        sources=(*names, *(() if blanks is None else NOTHING)),
        targets=names,
        asked=tuple(map(tuple, asked.tolist())),
        driven=tuple(map(tuple, driven.tolist())),
        reached=tuple(np.bincount(hits, minlength=classes).tolist()),
        config=config,
    )


def _reach(eps: float, attacked: np.ndarray, fell: np.ndarray, count: int) -> Reach:
    """The shares at one radius, of the examples before `count` and the images that show nothing behind them."""
    correct, blank = attacked[:count].any(1), attacked[count:]
    driven = fell <= eps
    hits = driven[:count][correct].sum(1)
    return Reach(
        eps=eps,
        mean=float(hits.sum() / attacked[:count].sum()),
        everywhere=float((hits == attacked[:count][correct].sum(1)).mean()),
        somewhere=float((hits > 0).mean()),
        nothing=float(driven[count:].sum() / blank.sum()) if blank.any() else None,
    )


def _nothing(data: Examples, ball: Ball, seed: int) -> Float[Tensor, "k *shape"] | None:
    """Images of one colour and of noise, in the ball's box; None where a side of it is not one finite number."""
    box = box_of(ball)
    if box is None:
        return None
    lo, hi = box
    flat = [torch.full((1, *data.shape), value) for value in (lo, (lo + hi) / 2, hi)]
    index = torch.arange(NOISES)
    noise = Noise(seed, index, torch.zeros_like(index)).uniform(data.shape) * (hi - lo) + lo
    return torch.cat([*flat, noise]).to(data.x).clamp(lo, hi)


def _joined(model: Model, data: Examples, blanks: Float[Tensor, "k *shape"]) -> Examples:
    """The examples, and behind them the images that show nothing with what the model calls them for a label."""
    with Objective(model, cross_entropy, needs="logits") as objective:
        called = objective.forward(blanks)
    label = called.argmax(1) if called.is_floating_point() else called
    ids = int(data.ids.max()) + 1 + torch.arange(len(blanks), device=data.ids.device)
    return replace(data, x=torch.cat([data.x, blanks]), y=torch.cat([data.y, label]), ids=torch.cat([data.ids, ids]))
