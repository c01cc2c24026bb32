"""Classifiers of Gaussian densities as torch modules: naive Bayes and quadratic discriminant analysis, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.naive_bayes import GaussianNB
from torch import Tensor, nn

from epsball.models.estimator_rules import OneLogit, Translation, array_of, parameter_of


class GaussianLogits(nn.Module):
    """constant_k - |(x - mean_k) @ root_k|^2 / 2; a root is (d, r), or (d,) where it is diagonal."""

    def __init__(self, means: Any, roots: Sequence[Any], constants: Any) -> None:
        super().__init__()
        self.means, self.constants = parameter_of(means), parameter_of(constants)
        self.roots = nn.ParameterList([parameter_of(root) for root in roots])
        if not len(self.means) == len(self.roots) == len(self.constants):
            raise ValueError("its classes have different numbers of parameters")

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        logits = []
        for mean, root, constant in zip(self.means, self.roots, self.constants, strict=True):
            rows = (x - mean) * root if root.ndim == 1 else (x - mean) @ root
            logits.append(constant - rows.square().sum(1) / 2)
        return torch.stack(logits, 1)


def _naive_bayes(classifier: Any) -> Translation:
    variances = array_of(classifier.var_)
    constants = np.log(array_of(classifier.class_prior_)) - np.log(2 * math.pi * variances).sum(1) / 2
    logits = GaussianLogits(classifier.theta_, list(1 / np.sqrt(variances)), constants)
    return Translation(logits, classifier.classes_, None, "softmax")


def _quadratic(classifier: Any) -> Translation:
    scales = [array_of(scaling) for scaling in classifier.scalings_]
    constants = np.log(array_of(classifier.priors_)) - np.array([np.log(scale).sum() for scale in scales]) / 2
    pairs = zip(classifier.rotations_, scales, strict=True)
    roots = [array_of(rotation) / np.sqrt(scale) for rotation, scale in pairs]
    logits = GaussianLogits(classifier.means_, roots, constants)
    decision = nn.Sequential(logits, OneLogit()) if len(classifier.classes_) == 2 else logits
    return Translation(logits, classifier.classes_, decision, "softmax")


DENSITIES: dict[type, Callable[[Any], Translation]] = {
    GaussianNB: _naive_bayes,
    QuadraticDiscriminantAnalysis: _quadratic,
}
