"""The choices of the page: attacks short enough for a slider, and scales of the radius."""

from __future__ import annotations

from typing import Any

import torch

from epsball.attacks.attack import Attack
from epsball.attacks.registry import attack_class, parse
from epsball.balls.registry import BALLS
from epsball.common.errors import BadInput
from epsball.serve.exhibit import Exhibit

ATTACKS: dict[str, str] = {
    "fgsm": "FGSM, one step",
    "bim:steps=10": "BIM, 10 small steps",
    "pgd:steps=20": "PGD, 20 steps, random start",
    "apgd:steps=50": "APGD, 50 steps",
    "l1-apgd:steps=50": "APGD for L1, 50 steps",
    "deepfool": "DeepFool, minimum norm",
    "ddn:steps=50": "DDN, minimum norm",
    "fmn:steps=50": "FMN, minimum norm",
    "fab:steps=20": "FAB, minimum norm",
    "square:steps=500": "Square, without gradients",
    "uniform-noise": "Noise, uniform in the ball",
    "sign-noise": "Noise, random signs",
}
"""Short forms, as on the command line, and their names on the page."""

MOST_STEPS = 20_000
"""The most steps of one question: the page waits for them."""


def chosen(text: str) -> Attack:
    """The attack of a short form, if it is one that a page can wait for.

    Raises `BadInput` for one that is not known, needs only labels, or makes too many steps.
    """
    attack = parse(text)
    if attack.needs == "label":
        raise BadInput(f"`attack` must be one that looks at logits on this page, got {text!r}; use epsball attack")
    steps = int(vars(attack).get("steps", 1)) * attack.jobs
    if steps > MOST_STEPS:
        raise BadInput(f"`attack` must make at most {MOST_STEPS:,} steps on this page, got {steps:,} in {text!r}")
    return attack


def menu(exhibit: Exhibit) -> dict[str, Any]:
    """The choices, as JSON can hold them.

    The greatest radius of a norm is that of a change of every value by half of the box, in L0 of all coordinates.
    """
    half = torch.full((1, *exhibit.shape), (exhibit.hi - exhibit.lo) / 2)
    norms = [
        {
            "id": norm,
            "name": f"{ball.symbol}: {ball.rule}",
            "unit": ball.unit,
            "whole": "count" in ball.traits,
            "most": float(exhibit.around(norm, 1.0).norm(half)),
        }
        for norm, ball in BALLS.items()
    ]
    attacks = []
    for text, name in ATTACKS.items():
        attack, kind = parse(text), attack_class(text.partition(":")[0])
        attacks.append({"id": text, "name": name, "norms": list(kind.norms()), "iterates": attack.max_steps != 1})
    return {"norms": norms, "attacks": attacks}
