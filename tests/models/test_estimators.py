"""Estimators in torch against scikit-learn itself: decisions, scores, probabilities, gradients, and what is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, RandomizedSearchCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.naive_bayes import BernoulliNB, GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC, NuSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.multiclass import _ovr_decision_function
from torch import nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.models.black_box import BlackBox
from epsball.models.estimator_kernels import VoteLogits, Votes
from epsball.models.estimator_rules import log_probability_of
from epsball.models.estimator_translation import translated
from epsball.models.estimators import module_of, opened
from epsball.models.folding import affine

SEED, FIT, TEST = 5, 240, 1000
NAMES = np.array(["fir", "ash", "oak", "elm"])
pytestmark = pytest.mark.filterwarnings(  # estimators are fitted only as far as a test needs it
    "ignore::sklearn.exceptions.ConvergenceWarning", "ignore:The covariance matrix of class:"
)
SVCS = {"poly": {"coef0": 1.0, "degree": 2}, "sigmoid": {"gamma": 0.05}, "rbf": {}, "linear": {}}

ESTIMATORS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: LogisticRegression(C=2.0),
    "linear svc": lambda: LinearSVC(random_state=SEED),
    "ridge": RidgeClassifier,
    "perceptron": lambda: Perceptron(random_state=SEED),
    "sgd": lambda: SGDClassifier(loss="log_loss", random_state=SEED),
    "lda": LinearDiscriminantAnalysis,
    "qda": lambda: QuadraticDiscriminantAnalysis(reg_param=0.1),
    "naive bayes": GaussianNB,
    **{
        f"mlp {name}": lambda name=name: MLPClassifier((7, 5), activation=name, max_iter=25, random_state=SEED)
        for name in ("identity", "logistic", "tanh", "relu")
    },
    **{f"svc {kernel}": lambda kernel=kernel: SVC(kernel=kernel, **SVCS[kernel]) for kernel in SVCS},
    "svc breaking ties": lambda: SVC(break_ties=True),
    "svc one to one": lambda: SVC(decision_function_shape="ovo"),
    "nu-svc": lambda: NuSVC(nu=0.2),
    "calibrated svc": lambda: CalibratedClassifierCV(SVC(), cv=2),
    "calibrated forest of one": lambda: CalibratedClassifierCV(LinearSVC(random_state=SEED), cv=2, ensemble=False),
    "calibrated bayes": lambda: CalibratedClassifierCV(GaussianNB(), cv=2),
    "calibrated by temperature": lambda: CalibratedClassifierCV(LogisticRegression(), cv=2, method="temperature"),
    "calibrated bayes by temperature": lambda: CalibratedClassifierCV(GaussianNB(), cv=2, method="temperature"),
    "one to rest, linear": lambda: OneVsRestClassifier(LogisticRegression()),
    "one to rest, bayes": lambda: OneVsRestClassifier(GaussianNB()),
    "one to rest, pipeline": lambda: OneVsRestClassifier(make_pipeline(MaxAbsScaler(), SVC())),
    "one to one, svc": lambda: OneVsOneClassifier(SVC()),
    "one to one, bayes": lambda: OneVsOneClassifier(GaussianNB()),
    "soft vote": lambda: VotingClassifier(
        [("a", LogisticRegression()), ("b", GaussianNB()), ("c", make_pipeline(PCA(3), LogisticRegression()))],
        voting="soft",
        weights=[1, 0.5, 2],
    ),
    "search": lambda: GridSearchCV(make_pipeline(StandardScaler(), SVC()), {"svc__C": [0.3, 3]}, cv=2),
}
STEPS: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "standard": lambda: [StandardScaler()],
    "min-max, pca": lambda: [MinMaxScaler(feature_range=(-0.5, 2)), PCA(4)],
    "columns": lambda: [
        ColumnTransformer(
            [
                ("a", make_pipeline(RobustScaler(), PCA(2, whiten=True)), [5, 0, 2]),
                ("b", "passthrough", slice(1, 3)),
                ("c", "drop", [4]),
            ],
            remainder=MinMaxScaler(),
            transformer_weights={"a": 0.7},
        )
    ],
}
TRANSFORMS: dict[str, Callable[[], list[Any]]] = {
    "nested": lambda: [make_pipeline("passthrough", make_pipeline(StandardScaler(), None), MaxAbsScaler())],
    "clipping": lambda: [MinMaxScaler(clip=True)],
    "svd": lambda: [TruncatedSVD(3, random_state=SEED)],
    "whitened": lambda: [PCA(3, whiten=True)],
    **{f"normalizer {norm}": lambda norm=norm: [Normalizer(norm)] for norm in ("l1", "l2", "max")},
    "selected": lambda: [StandardScaler(with_std=False), SelectKBest(k=3)],
    "imputed": lambda: [SimpleImputer(), FunctionTransformer()],
    "polynomials": lambda: [StandardScaler(), PolynomialFeatures(3)],
    "interactions": lambda: [StandardScaler(), PolynomialFeatures((1, 2), interaction_only=True, include_bias=False)],
    "function": lambda: [MinMaxScaler(), FunctionTransformer(np.log1p), RobustScaler(with_centering=False)],
    "union": lambda: [FeatureUnion([("a", PCA(2)), ("b", "passthrough"), ("c", make_pipeline(StandardScaler()))])],
}


@cache
def data(classes: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes of 6 features in different units, with names that are not in the order of their numbers."""
    x, y = make_classification(
        FIT + TEST, 6, n_informative=4, n_redundant=1, n_classes=classes, n_clusters_per_class=1, class_sep=0.6,
        random_state=seed + classes,
    )  # fmt: skip
    return x * [1, 5, 0.1, 2, 1, 1] + [3, 0, 1, -2, 0, 50], NAMES[y]


@cache
def fitted(name: str, steps: str, classes: int, seed: int = SEED) -> Any:
    x, y = data(classes, seed)
    return make_pipeline(*{**STEPS, **TRANSFORMS}[steps](), ESTIMATORS[name]()).fit(x[:FIT], y[:FIT])


def rows(classes: int, seed: int = SEED) -> np.ndarray:
    return data(classes, seed)[0][FIT:]


def labels_by(model: Any, x: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The labels that logits (n, k), one logit, or a black box's labels mean."""
    with torch.no_grad():
        z = model(torch.from_numpy(x))
    if z.is_floating_point():
        z = z.reshape(len(x), -1)
        z = (z[:, 0] > 0).long() if z.shape[1] == 1 else z.argmax(1)
    return np.asarray(classes)[z.numpy()]


def check_same(model: Any, x: np.ndarray) -> None:
    """Decisions are equal, and scores and probabilities where scikit-learn has them."""
    module = module_of(model)
    assert isinstance(module, nn.Module)
    np.testing.assert_array_equal(labels_by(module, x, model.classes_), model.predict(x))
    part, z = translated(model), torch.from_numpy(x)
    with torch.no_grad():
        if part.decision is None:
            assert not hasattr(model, "decision_function")
        else:
            expected = model.decision_function(x).reshape(len(x), -1)
            np.testing.assert_allclose(part.decision(z).numpy(), expected, rtol=1e-6, atol=1e-6)
        if part.probability is not None:
            found = log_probability_of(part)(z).exp().numpy()
            np.testing.assert_allclose(found, model.predict_proba(x), rtol=1e-6, atol=1e-6)


CLASSES = pytest.mark.parametrize("classes", [2, 4])


@CLASSES
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_module_decides_and_scores_as_the_estimator(name: str, steps: str, classes: int):
    check_same(fitted(name, steps, classes), rows(classes))


@CLASSES
@pytest.mark.parametrize("steps", TRANSFORMS)
@pytest.mark.parametrize("name", ["logistic", "svc rbf"])
def test_step_before_a_classifier_is_the_same_function(name: str, steps: str, classes: int):
    check_same(fitted(name, steps, classes), rows(classes))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", [name for name in ESTIMATORS if " " in name])
def test_module_decides_as_the_estimator_on_other_data(name: str, seed: int):
    for classes in (2, 3, 4):
        check_same(fitted(name, "standard", classes, seed), rows(classes, seed))


@CLASSES
@pytest.mark.parametrize("steps", ["min-max, pca", "columns", "interactions", "normalizer l2", "function"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradients_of_logits_equal_finite_differences(name: str, steps: str, classes: int):
    model, x = module_of(fitted(name, steps, classes)), torch.from_numpy(rows(classes)[:20])
    logits = model(x)
    if any(type(part) is VoteLogits or getattr(part, "scores", True) is False for part in model.modules()):
        # In a cycle the winner is lifted by what the gradient takes for a constant.
        x = x[logits.amax(1) > 0]
    x = x[:5].requires_grad_()
    (steepest,) = torch.autograd.grad(model(x).sum(), x)
    assert len(x) == 5
    atol = 1e-5 * float(1 + steepest.abs().max())
    assert torch.autograd.gradcheck(model, (x,), eps=1e-6, atol=atol, rtol=1e-4, fast_mode=True)


def test_module_has_the_names_of_the_classes_and_says_what_is_exact():
    found = opened(fitted("logistic", "columns", 4))
    assert found.label_names == found.model.label_names == ("ash", "elm", "fir", "oak")
    assert any("float64" in note for note in found.notes)
    assert any("epsball.linear.optimum" in note for note in found.notes)
    assert not any("exact" in note for note in opened(fitted("svc rbf", "none", 2)).notes)
    assert all(part.dtype == torch.float64 for part in found.model.parameters())
    assert not found.model.training


def test_estimator_is_left_as_it_was():
    model = fitted("mlp relu", "standard", 2)
    before = copy.deepcopy(model)
    module = module_of(model)
    with torch.no_grad():
        for part in [*module.parameters(), *module.buffers()]:
            part.zero_()
    np.testing.assert_array_equal(model.predict_proba(rows(2)), before.predict_proba(rows(2)))


# Votes


@pytest.mark.parametrize("ties", ["first", "confidence"])
@pytest.mark.parametrize("classes", [2, 3, 4, 7])
def test_logits_of_a_vote_have_its_winner_also_in_cycles(classes: int, ties: Any):
    pairs = classes * (classes - 1) // 2
    score = torch.randn(4000, pairs, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    votes = Votes(classes, ties)
    decision = votes.decision(score, -score)
    np.testing.assert_allclose(decision, _ovr_decision_function(score < 0, -score.numpy(), classes), rtol=1e-12)
    counts = votes.votes(score) if ties == "first" else decision
    logits = votes.logits(score, -score)
    assert torch.equal(logits.argmax(1), counts.argmax(1))
    beats_all = votes.votes(score).amax(1) == classes - 1
    assert classes == 2 or 0 < int(beats_all.sum()) < len(score)  # the rest are cycles
    top = logits.topk(2, dim=1).values
    assert bool((top[beats_all, 0] > 0).all() and (top[beats_all, 1] < 0).all())


def test_gradient_of_a_vote_reaches_the_pairs_that_decide():
    score = torch.tensor([[2.0, 1.0, -3.0]], requires_grad=True)  # 0 beats 1 and 2, 2 beats 1
    logits = Votes(3, "first").logits(score, -score)
    torch.testing.assert_close(logits, torch.tensor([[1.0, -3.0, -1.0]]))
    (grad,) = torch.autograd.grad(logits[0, 0] - logits[0, 2], score)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 2.0, 0.0]]))


# Evaluations


def test_evaluation_of_a_logistic_regression_is_that_of_its_linear_layer_and_exact():
    model, x = fitted("logistic", "none", 4), rows(4)[:20]
    y = np.searchsorted(model.classes_, data(4)[1][FIT:][:20])
    layer = nn.Linear(6, 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(model[-1].coef_))
        layer.bias.copy_(torch.from_numpy(model[-1].intercept_))
    module = module_of(model)
    ours, theirs = (eb.evaluate(one, (x, y), "linf:0.1", attacks="fast", diagnose=0) for one in (module, layer))
    assert ours.robust_accuracy == theirs.robust_accuracy
    exact = eb.linear.optimum(module, None, x, y, eb.Linf(eps=0.1))
    assert ours.robust_accuracy == pytest.approx(float(exact.robust.double().mean()))
    assert 0 < ours.robust_accuracy < ours.clean_accuracy


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["logistic", "one to rest, linear", "mlp identity", "svc linear", "lda"])
def test_affine_pipeline_has_the_same_exact_answers_as_its_module(name: str, steps: str):
    model, x = fitted(name, steps, 2), rows(2)[:30]
    y = model.predict(x)
    of_module = eb.linear.optimum(module_of(model), None, x, np.searchsorted(model.classes_, y), eb.L2(eps=0.3))
    of_model = eb.linear.optimum(model, None, x, y, eb.L2(eps=0.3))
    torch.testing.assert_close(of_module.margin, of_model.margin, rtol=1e-9, atol=1e-9)
    folded = affine(model)
    scores = (x @ folded.weight.numpy().T + folded.bias.numpy())[:, 0]
    np.testing.assert_array_equal(folded.classes[(scores > 0).astype(int)], y)
    if hasattr(model, "decision_function"):
        np.testing.assert_allclose(scores, model.decision_function(x), atol=1e-8)


def test_evaluation_of_a_kernel_machine_finds_points_that_the_estimator_itself_misclassifies():
    model, x = fitted("svc rbf", "standard", 4), rows(4)[:60]
    y = np.searchsorted(model.classes_, data(4)[1][FIT:][:60])
    box = eb.Linf(eps=0.5)
    adversarial = eb.PGD(steps=10)(module_of(model), x, y, box).numpy()
    clean, attacked = model.score(x, model.classes_[y]), model.score(adversarial, model.classes_[y])
    assert attacked < clean - 0.1
    assert float(np.abs(adversarial - x).max()) <= 0.5 + 1e-9


def test_examples_of_any_shape_are_rows_and_other_sizes_are_refused():
    module, x = module_of(fitted("svc rbf", "standard", 2)), torch.from_numpy(rows(2)[:3])
    torch.testing.assert_close(module(x.reshape(3, 1, 2, 3)), module(x))
    with pytest.raises(BadInput, match=r"`x` must have 6 features per example, .*got \(3, 5\)"):
        module(x[:, :5])


def test_x_in_single_precision_is_widened_to_the_module():
    model, x = fitted("logistic", "none", 2), rows(2)[:20].astype(np.float32)
    y = np.searchsorted(model.classes_, model.predict(x))
    assert eb.PGD(steps=2)(module_of(model), x, y, eb.Linf(eps=0.01)).dtype == torch.float64


# Black boxes


class Doubting(LogisticRegression):
    """Predicts the second class where it is all but certain."""

    def predict(self, X):
        return self.classes_[(self.predict_proba(X)[:, 1] > 0.9).astype(int)]


class Threshold(ClassifierMixin, BaseEstimator):
    """A classifier of one's own, with labels alone."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return self.classes_[(np.asarray(X)[:, 0] > 3).astype(int)]


class Shifted(TransformerMixin, BaseEstimator):
    """A step of one's own, without anything to fit."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X + 1


BOXES: dict[str, Callable[[], Any]] = {
    "tree": lambda: DecisionTreeClassifier(max_depth=4, random_state=SEED),
    "forest": lambda: RandomForestClassifier(5, random_state=SEED),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=4, random_state=SEED),
    "histograms": lambda: HistGradientBoostingClassifier(max_iter=4, random_state=SEED),
    "ada": lambda: AdaBoostClassifier(n_estimators=4, random_state=SEED),
    "bagging": lambda: BaggingClassifier(GaussianNB(), 3, random_state=SEED),
    "stacking": lambda: StackingClassifier([("a", GaussianNB())], SVC(), cv=2),
    "neighbours": lambda: KNeighborsClassifier(4),
    "bernoulli": BernoulliNB,
    "isotonic": lambda: CalibratedClassifierCV(LogisticRegression(), cv=2, method="isotonic"),
    "hard vote": lambda: VotingClassifier([("a", LogisticRegression()), ("b", GaussianNB()), ("c", SVC())]),
    "own kernel": lambda: SVC(kernel=lambda a, b: (1 + a @ b.T) ** 2),
    "own kernel, pairs": lambda: SVC(kernel=lambda a, b: (1 + a @ b.T) ** 2, decision_function_shape="ovo"),
    "own step": lambda: make_pipeline(Shifted(), LogisticRegression()),
    "own threshold": Threshold,
    "own decision": lambda: Doubting(),
    "fixed threshold": lambda: FixedThresholdClassifier(LogisticRegression(), threshold=0.9, pos_label="fir"),
}
OF_TWO = {"own threshold", "own decision", "fixed threshold"}


@pytest.mark.parametrize(
    ("name", "classes"), [(name, classes) for name in BOXES for classes in (2, 3) if classes == 2 or name not in OF_TWO]
)
def test_black_box_decides_as_the_estimator(name: str, classes: int):
    x, y = data(classes)
    model = make_pipeline(StandardScaler(), BOXES[name]()).fit(x[:FIT], y[:FIT])
    found = opened(model)
    assert isinstance(found.model, BlackBox)
    assert "black box of its" in found.notes[0]
    assert found.label_names == tuple(model.classes_)
    np.testing.assert_array_equal(labels_by(found.model, x[FIT:], model.classes_), model.predict(x[FIT:]))


def test_black_box_that_was_asked_for_is_one_of_the_same_decisions():
    model = fitted("logistic", "standard", 4)
    found = opened(model, black_box=True)
    assert isinstance(found.model, BlackBox)
    np.testing.assert_array_equal(labels_by(found.model, rows(4), model.classes_), model.predict(rows(4)))


def test_black_box_of_a_tree_is_evaluated():
    x, y = data(2)
    model = DecisionTreeClassifier(max_depth=3, random_state=SEED).fit(x[:FIT], y[:FIT])
    y = np.searchsorted(model.classes_, y[FIT:][:12])
    settings: Any = {"attacks": "square:steps=40", "diagnose": 0, "convergence": 0}
    found = eb.evaluate(module_of(model), (rows(2)[:12], y), "linf:0.5", **settings)
    assert found.clean_accuracy == pytest.approx(model.score(rows(2)[:12], model.classes_[y]))
    assert found.robust_accuracy < found.clean_accuracy


# Data frames


def test_estimator_of_a_data_frame_takes_its_columns_by_position():
    x, y = data(2)
    frame = pd.DataFrame(x, columns=list("abcdef"))
    columns = ColumnTransformer([("one", StandardScaler(), ["f", "b"]), ("two", "passthrough", ["c"])])
    linear = make_pipeline(columns, LogisticRegression()).fit(frame[:FIT], y[:FIT])
    tree = make_pipeline(clone(columns), DecisionTreeClassifier(random_state=SEED)).fit(frame[:FIT], y[:FIT])
    for model, kind in ((linear, nn.Module), (tree, BlackBox)):
        module = module_of(model)
        assert isinstance(module, kind)
        np.testing.assert_array_equal(labels_by(module, x[FIT:], model.classes_), model.predict(frame[FIT:]))


def test_features_without_values_are_left_out_as_in_training():
    x, y = data(2)
    holes = x.copy()
    holes[:, 2] = np.nan
    model = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression())
    with warnings.catch_warnings(action="ignore"):
        expected = model.fit(holes[:FIT], y[:FIT]).decision_function(x[FIT:])
    np.testing.assert_allclose(module_of(model)(torch.from_numpy(x[FIT:])).detach()[:, 0], expected, rtol=1e-9)


def test_sparse_weights_and_support_vectors_are_made_dense():
    from scipy.sparse import csr_matrix

    x, y = data(4)
    x = np.where(x > 1, x, 0)
    for model in (SVC(), MultinomialNB(), LogisticRegression()):
        model.fit(csr_matrix(x[:FIT]), y[:FIT])
        model = model.sparsify() if hasattr(model, "sparsify") else model
        np.testing.assert_array_equal(labels_by(module_of(model), x[FIT:], model.classes_), model.predict(x[FIT:]))


def test_frozen_estimators_and_searches_are_unwrapped():
    x, y = data(2)
    frozen = FrozenEstimator(fitted("logistic", "standard", 2))
    check_same(CalibratedClassifierCV(frozen).fit(x[:FIT], y[:FIT]), rows(2))
    search = RandomizedSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, n_iter=2, cv=2).fit(x[:FIT], y[:FIT])
    check_same(make_pipeline(StandardScaler(), search).fit(x[:FIT], y[:FIT]), rows(2))


# Refused

X2, Y2 = data(2)
TEXT = ColumnTransformer([("kind", OneHotEncoder(handle_unknown="ignore"), ["kind"])], remainder="passthrough")
CODES = Pipeline([("code", OneHotEncoder()), ("c", LogisticRegression())])
FRAME = pd.DataFrame({"width": X2[:FIT, 0], "kind": np.where(X2[:FIT, 1] > 0, "up", "down")})
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a class": (lambda: LogisticRegression, r"got the class LogisticRegression; write LogisticRegression\(\)\.fit"),
    "nothing fitted": (LogisticRegression, "be fitted, but this LogisticRegression is not; call `fit`"),
    "a step that is not fitted": (
        lambda: make_pipeline(MinMaxScaler(), fitted("logistic", "none", 2)[-1]),
        r"be fitted, but step 'minmaxscaler' \(MinMaxScaler\) is not",
    ),
    "a regressor": (lambda: LinearRegression().fit(X2, X2[:, 0]), "got the regressor LinearRegression"),
    "a pipeline of one": (
        lambda: make_pipeline(StandardScaler(), RandomForestRegressor(2)).fit(X2, X2[:, 0]),
        "got the regressor RandomForestRegressor",
    ),
    "clusters": (lambda: KMeans(2, n_init=1, random_state=0).fit(X2), "got KMeans without `classes_`"),
    "outliers": (lambda: IsolationForest(n_estimators=2).fit(X2), "got IsolationForest without `classes_`"),
    "a transformer": (lambda: PCA(2).fit(X2), "a classifier with a method `predict`, got PCA"),
    "nothing": (lambda: Pipeline([("a", "passthrough")]), "a pipeline that does nothing"),
    "a search without its best": (
        lambda: GridSearchCV(GaussianNB(), {"var_smoothing": [1e-9]}, refit=False, cv=2).fit(X2, Y2),
        "this GridSearchCV has results alone; write refit=True",
    ),
    "several outputs": (
        lambda: RandomForestClassifier(2).fit(X2, np.stack([Y2, Y2], 1)),
        "one label per example, but this RandomForestClassifier has more",
    ),
    "several labels": (
        lambda: OneVsRestClassifier(LogisticRegression()).fit(X2, np.stack([Y2 == "ash", X2[:, 0] > 3], 1).astype(int)),
        "one label per example, but this OneVsRestClassifier has more",
    ),
    "several labels of a network": (
        lambda: MLPClassifier((3,), max_iter=3).fit(X2, np.stack([Y2 == "ash", X2[:, 0] > 3], 1).astype(int)),
        "one label per example, but this MLPClassifier has more",
    ),
    "columns of text": (
        lambda: make_pipeline(TEXT, LogisticRegression()).fit(FRAME, Y2[:FIT]),
        r"tables of numbers, .* but step 'columntransformer\.kind' \(OneHotEncoder\) takes text",
    ),
    "documents": (
        lambda: make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["a tree", "no wood"] * 4, [0, 1] * 4),
        r"step 'tfidfvectorizer' \(TfidfVectorizer\) takes text",
    ),
    "categories": (
        lambda: CODES.fit(np.round(X2[:FIT, :1]), Y2[:FIT]),
        r"step 'code' \(OneHotEncoder\) takes no other numbers than its categories",
    ),
    "text": (lambda: "model", "a method `predict`, got str"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_classifier_of_numbers_is_refused_with_the_reason(name: str):
    make, words = REFUSED[name]
    with pytest.raises(BadInput, match=f"`model` must .*{words}"):
        module_of(make())


def test_weights_that_are_not_finite_are_refused():
    model = copy.deepcopy(fitted("svc rbf", "standard", 2))
    model[-1].dual_coef_[0, 3] = np.nan
    with pytest.raises(BadInput, match="must have finite weights, got NaN"):
        module_of(model)


class Private(GaussianNB):
    """Overrides what `predict` goes through."""

    def _joint_log_likelihood(self, X):
        return -super()._joint_log_likelihood(X)


class Renamed(GaussianNB):
    """Is the same function as its base."""

    def fit(self, X, y, sample_weight=None):
        return super().fit(X, y, sample_weight)


def test_subclass_with_a_private_method_of_its_own_is_a_black_box():
    x, y = data(3)
    loaded = opened(Private().fit(x, y))
    assert isinstance(loaded.model, BlackBox)
    assert "Private has its own _joint_log_likelihood" in loaded.notes[0]
    np.testing.assert_array_equal(labels_by(loaded.model, x, np.unique(y)), Private().fit(x, y).predict(x))
    assert not isinstance(module_of(Renamed().fit(x, y)), BlackBox)


@pytest.mark.parametrize("steps", [(), (StandardScaler(),)])
def test_estimator_that_does_not_predict_as_its_class_does_is_a_black_box(steps: Any):
    x, y = data(2)
    estimator = make_pipeline(*steps, LogisticRegression()).fit(1000 + 10 * x, y)
    estimator[-1].predict = lambda rows: np.repeat(y[:1], len(rows))  # on the object, where no class shows it
    loaded = opened(estimator)
    assert isinstance(loaded.model, BlackBox)
    assert "`predict` decides otherwise on" in loaded.notes[0]


def test_a_note_says_whether_decisions_were_compared():
    x, y = np.random.default_rng(0).random((40, 3)), np.arange(40) % 2
    assert "it decides as `predict` on 64 random rows" in opened(LogisticRegression().fit(x, y)).notes[0]
    assert "not compared with `predict`" in opened(LogisticRegression().fit(x, y), compare=False).notes[0]
