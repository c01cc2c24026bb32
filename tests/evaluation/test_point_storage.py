"""Adversarial examples stored in 8 bits: the levels, how rounding works, and that only what still fools counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import epsball as eb
from epsball.balls.ball import Ball
from epsball.balls.ball_file import describe_ball, inside_box, load_ball, save_ball
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.arrays import from_arrays
from epsball.evaluation import run_directory
from epsball.evaluation.image_columns import FILES
from epsball.evaluation.point_storage import Storage, checksums, levels, towards

BOXES = [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-2.5, -0.1), (0.3, 0.7)]
boxes = pytest.mark.parametrize(("lo", "hi"), BOXES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@boxes
def test_levels_are_numbers_of_the_datas_dtype_inside_the_box(lo: float, hi: float, dtype: torch.dtype) -> None:
    table = levels(lo, hi, str(dtype).removeprefix("torch."))
    there = torch.from_numpy(table).to(dtype)
    assert np.array_equal(there.to(torch.float64).numpy(), table.astype(np.float64))
    ends = torch.tensor([lo, hi], dtype=dtype)
    assert torch.equal(there[[0, -1]], ends)
    assert (there.double().diff() >= 0).all()
    exact = lo + (hi - lo) * torch.arange(256).double() / 255
    assert (there.double() - exact).abs().max() <= torch.finfo(dtype).eps * max(abs(lo), abs(hi))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_image_that_was_read_from_bytes_is_on_the_levels(dtype: str) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 256)
    x = from_arrays(pixels, [0]).x.numpy() if dtype == "float32" else pixels / 255
    assert np.array_equal(levels(0, 1, dtype), x[0])
    storage = Storage(dtype, x="8bit", lo=0.0, hi=1.0)
    assert storage.exact(x)
    assert np.array_equal(storage.keep_x(x), pixels)
    assert np.array_equal(storage.read(storage.keep_x(x)), x)
    assert not storage.exact(x + np.finfo(dtype).eps)


@given(
    data=st.data(),
    box=st.sampled_from(BOXES),
    dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
)
@settings(max_examples=200, deadline=None)
def test_rounding_stays_between_x_and_z_on_the_level_closest_to_z(data: st.DataObject, box, dtype: str) -> None:
    table = levels(*box, dtype)
    size = data.draw(st.integers(1, 20))
    x = table[data.draw(st.lists(st.integers(0, 255), min_size=size, max_size=size))]
    shares = data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))
    z = (box[0] + (box[1] - box[0]) * np.array(shares)).astype(table.dtype).clip(table[0], table[-1])
    stored = towards(z, x, table)
    point = table[stored]
    assert ((np.minimum(x, z) <= point) & (point <= np.maximum(x, z))).all()
    for at, k, goal, start in zip(point, stored, z, x, strict=True):
        inside = table[(table >= min(start, goal)) & (table <= max(start, goal))]
        assert abs(float(at) - float(goal)) == np.abs(inside.astype(float) - float(goal)).min()
        assert table[k] == at
    assert np.array_equal(table[towards(point, x, table)], point)


@given(data=st.data(), box=st.sampled_from(BOXES), dtype=st.sampled_from(["float32", "float64"]))
@settings(max_examples=200, deadline=None)
def test_off_the_levels_rounding_goes_to_the_level_closest_to_x_if_none_is_between(
    data: st.DataObject, box, dtype: str
) -> None:
    table = levels(*box, dtype)
    share = st.lists(st.floats(0, 1), min_size=8, max_size=8)
    x, z = (
        (box[0] + (box[1] - box[0]) * np.array(data.draw(share))).astype(table.dtype).clip(table[0], table[-1])
        for _ in range(2)
    )
    point = table[towards(z, x, table)]
    between = (np.minimum(x, z) <= point) & (point <= np.maximum(x, z))
    some = np.array([((table >= min(a, b)) & (table <= max(a, b))).any() for a, b in zip(x, z, strict=True)])
    assert np.array_equal(between, some)
    nearest = np.abs(table[:, None].astype(float) - x.astype(float)).min(0)
    assert (np.abs(point.astype(float) - x.astype(float)) == nearest)[~some].all()


BALLS = {
    "linf": lambda lo, hi: eb.Linf(eps=0.07 * (hi - lo), lo=lo, hi=hi),
    "l2": lambda lo, hi: eb.L2(eps=0.2 * (hi - lo), lo=lo, hi=hi),
    "l1": lambda lo, hi: eb.L1(eps=0.5 * (hi - lo), lo=lo, hi=hi),
    "l0": lambda lo, hi: eb.L0(eps=3, lo=lo, hi=hi),
}


@pytest.mark.parametrize("norm", BALLS)
@boxes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_rounding_keeps_a_point_in_its_ball(norm: str, lo: float, hi: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.from_numpy(levels(lo, hi, str(dtype).removeprefix("torch."))).to(dtype)
    x = table[torch.randint(0, 256, (40, 3, 5), generator=generator)]
    mask = torch.rand(1, 3, 5, generator=generator) < 0.8
    ball = replace(BALLS[norm](lo, hi), mask=mask)
    storage = Storage(str(dtype).removeprefix("torch."), x_adv="8bit", x="8bit", lo=lo, hi=hi)
    noise = Noise(1, torch.arange(40), torch.zeros(40, dtype=torch.long))
    grad = torch.randn(40, 3, 5, generator=generator).to(dtype)
    moved = False
    for z in (ball.sample(x, noise), ball.argmax(grad, x)):
        wide = [part.to(torch.promote_types(dtype, torch.float32)).numpy() for part in (z, x)]
        point = torch.from_numpy(storage.read(storage.keep(*wide))).to(dtype)
        assert ball.contains(point, x).all()
        assert (ball.norm(point.double() - x.double()) <= ball.norm(z.double() - x.double())).all()
        moved |= not torch.equal(point, z)
        if norm == "linf":  # no more is lost than the step to the next level
            assert (point.double() - z.double()).abs().max() < (hi - lo) / 254
    assert moved


def test_a_flipped_bit_changes_the_checksum_of_its_row_only() -> None:
    generator = np.random.default_rng(0)
    z, x = generator.random((5, 2, 3), dtype=np.float32), generator.integers(0, 256, (5, 2, 3)).astype(np.uint8)
    sums = checksums(z, x)
    for part in (z, x):
        for bit in range(8 * part[3].nbytes):
            other = part.copy()
            other[3].reshape(-1).view(np.uint8)[bit // 8] ^= 1 << bit % 8
            changed = checksums(other, x) if part is z else checksums(z, other)
            assert ((changed != sums) == (np.arange(5) == 3)).all()


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("valid", [[], [False, False], [True, False, True], [True] * 4])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_a_column_of_points_is_read_back_unchanged(shape: tuple[int, ...], valid: list[bool], kind: type) -> None:
    points = np.random.default_rng(0).integers(0, 256, (sum(valid), *shape)).astype(kind)
    column = run_directory.nested(points, np.array(valid, dtype=bool))
    assert len(column) == len(valid)
    assert column.is_valid().to_pylist() == valid
    back = run_directory.points(column, shape)
    assert back.dtype == points.dtype
    assert np.array_equal(back, points)


@given(data=st.data(), channels=st.sampled_from([1, 3]), sides=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=50, deadline=None)
def test_images_are_read_back_from_png_files_unchanged(
    data: st.DataObject, channels: int, sides: tuple[int, int]
) -> None:
    valid = np.array(data.draw(st.lists(st.booleans(), max_size=4)), dtype=bool)
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    points = generator.integers(0, 256, (int(valid.sum()), channels, *sides)).astype(np.uint8)
    column = run_directory.stored(points, valid)
    assert column.type == FILES
    assert column.is_valid().to_pylist() == valid.tolist()
    assert np.array_equal(run_directory.points(column, (channels, *sides)), points)
    sliced = pa.chunked_array([column, column.slice(len(valid) // 2)])
    assert np.array_equal(run_directory.points(sliced, (channels, *sides))[: len(points)], points)


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4, 4), (4, 4), (16,), (1, 4000, 4001), (1, 1, 4, 4)])
def test_what_no_image_file_holds_is_stored_as_nested_lists(shape: tuple[int, ...]) -> None:
    assert pa.types.is_list(run_directory.stored(np.zeros((0, *shape), np.uint8), np.zeros(0, bool)).type)
    assert pa.types.is_list(run_directory.stored(np.zeros((1, 1, 4, 4), np.float32), np.ones(1, bool)).type)


# In an evaluation


def threshold(at: float) -> nn.Module:
    """A single logit: is the only feature above `at`?"""
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(-at)
    return model


def test_a_success_undone_by_rounding_does_not_count_and_the_next_attack_runs() -> None:
    x, y = torch.tensor([[100.0], [98.0]]).div(255), torch.tensor([0, 0])  # the second one is robust in any case
    model, ball = threshold(101.2 / 255), eb.Linf(eps=1.4 / 255, lo=0, hi=1)
    plain = eb.evaluate(model, (x, y), ball, ["fgsm", "pgd:steps=20"])
    assert plain.records["status"].to_pylist() == ["fooled", "robust"]
    stored = eb.evaluate(model, (x, y), ball, ["fgsm", "pgd:steps=20"], storage="8bit")
    assert stored.records["status"].to_pylist() == ["robust", "robust"]
    assert [(s.attacked, s.fooled, s.unconfirmed) for s in stored.stages[1:]] == [(2, 0, 1), (2, 0, 1)]
    wider = eb.evaluate(model, (x, y), eb.Linf(eps=2.4 / 255, lo=0, hi=1), "fgsm", storage="8bit")
    assert wider.records["status"].to_pylist() == ["fooled", "robust"]
    ids, points = wider.points()
    assert ids.tolist() == [0]
    assert points.item() == np.float32(102) / np.float32(255)


SHORT = ["apgd-t:steps=30", "square:warm_start=true,p=0.1,early_stop=2,steps=300", "square:steps=300"]
WHOLE = pytest.param(["standard", "fast"], marks=pytest.mark.nightly)


@pytest.mark.parametrize("attacks", [["apgd", SHORT], WHOLE], ids=["short", "whole"])
@pytest.mark.parametrize(
    "ball", [eb.Linf(eps=8 / 255, lo=0, hi=1), eb.L2(eps=0.1, lo=0, hi=1), eb.L1(eps=0.3, lo=0, hi=1)]
)
def test_a_success_undone_by_rounding_does_not_end_the_attack(ball: Ball, attacks: list[str | list[str]]) -> None:
    """A job that stopped at its first success, just over the decision boundary, would be weaker than FGSM."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (100, 20), generator=generator) / 255
    model = nn.Linear(20, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)
        y = model(x).argmax(1)
    fgsm = eb.evaluate(model, (x, y), ball, "fgsm", storage="8bit").count("robust")
    assert 10 < fgsm < 95
    for attack in attacks:
        found = eb.evaluate(model, (x, y), ball, attack, storage="8bit", diagnose=0)
        assert found.count("robust") <= fgsm, attack
        rows = 0

        def counted(z: Tensor) -> Tensor:
            nonlocal rows
            rows += len(z)
            return model(z)

        again = eb.evaluate(counted, (x, y), ball, attack, storage="8bit", diagnose=0)
        assert again.forwards == sum(again.cost.values()) == rows, attack  # repeated checks are counted
        assert again.cost["attack"] == sum(again.records["forwards"].to_pylist())


@pytest.fixture(scope="module")
def images() -> tuple[nn.Module, Tensor, Tensor]:
    """Random bytes in [-1, 1] as a transform leaves them, and the labels of a linear model with a margin."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (96, 1, 4, 4), generator=generator)
    x = torch.from_numpy(levels(-1, 1, "float32"))[pixels]
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        y = model(x).argmax(1)
    return model, x, y


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_stored_bytes_are_in_the_ball_and_fool_the_model(images, norm: str, tmp_path: Path) -> None:
    model, x, y = images
    ball = {"linf": eb.Linf, "l2": eb.L2, "l1": eb.L1, "l0": eb.L0}[norm](
        eps={"linf": 0.3, "l2": 1.0, "l1": 2.0, "l0": 2}[norm], lo=-1, hi=1
    )
    run = {"attacks": ["fgsm", "pgd:steps=20"], "shard_size": 40}
    plain = eb.evaluate(model, (x, y), ball, **run)
    stored = eb.evaluate(model, (x, y), ball, **run, storage="8bit", run_dir=tmp_path / "run")
    assert stored.config["storage"] == {"dtype": "float32", "x_adv": "8bit", "x": "8bit", "lo": -1.0, "hi": 1.0}
    assert stored.adversarial["x_adv"].type == stored.adversarial["x"].type == FILES
    ids, points = stored.points()
    assert points.dtype == np.float32
    assert np.isin(points, levels(-1, 1, "float32")).all()
    assert np.array_equal(stored.originals(), x[ids].numpy())
    z = torch.from_numpy(points)
    assert ball.contains(z, x[ids]).all()
    with torch.no_grad():
        assert (model(z).argmax(1) != y[ids]).all()
    assert 10 < stored.count("fooled") <= plain.count("fooled") + 1
    assert stored.count("fooled") >= plain.count("fooled") - 3  # rounding costs a few successes
    assert eb.Evaluation.load(tmp_path / "run") == stored
    loaded = run_directory.load(tmp_path / "run" / "stages" / "00000-00-fgsm.parquet")
    assert loaded["x"].type == loaded["x_adv"].type


def test_examples_that_are_no_bytes_are_stored_exactly(images, tmp_path: Path) -> None:
    model, x, _ = images
    x = (x * 0.9).clamp(-1, 1)
    with torch.no_grad():
        y = model(x).argmax(1)
    for dtype in (torch.float32, torch.float64):
        ball = eb.Linf(eps=0.3, lo=-1, hi=1)
        ev = eb.evaluate(model.to(dtype), (x.to(dtype), y), ball, "fgsm", run_dir=tmp_path / str(dtype))
        assert ev.config["storage"]["x"] == "float"
        ids, _ = ev.points()
        assert np.array_equal(ev.originals(), x.to(dtype)[ids].numpy())
        assert len(ids) > 10
    model.float()


def test_bytes_beside_floating_point_examples_are_stored_with_a_warning(images, caplog) -> None:
    model, x, _ = images
    x = (x * 0.9).clamp(-1, 1)
    with torch.no_grad():
        y = model(x).argmax(1)
    ev = eb.evaluate(model, (x, y), eb.Linf(eps=0.3, lo=-1, hi=1), "fgsm", storage="8bit")
    assert "not on the 256 levels" in caplog.text
    assert ev.count("fooled") > 10
    assert ev.config["storage"]["x"] == "float"
    assert np.isin(ev.points()[1], levels(-1, 1, "float32")).all()
    ids, points = ev.points()
    assert eb.Linf(eps=0.3, lo=-1, hi=1).contains(torch.from_numpy(points), x[ids]).all()
    none = eb.evaluate(model, (x, y), eb.L0(eps=2, lo=-1, hi=1), "fgsm", storage="8bit")
    assert none.count("fooled") == 0  # every coordinate has to move: none is within two of them
    assert none.stages[1].unconfirmed > 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_in_bytes(images, dtype: torch.dtype, tmp_path: Path) -> None:
    model, _, _ = images
    table = torch.from_numpy(levels(-1, 1, str(dtype).removeprefix("torch."))).to(dtype)
    x = table[torch.randint(0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0))]
    weight = model[1].weight.detach().to(dtype)

    def half(z: Tensor) -> Tensor:
        return z.flatten(1) @ weight.T

    y = half(x).argmax(1)
    ball = eb.Linf(eps=0.3, lo=-1, hi=1)
    ev = eb.evaluate(half, (x, y), ball, "pgd:steps=5", storage="8bit", run_dir=tmp_path / "run")
    ids, points = ev.points()
    assert len(ids) > 5
    z = torch.from_numpy(points).to(dtype)
    assert np.array_equal(z.float().numpy(), points)
    assert ball.contains(z, x[ids]).all()
    assert eb.verify(tmp_path / "run", half).agrees


@pytest.mark.parametrize(
    "box", [{}, {"lo": 0.0}, {"lo": torch.zeros(1, 1, 4, 4) - 1, "hi": 1.0}], ids=["none", "half", "tensor"]
)
def test_eight_bits_without_a_box_are_refused(images, box: dict) -> None:
    model, x, y = images
    x = x.clamp_min(0) if isinstance(box.get("lo"), float) else x
    with pytest.raises(BadInput, match="`storage` '8bit' must have a box"):
        eb.evaluate(model, (x, y), eb.Linf(eps=0.1, **box), "fgsm", storage="8bit")
    with pytest.raises(BadInput, match="`storage` must be one of float, 8bit, got '8bits'; did you mean '8bit'"):
        eb.evaluate(model, (x, y), eb.Linf(eps=0.1, **box), "fgsm", storage="8bits")
    eb.evaluate(model, (x[:8], y[:8]), eb.Linf(eps=0.1, **box), "fgsm")


def test_a_resume_with_another_storage_is_refused(images, tmp_path: Path) -> None:
    model, x, y = images
    arguments = {"ball": eb.Linf(eps=0.1, lo=-1, hi=1), "attacks": "fgsm", "run_dir": tmp_path / "run"}
    eb.evaluate(model, (x, y), **arguments)
    with pytest.raises(BadInput, match="another `storage`"):
        eb.evaluate(model, (x, y), **arguments, storage="8bit")


def test_the_bytes_load_with_datasets(images, tmp_path: Path) -> None:
    import datasets

    model, x, y = images
    ev = eb.evaluate(
        model, (x, y), eb.Linf(eps=0.3, lo=-1, hi=1), "fgsm", storage="8bit", run_dir=tmp_path / "run", shard_size=30
    )
    files = [str(file) for file in sorted((tmp_path / "run" / "stages").glob("*-00-fgsm.parquet"))]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    for name in ("x_adv", "x"):
        assert loaded.features[name] == datasets.Image()
    assert all((row["x_adv"] is None) == (not row["fooled"]) for row in loaded)
    rows = [row for row in loaded if row["fooled"]]
    assert {row["x_adv"].format for row in rows} == {"PNG"}
    for name, points in (("x_adv", ev.points()[1]), ("x", ev.originals())):
        pixels = np.stack([np.asarray(row[name]) for row in rows])[:, None]
        assert np.array_equal(levels(-1, 1, "float32")[pixels], points)
    single = datasets.Dataset.from_parquet(files[0], cache_dir=str(tmp_path / "cache"))
    assert isinstance(single, datasets.Dataset)
    assert single.features["x"] == datasets.Image()


# The ball's own file


@pytest.mark.parametrize("part", ["eps", "feature", "lo", "hi", "mask", "numbers"])
def test_a_ball_is_read_back_unchanged(part: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 2, 3, generator=generator, dtype=torch.float64)
    parts = {
        "eps": {"eps": torch.rand(6, generator=generator)},
        "feature": {"eps": torch.rand(1, 2, 3, generator=generator)},
        "lo": {"eps": 0.1, "lo": -torch.rand(1, 2, 3, generator=generator), "hi": 2},
        "hi": {"eps": float("inf"), "lo": -1.5, "hi": 1 + torch.rand(6, 1, 3, generator=generator)},
        "mask": {"eps": 0.3, "mask": torch.rand(1, 2, 3, generator=generator) < 0.5},
        "numbers": {"eps": 0.3, "lo": -0.5},
    }[part]
    ball = eb.Linf(**parts).bind(x)
    save_ball(ball, tmp_path / "ball.safetensors")
    assert (tmp_path / "ball.safetensors").exists() == (part != "numbers")
    back = load_ball(describe_ball(ball), tmp_path / "ball.safetensors", radius=None)
    assert type(back) is type(ball)
    for name in ball.parts():
        mine, theirs = getattr(ball, name), getattr(back, name)
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs
    assert load_ball(describe_ball(ball), tmp_path / "ball.safetensors", radius=0.5).eps == 0.5
    z = ball.argmax(torch.randn(6, 2, 3, generator=generator, dtype=torch.float64), x) if part != "numbers" else x
    if part != "lo":
        assert torch.equal(back.contains(z, x), ball.contains(z, x))
    if part != "numbers":
        (tmp_path / "ball.safetensors").unlink()
        with pytest.raises(BadInput, match="must hold the ball"):
            load_ball(describe_ball(ball), tmp_path / "ball.safetensors", radius=None)


def test_an_example_at_a_bound_that_its_dtype_rounds_is_inside_the_box() -> None:
    x = torch.tensor([[0.1], [0.2], [0.10001]])
    assert inside_box(eb.Linf(eps=1, lo=0.1, hi=0.2), x).tolist() == [True, True, True]
    assert inside_box(eb.Linf(eps=1, lo=0.10001, hi=0.2), x).tolist() == [False, True, True]
