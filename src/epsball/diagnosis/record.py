"""What a diagnosis found: one indicator for each way in which an evaluation is known to fail.

The indicators are those of Carlini et al., "On Evaluating Adversarial Robustness" (arXiv:1902.06705), sections 4 and 5,
of Athalye et al. (ICML 2018), section 3.1, and of Pintor et al., "Indicators of Attack Failure" (NeurIPS 2022), which
numbers them I1 to I6. How each threshold was chosen is in docs/diagnosis.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput

KEPT = "diagnosis.json"

Name = Literal[
    "softmax-outputs",
    "stochastic-forward",
    "zero-gradients",
    "vanishing-gradients",
    "shattered-gradients",
    "saturated-logits",
    "loss-not-monotone",
    "single-step-stronger",
    "masked-single-step",
    "noise-stronger",
    "black-box-stronger",
    "more-steps-help",
    "restarts-help",
    "larger-eps-weaker",
    "unbounded-fails",
    "rejection-class",
    "binarization-test-failed",
]


@dataclass(frozen=True)
class Known:
    """What is known of an indicator before anything is measured."""

    threshold: float
    what: str
    source: str
    meaning: str
    remedy: str


INDICATORS: dict[Name, Known] = {
    "softmax-outputs": Known(
        0.99,
        "share of examples whose outputs are >= 0 and sum to 1",
        "Carlini et al. 2019, section 4.7; Carlini and Wagner 2017, section V",
        "the model returns probabilities: its gradients vanish where it is sure, and attacks see nothing to climb",
        "return the logits, from before the softmax",
    ),
    "stochastic-forward": Known(
        1e-4,
        "greatest difference of two passes over the same examples, as a share of the largest logit",
        "Carlini et al. 2019, section 4.6; Athalye et al. 2018, section 3.1",
        "the model draws random numbers: one pass shows neither its gradient nor its verdict",
        "fix the random numbers, or attack and evaluator the mean of several passes: eot=20",
    ),
    "zero-gradients": Known(
        0.05,
        "share of examples where the gradient of the margin is exactly zero",
        "Pintor et al. 2022, I1 (unavailable gradients); Carlini et al. 2019, section 4.7",
        "the model does not let gradients through, so attacks that follow them stay where they are",
        "put a differentiable function in the place of what rounds or cuts off (BPDA), and attack with logits only: "
        "square",
    ),
    "vanishing-gradients": Known(
        0.05,
        "share of examples where the gradient, followed across the whole range of the data, promises less than 1 % "
        "of what a wrong class lacks",
        "Athalye et al. 2018, section 3.1 (vanishing gradients); Carlini et al. 2019, section 4.7",
        "the gradient is next to nothing: something saturates, and steps follow its rounding errors",
        "take the softmax, sigmoid or temperature away from the end, and attack with logits only: square",
    ),
    "shattered-gradients": Known(
        0.1,
        "share of examples where a step of a thousandth of the data's range gains less than half, or more than one and "
        "a half times, what the gradient promises, at one of eight steps or more",
        "Athalye et al. 2018, section 3.1 (shattered gradients); Pintor et al. 2022, I2 (unstable predictions)",
        "the gradient says nothing of the model a very short way off: the function jumps, or the gradient is another's",
        "smooth what jumps, or attack the mean over a neighbourhood, and attack with logits only: square",
    ),
    "saturated-logits": Known(
        0.05,
        "share of examples where the cross-entropy's gradient is zero in the precision of the logits",
        "Carlini et al. 2019, section 4.7; Carlini and Wagner 2016 (defensive distillation)",
        "the logits are so far apart that their softmax is 0 and 1: cross-entropy has no slope left",
        "divide the logits by a temperature, or climb a loss that does not saturate: loss=margin, loss=dlr",
    ),
    "loss-not-monotone": Known(
        0.1,
        "share of examples that lose more than a quarter of their way up again, in ten short steps along the gradient",
        "Carlini et al. 2019, section 5.2 (the loss at each iteration); Pintor et al. 2022, I4",
        "steps along the gradient lead down as well as up, so that iterating does not climb",
        "take shorter steps; where that does not help, the gradient is masked: attack with logits only: square",
    ),
    "single-step-stronger": Known(
        0.02,
        "share of examples that one step fools and iterated attacks do not",
        "Carlini et al. 2019, section 5.2; Athalye et al. 2018, section 3.1",
        "one step can do what many cannot: the iterated attacks are not right, or the gradient is masked",
        "look at step size and restarts; apgd sets its own steps",
    ),
    "masked-single-step": Known(
        0.5,
        "share of the examples that fall to iterated attacks and stand one step of full length",
        "Tramer et al. 2018, section 3; Wong et al. 2020, section 5; Carlini et al. 2019, section 4.3",
        "the model hides from single steps: its robustness to fgsm is none (catastrophic overfitting)",
        "believe iterated attacks only, from random starts, and attack with logits only as well: square",
    ),
    "noise-stronger": Known(
        0.02,
        "share of examples that random points of the ball fool and gradients do not",
        "Carlini et al. 2019, section 4.11; Athalye et al. 2018, section 3.1",
        "luck finds what gradients miss: they lead nowhere",
        "find out why the gradients fail before anything else; until then attack with logits only: square",
    ),
    "black-box-stronger": Known(
        0.02,
        "share of examples that attacks without gradients, or a transfer, fool and attacks with gradients do not",
        "Carlini et al. 2019, section 5.4; Pintor et al. 2022, I5; Athalye et al. 2018, section 3.1",
        "who sees less of the model finds more: the gradients are masked",
        "attack with logits only, longer: square:steps=5000; find what masks the gradients",
    ),
    "more-steps-help": Known(
        0.05,
        "share of examples that stood, and fall to a hundred short steps on the margin",
        "Carlini et al. 2019, section 4.8; Pintor et al. 2022, I4 (incomplete optimization)",
        "the attacks were stopped before they were done, or climbed the wrong loss",
        "more steps and another loss: apgd:steps=200, apgd-t; or the protocol fast",
    ),
    "restarts-help": Known(
        0.05,
        "share of examples that stood, and fall from one of four other random starts",
        "Carlini et al. 2019, section 4.9; Pintor et al. 2022, I4",
        "whether an example falls depends on where the attack begins",
        "more starts: pgd:restarts=10; or the protocol fast",
    ),
    "larger-eps-weaker": Known(
        0.02,
        "share of examples that fall in the ball and stand the same attack in one of twice its radius",
        "Carlini et al. 2019, section 5.2; Athalye et al. 2018, section 3.1",
        "a larger ball holds all that the smaller one holds, and the attack finds less in it",
        "look at the step size, which grows with the radius; apgd sets its own",
    ),
    "unbounded-fails": Known(
        0.05,
        "share of examples that stand where any point of the data's range is allowed",
        "Carlini et al. 2019, section 5.3; Pintor et al. 2022, I6 (unconstrained attack failure)",
        "with no bound left an attack that works always succeeds: this one does not work on this model",
        "find out why the gradients fail before anything else; until then attack with logits only: square",
    ),
    "rejection-class": Known(
        0.5,
        "share of the points where attacks end in one class that no example is labelled with",
        "Carlini and Wagner, AISec 2017; Carlini et al. 2019, section 4.2; Tramer et al. 2020",
        "the model seems to answer 'attacked' instead of a class: an attack that only leaves the label is caught, and "
        "its count says nothing of one that evades both",
        "aim at the other classes (apgd-t, fab-t), and say what counts with success=",
    ),
    "binarization-test-failed": Known(
        0.05,
        "share of hidden adversarial examples that the protocol did not find",
        "Zimmermann et al. 2022",
        "the attacks miss what is surely there: they are too weak for this model",
        "stronger attacks, more steps; see the other indicators for what weakens them",
    ),
}
"""The literal table, in the order of the diagnosis."""


@dataclass(frozen=True)
class Indicator:
    """One sign of a failed evaluation: it is `raised` where `value` > `threshold`; None was not measured.

    `what` says what the value is, `source` who proposed to look at it, `meaning` and `remedy` what it means for the
    verdict where it is raised, and what to do about it.
    """

    name: str
    value: float | None
    threshold: float
    what: str
    source: str
    meaning: str
    remedy: str

    @property
    def raised(self) -> bool:
        """Whether it speaks against the verdict."""
        return self.value is not None and self.value > self.threshold

    @property
    def text(self) -> str:
        """For people, in a line or two."""
        if self.value is None:
            return f"{self.name}: not measured"
        return f"{self.name} {self.value:.3g} (limit {self.threshold:.3g}): {self.meaning}. Remedy: {self.remedy}."


def indicator(name: Name, value: float | None, *, least: float = 0.0) -> Indicator:
    """The indicator of that name; `least` is a threshold below which the value is chance, on a small sample.

    >>> indicator("zero-gradients", 0.25).raised, indicator("zero-gradients", 0.25, least=0.5).raised
    (True, False)
    """
    known = INDICATORS[name]
    threshold = max(known.threshold, least)
    return Indicator(name, value, threshold, known.what, known.source, known.meaning, known.remedy)


@dataclass(frozen=True)
class Diagnosis:
    """What speaks against believing an evaluation: `indicators`, in the order of `INDICATORS`.

    `examples` were looked at, `correct` of them classified correctly, on which all shares are taken. `attacks` are the
    names of those that were traced, `answered` the indicators that they were changed for. `forwards` and `backwards`
    are the passes that it cost, in rows.
    """

    indicators: tuple[Indicator, ...]
    attacks: tuple[str, ...]
    examples: int
    correct: int
    seed: int
    forwards: int
    backwards: int
    seconds: float = field(compare=False)
    answered: tuple[str, ...] = ()

    @property
    def raised(self) -> tuple[Indicator, ...]:
        """The indicators that speak against the verdict."""
        return tuple(one for one in self.indicators if one.raised)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(one.name for one in self.raised)

    @property
    def speaks_against(self) -> bool:
        """Whether an indicator is raised that the attacks were not changed for."""
        return any(name not in self.answered for name in self.names)

    def __getitem__(self, name: str) -> Indicator:
        """The indicator of that name; `KeyError` where there is none."""
        for one in self.indicators:
            if one.name == name:
                return one
        raise KeyError(name)

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        looked = f"{self.correct} of {self.examples} examples"
        if not self.correct:
            return f"diagnosis: none of {self.examples} examples is classified correctly, so it says little"
        if not self.raised:
            measured = sum(one.value is not None for one in self.indicators)
            return f"diagnosis: none of {measured} indicators speaks against the verdict ({looked})"
        open_, answered = ([name for name in self.names if (name in self.answered) is there] for there in (False, True))
        if not open_:
            return f"diagnosis: {', '.join(answered)}, which the attacks were changed for, and nothing else ({looked})"
        return f"diagnosis: do not believe the verdict yet: {', '.join(open_)} ({looked})"

    @property
    def text(self) -> str:
        """The result with a line for each indicator that is raised."""
        return "\n".join([self.sentence, *(f"  {one.text}" for one in self.raised)])

    def summary(self) -> dict[str, Any]:
        """The result as JSON can hold it, with what follows from it."""
        return {**self._record(), "raised": list(self.names), "verdict": self.sentence}

    def _record(self) -> dict[str, Any]:
        return {
            **vars(self),
            "indicators": [vars(one) for one in self.indicators],
            "attacks": list(self.attacks),
            "answered": list(self.answered),
        }

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal result."""
        return json.dumps(self._record(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Diagnosis:
        """The result that `to_json` wrote."""
        record = json.loads(text)
        found = tuple(Indicator(**one) for one in record.pop("indicators"))
        return cls(
            indicators=found, attacks=tuple(record.pop("attacks")), answered=tuple(record.pop("answered")), **record
        )

    def save(self, path: Path) -> None:
        """Leave the result in a run's directory."""
        write_whole(path / KEPT, lambda draft: draft.write_text(self.to_json()))

    @classmethod
    def load(cls, path: Path) -> Diagnosis | None:
        """The result that a run left in its directory, None where there is none."""
        kept = path / KEPT
        if not kept.exists():
            return None
        try:
            return cls.from_json(kept.read_text())
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{kept} is damaged: it holds no diagnosis; delete it and start the run again") from error
