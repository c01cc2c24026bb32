"""From the attacks that a user names to stages: one attack at one radius, in the order in which they run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from epsball.acceleration.draft import Precision
from epsball.attacks.attack import Attack
from epsball.attacks.registry import parse
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.engine import protocols
from epsball.engine.user_attack import UserAttack, UserCallable

Asked = str | Attack | UserCallable
Named = tuple[str, Attack | UserAttack]
"""An attack under the name that the user gave it."""
WITHIN = 0.95
"""In a minimum-norm run, attacks of one radius search within this share of the smallest distance known."""
QUICK, MANY = "pgd:steps=10", "pgd:steps=100,restarts=30"
"""The attacks of a run that certifies, beside the user's: before bounds are computed, and before they are searched."""
Certifies = Literal["bounds", "search"]


@dataclass(frozen=True, eq=False)
class PlannedStage:
    """A stage to be run: an attack, under the name that the user gave it, at one radius (None: the ball's own).

    A `draft` runs in lower precision; its successes count where the model itself confirms them. With `within`, a share,
    the radius is that share of the smallest distance of an adversarial example known, for each example.
    """

    name: str
    label: str
    attack: Attack | UserAttack
    eps: float | None
    draft: bool = False
    within: float | None = None
    certifies: ClassVar[None] = None

    @property
    def minimises(self) -> bool:
        """Whether it is a minimum-norm attack."""
        return isinstance(self.attack, Attack) and self.attack.minimises

    def described(self) -> dict[str, Any]:
        """Its entry in `config.json`."""
        return {
            "name": self.name,
            "attack": self.label,
            "eps": self.eps,
            "minimises": self.minimises,
            "within": self.within,
        }


@dataclass(frozen=True, eq=False)
class PlannedCertificate:
    """A stage that proves examples robust at one radius (None: the ball's own), on what is neither broken nor proved.

    It `certifies` by bounds alone, or by a search that continues from those of the stage called `bounds`.
    """

    name: str
    eps: float | None
    certifies: Certifies
    bounds: str = ""
    minimises: ClassVar[bool] = False
    within: ClassVar[None] = None

    @property
    def label(self) -> str:
        """What it is called in the records."""
        return f"certify-{self.certifies}"

    def described(self) -> dict[str, Any]:
        """Its entry in `config.json`."""
        return {
            "name": self.name,
            "attack": self.label,
            "eps": self.eps,
            "minimises": False,
            "within": None,
            "certifies": self.certifies,
            "bounds": self.bounds,
        }


Planned = PlannedStage | PlannedCertificate


def stages_of(
    attacks: Sequence[Named],
    radii: Sequence[float | None],
    draft: Precision | None,
    *,
    within: float | None = None,
    first: int = 0,
) -> tuple[PlannedStage, ...]:
    """All attacks at the first radius, then at the next; with `draft`, each gradient attack first in that precision.

    Their file names are numbered from `first` on.
    """
    stages: list[PlannedStage] = []
    for radius in radii:
        for name, attack in attacks:
            drafts = [True, False] if draft and isinstance(attack, Attack) and attack.needs == "grad" else [False]
            for drafted in drafts:
                label = f"{name} in {draft}" if drafted else name
                file = f"{first + len(stages):02d}-{file_of(attack)}" + f"-{draft}" * drafted
                stages.append(PlannedStage(file, label, attack, radius, drafted, within))
    return tuple(stages)


def certifying_attacks(attacks: Sequence[Named], *, search: bool) -> list[Named]:
    """The attacks of a run that certifies: a quick one first and, where what is left is searched, many restarts."""
    quick, many = ((name, parse(name)) for name in (QUICK, MANY))
    return [quick, *attacks, *([many] if search else [])]


def certifying_stages(
    attacks: Sequence[Named], radii: Sequence[float | None], draft: Precision | None, *, search: bool
) -> tuple[Planned, ...]:
    """The stages of a run that certifies, from `certifying_attacks`; at one radius in the order of their names here.

    The quick attack, bounds on what it did not break, the other attacks on what is open, and where it is asked for the
    search. What is broken at a radius is so at the larger ones, and what is proved is so at the smaller ones: attacks
    begin at the smallest of several radii, bounds and the search at the largest.
    """
    stages: list[Planned] = list(stages_of(attacks[:1], radii, draft))
    bounds: dict[float | None, str] = {}
    for radius in reversed(radii):
        bounds[radius] = f"{len(stages):02d}-certify-bounds"
        stages.append(PlannedCertificate(bounds[radius], radius, "bounds"))
    stages += stages_of(attacks[1:], radii, draft, first=len(stages))
    for radius in reversed(radii) if search else ():
        name = f"{len(stages):02d}-certify-search"
        stages.append(PlannedCertificate(name, radius, "search", bounds[radius]))
    return tuple(stages)


def nearest_stages(
    attacks: Sequence[Named], radii: Sequence[float] | None, draft: Precision | None
) -> tuple[PlannedStage, ...]:
    """The minimum-norm attacks in balls of infinite radius, then the others, which search for something nearer.

    The others run at each of `radii`, or else within `WITHIN` times the smallest distance known. Raises `BadInput`
    where no attack is a minimum-norm one.
    """
    seeking = [pair for pair in attacks if isinstance(pair[1], Attack) and pair[1].minimises]
    checking = [pair for pair in attacks if pair not in seeking]
    if not seeking:
        raise BadInput(
            "`attacks` must have a minimum-norm attack with `min_norm`, got "
            f"{', '.join(name for name, _ in attacks)}; such as fmn, or the protocol min-norm"
        )
    stages, within = stages_of(seeking, (math.inf,), draft), WITHIN if radii is None else None
    return stages + stages_of(checking, radii or (None,), draft, within=within, first=len(stages))


def listed(asked: Asked | Sequence[Asked]) -> list[Asked]:
    """The attacks as a list, also if one was given alone."""
    return list(asked) if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]


def named(asked: Asked | Sequence[Asked], ball: Ball) -> list[Named]:
    """The attacks with their names; a protocol becomes its attacks.

    Raises `BadInput` for what is no attack, and for one that is not defined in such balls.
    """
    pairs: list[Named] = []
    for one in listed(asked):
        texts = protocols.expand(one, ball) if isinstance(one, str) else (one,)
        pairs.extend((name_of(text), attack_of(text)) for text in texts)
    if not pairs:
        raise BadInput("`attacks` must name at least one attack, got none; as in attacks=['fgsm', 'pgd']")
    for _, attack in pairs:
        if isinstance(attack, Attack):
            attack.check_ball(ball)
    return pairs


def attack_of(asked: Asked) -> Attack | UserAttack:
    """An attack from its name, an attack as it is, or a user's callable as a `UserAttack`."""
    if isinstance(asked, str):
        return parse(asked)
    if isinstance(asked, Attack):
        return asked
    if not callable(asked) or isinstance(asked, type):
        raise BadInput(f"`attacks` must be names, attacks such as PGD(), or callables, got {asked!r}")
    return UserAttack(asked)


def name_of(asked: Asked | UserAttack) -> str:
    """What an attack is called in the records: as the user wrote it, else by its class or function."""
    if isinstance(asked, str):
        return asked
    chosen = asked if isinstance(asked, UserAttack) else attack_of(asked)
    return chosen.name if isinstance(chosen, UserAttack) else type(chosen).__name__.lower()


def file_of(attack: Attack | UserAttack) -> str:
    """A stage's name in a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name_of(attack)).strip("-")
