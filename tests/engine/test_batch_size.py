"""The batch size that is found: by throughput, within memory, in bounded time, and without a trace in the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from nets import CONV_SHAPE, Counting, Wrapper, batch, batch_of, conv, linear, predicted
from torch import Tensor, nn

import epsball as eb
from epsball.cli.main import app
from epsball.engine import batch_size
from epsball.engine.batch_size import BatchSize, found_batch_size
from epsball.evaluation.config import EvaluationConfig
from epsball.evaluation.verify import verify
from epsball.problem.black_box_objective import objective_for
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Objective
from epsball.problem.task import task_of
from epsball.report.html import write_report

BALL = eb.Linf(eps=0.06, lo=0, hi=1)
Cost = Callable[[int], float]
COSTS: dict[str, tuple[Cost, int, int]] = {
    "as fast from 128 rows on": (lambda rows: max(rows, 128), 128, 512),
    "slower beyond 64 rows": (lambda rows: rows if rows <= 64 else 1.3 * rows, 32, 128),
    "faster with every row": (lambda rows: 1.0 + 1e-6 * rows, 1024, 1024),
    "two per cent a doubling": (lambda rows: rows ** (1 - 0.0286), 64, 128),
    "one flat doubling": (lambda rows: {32: 32, 64: 64, 128: 64, 256: 128, 512: 256}[rows], 128, 512),
}
"""Seconds by rows, the size that is to be taken, and the last one that is to be measured."""


class Narrow(Wrapper):
    """Has no memory for more than 100 rows."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(x)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Cost], None]:
    """Have model calls take as long as a function of their rows says."""

    def script(cost: Cost) -> None:
        def seconds(call: partial, *, on_gpu: bool) -> float:
            call()
            return cost(len(call.args[0]))

        monkeypatch.setattr(batch_size, "_seconds", seconds)
        monkeypatch.setattr(batch_size, "BUDGET", 1e9)

    return script


def found(model: nn.Module, n: int = 2000, rows: int = 40) -> BatchSize:
    x, y = batch_of(rows, (5,), 3)
    with Objective(model, cross_entropy) as objective:
        return found_batch_size(objective, task_of(x, y, BALL), n)


@pytest.mark.parametrize(("cost", "rows", "last"), COSTS.values(), ids=COSTS)
def test_the_smallest_size_near_the_best_throughput_is_taken(
    scripted: Callable[[Cost], None], cost: Cost, rows: int, last: int
) -> None:
    scripted(cost)
    model = Counting(linear((5,), 3))
    result = found(model)
    assert result.rows == rows
    assert result.rows_per_second == {size: size / cost(size) for size in (32, 64, 128, 256, 512, 1024) if size <= last}
    assert (result.forwards, result.backwards) == (model.forwards, model.backwards)
    assert result.why.startswith(f"{rows:,} rows, {rows / cost(rows):,.0f} a second")
    assert BatchSize.from_json(result.to_json()) == result


@pytest.mark.parametrize(("n", "last"), [(1, 32), (33, 64), (64, 64), (129, 256)])
def test_no_batch_has_more_rows_than_it_takes_to_hold_all_examples(
    scripted: Callable[[Cost], None], n: int, last: int
) -> None:
    scripted(lambda rows: 1)
    result = found(linear((5,), 3), n, rows=min(n, 40))
    assert (result.rows, max(result.rows_per_second)) == (last, last)
    assert "no work for more" in result.why


def test_a_size_that_runs_out_of_memory_ends_the_search(scripted: Callable[[Cost], None]) -> None:
    scripted(lambda rows: 1)
    result = found(Narrow(linear((5,), 3)))
    assert (result.rows, result.out_of_memory, list(result.rows_per_second)) == (64, 128, [32, 64])
    assert "128 ran out of memory" in result.why


def test_a_size_is_not_tried_that_may_take_the_memory_of_the_machine(
    scripted: Callable[[Cost], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(lambda rows: 1)
    row = 16 * 5 * 8
    monkeypatch.setattr(batch_size, "peak_memory", lambda call: (call(), 1000 * len(call.args[0]))[1])
    monkeypatch.setattr(batch_size, "free_memory", lambda: (1000 + row) * 128 / 0.8)
    result = found(linear((5,), 3))
    assert (result.rows, list(result.rows_per_second)) == (128, [32, 64, 128])
    assert "256 might not fit into memory" in result.why


def test_a_slow_model_is_not_measured_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "BUDGET", 0.0)
    model = Counting(linear((5,), 3))
    result = found(model)
    assert (result.rows, model.calls) == (32, 2)
    assert "longer" in result.why


def test_a_black_box_is_not_queried() -> None:
    def function(x: object) -> object:
        raise AssertionError("it was queried")

    x, y = batch_of(40, (5,), 3)
    with objective_for(eb.BlackBox(function), cross_entropy, needs="logits") as objective:
        assert found_batch_size(objective, task_of(x, y, BALL), 40).rows == 128


@pytest.mark.parametrize(
    ("attacks", "n"),
    [(["fgsm", "pgd:steps=6,restarts=2"], 300), pytest.param("fast", 150, marks=pytest.mark.nightly)],
    ids=["fgsm, pgd", "fast"],
)
def test_records_are_bit_equal_for_every_batch_size(attacks: object, n: int) -> None:
    """A CNN in float32, and more examples than most batches, so that they refill and shrink."""
    model = Counting(conv().float())
    x = batch(n, CONV_SHAPE).float()
    data, options = (x, predicted(model.model, x)), {"diagnose": 0, "accelerate": False}
    runs = []
    for size in (32, 64, 128, 512, "auto"):
        model.forwards = 0
        runs.append(eb.evaluate(model, data, BALL, attacks, batch_size=size, **options))
        assert runs[-1].forwards == model.forwards
    for other in runs[1:]:
        assert other.records.equals(runs[0].records)
        assert other.adversarial.equals(runs[0].adversarial)
    assert 0 < runs[0].count("fooled") < n


def test_the_number_found_is_in_the_run_and_its_report_and_a_resumed_run_may_have_another(tmp_path: Path) -> None:
    model = conv().float()
    x = batch(70, CONV_SHAPE).float()
    data = x, predicted(model, x)
    run = eb.evaluate(model, data, BALL, "fgsm", batch_size="auto", run_dir=tmp_path, diagnose=0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["batch_size"] in (32, 64, 128)
    assert config["batch_size"] == config["batch_size_found"]["rows"] == run.config["batch_size"]
    assert run.config == eb.Evaluation.load(tmp_path).config
    write_report(tmp_path)
    assert config["batch_size_found"]["why"] in (tmp_path / "report.html").read_text()
    for size in (32, "auto"):
        assert eb.evaluate(model, data, BALL, "fgsm", batch_size=size, run_dir=tmp_path, diagnose=0).records.equals(
            run.records
        )
    assert verify(tmp_path, model, data=data, batch_size="auto").agrees
    with pytest.raises(eb.BadInput, match=r"`batch_size` must be a whole number >= 1 or 'auto', got 'all'"):
        verify(tmp_path, model, batch_size="all")  # type: ignore[arg-type]


def test_auto_is_a_flag_and_a_line_of_toml(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('batch_size = "auto"\n')
    assert EvaluationConfig.from_toml(file).batch_size == "auto"
    for given, size in (
        (["--batch-size", "auto"], "auto"),
        (["--config", str(file)], "auto"),
        (["--config", str(file), "--batch-size", "64"], 64),
    ):
        assert app.parse_args(["evaluate", *given])[1].arguments.get("flags").batch_size == size
    assert app.parse_args(["verify", "run", "--batch-size", "auto"])[1].arguments["batch_size"] == "auto"
    assert EvaluationConfig.from_json(EvaluationConfig(batch_size="auto").to_json()).batch_size == "auto"
