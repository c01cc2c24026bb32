"""Early stopping, warm starts from stage to stage, and the `fast` protocol, which uses both."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from doubles import BALLS, EPS, NEVER
from nets import batch, batch_of, linear, mlp, predicted, rng

import epsball as eb
from epsball.attacks.early_stopping import no_progress, success_margin, updated_progress
from epsball.attacks.registry import parse
from epsball.balls.ball import Ball
from epsball.common.shapes import column
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.engine import queue
from epsball.engine.protocols import expand
from epsball.engine.queue import QueueOptions
from epsball.models.registry import build
from epsball.problem.losses import margin
from epsball.problem.objective import Objective
from epsball.problem.task import task_of
from epsball.training.fit import fit


def by_hand(margins: list[float], steps: int, early_stop: float, first: int) -> int | None:
    """The step at which a row with these margins is stopped, in plain Python; None for never."""
    best = [max(margins[: t + 1]) for t in range(len(margins))]
    powers = [1 << k for k in range(20) if 1 << k < len(margins)]
    for t in (p for p in powers if p >= first):
        gain = max(best[p] - best[p // 2] for p in powers if 2 <= p <= t)
        if best[t] + early_stop * gain * math.log2(steps / t) < 0:
            return t
    return None


@pytest.mark.parametrize("early_stop", [0.0, 1.0, 2.0, 50.0])
@pytest.mark.parametrize("first", [4, 16])
def test_row_is_stopped_at_the_step_that_the_rule_says(early_stop: float, first: int) -> None:
    steps, n = 100, 64
    # A path whose steps shrink, as those of an attack do, at a rate of its own in each row.
    shrinking = torch.rand(steps, n, generator=rng(1), dtype=torch.float64) / torch.arange(1, steps + 1)[:, None] ** 1.2
    margins = shrinking.cumsum(0) * torch.logspace(-1, 1, n, dtype=torch.float64) - 5
    margins += 0.3 * torch.rand(steps, n, generator=rng(2), dtype=torch.float64)
    expected = [by_hand(margins[:, row].tolist(), steps, early_stop, first) for row in range(n)]
    progress, found = no_progress(margins[0], early_stop), [None] * n
    scaled = no_progress(margins[0], early_stop)
    for t in range(steps):
        at = torch.full((n,), t)
        progress, lost = updated_progress(progress, margins[t], at, steps, early_stop, first=first)
        scaled, same = updated_progress(scaled, 1024 * margins[t], at, steps, early_stop, first=first)
        assert torch.equal(lost, same)
        found = [t if one is None and gone else one for one, gone in zip(found, lost.tolist(), strict=True)]
    assert found == expected
    assert None in expected or early_stop < 2
    assert any(one is not None for one in expected) or early_stop > 2


def stopped_at(margins: list[float], like: torch.Tensor, steps: int = 100, early_stop: float = 2.0) -> int | None:
    """The step at which one row with these margins is stopped."""
    progress = no_progress(like, early_stop)
    for t, value in enumerate(margins):
        progress, lost = updated_progress(
            progress, torch.tensor([value], dtype=progress.best.dtype), torch.tensor([t]), steps, early_stop, first=4
        )
        if lost.item():
            return t
    return None


def test_unknown_margin_neither_stops_a_row_nor_counts_as_a_gain() -> None:
    one = torch.zeros(1, dtype=torch.float64)
    assert stopped_at([-1.0] * 100, one) == 4
    assert stopped_at([-math.inf] * 100, one) is None
    for unknown in range(1, 80):
        first = 1 << unknown.bit_length() - (unknown & (unknown - 1) == 0)  # the first checkpoint with a known margin
        later = 2 * first if 2 * first < 100 else None  # the first with a rate
        assert stopped_at([-math.inf] * unknown + [-1.0] * (100 - unknown), one) == (max(later, 4) if later else None)
    assert stopped_at([-math.inf] * 3 + [-1.0] * 2 + [-0.6] * 95, one) == 64  # 1 > .4 * 2 * log2(100 / 64) alone


def test_small_gain_counts_in_half_precision() -> None:
    """Of a margin of 8 the unit in the last place is .0625 in bfloat16; the gain of a doubling is .02."""
    margins = [-8 + 0.02 * math.log2(max(t, 1)) for t in range(100)]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        like = torch.zeros(1, dtype=dtype)
        assert no_progress(like, 2.0).best.dtype == torch.promote_types(dtype, torch.float32)
        assert stopped_at(margins, like, early_stop=1e4) is None
        assert stopped_at(margins, like, early_stop=1.0) == 4


def test_success_margin_measures_label_or_target_and_not_the_aim() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    task = task_of(torch.zeros(2, 1), torch.tensor([0, 1]), eb.Linf(eps=1.0))
    assert success_margin(logits, task).tolist() == [-1.0, 2.0]
    aimed = replace(task, aim=torch.tensor([1, 2]))  # an aim only directs the search: any wrong class counts
    assert success_margin(logits, aimed).tolist() == [-1.0, 2.0]
    targeted = task_of(torch.zeros(2, 1), torch.tensor([0, 1]), eb.Linf(eps=1.0), target=torch.tensor([2, 0]))
    assert success_margin(logits, targeted).tolist() == [-1.0, 1.0]
    close = torch.tensor([[8.0, 0.0703125]], dtype=torch.bfloat16)  # no bfloat16 lies at the difference
    assert success_margin(close, task.rows(torch.tensor([0]))).tolist() == [-7.9296875]


@pytest.mark.parametrize("name", ["apgd", "square"])
def test_early_stop_of_1e9_gives_the_same_result_as_none(name: str) -> None:
    x, model = batch(40, (6,)), mlp((6,), 3)
    y, ball = predicted(model, x), eb.Linf(eps=torch.linspace(0, 1, 40), lo=-1, hi=2)
    plain, endless = parse(f"{name}:steps=30"), parse(f"{name}:steps=30,early_stop=1e9")
    assert (plain.max_steps, endless.max_steps) == (30, None)
    fooled = [predicted(model, attack(model, x, y, ball, seed=1)) != y for attack in (plain, endless)]
    assert torch.equal(*fooled)
    assert 0 < fooled[0].sum() < 40


FIRST, SECOND = (torch.randn(*shape, generator=rng(7), dtype=torch.float64) for shape in ((6, 32), (32, 3)))


def wavy(z: torch.Tensor) -> torch.Tensor:
    """Logits with many local maxima, on which a search does not end at its best point."""
    return torch.sin(6 * (z - 0.5) @ FIRST.to(z)) @ SECOND.to(z)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_last_point_is_evaluated_where_early_stop_is_finite(norm: str, steps: int) -> None:
    x = batch(300, (6,))
    y, ball = predicted(wavy, x), BALLS[norm](eps=torch.linspace(0, EPS[norm] / 3, 300), lo=0, hi=1)
    fooled, late = [], 0
    for early_stop in (math.inf, 1e9):
        attack = eb.APGD(steps=steps, early_stop=early_stop)
        with Objective(wavy, attack.loss) as objective:
            found = queue.run(attack, objective, task_of(x, y, ball, seed=1), QueueOptions(batch_size=64))
        late += int((found.fooled & (found.forwards == steps + 1)).sum())
        fooled += [found.fooled, predicted(wavy, attack(wavy, x, y, ball, seed=1)) != y]
    assert all(torch.equal(fooled[0], other) for other in fooled[1:])
    assert late > 0  # through the evaluation of the last point


@pytest.mark.parametrize("text", ["apgd:steps=12", "apgd:steps=12,early_stop=0.1", "l1-apgd:steps=12"])
def test_warm_start_has_the_best_margin_of_all_points_evaluated(text: str) -> None:
    attack = replace(parse(text), loss=margin)
    x = batch(48, (6,))
    y, radius = predicted(wavy, x), torch.linspace(0.01, 0.5, 48)
    ball = BALLS["l1" if text[0] == "l" else "l2"](eps=radius, lo=0, hi=1)
    task = task_of(x, y, ball)
    with Objective(wavy, attack.loss, success=NEVER) as objective:
        found, plain = (
            queue.run(attack, objective, task, QueueOptions(warm_start=ask, batch_size=32)) for ask in (True, False)
        )
        state, seen = attack.init(task), torch.full((48,), -math.inf, dtype=x.dtype)
        while not state.done.all() and state.t.max() < 12:
            point = objective(state.z, task)
            open_to_see = ~state.done & task.ball.contains(state.z, x)
            seen = torch.where(open_to_see, seen.maximum(success_margin(point.logits, task)), seen)
            stepped = attack.step(state, point, task)
            done = state.done
            state = state.map(lambda old, new, done=done: torch.where(column(done, old.ndim), old, new), stepped)
    torch.testing.assert_close(success_margin(wavy(found.warm_start), task), found.margin)
    assert (found.margin > seen - 1e-9).all()
    again = found.forwards - plain.forwards  # evaluating the best point, where the search ended elsewhere
    assert torch.equal(found.backwards, plain.backwards)
    assert ((again == 0) | (again == 1)).all()
    assert (plain.forwards == 10).any() == ("early_stop" in text)  # stopped early: they end at their best point
    assert (again[plain.forwards == 10] == 0).all()
    assert (success_margin(wavy(state.best), task) < found.margin - 1e-3).any()


def test_warm_start_is_computed_only_on_request() -> None:
    x, attack = batch(8, (6,)), parse("apgd:steps=5")
    with Objective(wavy, attack.loss, success=NEVER) as objective:
        found = queue.run(attack, objective, task_of(x, predicted(wavy, x), eb.Linf(eps=0.1)))
        assert objective.forwards == 32 * 5 + 32
    assert torch.equal(found.warm_start, x)
    assert found.margin.isneginf().all()


@pytest.mark.parametrize("early_stop", [-1.0, math.nan])
@pytest.mark.parametrize("attack", [eb.APGD, eb.Square])
def test_invalid_early_stop_is_refused(attack: type, early_stop: float) -> None:
    with pytest.raises(eb.BadInput, match="`early_stop` must be >= 0"):
        attack(early_stop=early_stop)


def test_row_out_of_reach_is_stopped_early_and_its_warm_start_gains_margin() -> None:
    """On a linear model nothing moves after the first steps: a row far from the boundary is stopped at step 8."""
    model, x = linear((6,), 2, seed=3), batch(64, (6,))
    y = predicted(model, x)
    ball = eb.Linf(eps=1e-3, lo=0, hi=1)
    task = task_of(x, y, ball)
    with Objective(model, parse("apgd").loss) as objective:
        found = queue.run(parse("apgd:early_stop=2"), objective, task, QueueOptions(warm_start=True, batch_size=32))
    calls = found.forwards[~found.fooled]
    assert (calls == 10).double().mean() > 0.9  # nine steps, and an evaluation of the warm start
    gain = success_margin(model(found.warm_start), task) - success_margin(model(x), task)
    assert (gain[~found.fooled] > 0).all()
    torch.testing.assert_close(
        success_margin(model(found.warm_start), task).double()[~found.fooled], found.margin[~found.fooled]
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_square_starts_at_the_warm_start(norm: str) -> None:
    x, y = batch_of(5, (6,), 3)
    ball = BALLS[norm](eps=0.4, lo=0, hi=1).bind(x)
    start = ball.argmax(torch.randn(5, 6, generator=rng(5), dtype=x.dtype), x)
    task = replace(task_of(x, y, ball), warm_start=start)
    attack = eb.Square(steps=9, warm_start=True)
    assert attack.uses_warm_start
    assert not eb.Square().uses_warm_start
    assert torch.equal(attack.init(task).z, start)
    assert not torch.equal(eb.Square(steps=9).init(task).z, start)
    assert torch.equal(attack.init(replace(task, warm_start=None)).z, eb.Square(steps=9).init(task).z)
    model = linear((6,), 3)
    with Objective(model, attack.loss, needs="logits", success=NEVER) as objective:
        found = queue.run(attack, objective, task, QueueOptions(warm_start=True, batch_size=32))
    assert ball.contains(found.warm_start, x).all()
    assert (found.margin >= success_margin(model(start), task).double() - 1e-12).all()


# The protocol.


@pytest.fixture(scope="module")
def digits() -> tuple[torch.nn.Module, Examples]:
    train, test = load_data("digits", split="train"), load_data("digits", split="test", first=64)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = build("small-mlp", tuple(train.x.shape[1:]), 10)
    fit(model, train, epochs=12, lr=3e-3, seed=4)
    return model.eval(), test


def attacks_of(protocol: str, ball: Ball, queries: int) -> list[str]:
    """A protocol's attacks, with so many queries for Square, which are nearly all of its cost."""
    names = expand(protocol, ball)
    return [f"{name}{',' if ':' in name else ':'}steps={queries}" if "square" in name else name for name in names]


SIZES = [(20, 400), pytest.param((64, 5000), marks=pytest.mark.nightly)]
"""Examples, and queries of Square for each."""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.35), ("l1", 1.2)])
def test_fast_is_as_strong_as_standard_with_fewer_model_calls(
    digits: tuple[torch.nn.Module, Examples], norm: str, eps: float, size: tuple[int, int]
) -> None:
    (model, test), (n, queries) = digits, size
    test, ball = test.rows(slice(n)), BALLS[norm](eps=eps, lo=0, hi=1)
    standard, fast = (
        eb.evaluate(model, test, ball, attacks_of(protocol, ball, queries), seed=2) for protocol in ("standard", "fast")
    )
    assert 0.2 < standard.robust_accuracy < 0.9
    assert fast.count("robust") <= standard.count("robust")
    assert fast.forwards < standard.forwards


@pytest.mark.parametrize(("queries", "seeds"), [(400, 1), pytest.param(5000, 2, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.08), ("l1", 0.1)])
def test_fast_is_as_strong_as_standard_where_the_decision_boundary_is_winding(
    norm: str, eps: float, queries: int, seeds: int
) -> None:
    """Few dimensions and many decision boundaries: a warm start does not replace a search from the start."""
    for seed in range(seeds):
        w, b, v = (torch.randn(shape, generator=rng(seed)) for shape in ((2, 32), (32,), (32, 2)))
        model = lambda z, w=2 * w, b=b, v=v: torch.sin(4 * (z - 0.5) @ w + b) @ v  # noqa: E731
        x = torch.rand(60, 2, generator=rng(seed + 99))
        data, ball = (x, model(x).argmax(1)), BALLS[norm](eps=eps, lo=0, hi=1)
        standard, fast = (
            eb.evaluate(model, data, ball, attacks_of(protocol, ball, queries), seed=seed)
            for protocol in ("standard", "fast")
        )
        assert 10 < standard.count("robust") < 50
        assert fast.count("robust") <= standard.count("robust")


@pytest.mark.parametrize("cuts", [(2, 5), pytest.param(range(8), marks=pytest.mark.nightly)])
def test_resume_after_a_stage_reproduces_the_whole_run(
    digits: tuple[torch.nn.Module, Examples], tmp_path: Path, cuts: Sequence[int]
) -> None:
    model, test = digits
    ball = eb.Linf(eps=0.06, lo=0, hi=1)
    arguments = (model, test, ball, attacks_of("fast", ball, 100))
    whole = eb.evaluate(*arguments, eps=[0.04, 0.06], seed=2, shard_size=32, run_dir=tmp_path / "whole")
    names = [stage["name"] for stage in whole.config["stages"]]
    assert len(names) == 2 * len(expand("fast", eb.Linf)) == 8
    for cut in cuts:
        part = tmp_path / f"cut-{cut}"
        shutil.copytree(tmp_path / "whole", part)
        for gone in [
            *part.glob("records/00001*"),
            *(part / "stages" / f"00001-{name}.parquet" for name in names[cut:]),
        ]:
            gone.unlink(missing_ok=True)
        again = eb.evaluate(*arguments, eps=[0.04, 0.06], seed=2, shard_size=32, run_dir=part)
        assert again.records.equals(whole.records)
        assert again.adversarial.equals(whole.adversarial)


def test_fast_with_a_source_model_attacks_up_to_its_last_stage(digits: tuple[torch.nn.Module, Examples]) -> None:
    model, test = digits
    found = eb.evaluate(
        model, test.rows(torch.arange(32)), eb.Linf(eps=0.06, lo=0, hi=1), "fast", source=build("small-mlp", (8, 8), 10)
    )
    stage = found.stages[-1]
    assert stage.attack.startswith("square")
    assert stage.attacked > 0
