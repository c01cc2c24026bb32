"""Classifiers made of classifiers as torch modules: calibration, one against the rest, one against one, soft votes.

Each is given `translate`, by which its parts become torch modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.common.errors import BadInput
from epsball.models.estimator_kernels import Votes
from epsball.models.estimator_rules import (
    Exponential,
    LogProbability,
    Translate,
    Translation,
    Untranslated,
    linear_layer,
    log_probability_of,
    one_logit_of,
    parameter_of,
)
from epsball.models.estimator_transforms import Columns

LEAST = 1e-12
"""What scikit-learn's temperature scaling adds to a probability before its logarithm."""


class Joined(nn.Module):
    """The outputs of several modules of the same features, side by side."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return torch.cat([part(x) for part in self.parts], 1)


class LogMean(nn.Module):
    """The logarithm of a weighted mean of probabilities, of which the parts are the logarithms, (n, classes)."""

    def __init__(self, parts: Sequence[nn.Module], weights: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.log_weights = parameter_of(np.log(np.asarray(weights, dtype=float) / np.sum(weights)))

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return (torch.stack([part(x) for part in self.parts]) + self.log_weights[:, None, None]).logsumexp(0)


class Sigmoids(nn.Module):
    """log p of Platt's sigmoids 1 / (1 + exp(a s + b)), one per score (n, k), divided by their sum."""

    def __init__(self, slopes: Any, offsets: Any) -> None:
        super().__init__()
        self.slopes, self.offsets = parameter_of(slopes), parameter_of(offsets)

    def forward(self, scores: Float[Tensor, "n k"]) -> Float[Tensor, "n c"]:
        return LogProbability("sigmoids")(-(self.slopes * scores + self.offsets))


class Temperature(nn.Module):
    """log p of a softmax of `beta` times the logits, which a single score x has as (-x, x)."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = parameter_of(beta)

    def forward(self, scores: Float[Tensor, "n k"]) -> Float[Tensor, "n c"]:
        logits = torch.cat([-scores, scores], 1) if scores.shape[1] == 1 else scores
        return F.log_softmax(self.beta * logits, 1)


class LogOfProbabilities(nn.Module):
    """log(p + `LEAST`) of probabilities p = exp(z)."""

    def forward(self, z: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return (z.exp() + LEAST).log()


class PairVotes(nn.Module):
    """One module per pair of classes, (n, d) -> (n, 1), positive for the second: logits, or scikit-learn's scores."""

    def __init__(self, classes: int, pairs: Sequence[nn.Module], confidences: Sequence[nn.Module], *, scores: bool):
        super().__init__()
        self.votes, self.scores = Votes(classes, "confidence"), scores
        self.pairs, self.confidences = Joined(pairs), Joined(confidences)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        kind = self.votes.decision if self.scores else self.votes.logits
        return kind(-self.pairs(x), self.confidences(x))


def _response_of(part: Translation) -> nn.Module:
    """`decision_function`, or else `predict_proba`, of the second class where there are two: what calibration takes."""
    if part.decision is not None:
        return part.decision
    second = [Columns([1], 2)] if len(part.classes) == 2 else []
    return nn.Sequential(log_probability_of(part), Exponential(), *second)


def _calibrated(classifier: Any, translate: Translate) -> Translation:
    members = [_member(one, len(classifier.classes_), translate) for one in classifier.calibrated_classifiers_]
    logits = members[0] if len(members) == 1 else LogMean(members, np.ones(len(members)))
    return Translation(logits, classifier.classes_, None, "softmax")


def _member(member: Any, classes: int, translate: Translate) -> nn.Module:
    """The log probabilities of one of the classifiers that a calibrated one is the mean of."""
    if member.method == "isotonic":
        raise Untranslated("isotonic calibration is flat between its steps and has no gradient there")
    part = translate(member.estimator)
    if len(part.classes) != classes:
        raise Untranslated("one of its parts has not seen every class")
    calibrators = member.calibrators
    if member.method == "temperature":
        if part.decision is None:
            return nn.Sequential(log_probability_of(part), LogOfProbabilities(), Temperature(calibrators[0].beta_))
        return nn.Sequential(part.decision, Temperature(calibrators[0].beta_))
    slopes, offsets = [one.a_ for one in calibrators], [one.b_ for one in calibrators]
    if len(slopes) != (classes if classes > 2 else 1):
        raise Untranslated("its parts have other scores than one per class")
    return nn.Sequential(_response_of(part), Sigmoids(slopes, offsets))


def _one_logits(estimators: Sequence[Any], translate: Translate) -> tuple[list[Translation], list[nn.Module]]:
    parts = [translate(one) for one in estimators]
    return parts, [one_logit_of(part) for part in parts]


def _one_vs_rest(classifier: Any, translate: Translate) -> Translation:
    if classifier.multilabel_:
        raise BadInput("it was fitted with several labels per example")
    parts, logits = _one_logits(classifier.estimators_, translate)
    decides = all(part.decision is not None for part in parts)
    if not decides and any(part.decision is not None for part in parts):
        raise Untranslated("its parts have scores of different kinds")
    joined = _joined(logits)
    probability = "sigmoids" if all(part.probability is not None for part in parts) else None
    return Translation(joined, classifier.classes_, joined if decides else None, probability)


def _joined(logits: list[nn.Module]) -> nn.Module:
    """Single logits side by side: of linear layers, one linear layer."""
    linear = [one for one in logits if isinstance(one, nn.Linear)]
    if len(linear) < len(logits):
        return logits[0] if len(logits) == 1 else Joined(logits)
    return linear_layer(torch.cat([one.weight for one in linear]), torch.cat([one.bias for one in linear]))


def _one_vs_one(classifier: Any, translate: Translate) -> Translation:
    if classifier.pairwise_indices_ is not None:
        raise Untranslated("its kernel is computed elsewhere")
    parts, logits = _one_logits(classifier.estimators_, translate)
    confidences = [part.decision if part.decision is not None else _response_of(part) for part in parts]
    classes = len(classifier.classes_)
    scores = PairVotes(classes, logits, confidences, scores=True)
    if classes == 2:
        return Translation(logits[0], classifier.classes_, nn.Sequential(scores, Columns([1], 2)))
    return Translation(PairVotes(classes, logits, confidences, scores=False), classifier.classes_, scores)


def _soft_vote(classifier: Any, translate: Translate) -> Translation:
    if classifier.voting != "soft":
        raise Untranslated("a vote has no gradient; with voting='soft' it has one")
    parts = [translate(one) for one in classifier.estimators_]
    if any(len(part.classes) != len(classifier.classes_) for part in parts):
        raise Untranslated("one of its parts has not seen every class")
    weights = classifier._weights_not_none
    weights = np.ones(len(parts)) if weights is None else np.asarray(weights, dtype=float)
    logits = LogMean([log_probability_of(part) for part in parts], weights)
    return Translation(logits, classifier.classes_, None, "softmax")


WRAPPERS: dict[type, Callable[[Any, Translate], Translation]] = {
    CalibratedClassifierCV: _calibrated,
    OneVsRestClassifier: _one_vs_rest,
    OneVsOneClassifier: _one_vs_one,
    VotingClassifier: _soft_vote,
}
