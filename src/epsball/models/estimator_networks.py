"""`MLPClassifier` as a torch network of the same layers, in float64, without its last sigmoid or softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn.neural_network import MLPClassifier
from torch import nn

from epsball.models.estimator_rules import Translation, array_of, linear_layer

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}


def _network(network: Any) -> Translation:
    layers: list[nn.Module] = []
    for weight, bias in zip(network.coefs_, network.intercepts_, strict=True):
        layers += [linear_layer(array_of(weight).T, bias), ACTIVATIONS[network.activation]()]
    return Translation(nn.Sequential(*layers[:-1]), network.classes_, None, "softmax")


NETWORKS: dict[type, Callable[[Any], Translation]] = {MLPClassifier: _network}
