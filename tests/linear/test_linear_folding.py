"""The folded weights against the model's own scores; steps that are not affine are refused by name."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest, VarianceThreshold, f_classif
from sklearn.linear_model import LinearRegression, LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    PolynomialFeatures,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC
from torch import nn

from epsball.common.errors import BadInput
from epsball.models.builtin import Normalize
from epsball.models.folding import affine

CLASSIFIERS = {
    "logistic": LogisticRegression(C=3.0),
    "liblinear": LogisticRegression(solver="liblinear"),
    "no intercept": LogisticRegression(fit_intercept=False),
    "svc": LinearSVC(random_state=1),
    "svc without intercept": LinearSVC(fit_intercept=False, random_state=1),
    "sgd": SGDClassifier(loss="log_loss", random_state=1),
    "ridge": RidgeClassifier(),
    "perceptron": Perceptron(random_state=1),
    "lda": LinearDiscriminantAnalysis(),
    "shrunken lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1),
}
STEPS = {
    "standard": lambda: [StandardScaler()],
    "only centred": lambda: [StandardScaler(with_std=False)],
    "only scaled": lambda: [StandardScaler(with_mean=False), RobustScaler(with_centering=False)],
    "min-max": lambda: [MinMaxScaler(feature_range=(-0.5, 2))],
    "max-abs": lambda: [MaxAbsScaler()],
    "robust": lambda: [RobustScaler(quantile_range=(10, 80)), RobustScaler(with_scaling=False)],
    "pca": lambda: [PCA(4), StandardScaler()],
    "whitened pca": lambda: [StandardScaler(), PCA(3, whiten=True)],
    "svd": lambda: [TruncatedSVD(3, random_state=1)],
    "selected": lambda: [StandardScaler(), SelectKBest(f_classif, k=3), PCA(2)],
    "with variance": lambda: [VarianceThreshold(0.01), "passthrough", None, MinMaxScaler()],
    "nested": lambda: [make_pipeline(StandardScaler(), make_pipeline(PCA(4), "passthrough")), RobustScaler()],
}
X = load_iris().data @ np.random.default_rng(3).normal(size=(4, 6)) + 1.7
X[:, 4] += 100.0
X[:, 5] = 0.25
X[::7, 5] = 0.26  # all but constant
Y = np.array(["setosa", "versicolor", "virginica"])[load_iris().target]


def agrees(model, x: np.ndarray = X, rtol: float = 1e-9) -> None:
    found = affine(model)
    expected = model.decision_function(x).reshape(len(x), -1)
    ours = x @ found.weight.numpy().T + found.bias.numpy()
    assert found.weight.dtype == found.bias.dtype == torch.float64
    np.testing.assert_allclose(ours, expected, rtol=rtol, atol=rtol * abs(expected).max())
    np.testing.assert_array_equal(found.classes, model.classes_)
    place = ours.argmax(1) if ours.shape[1] > 1 else (ours[:, 0] > 0).astype(int)
    np.testing.assert_array_equal(found.classes[place], model.predict(x))


@pytest.mark.parametrize(
    ("name", "classes"),
    [(name, classes) for name in CLASSIFIERS for classes in (2, 3) if (name, classes) != ("liblinear", 3)],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:Liblinear failed:UserWarning")
def test_weights_of_a_classifier_give_its_decision(name: str, classes: int) -> None:
    rows = np.flatnonzero(np.isin(Y, np.unique(Y)[:classes]))[::-1]
    x = StandardScaler().fit_transform(X)[rows]
    agrees(copy.deepcopy(CLASSIFIERS[name]).fit(x, Y[rows]), x)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["logistic", "lda"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_folded_pipeline_gives_its_decision_on_raw_data(name: str, steps: str) -> None:
    agrees(make_pipeline(*STEPS[steps](), copy.deepcopy(CLASSIFIERS[name])).fit(X, Y))


def test_sparse_weights_and_a_search_are_folded() -> None:
    x = StandardScaler().fit_transform(X)
    agrees(LogisticRegression(l1_ratio=1.0, solver="saga", C=0.05, max_iter=2000).fit(x, Y).sparsify(), x)
    search = GridSearchCV(make_pipeline(StandardScaler(), RidgeClassifier()), {"ridgeclassifier__alpha": [0.1, 10]})
    agrees(search.fit(X, Y))


def test_weights_share_no_memory_with_the_model() -> None:
    model = LogisticRegression().fit(StandardScaler().fit_transform(X), Y)
    layer = nn.Linear(3, 2).double()
    for found, own in ((affine(model), model.coef_), (affine(layer), layer.weight.detach().numpy())):
        before = own.copy()
        found.weight.zero_()
        np.testing.assert_array_equal(own, before)


class Squared(StandardScaler):
    def transform(self, X, copy=None):
        return super().transform(X) ** 2


class Thresholded(LogisticRegression):
    def predict(self, X):
        return self.classes_[(self.decision_function(X) > 3).astype(int)]


class Shifted(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X + 1


REFUSED = {
    "polynomials": (
        lambda: Pipeline([("scale", StandardScaler()), ("poly", PolynomialFeatures()), ("c", RidgeClassifier())]),
        r"step 'poly' \(PolynomialFeatures\) cannot be folded: it is not an affine step",
    ),
    "quantiles": (
        lambda: make_pipeline(QuantileTransformer(n_quantiles=5), RidgeClassifier()),
        r"'quantiletransformer' \(QuantileTransformer\)",
    ),
    "nested": (
        lambda: Pipeline([("a", Pipeline([("b", Squared())])), ("c", RidgeClassifier())]),
        r"step 'a\.b' \(Squared\) cannot be folded",
    ),
    "own transformer": (lambda: make_pipeline(Shifted(), RidgeClassifier()), r"'shifted' \(Shifted\)"),
    "clipping": (lambda: make_pipeline(MinMaxScaler(clip=True), RidgeClassifier()), r"MinMaxScaler\) .*clip=True"),
    "kernel": (lambda: make_pipeline(StandardScaler(), SVC()), r"step 'svc' \(SVC\) .*not a linear classifier"),
    "own decision": (lambda: Thresholded(), r"this Thresholded cannot be folded: it is not a linear classifier"),
    "no classifier": (lambda: make_pipeline(StandardScaler(), PCA(2)), r"step 'pca' \(PCA\) .*not a linear"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_step_that_is_not_affine_is_refused_by_name(name: str) -> None:
    make, words = REFUSED[name]
    model = make().fit(StandardScaler().fit_transform(X)[:100], Y[:100])
    with pytest.raises(BadInput, match=f"`model` must be affine, but .*{words}.*; use `epsball.evaluate`"):
        affine(model)


def test_model_that_is_not_fitted_or_not_linear_is_refused() -> None:
    with pytest.raises(BadInput, match=r"must be fitted, but this LogisticRegression is not; call `fit`"):
        affine(LogisticRegression())
    fitted = RidgeClassifier().fit(X, Y)
    with pytest.raises(BadInput, match=r"must be fitted, but step 'minmaxscaler' \(MinMaxScaler\) is not"):
        affine(make_pipeline(MinMaxScaler(), fitted))
    with pytest.raises(BadInput, match="must be fitted, but step 'selectkbest'"):
        affine(make_pipeline(SelectKBest(), fitted))
    with pytest.raises(BadInput, match="this LinearRegression cannot be folded: it is not a linear classifier"):
        affine(LinearRegression().fit(X, Y == "setosa"))
    with pytest.raises(BadInput, match=r"this RidgeClassifier cannot be folded: .*several labels"):
        affine(RidgeClassifier().fit(X, np.stack([Y == "setosa", X[:, 0] > 1], 1).astype(int)))
    with pytest.raises(BadInput, match="a pipeline that does nothing"):
        affine(Pipeline([("a", "passthrough")]))
    with pytest.raises(BadInput, match="or a torch module, got str"):
        affine("weights")
    broken = RidgeClassifier().fit(X, Y)
    broken.coef_[1, 2] = np.nan
    with pytest.raises(BadInput, match="must have finite weights"):
        affine(broken)


def batch_norm(features: int, affine: bool) -> nn.Module:
    layer = nn.BatchNorm1d(features, affine=affine)
    draw = torch.Generator().manual_seed(features)
    layer.running_mean.copy_(torch.randn(features, generator=draw))
    layer.running_var.copy_(0.2 + torch.rand(features, generator=draw))
    for part in layer.parameters():
        part.data = torch.randn(features, generator=draw)
    return layer


NETS = {
    "linear": (lambda: nn.Linear(12, 3), (12,)),
    "without bias": (lambda: nn.Linear(12, 1, bias=False), (12,)),
    "image": (lambda: nn.Sequential(Normalize([0.3, 0.7], [0.5, 2.0]), nn.Flatten(), nn.Linear(12, 4)), (2, 3, 2)),
    "deep": (
        lambda: nn.Sequential(
            nn.Identity(),
            nn.Flatten(),
            nn.Sequential(batch_norm(12, True), nn.Dropout(0.5), nn.Linear(12, 7)),
            nn.Sequential(nn.Sequential(nn.Linear(7, 5, bias=False)), batch_norm(5, False)),
            nn.Linear(5, 2),
            batch_norm(2, True),
        ),
        (3, 4),
    ),
    "channels": (
        lambda: nn.Sequential(nn.Unflatten(1, (3, 4)), batch_norm(3, True), nn.Flatten(), nn.Linear(12, 3)),
        (12,),
    ),
    "one layer twice": (lambda: nn.Sequential(*[nn.Linear(4, 4)] * 3, nn.Linear(4, 2)), (4,)),
}


@pytest.mark.parametrize("net", NETS)
def test_folded_layers_equal_the_network(net: str) -> None:
    make, shape = NETS[net]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = make().double()
    x = 0.4 + torch.randn(9, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model.train()
    before = copy.deepcopy(model.state_dict())
    found = affine(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(model.state_dict()[name], part) for name, part in before.items())
    assert not found.weight.requires_grad
    with torch.no_grad():
        expected = model.eval()(x)
    torch.testing.assert_close(x.flatten(1) @ found.weight.T + found.bias, expected, rtol=1e-12, atol=1e-12)
    assert found.classes.tolist() == list(range(max(2, expected.shape[1])))


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), r"step '1' \(ReLU\)"),
        (nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Softmax(1))), r"step '1\.0' \(Softmax\)"),
        (nn.Sequential(Doubled(3, 2)), r"step '0' \(Doubled\)"),
        (nn.Sequential(Residual(nn.Linear(3, 3))), r"step '0' \(Residual\)"),
        (nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)), r"step '0' .*by the batch"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 2)), r"step '0' \(Linear\) .* 4 features .* takes 3"),
        (nn.Sequential(Normalize([0.0] * 2, [1.0] * 2), nn.Linear(3, 2)), r"step '0' \(Normalize\) .* 2 features"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(3, 2)), r"step '0' \(Flatten\) .*start_dim=0"),
        (nn.Sequential(nn.Flatten()), r"must hold an nn.Linear, got Sequential without; use `epsball.evaluate`"),
    ],
    ids=str,
)
def test_layer_that_is_not_affine_is_refused_by_name(model: nn.Module, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        affine(model)
