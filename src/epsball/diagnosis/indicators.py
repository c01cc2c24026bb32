"""The reliability checks of an evaluation: one indicator for each way in which an evaluation is known to fail.

The indicators are those of Carlini et al., "On Evaluating Adversarial Robustness" (arXiv:1902.06705), sections 4 and 5,
of Athalye et al. (ICML 2018), section 3.1, and of Pintor et al., "Indicators of Attack Failure" (NeurIPS 2022), which
numbers them I1 to I6. How each threshold was chosen is in docs/diagnosis.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from epsball.common.record import Record


@dataclass(frozen=True)
class Indicator(Record):
    """One reliability check: it has failed where `value` > `threshold`. A value of None was not measured.

    `what` says what the value is, `source` who proposed to look at it, `meaning` what a failed check means for the
    evaluation, `remedy` what to do about it.
    """

    name: str
    threshold: float
    what: str
    source: str
    meaning: str
    remedy: str
    value: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the check was made and its threshold exceeded."""
        return self.value is not None and self.value > self.threshold

    @property
    def text(self) -> str:
        """For people, in a line or two."""
        if self.value is None:
            return f"{self.name}: not measured"
        return f"{self.name} {self.value:.3g} (limit {self.threshold:.3g}): {self.meaning}. Remedy: {self.remedy}."


_TABLE = (
    Indicator(
        "softmax-outputs",
        0.99,
        "share of examples whose outputs are >= 0 and sum to 1",
        "Carlini et al. 2019, section 4.7; Carlini and Wagner 2017, section V",
        "the model returns probabilities: their gradients vanish where the model is confident, and attacks make no "
        "progress",
        "return the logits, from before the softmax",
    ),
    Indicator(
        "dependent-rows",
        1e-3,
        "greatest difference between the outputs of the same examples in two batches, as a share of the largest logit",
        "Xie and Yuille 2020 (batch statistics)",
        "the model is in train mode, or uses the statistics of the batch, or reads side inputs by position: rows "
        "change each other's outputs, and every batch shows another model",
        "call model.eval() wherever the model is built or called, and hand side inputs over as part of x",
    ),
    Indicator(
        "stochastic-forward",
        1e-4,
        "greatest difference between two forward passes over the same examples, as a share of the largest logit",
        "Carlini et al. 2019, section 4.6; Athalye et al. 2018, section 3.1",
        "the model draws random numbers: a single pass shows neither its gradient nor its prediction reliably",
        "fix the random numbers, or attack and evaluate the mean of several forward passes: eot=20",
    ),
    Indicator(
        "zero-gradients",
        0.05,
        "share of examples where the gradient of the margin is exactly zero",
        "Pintor et al. 2022, I1 (unavailable gradients); Carlini et al. 2019, section 4.7",
        "the model has no gradient there, so gradient attacks do not move",
        "replace the operation that rounds or cuts off by a differentiable one (BPDA), and attack with logits only: "
        "square",
    ),
    Indicator(
        "vanishing-gradients",
        0.05,
        "share of examples where the gradient, followed across the whole range of the data, predicts less than 1 % of "
        "the change of the margin that a misclassification needs",
        "Athalye et al. 2018, section 3.1 (vanishing gradients); Carlini et al. 2019, section 4.7",
        "the gradient is nearly zero: an activation saturates, and attack steps follow rounding errors",
        "remove the final softmax, sigmoid or temperature, and attack with logits only: square",
    ),
    Indicator(
        "shattered-gradients",
        0.1,
        "share of examples where a step of a thousandth of the data's range gains less than half, or more than one and "
        "a half times, what the gradient predicts, at one of eight steps or more",
        "Athalye et al. 2018, section 3.1 (shattered gradients); Pintor et al. 2022, I2 (unstable predictions)",
        "the gradient does not describe the model even at a very short distance: the function jumps, or the gradient "
        "is that of another function",
        "smooth what jumps, or attack the mean over a neighbourhood, and attack with logits only: square",
    ),
    Indicator(
        "saturated-logits",
        0.05,
        "share of examples where the cross-entropy's gradient is zero in the precision of the logits",
        "Carlini et al. 2019, section 4.7; Carlini and Wagner 2016 (defensive distillation)",
        "the logits are so far apart that their softmax is 0 and 1: the gradient of the cross-entropy is zero",
        "divide the logits by a temperature, or attack a loss that does not saturate: loss=margin, loss=dlr",
    ),
    Indicator(
        "loss-not-monotone",
        0.1,
        "share of examples where, over ten short steps along the gradient, decreases are more than a quarter of the "
        "loss's total change",
        "Carlini et al. 2019, section 5.2 (the loss at each iteration); Pintor et al. 2022, I4",
        "steps along the gradient decrease the loss as well as increase it, so that iterating makes no progress",
        "take shorter steps; where that does not help, the gradient is masked: attack with logits only: square",
    ),
    Indicator(
        "single-step-stronger",
        0.02,
        "share of examples that are misclassified after one step and not after iterated attacks",
        "Carlini et al. 2019, section 5.2; Athalye et al. 2018, section 3.1",
        "a single step succeeds where many steps fail: the iterated attacks are misconfigured, or the gradient is "
        "masked",
        "check step size and restarts; apgd adapts its step size",
    ),
    Indicator(
        "masked-single-step",
        0.5,
        "share of the examples broken by iterated attacks that are robust to one step of full length",
        "Tramer et al. 2018, section 3; Wong et al. 2020, section 5; Carlini et al. 2019, section 4.3",
        "the model masks its gradient from single steps: it is not robust although fgsm fails (catastrophic "
        "overfitting)",
        "rely on iterated attacks from random starts, and attack with logits only: square",
    ),
    Indicator(
        "noise-stronger",
        0.02,
        "share of examples that are misclassified at random points of the ball and not by the attacks",
        "Carlini et al. 2019, section 4.11; Athalye et al. 2018, section 3.1",
        "random points find what the attacks miss: the attacks, or the gradients that they follow, lead nowhere",
        "find out why the attacks fail before anything else; until then attack with logits only: square",
    ),
    Indicator(
        "black-box-stronger",
        0.02,
        "share of examples that a search without gradients, or a transfer, breaks and the other attacks do not",
        "Carlini et al. 2019, section 5.4; Pintor et al. 2022, I5; Athalye et al. 2018, section 3.1",
        "a search that knows less of the model breaks what the other attacks left robust: they fail, or follow masked "
        "gradients",
        "attack with logits only: square; find what masks the gradients",
    ),
    Indicator(
        "more-steps-help",
        0.05,
        "share of examples that the attacks left robust and a hundred short steps on the margin break",
        "Carlini et al. 2019, section 4.8; Pintor et al. 2022, I4 (incomplete optimization)",
        "the attacks ended before they had converged, or maximised the wrong loss",
        "more steps and another loss: apgd:steps=200, apgd-t; or the protocol fast",
    ),
    Indicator(
        "restarts-help",
        0.05,
        "share of examples that the attacks left robust and an attack from one of four other random starts breaks",
        "Carlini et al. 2019, section 4.9; Pintor et al. 2022, I4",
        "whether an attack succeeds depends on its random start",
        "more starts: pgd:restarts=10; or the protocol fast",
    ),
    Indicator(
        "larger-eps-weaker",
        0.02,
        "share of examples that are broken in the ball and not, by the same attack, in a ball of twice its radius",
        "Carlini et al. 2019, section 5.2; Athalye et al. 2018, section 3.1",
        "the larger ball contains the smaller one, and yet the attack finds less in it",
        "check the step size, which grows with the radius; apgd adapts its own",
    ),
    Indicator(
        "unbounded-fails",
        0.05,
        "share of examples that stay robust where every point of the data's range is allowed",
        "Carlini et al. 2019, section 5.3; Pintor et al. 2022, I6 (unconstrained attack failure)",
        "without a bound a working attack always succeeds: this one does not work on this model",
        "find out why the gradients fail before anything else; until then attack with logits only: square",
    ),
    Indicator(
        "rejection-class",
        0.5,
        "share of the points where attacks end that are predicted as one class without any example",
        "Carlini and Wagner, AISec 2017; Carlini et al. 2019, section 4.2; Tramer et al. 2020",
        "the model seems to have a class for attacked inputs: an attack that only changes the prediction is detected, "
        "and its success rate says nothing about attacks that evade both",
        "target the other classes (apgd-t, fab-t), and define success with success=",
    ),
    Indicator(
        "binarization-test-failed",
        0.05,
        "share of planted adversarial examples that the attacks did not find",
        "Zimmermann et al. 2022",
        "the attacks miss adversarial examples that exist: they are too weak for this model",
        "stronger attacks, more steps; the other checks say what weakens them",
    ),
)
INDICATORS = {one.name: one for one in _TABLE}
"""By name, in the order of the diagnosis; nothing is measured yet."""


def indicator(name: str, value: float | None, *, least: float = 0.0) -> Indicator:
    """The indicator of that name with a value; `least` is the smallest threshold that chance allows on a small sample.

    >>> indicator("zero-gradients", 0.25).failed, indicator("zero-gradients", 0.25, least=0.5).failed
    (True, False)
    """
    known = INDICATORS[name]
    return replace(known, value=value, threshold=max(known.threshold, least))
