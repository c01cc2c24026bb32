"""A run verified from its files: every result is recomputed, and whatever was changed is reported with its id."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from doubles import LabelWalk
from PIL import Image
from torch import Tensor, nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.evaluation import run_directory
from epsball.evaluation.point_storage import checksums, levels
from epsball.evaluation.verify import Verification, verify
from epsball.problem.task import Task
from epsball.report.html import write_report

BALL = eb.Linf(eps=0.15, lo=-1, hi=1)
RUN: dict[str, Any] = {"attacks": ["fgsm", "pgd:steps=8"], "shard_size": 30}
SHAPE = (1, 4, 4)


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(16, 12, generator=generator))
        self.last = nn.Parameter(torch.randn(12, 4, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.first.to(x)).tanh() @ self.last.to(x)


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


@pytest.fixture(scope="module")
def images(net: Net) -> Examples:
    """Bytes in the box [-1, 1], with ids that are not their places; a tenth have a wrong label."""
    generator = torch.Generator().manual_seed(1)
    x = torch.from_numpy(levels(-1, 1, "float32"))[torch.randint(0, 256, (80, 1, 4, 4), generator=generator)]
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::10] = (y[::10] + 1) % 4
    ids = 7 + 3 * torch.randperm(80, generator=generator)
    return from_arrays(x, y, ids=ids, lo=-1, hi=1, classes=4, name="bytes")


@pytest.fixture(scope="module", params=["float", "8bit"])
def finished(net: Net, images: Examples, request: pytest.FixtureRequest, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("verify") / request.param
    ev = eb.evaluate(net, images, BALL, **RUN, storage=request.param, run_dir=path, seed=2)
    assert min(stage.fooled for stage in ev.stages[1:]) > 0
    assert ev.count("robust") > 5
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def reported(found: Verification, what: str | None = None) -> list[tuple[int | None, str]]:
    return [(row.id, row.what) for row in found.differences if what in (None, row.what)]


def changed(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Write a table again, edited, with its metadata."""
    table = run_directory.load(path)
    run_directory.save(path, edit(table).replace_schema_metadata(table.schema.metadata))


def with_value(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    place = table.column_names.index(name)
    column = table[name].to_pylist()
    column[row] = value
    kind = table.schema.field(place)
    return table.set_column(place, kind, pa.array(column, kind.type))


def first_fooled(table: pa.Table) -> int:
    return table["fooled"].to_pylist().index(True)


def with_point(
    table: pa.Table, name: str, row: int, change: Callable[[np.ndarray], np.ndarray], sums: bool = True
) -> pa.Table:
    """Another point in a row, with its checksum made anew unless `sums` is false."""
    parts = {part: run_directory.points(table[part].slice(row, 1), SHAPE)[0].reshape(-1) for part in ("x_adv", "x")}
    parts[name] = change(parts[name].copy())
    stored = run_directory.stored(parts[name].reshape(1, *SHAPE), np.array([True]))
    table = with_value(table, name, row, stored[0].as_py())
    return (
        with_value(table, "crc32", row, int(checksums(*(part[None] for part in parts.values()))[0])) if sums else table
    )


STAGE = "stages/00001-00-fgsm.parquet"


def test_an_untouched_run_agrees(net: Net, images: Examples, finished: Path) -> None:
    before = [parameter.requires_grad for parameter in net.parameters()]
    net.train()
    found = verify(finished, net)
    assert net.training
    net.eval()
    assert [parameter.requires_grad for parameter in net.parameters()] == before
    ev = eb.Evaluation.load(finished)
    assert found.agrees, found.differences
    assert (found.n, found.fooled, found.confirmed) == (80, ev.count("fooled"), ev.count("fooled"))
    assert (found.clean_checked, found.with_data, found.eot) == (found.fooled, False, 1)
    assert (found.clean_accuracy, found.robust_accuracy) == (ev.clean_accuracy, ev.robust_accuracy)
    assert json.loads(json.dumps(found.summary()))["agrees"]
    with_data = verify(finished, net, data=images, batch_size=32)
    assert with_data.agrees, with_data.differences
    assert with_data.clean_checked == 80
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    assert verify(finished, net, data=images.rows(order)).agrees


# Points


@pytest.mark.parametrize("part", ["x_adv", "x"])
def test_a_flipped_bit_in_a_point_is_reported(net: Net, run: Path, part: str) -> None:
    def flip(table: pa.Table) -> pa.Table:
        def change(point: np.ndarray) -> np.ndarray:
            point.view(np.uint8)[5] ^= 1
            return point

        return with_point(table, part, first_fooled(table), change, sums=False)

    table = run_directory.load(run / STAGE)
    id = table["id"][first_fooled(table)].as_py()
    changed(run / STAGE, flip)
    assert (id, "checksum") in reported(verify(run, net))
    assert {row for row, _ in reported(verify(run, net), "checksum")} == {id}


def test_a_point_outside_the_ball_is_reported(net: Net, run: Path) -> None:
    table = run_directory.load(run / STAGE)
    row = first_fooled(table)
    id = table["id"][row].as_py()

    def away(point: np.ndarray) -> np.ndarray:
        point[3] = 0 if point[3] > (128 if point.dtype == np.uint8 else 0) else (255 if point.dtype == np.uint8 else 1)
        return point

    changed(run / STAGE, partial(with_point, name="x_adv", row=row, change=away))
    found = verify(run, net)
    assert (id, "containment") in reported(found)
    assert (id, "distance") in reported(found)
    assert {row for row, _ in reported(found) if row is not None} == {id}
    assert found.confirmed == found.fooled - 1
    assert (None, "accuracy") in reported(found)
    assert found.robust_accuracy == pytest.approx(eb.Evaluation.load(run).robust_accuracy + 1 / 80)


def test_a_point_that_does_not_fool_is_reported(net: Net, run: Path) -> None:
    table = run_directory.load(run / STAGE)
    row = first_fooled(table)
    id = table["id"][row].as_py()
    x = run_directory.points(table["x"].slice(row, 1), SHAPE).reshape(-1)
    if table["x"].type != table["x_adv"].type:  # the point is stored in floating point
        x = levels(-1, 1, "float32")[x]
    changed(run / STAGE, partial(with_point, name="x_adv", row=row, change=lambda z: x.astype(z.dtype)))
    found = verify(run, net)
    assert {(id, "success"), (id, "prediction"), (id, "distance")} <= set(reported(found))
    assert (id, "containment") not in reported(found)
    assert {row for row, _ in reported(found) if row is not None} == {id}
    assert (None, "accuracy") in reported(found)


def test_an_example_that_was_moved_is_reported(net: Net, images: Examples, run: Path) -> None:
    table = run_directory.load(run / STAGE)
    row = first_fooled(table)
    id = table["id"][row].as_py()

    def one_level(x: np.ndarray) -> np.ndarray:
        x[2] = 7 if x[2] != 7 else 8
        return x

    changed(run / STAGE, partial(with_point, name="x", row=row, change=one_level))
    assert (id, "distance") in reported(verify(run, net))
    assert (id, "x") in reported(verify(run, net, data=images))


def test_a_forged_success_is_reported(net: Net, run: Path) -> None:
    """A robust example, marked as fooled in its stage and in its record, with a point in the ball."""
    table = run_directory.load(run / STAGE)
    status = run_directory.load(run / "records/00001.parquet")
    robust = status.filter(pc.equal(status["status"], "robust"))["id"][0].as_py()
    row, like = table["id"].to_pylist().index(robust), first_fooled(table)

    def forge(table: pa.Table) -> pa.Table:
        for name in ("x_adv", "x", "crc32", "adversarial_prediction", "adversarial_confidence"):
            table = with_value(table, name, row, table[name][like].as_py())
        return with_value(table, "fooled", row, True)

    changed(run / STAGE, forge)
    later = run / "stages/00001-01-pgd.parquet"
    changed(later, lambda table: table.filter(pc.not_equal(table["id"], robust)))
    donor = table["id"][like].as_py()
    rows = status["id"].to_pylist()

    def record(table: pa.Table) -> pa.Table:
        same = ("status", "attack", "eps", "adversarial_prediction", "adversarial_confidence", "distance")
        for name in (*same, "linf", "l2", "l1", "l0", "forwards", "backwards"):
            table = with_value(table, name, rows.index(robust), table[name][rows.index(donor)].as_py())
        return table

    changed(run / "records/00001.parquet", record)
    found = verify(run, net)
    assert (robust, "clean prediction") in reported(found) or (robust, "success") in reported(found)
    assert (None, "count") in reported(found)


def png(mode: str = "L", size: tuple[int, int] = (4, 4), format: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new(mode, size).save(file, format)
    return file.getvalue()


def huge() -> bytes:
    """A PNG file whose header claims 100,000 x 100,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return png()[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + png()[33:]


FOREIGN: dict[str, bytes | None] = {
    "another size": png(size=(4, 5)),
    "in colour": png("RGB"),
    "transparent": png("LA"),
    "with a palette": png("P"),
    "black and white": png("1"),
    "16 bits": png("I;16"),
    "a GIF": png(format="GIF"),
    "a JPEG": png(format="JPEG"),
    "cut off": png()[:-30],
    "huge": huge(),
    "noise": b"\x89PNG\r\n\x1a\n" + bytes(range(200)),
    "empty": b"",
    "none": None,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_image_in_the_place_of_a_point_is_a_difference_of_its_row(net: Net, run: Path, name: str) -> None:
    table = run_directory.load(run / STAGE)
    row = first_fooled(table)
    file = {"bytes": FOREIGN[name], "path": None if FOREIGN[name] else "/etc/hostname"}
    changed(run / STAGE, lambda table: with_value(table, "x", row, file))
    found = verify(run, net)
    assert reported(found, "damaged") == [(table["id"][row].as_py(), "damaged")]
    assert found.confirmed == found.fooled - 1
    with pytest.raises(BadInput, match=r"a point must be a|an image must have at most"):
        eb.Evaluation.load(run).originals()


def test_a_run_with_nested_lists_in_the_place_of_images_is_read_as_before(net: Net, run: Path, tmp_path: Path) -> None:
    before = eb.Evaluation.load(run)

    def as_lists(table: pa.Table) -> pa.Table:
        for name in ("x_adv", "x"):
            lists = run_directory.nested(run_directory.points(table[name], SHAPE), table[name].is_valid().to_numpy())
            table = table.set_column(table.column_names.index(name), name, lists)
        return table

    for path in sorted((run / "stages").glob("*-0[01]-*.parquet")):
        changed(path, as_lists)
    found = eb.Evaluation.load(run)
    assert pa.types.is_list(found.adversarial["x"].type)
    assert found.records == before.records
    for new, old in ((found.originals(), before.originals()), (found.points()[1], before.points()[1])):
        assert np.array_equal(new, old)
    assert verify(run, net).agrees
    assert write_report(run, tmp_path / "report.html").exists()


# Records


EDITS = {
    "label": ("label", lambda value: (value + 1) % 4),
    "clean_prediction": ("clean prediction", lambda value: (value + 1) % 4),
    "clean_confidence": ("clean confidence", lambda value: value + 0.01),
    "status": ("status", lambda value: "robust"),
    "attack": ("attack", lambda value: "pgd:steps=9"),
    "eps": ("eps", lambda value: value / 2),
    "adversarial_prediction": ("prediction", lambda value: (value + 1) % 4),
    "adversarial_confidence": ("confidence", lambda value: value + 0.01),
    "distance": ("distance", lambda value: value * (1 - 1e-6)),
    "linf": ("distance", lambda value: value * (1 - 1e-6)),
    "l2": ("distance", lambda value: value * (1 - 1e-6)),
    "l1": ("distance", lambda value: value * (1 - 1e-6)),
    "l0": ("distance", lambda value: value - 1),
    "overflow_eps": ("eps", lambda value: 0.1),
    "forwards": ("model calls", lambda value: value - 1),
    "backwards": ("model calls", lambda value: value + 1),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_record_is_reported(net: Net, run: Path, name: str) -> None:
    what, edit = EDITS[name]
    path = run / "records/00002.parquet"
    table = run_directory.load(path)
    row = table["status"].to_pylist().index("fooled")
    id = table["id"][row].as_py()
    changed(path, lambda table: with_value(table, name, row, edit(table[name][row].as_py())))
    found = verify(run, net)
    assert (id, what) in reported(found)
    assert {row for row, _ in reported(found) if row is not None} == {id}


@pytest.mark.parametrize("status", ["fooled", "misclassified", "invalid", "at-target"])
def test_a_robust_example_with_another_status_is_reported(net: Net, run: Path, status: str) -> None:
    path = run / "records/00000.parquet"
    table = run_directory.load(path)
    row = table["status"].to_pylist().index("robust")
    changed(path, lambda table: with_value(table, "status", row, status))
    found = verify(run, net)
    assert reported(found, "status") == [(table["id"][row].as_py(), "status")]
    assert (None, "accuracy") in reported(found)


def test_a_label_that_was_edited_in_every_file_is_reported(net: Net, images: Examples, run: Path) -> None:
    """A wrong example becomes a robust one: only the digest of all labels, and the data, reveal it."""
    table = run_directory.load(run / "records/00000.parquet")
    row = table["status"].to_pylist().index("misclassified")
    id, predicted = table["id"][row].as_py(), table["clean_prediction"][row].as_py()
    for path in ("records/00000.parquet", "stages/00000-clean.parquet"):
        changed(run / path, lambda table: with_value(table, "label", row, predicted))
    found = verify(run, net)
    assert (None, "label") in reported(found)
    assert (id, "status") in reported(found)
    assert (id, "label") in reported(verify(run, net, data=images))


@pytest.mark.parametrize("kind", ["records/00001.parquet", "stages/00001-clean.parquet", STAGE])
@pytest.mark.parametrize("twice", [False, True])
def test_a_missing_or_duplicated_row_is_reported(net: Net, run: Path, kind: str, twice: bool) -> None:
    id = run_directory.load(run / kind)["id"][4].as_py()
    rows = [*range(9), *([4] if twice else []), *range(9, run_directory.load(run / kind).num_rows)]
    changed(run / kind, lambda table: table.take(pa.array([row for row in rows if twice or row != 4])))
    found = verify(run, net)
    assert ((None, "count") if twice else (id, "missing")) in reported(found)


# Files


def test_a_missing_file_is_reported(net: Net, run: Path) -> None:
    records = run_directory.load(run / "records/00001.parquet")
    fooled = records.filter(pc.equal(records["attack"], "fgsm"))["id"].to_pylist()
    (run / STAGE).unlink()
    found = verify(run, net)
    assert {id for id, _ in reported(found, "missing")} == {None, *fooled}
    assert {id for id, what in reported(found) if what not in ("model calls", "prediction", "confidence")} <= {
        None,
        *fooled,
    }
    assert found.confirmed == found.fooled - len(fooled)
    (run / "records/00001.parquet").unlink()
    found = verify(run, net)
    assert {id for id, _ in reported(found, "missing")} == {None, *records["id"].to_pylist()}
    assert found.n == 80 - 30


def test_a_bit_flipped_anywhere_in_a_file_is_reported(net: Net, finished: Path, tmp_path: Path) -> None:
    """Where nothing is reported, the flip was in bytes without content: statistics, or padding."""
    generator = np.random.default_rng(0)
    whole = {path: run_directory.load(finished / path) for path in (STAGE, "records/00001.parquet")}
    noticed = 0
    for number in range(40):
        path = list(whole)[number % 2]
        copy = Path(shutil.copytree(finished, tmp_path / str(number)))
        raw = bytearray((copy / path).read_bytes())
        raw[generator.integers(4, len(raw) - 8)] ^= 1 << generator.integers(8)
        (copy / path).write_bytes(raw)
        try:
            same = run_directory.load(copy / path).equals(whole[path])
        except (OSError, ValueError, pa.ArrowException):
            same = False
        try:
            found = verify(copy, net)
        except BadInput:
            continue
        assert same or not found.agrees
        noticed += not found.agrees
        shutil.rmtree(copy)
    assert noticed > 10


def test_an_edited_configuration_is_reported(net: Net, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    del config["checksum"]

    def edited(**change: Any) -> Verification:
        (run / "config.json").write_text(json.dumps(config | change))
        return verify(run, net)

    fooled = {
        id for id, _ in reported(edited(stages=[stage | {"eps": 0.1} for stage in config["stages"]]), "containment")
    }
    assert fooled  # a smaller radius is in no point
    wider = edited(stages=[stage | {"eps": 0.4} for stage in config["stages"]])
    assert fooled <= {id for id, _ in reported(wider, "eps")}
    lower = edited(ball=config["ball"] | {"hi": 0.0})
    assert fooled & {id for id, _ in reported(lower, "containment")}
    other = edited(ball=config["ball"] | {"norm": "l1"})
    assert fooled <= {id for id, _ in reported(other, "containment")}
    assert fooled <= {id for id, _ in reported(other, "distance")}
    named = edited(stages=[stage | {"attack": "nothing"} for stage in config["stages"]])
    assert fooled <= {id for id, _ in reported(named, "attack")}
    digest = edited(data=config["data"] | {"labels": "0" * 16})
    assert reported(digest) == [(None, "label")]
    assert set(reported(edited(radii=[0.5]))) == {(None, "eps")}
    assert (None, "eps") in reported(edited(radii=[0.15, 0.5]))
    assert (None, "eps") in reported(edited(ball=config["ball"] | {"eps": 0.5}))
    assert reported(edited(target="tensor 0")) == [(None, "target")]
    assert edited().agrees


# Models and data


def test_a_wrong_model_is_reported(net: Net, run: Path) -> None:
    found = verify(run, Net(seed=5))
    assert (None, "model") in reported(found)
    fooled = {id for id, _ in reported(found, "confidence")}
    assert len(fooled) == found.fooled
    assert {id for id, _ in reported(found, "clean prediction")} & fooled
    assert found.confirmed < found.fooled + 1
    close = Net()
    with torch.no_grad():
        close.last[0, 0] += 1e-7
    assert reported(verify(run, close)) == [(None, "model")]


def test_a_model_that_does_not_fit_is_refused(run: Path) -> None:
    with pytest.raises(BadInput, match="`model` must take the run's examples"):
        verify(run, nn.Sequential(nn.Flatten(), nn.Linear(15, 4)))


def test_other_data_is_reported(net: Net, images: Examples, finished: Path) -> None:
    moved = images.x.clone()
    row = int((images.ids == 7 + 3 * 40).nonzero())
    moved[row, 0, 0, 0] = 0.0123
    found = verify(finished, net, data=from_arrays(moved, images.y, ids=images.ids))
    assert (None, "data") in reported(found)
    assert reported(found, "x") == [(127, "x")]
    found = verify(finished, net, data=from_arrays(images.x, (images.y + 1) % 4, ids=images.ids))
    assert len(reported(found, "label")) == 80
    few = images.rows(torch.arange(70))
    found = verify(finished, net, data=few)
    assert {id for id, _ in reported(found, "missing")} == set(images.ids[70:].tolist())
    everything = from_arrays(
        torch.cat([images.x, images.x[:9]]),
        torch.cat([images.y, images.y[:9]]),
        ids=torch.cat([images.ids, torch.arange(9) + 900]),
    )
    assert verify(finished, net, data=everything).agrees


# Every kind of run


def linear(x: Tensor) -> Tensor:
    """One logit."""
    return (x - 0.1) @ torch.tensor([1.0, -2.0, 0.5]).to(x)


def labels_only(x: Tensor) -> Tensor:
    return linear(x).gt(0).long()


def confident(logits: Tensor, task: Task) -> Tensor:
    return (logits.argmax(1) != task.y) & (logits.softmax(1).amax(1) > 0.55)


def loses_logit(logits: Tensor, task: Task) -> Tensor:
    assert task.clean is not None
    assert task.clean.dtype == logits.dtype
    loss = (task.clean - logits).gather(1, task.y[:, None])[:, 0]
    return (logits.argmax(1) != task.y) & (loss > 0.1)


def table(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(50, 3, generator=generator).clamp(-1.5, 2).to(dtype)
    return x, (linear(x) > 0).long()


def kinds() -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    generator = torch.Generator().manual_seed(6)
    x, _ = table()
    box = {"lo": -1.5, "hi": 2.0}
    per_example, per_feature = torch.rand(50, generator=generator), torch.rand(1, 3, generator=generator)
    lo = x.amin(0, keepdim=True) - 0.1
    target = torch.where(table()[1] == 1, 0, 1)
    return {
        "one logit": (linear, eb.L2(eps=0.3), {}),
        "a curve": (linear, eb.L1(eps=9.0, **box), {"eps": [0.1, 0.4, 1.5]}),
        "radii of examples": (linear, eb.Linf(eps=per_example, **box), {}),
        "radii of features": (linear, eb.Linf(eps=per_feature), {}),
        "a box of tensors": (linear, eb.L1(eps=0.5, lo=lo, hi=x + 0.05), {}),
        "a mask": (linear, eb.Linf(eps=0.4, mask=torch.tensor([[True, False, True]])), {}),
        "L0": (linear, eb.L0(eps=1, **box), {}),
        "a target": (linear, eb.Linf(eps=0.3, **box), {"target": target}),
        "labels": (labels_only, eb.Linf(eps=0.5, **box), {"attacks": LabelWalk(), "convergence": 0}),
        "a success": (linear, eb.Linf(eps=0.3, **box), {"success": confident}),
        "no success at all": (linear, eb.Linf(eps=0.0, **box), {}),
        "8 bits": (linear, eb.Linf(eps=0.3, **box), {"storage": "8bit"}),
        "a source": (linear, eb.Linf(eps=0.3, **box), {"source": linear}),
        "a success that uses the clean logits": (linear, eb.Linf(eps=0.3, **box), {"success": loses_logit}),
        "one radius for a ball of another": (linear, eb.Linf(eps=9.0, **box), {"eps": [0.3]}),
        "one radius for a ball of several": (linear, eb.Linf(eps=per_example, **box), {"eps": [1]}),
        "a curve up to an infinite radius": (linear, eb.L2(eps=1, **box), {"eps": [0.2, float("inf")]}),
        "an infinite radius": (linear, eb.L2(eps=float("inf"), **box), {}),
    }


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_every_kind_of_run_verifies(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, ball, arguments = kinds()[kind]
    arguments = {"attacks": ["fgsm", "pgd:steps=5"], "shard_size": 20} | arguments
    data = table(dtype)
    ev = eb.evaluate(model, data, ball, **arguments, run_dir=tmp_path / "run")
    success = {"success": arguments["success"]} if "success" in arguments else {}
    assert (ev.count("fooled") > 0) == (kind != "no success at all")
    for given in (None, data):
        found = verify(tmp_path / "run", model, data=given, **success)
        assert found.agrees, found.differences[:5]
        assert (found.fooled, found.confirmed) == (ev.count("fooled"), ev.count("fooled"))
    if success:
        with pytest.raises(BadInput, match="`success` must be that of the run"):
            verify(tmp_path / "run", model)


@pytest.mark.parametrize("kind", ["radii of examples", "a mask", "a box of tensors"])
def test_an_edited_ball_is_reported(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, ball, _ = kinds()[kind]
    ev = eb.evaluate(model, table(), ball, "fgsm", run_dir=tmp_path / "run", shard_size=20)
    id = int(ev.points()[0][3])
    path = tmp_path / "run" / "ball.safetensors"
    parts = load_file(path)
    if kind == "radii of examples":
        parts["eps"][id] /= 2
    elif kind == "a mask":
        parts["mask"][0, 0] = False
    else:
        parts["hi"][id] -= 5
    save_file(parts, path)
    found = verify(tmp_path / "run", model)
    assert (None, "ball") in reported(found)
    assert (id, "containment") in reported(found)
    if kind != "a mask":
        assert {row for row, what in reported(found) if row is not None} == {id}
    path.unlink()
    found = verify(tmp_path / "run", model)
    assert (None, "ball") in reported(found)
    assert found.confirmed == 0
    assert {row for row, _ in reported(found, "containment")} == set(ev.points()[0].tolist())


def test_a_stochastic_model_is_verified_with_the_eot_of_the_run(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        rows = 0

        def forward(self, x: Tensor) -> Tensor:
            self.rows += len(x)
            return linear(x) + 1e-4 * torch.randn(len(x))

    torch.manual_seed(0)
    ev = eb.evaluate(Noisy(), table(), eb.Linf(eps=0.3), "fgsm", eot=4, run_dir=tmp_path / "run")
    model = Noisy()
    found = verify(tmp_path / "run", model)
    assert found.eot == 4
    assert model.rows >= 4 * 2 * ev.count("fooled")
    assert (found.fooled, found.confirmed) == (ev.count("fooled"), ev.count("fooled"))
    assert {what for _, what in reported(found)} <= {"confidence"}


def test_what_is_no_run_is_refused(tmp_path: Path, net: Net, run: Path) -> None:
    with pytest.raises(BadInput, match="`run_dir` must be the directory of a run"):
        verify(tmp_path / "nothing", net)
    config = json.loads((run / "config.json").read_text())
    del config["checksum"]
    (run / "config.json").write_text(json.dumps({key: part for key, part in config.items() if key != "storage"}))
    with pytest.raises(BadInput, match="older versions"):
        verify(run, net)
    (run / "config.json").write_text("{")
    with pytest.raises(BadInput, match="`run_dir` must be the directory of a run"):
        verify(run, net)
