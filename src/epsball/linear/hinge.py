"""A linear support vector machine trained on the worst perturbation of each example, exactly."""

from __future__ import annotations

from epsball.linear.classifier import RobustClassifier


class RobustLinearSVC(RobustClassifier):
    """A linear classifier that minimises the mean hinge loss under the worst perturbation of each example.

    The minimum over (w, b) of mean max(0, 1 + t - y (w.x + b)), t the attacker's gain as in
    `RobustLogisticRegression`, which documents the parameters too; with three classes or more, of each class against
    the rest. `objective_`, `dual_gap_` and `worst_loss` are then sums over the classes. Without a penalty and against a
    max-norm or L1 attacker this is a linear program, whose minimum may be attained at many points.

    >>> import numpy as np
    >>> X, y = np.array([[0.0, 1], [1, 0], [2, 0.5], [3, 2], [1, 1]]), np.array([0, 0, 1, 1, 1])
    >>> model = RobustLinearSVC(eps=0.1).fit(X, y)
    >>> bool(model.dual_gap_ <= 1e-6), model.robust_score(X, y)
    (True, 1.0)
    """

    loss = "hinge"
