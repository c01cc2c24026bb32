"""An evaluation of data that are read shard by shard: the records of data in memory, and rows that cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import epsball as eb
from epsball import BadInput, evaluate
from epsball.data.arrays import from_arrays
from epsball.data.bad_row import BadRow
from epsball.data.examples import Examples
from epsball.data.lazy_examples import Block, LazyExamples

SHAPE = (1, 8, 8)


@dataclass(frozen=True, eq=False, kw_only=True)
class Stored(LazyExamples):
    """Rows out of a tensor; `broken` are refused by id, `asked` counts how often each was read."""

    x: torch.Tensor
    broken: frozenset[int] = frozenset()
    hidden: torch.Tensor | None = None
    asked: list[int] = field(default_factory=list)

    def fetch(self, ids: Sequence[int]) -> Block:
        self.asked.extend(ids)
        places = {id: place for place, id in enumerate(self.ids.tolist())}
        kept = [at for at, id in enumerate(ids) if id not in self.broken]
        bad = tuple(BadRow(id, self.name_of(id), "it is broken") for id in ids if id in self.broken)
        rows = torch.tensor([places[ids[at]] for at in kept], dtype=torch.long)
        labels = None if self.hidden is None else self.hidden[rows]
        return Block(self.x[rows], torch.tensor(kept, dtype=torch.long), bad, labels)

    def name_of(self, id: int) -> str:
        return f"{id}.png"

    def identity(self) -> str:
        return hashlib.sha256(self.x.numpy().tobytes()).hexdigest()[:16]

    def available(self) -> bool:
        return True


@pytest.fixture(scope="module")
def memory() -> Examples:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (90, *SHAPE), dtype=torch.uint8)
    net = network()
    y = net(pixels / 255).argmax(1)
    y[::9] = (y[::9] + 1) % 4
    return from_arrays(pixels, y, ids=torch.randperm(200)[:90], classes=4)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


def lazy(memory: Examples, **more: Any) -> Stored:
    options: dict[str, Any] = {"y": memory.y, "classes": 4} | more
    return Stored(
        x=memory.x, name=memory.name, shape=SHAPE, ids=memory.ids, lo=0.0, hi=1.0, scale=memory.scale, **options
    )


def records(found: eb.Evaluation) -> Any:
    return found.records


@pytest.mark.parametrize("options", [{}, {"eps": [0.01, 0.05]}, {"min_norm": True}, {"storage": "8bit"}])
def test_records_are_those_of_data_in_memory(memory: Examples, tmp_path: Path, options: dict[str, Any]) -> None:
    attacks = "min-norm" if options.get("min_norm") else ("fgsm", "pgd:steps=5")
    shared = {"attacks": attacks, "shard_size": 32, "diagnose": 0, **options}
    there = evaluate(network(), memory, "linf:0.03", **shared)
    read = evaluate(network(), lazy(memory), "linf:0.03", run_dir=tmp_path / "run", **shared)
    assert there.records.equals(read.records)
    for one, other in zip(there.points(), read.points(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(there.originals(), read.originals())
    loaded = eb.Evaluation.load(tmp_path / "run")
    assert loaded.records.equals(read.records)
    for data in (memory, lazy(memory)):
        found = eb.verify(tmp_path / "run", network(), data=data)
        assert found.agrees, found.differences
        assert found.clean_checked == 90
    moved = replace(lazy(memory), x=memory.x.clone().index_fill_(0, torch.tensor([4]), 0.25))
    assert {one.id for one in eb.verify(tmp_path / "run", network(), data=moved).differences if one.what == "x"} == {
        int(memory.ids[4])
    }
    if not options.get("min_norm"):
        assert "data" not in eb.compare(there, read).differ


def test_labels_may_come_with_the_rows(memory: Examples) -> None:
    source = lazy(memory, y=None, hidden=memory.y)
    there = evaluate(network(), memory, "linf:0.03", "fgsm", shard_size=32)
    assert evaluate(network(), source, "linf:0.03", "fgsm", shard_size=32).records.equals(there.records)


def test_each_row_is_read_once_by_a_plain_run(memory: Examples) -> None:
    source = lazy(memory)
    evaluate(network(), source, "linf:0.03", "fgsm", shard_size=32, diagnose=0)
    assert sorted(source.asked) == sorted(memory.ids.tolist())


def test_rows_that_cannot_be_used_stop_the_run_by_name(memory: Examples) -> None:
    broken = frozenset(memory.ids[[3, 50]].tolist())
    with pytest.raises(BadInput, match=r"`data` must hold rows that can be used.* it is broken: \d+\.png, \d+\.png;"):
        evaluate(network(), lazy(memory, broken=broken), "linf:0.03", "fgsm", shard_size=32)


def test_rows_that_are_skipped_are_listed_and_the_others_evaluated(memory: Examples, tmp_path: Path) -> None:
    broken = frozenset(memory.ids[[3, 50, 51]].tolist())
    strange = memory.y.clone()
    strange[7] = 9
    source = lazy(memory, broken=broken, y=strange, classes=10)
    out = tmp_path / "run"
    found = evaluate(network(), source, "linf:0.03", ("fgsm", "pgd"), shard_size=32, on_bad="skip", run_dir=out)
    bad = broken | {int(memory.ids[7])}
    assert {row.id for row in found.bad} == bad
    assert {row.name for row in found.bad} == {f"{id}.png" for id in bad}
    assert {row.reason for row in found.bad} == {"it is broken", "its label is 9, and the model has 4 outputs"}
    assert (found.setup.labels.present, found.setup.labels.classes) == (4, 4)
    good = torch.tensor([id not in bad for id in memory.ids.tolist()])
    there = evaluate(network(), memory.rows(good.nonzero().squeeze(1)), "linf:0.03", ("fgsm", "pgd"), shard_size=32)
    assert found.records.equals(there.records)
    loaded = eb.Evaluation.load(out)
    assert loaded.bad == found.bad
    assert loaded.records.equals(found.records)
    for data in (memory, source):
        assert eb.verify(out, network(), data=data).agrees


def test_a_row_outside_of_the_balls_box_is_one_that_cannot_be_used(memory: Examples) -> None:
    x = memory.x.clone()
    x[60, 0, 0, 0] = 5.0
    source = replace(lazy(memory), x=x, lo=-np.inf, hi=np.inf, scale=1.0)
    id = int(memory.ids[60])
    ball = eb.Linf(eps=0.03, lo=0, hi=1)
    found = evaluate(network(), source, ball, "fgsm", shard_size=32, on_bad="skip")
    assert [(row.id, row.reason) for row in found.bad] == [
        (id, f"its values are from {float(x[60].min()):.4g} to 5, outside of the ball's box [0, 1]")
    ]
    with pytest.raises(BadInput, match=f"{id}.png: its values are"):
        evaluate(network(), source, ball, "fgsm", shard_size=32)
    with pytest.raises(BadInput, match="x is in pixels of 0 to 255"):
        evaluate(network(), replace(source, x=memory.x * 255), ball, "fgsm", shard_size=32)


def test_a_row_whose_label_is_not_that_of_the_list_cannot_be_used(memory: Examples) -> None:
    other = memory.y.clone()
    other[60] = (other[60] + 1) % 4
    found = evaluate(network(), lazy(memory, hidden=other), "linf:0.03", "fgsm", shard_size=32, on_bad="skip")
    labels = f"its label is {int(other[60])}, and in the list of labels {int(memory.y[60])}"
    assert [(row.id, row.reason) for row in found.bad] == [(int(memory.ids[60]), labels)]


def test_a_known_label_that_is_none_is_a_bad_row(memory: Examples) -> None:
    y = memory.y.clone()
    y[5] = -1
    source = lazy(memory, y=y, bad_labels={int(memory.ids[5]): "it has no label"})
    found = evaluate(network(), source, "linf:0.03", "fgsm", shard_size=32, on_bad="skip")
    assert [row.reason for row in found.bad] == ["it has no label"]


def test_a_label_that_the_model_has_no_output_for_is_named_also_where_it_stops_the_run(memory: Examples) -> None:
    y = memory.y.clone()
    y[5] = 9
    with pytest.raises(BadInput, match=f"{int(memory.ids[5])}.png: its label is 9, and the model has 4 outputs"):
        evaluate(network(), lazy(memory, y=y, classes=10), "linf:0.03", "fgsm")


def test_data_that_have_gone_stop_the_run_and_count_as_nothing(memory: Examples, tmp_path: Path) -> None:
    source = lazy(memory, broken=frozenset(memory.ids.sort().values[40:].tolist()))
    object.__setattr__(source, "available", lambda: False)
    with pytest.raises(BadInput, match="is not there any more"):
        evaluate(network(), source, "linf:0.03", "fgsm", on_bad="skip", shard_size=32, run_dir=tmp_path / "run")


def test_a_shard_without_a_usable_row_is_empty(memory: Examples) -> None:
    ordered = memory.ids.sort().values
    broken = frozenset(ordered[:32].tolist())
    for options in ({"attacks": "fgsm"}, {"attacks": "min-norm", "min_norm": True}):
        source = lazy(memory, broken=broken)
        found = evaluate(network(), source, "linf:0.03", shard_size=32, on_bad="skip", **options)
        assert len(found) == 58
        assert {row.id for row in found.bad} == broken
        assert "32 rows could not be used, of 90." in found.doubts
    none = lazy(memory, broken=frozenset(ordered.tolist()))
    with pytest.raises(BadInput, match="`data` must hold an example that can be used"):
        evaluate(network(), none, "linf:0.03", "fgsm", on_bad="skip")


def test_a_resumed_run_reads_what_is_left_and_refuses_other_rows(memory: Examples, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shared: dict[str, Any] = {"shard_size": 32, "run_dir": out, "diagnose": 0}
    whole = evaluate(network(), lazy(memory), "linf:0.03", ("fgsm", "pgd"), **shared)
    (out / "records" / "00001.parquet").unlink()
    (out / "stages" / "00001-00-pgd.parquet").unlink(missing_ok=True)
    ordered = memory.ids.sort().values.tolist()
    source = lazy(memory)
    again = evaluate(network(), source, "linf:0.03", ("fgsm", "pgd"), **shared)
    assert again.records.equals(whole.records)
    assert sorted(source.asked) == ordered[:64]  # the first shard, to see what examples look like, and the lost one
    (out / "records" / "00001.parquet").unlink()
    changed = memory.x.clone()
    changed[memory.ids == ordered[40]] = 0.5
    other = replace(lazy(memory), x=changed)
    object.__setattr__(other, "identity", lambda: source.identity())
    with pytest.raises(BadInput, match="examples of its shard 1 have changed"):
        evaluate(network(), other, "linf:0.03", ("fgsm", "pgd"), **shared)


def test_a_radius_for_each_example_follows_its_example(memory: Examples) -> None:
    eps = torch.linspace(0.005, 0.05, 90)
    there = evaluate(network(), memory, eb.Linf(eps=eps), ("fgsm", "pgd"), shard_size=32)
    read = evaluate(network(), lazy(memory), eb.Linf(eps=eps), ("fgsm", "pgd"), shard_size=32)
    assert there.records.equals(read.records)


def test_examples_that_turn_out_to_be_off_the_levels_are_stored_as_they_are(memory: Examples) -> None:
    x = memory.x.clone()
    late = memory.ids.argsort()[40:]
    x[late] = x[late] * 0.97 + 0.001
    there = evaluate(network(), replace(memory, x=x), "linf:0.03", "fgsm", shard_size=32)
    read = evaluate(network(), replace(lazy(memory), x=x), "linf:0.03", "fgsm", shard_size=32)
    np.testing.assert_array_equal(there.originals(), read.originals())
    assert there.records.equals(read.records)


def test_a_shard_holds_so_many_bytes(memory: Examples) -> None:
    found = evaluate(network(), lazy(memory), "linf:0.03", "fgsm", shard_mib=64 * 4 * 20 / 2**20, diagnose=0)
    assert found.config["shard_size"] == 20
    plain = evaluate(network(), memory, "linf:0.03", "fgsm", diagnose=0)
    assert plain.config["shard_size"] == 1024
