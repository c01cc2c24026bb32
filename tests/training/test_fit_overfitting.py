"""Catastrophic overfitting, provoked: FGSM training, a large learning rate, a slice of MNIST, a radius that grows."""

from __future__ import annotations

import pytest
from shared_data import shared_data

from epsball import Linf
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.models.registry import build
from epsball.training import FGSMMix
from epsball.training.fit import fit
from epsball.training.validation import check


@pytest.fixture(scope="module")
def slice_of_mnist() -> Examples:
    return load_data(str(shared_data("mnist")), split="train", first=1128)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))])
def test_catastrophic_overfitting_is_detected_named_and_rolled_back(slice_of_mnist, seed):
    model, ball = build("small-cnn", (1, 28, 28), 10, seed=seed), Linf(eps=0.3, lo=0, hi=1)
    held_out = slice_of_mnist.rows(slice(1000, None))
    options = {"batch_size": 50, "lr": 2e-2, "checks": 2, "ramp": 0.99, "schedule": "constant", "seed": seed}
    options |= {"epochs": 12, "validation": held_out, "on_overfit": "stop"}
    result = fit(model, slice_of_mnist.rows(slice(1000)), ball, objective=FGSMMix(alpha=0.0), **options)
    *good, broken = result.checks
    assert not any(one.event for one in good)
    assert broken.event.startswith("catastrophic overfitting: accuracy under PGD-10 fell from")
    assert "rolled back to the last good weights and stopped" in broken.event
    assert broken.pgd < 0.5 * max(one.pgd for one in good)
    assert broken.fgsm > broken.pgd + 0.2  # FGSM alone would not have shown it
    last = good[-1]
    now = check(model, held_out, ball.with_eps(0.3 * last.radius), step=last.step, epoch=last.epoch, seed=seed)
    assert (now.clean, now.fgsm, now.pgd) == (last.clean, last.fgsm, last.pgd)  # the same weights
