"""The hypotheses about adversarial examples, in the order of the page. The table needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epsball.common.checks import check_one_of


@dataclass(frozen=True)
class Hypothesis:
    """A claim that an analysis measures: its `title`, the `claim` in one sentence, and what the analysis `shows`."""

    title: str
    claim: str
    shows: str


HYPOTHESES: dict[str, Hypothesis] = {
    "targets": Hypothesis(
        "No image is safe",
        "Every example can be driven to every class, whatever it shows.",
        "Targeted attacks from every class, and from inputs that show nothing, to every other class.",
    ),
    "universal": Hypothesis(
        "One perturbation for all",
        "The directions that fool are shared: one perturbation fools examples that it was not made on.",
        "One perturbation for many examples, by radius and by size of the image, and its values shuffled.",
    ),
    "boundary": Hypothesis(
        "Near the boundary",
        "Examples are near to another class, so that small changes move them across the boundary.",
        "The distance to the decision boundary, beside that to the nearest training example of another class.",
    ),
    "growth": Hypothesis(
        "High dimension",
        "Many small changes add up: with n weights of mean size m, a linear activation changes by eps m n.",
        "The change by size of the image, with weights that are drawn and trained, beside the clean activation.",
    ),
    "local-growth": Hypothesis(
        "High dimension, locally",
        "A network gains like its linearisation: eps times the L1 norm of its gradient.",
        "The gain of networks trained at several sizes of the image, beside that of noise.",
    ),
    "linearity": Hypothesis(
        "Linearity",
        "Models are too linear: along the gradient's sign the logits go on in straight lines.",
        "Logits along the fast gradient direction, and how much of them a straight line explains.",
    ),
    "taylor": Hypothesis(
        "Non-linearity",
        "The loss bends: its gradient at an example predicts little of what a whole step does.",
        "The true rise of the loss beside the one that its gradient predicts.",
    ),
    "conditioning": Hypothesis(
        "Conditioning",
        "Layers stretch some directions far more than others, and together far more than is needed.",
        "Singular values of each layer, and the product of their norms beside the measured Lipschitz constant.",
    ),
    "manifold": Hypothesis(
        "Off the manifold",
        "Adversarial examples leave the directions in which the data vary.",
        "The energy of perturbations outside the leading principal components, beside noise and real differences.",
    ),
    "direction": Hypothesis(
        "The direction is what matters",
        "Examples and models share the directions that fool them, so that perturbations transfer.",
        "Cosines between gradients of examples and models, and who is fooled by whose perturbations.",
    ),
    "rubbish": Hypothesis(
        "Rubbish inputs",
        "Models are sure of inputs that show nothing.",
        "What noise is predicted as and how confidently, and one step from noise to a chosen class.",
    ),
    "l1": Hypothesis(
        "Adversarial training and L1",
        "Training against the worst point is not weight decay.",
        "Logistic regressions: adversarial, with the gradient penalty, and with L1 of several strengths.",
    ),
    "training": Hypothesis(
        "What training changed",
        "Adversarial training takes weight from what only an attacker uses.",
        "Weights and input gradients of a plain and of an adversarially trained network, side by side.",
    ),
}


def chosen(names: Sequence[str] = ()) -> tuple[str, ...]:
    """The analyses of those names, in the table's order; all without names. Raises `BadInput` for an unknown one."""
    wanted = {check_one_of("only", name.strip().lower(), HYPOTHESES) for name in names} or set(HYPOTHESES)
    return tuple(name for name in HYPOTHESES if name in wanted)
