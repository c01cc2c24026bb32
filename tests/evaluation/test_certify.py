"""Both ends in one evaluation: what is proved is not attacked, what is broken is not proved, and all is kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import epsball as eb
from epsball.attacks.pgd import PGD
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.evaluation.stage_tables import StageTables
from epsball.problem.task import AWAY, task_of

RADII = (0.02, 0.06, 0.12)
BALL = eb.Linf(eps=RADII[-1], lo=-1, hi=1)
RUN: dict[str, Any] = {"attacks": ["fgsm", "apgd-t:steps=5"], "eps": RADII, "certify": 0, "diagnose": 0, "seed": 3}
SHAPE = (1, 4, 4)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    return network()


@pytest.fixture(scope="module")
def data(net: nn.Sequential) -> Examples:
    """Examples in the box [-1, 1], with ids that are not their places; a tenth have a wrong label."""
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.rand(70, *SHAPE, generator=generator) - 1
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::10] = (y[::10] + 1) % 4
    return from_arrays(x, y, ids=5 + 2 * torch.randperm(70, generator=generator), lo=-1, hi=1, classes=4)


@pytest.fixture(scope="module")
def finished(net: nn.Sequential, data: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certify") / "run"
    eb.evaluate(net, data, BALL, **RUN, shard_size=40, run_dir=path)
    return path


@pytest.fixture(scope="module")
def found(finished: Path) -> eb.Evaluation:
    return eb.Evaluation.load(finished)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy(zero_copy_only=False)


def proved_at(records: pa.Table, eps: float) -> np.ndarray:
    """The ids of the examples that are proved robust at a radius."""
    return column(records, "id")[column(records, "certified_eps") >= eps]


def test_certified_is_at_most_robust_at_every_radius(found: eb.Evaluation) -> None:
    low, high = ([share for _, share in curve] for curve in (found.certified_curve, found.curve))
    assert all(a <= b for a, b in zip(low, high, strict=True))
    assert low == sorted(low, reverse=True)
    assert 0 < low[-1] == found.certified_accuracy < found.robust_accuracy == high[-1]
    assert found.undecided == round((high[-1] - low[-1]) * len(found)) > 0
    assert found.certified_interval[0] < low[-1] < found.certified_interval[1]
    assert found.undecided_interval[0] < found.undecided / len(found) < found.undecided_interval[1]


def test_each_example_is_proved_or_broken_or_undecided_with_a_reason(found: eb.Evaluation) -> None:
    records = found.records
    certified, status, eps = (column(records, name) for name in ("certified", "status", "eps"))
    assert set(status[certified]) == {"robust"}
    assert not (column(records, "certified_eps") >= eps).any()  # what is broken at a radius is not proved there
    reasons = column(records, "undecided") != None  # noqa: E711 - an array
    np.testing.assert_array_equal(reasons, (status == "robust") & ~certified)
    proved = ~np.isnan(column(records, "certified_eps"))
    np.testing.assert_array_equal(column(records, "certified_method") != None, proved)  # noqa: E711
    assert (column(records, "certified_margin")[proved] > 0).all()
    assert sum(count for _, count in found.undecided_reasons) == found.undecided


def test_no_certified_example_is_broken_by_an_attack_of_its_own(
    net: nn.Sequential, data: Examples, found: eb.Evaluation
) -> None:
    for eps in RADII:
        rows = torch.isin(data.ids, torch.from_numpy(proved_at(found.records, eps)))
        x_adv = PGD(steps=40, restarts=5)(net, data.x[rows], data.y[rows], BALL.with_eps(eps))
        assert torch.equal(net(x_adv).argmax(1), data.y[rows])


def test_certified_examples_are_not_attacked_at_that_radius_or_a_smaller_one(
    finished: Path, found: eb.Evaluation
) -> None:
    tables, names = StageTables(finished), [stage["name"] for stage in found.config["stages"]]
    bounds = max(at for at, name in enumerate(names) if "certify" in name)
    for stage in found.config["stages"][bounds + 1 :]:
        attacked = [tables.stage(shard, stage["name"])["id"] for shard in range(2) if tables.has(shard, stage["name"])]
        assert not np.isin(
            proved_at(found.records, stage["eps"]), np.concatenate([ids.to_numpy() for ids in attacked])
        ).any()
    quick, attacks = (sum(s.attacked for s in found.stages if s.attack == name) for name in ("pgd:steps=10", "fgsm"))
    assert attacks < quick / 2


def test_one_radius_has_its_stages_in_order(net: nn.Sequential, data: Examples) -> None:
    found = eb.evaluate(net, data, BALL, "fgsm", certify=0, diagnose=0)
    assert [stage.attack for stage in found.stages] == ["clean", "pgd:steps=10", "certify-bounds", "fgsm"]
    assert found.certified_accuracy == found.certified_curve[0][1]


def test_classes_that_are_proved_out_of_reach_get_no_job(data: Examples) -> None:
    attack = eb.APGD(n_targets=3)
    task = task_of(data.x[:3], data.y[:3], BALL)
    clean = torch.tensor([[9.0, 1, 3, 2], [9, 1, 3, 2], [9, 1, 3, 2]])
    rivals = torch.tensor([[False, True, True, True], [False, True, False, True], [False, False, False, True]])
    task = replace(task, clean=clean, rivals=rivals, y=torch.zeros(3, dtype=torch.long))
    aims = []
    for restart in range(3):
        job, exists = attack.job(task, torch.full((3,), restart))
        aims.append(torch.where(exists, job.aim, AWAY).tolist())
    assert [list(aim) for aim in zip(*aims, strict=True)] == [[2, 3, 1], [3, 1, -1], [3, -1, -1]]
