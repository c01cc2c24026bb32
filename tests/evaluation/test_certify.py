"""Both ends in one evaluation: what is proved is not attacked, what is broken is not proved, and all is kept."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from commands import run as command
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.pgd import PGD
from epsball.certify.certifier import Certifier
from epsball.common.errors import BadInput
from epsball.common.json_files import write_json
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.engine import stages
from epsball.evaluation import run_directory
from epsball.evaluation.config import EvaluationConfig
from epsball.evaluation.evaluate import Progress
from epsball.evaluation.stage_tables import StageTables
from epsball.evaluation.status import run_status
from epsball.problem.task import AWAY, task_of
from epsball.report.html import of_run
from epsball.report.run import Run

RADII = (0.05, 0.1)
BALL = eb.Linf(eps=RADII[-1], lo=-1, hi=1)
RUN: dict[str, Any] = {"attacks": ["fgsm", "apgd-t:steps=5"], "eps": RADII, "certify": 0, "diagnose": 0, "seed": 3}
SHAPE = (1, 4, 4)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    return network()


@pytest.fixture(scope="module")
def data(net: nn.Sequential) -> Examples:
    """Examples in the box [-1, 1], with ids that are not their places; a tenth have a wrong label."""
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.rand(50, *SHAPE, generator=generator) - 1
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::10] = (y[::10] + 1) % 4
    return from_arrays(x, y, ids=5 + 2 * torch.randperm(50, generator=generator), lo=-1, hi=1, classes=4)


@pytest.fixture(scope="module")
def finished(net: nn.Sequential, data: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certify") / "run"
    eb.evaluate(net, data, BALL, **RUN, shard_size=30, run_dir=path)
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


def test_resumed_run_repeats_no_proof_and_has_the_same_records(
    net: nn.Sequential, data: Examples, found: eb.Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds, done = Certifier.bounds, []

    def counted(certifier: Certifier, task: Any, *more: Any, **options: Any) -> Any:
        done.append(len(task.x))
        if len(done) == 3:
            raise KeyboardInterrupt
        return bounds(certifier, task, *more, **options)

    monkeypatch.setattr(Certifier, "bounds", counted)
    with pytest.raises(KeyboardInterrupt):
        eb.evaluate(net, data, BALL, **RUN, shard_size=30, run_dir=tmp_path / "a")
    again = eb.evaluate(net, data, BALL, **RUN, shard_size=30, run_dir=tmp_path / "a")
    assert len(done) == 3 + 2  # that which was interrupted, and the last
    assert again.records.equals(found.records)


def test_records_do_not_depend_on_directory_or_batch_size_and_progress_counts_both_ends(
    net: nn.Sequential, data: Examples, found: eb.Evaluation
) -> None:
    reports: list[Progress] = []
    again = eb.evaluate(net, data, BALL, **RUN, shard_size=30, batch_size=32, on_progress=reports.append)
    assert again.records.equals(found.records)
    last = reports[-1]
    assert (last.done, last.proved, last.robust - last.proved) == (
        len(found),
        round(found.certified_accuracy * len(found)),
        found.undecided,
    )
    assert all(report.proved <= report.robust and report.robust + report.broken <= len(found) for report in reports)


def test_what_a_search_comes_across_counts_as_broken_where_the_model_says_so(
    net: nn.Sequential, data: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(certifier: Certifier, task: Any, proofs: Any, seconds: float) -> Any:
        if seconds < 0.5:  # the short search before the attacks
            return proofs
        assert not proofs.verified.any()
        points = PGD(steps=40, restarts=5)(net, task.x, task.y, task.ball)
        proofs.points = {row: point for row, point in enumerate(points) if row % 2 == 0}
        return proofs

    monkeypatch.setattr(Certifier, "search", search, raising=False)
    monkeypatch.setattr(stages, "QUICK", "fgsm")
    monkeypatch.setattr(stages, "MANY", "bim:steps=2")
    found = eb.evaluate(net, data, BALL, "fgsm", certify=0.5, diagnose=0, run_dir=tmp_path / "run")
    assert [stage.attack for stage in found.stages][-2:] == ["bim:steps=2", "certify-search"]
    by_search = column(found.records, "attack") == "certify-search"
    assert by_search.sum() == found.stages[-1].fooled > 0
    assert not column(found.records, "certified")[by_search].any()
    ids, points = found.points(column(found.records, "id")[by_search])
    labels = dict(zip(data.ids.tolist(), data.y.tolist(), strict=True))
    assert (net(torch.from_numpy(points)).argmax(1).numpy() != [labels[id] for id in ids.tolist()]).all()
    assert eb.verify(tmp_path / "run", net).differences == ()


def test_run_without_certify_has_one_end_and_no_proofs(net: nn.Sequential, data: Examples) -> None:
    found = eb.evaluate(net, data, BALL, "fgsm", diagnose=0)
    assert found.records["certified"].null_count == found.records["undecided"].null_count == len(found)
    assert not found.certifies
    assert found.undecided == 0
    assert math.isnan(found.certified_accuracy)
    assert [stage.attack for stage in found.stages] == ["clean", "fgsm"]


def test_run_of_a_version_without_certificates_still_loads(run: Path) -> None:
    gone = ["certified", "certified_as_run", "certified_eps", "certified_margin", "certified_method", "undecided"]
    for path in sorted((run / "records").glob("*.parquet")):
        changed(path, lambda table: table.drop_columns(gone))
    config = run_directory.read_config(run)
    del config["certify"]
    write_json(run / "config.json", config)
    found = eb.Evaluation.load(run)
    assert math.isnan(found.certified_accuracy)
    assert found.undecided == 0


def test_targeted_run_proves_more_than_an_untargeted_one(net: nn.Sequential, data: Examples) -> None:
    free = eb.evaluate(net, data, BALL, "fgsm", certify=0, diagnose=0)
    aimed = eb.evaluate(net, data, BALL, "fgsm", certify=0, diagnose=0, target=1)
    assert aimed.certified_accuracy <= aimed.robust_accuracy
    apart = aimed.count("at-target") + aimed.count("misclassified")
    proved = column(aimed.records, "certified")
    assert proved.sum() == round(aimed.certified_accuracy * (len(aimed) - apart))
    attackable = np.isin(column(aimed.records, "status"), ("robust", "fooled"))
    assert (proved | ~column(free.records, "certified"))[attackable].all()


def test_one_logit_is_proved_on_its_own_side() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
    x = torch.rand(40, 6)
    y = (net(x) > 0).long()
    found = eb.evaluate(net, (x, y), "linf:0.03", ["apgd-ce"], certify=0, diagnose=0)
    assert 0 < found.certified_accuracy <= found.robust_accuracy
    rows = torch.from_numpy(column(found.records, "certified"))
    x_adv = PGD(steps=20, restarts=3)(net, x[rows], y[rows], "linf:0.03")
    assert torch.equal((net(x_adv) > 0).long(), y[rows])


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] + 0.1 * torch.randn(4)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4].erfc()


def own_success(output: Tensor, task: Any) -> Tensor:
    return output.argmax(1) != task.y


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (network(), {"min_norm": True}, "`certify` must be left out with `min_norm`"),
        (network(), {"eot": 2}, "`certify` must be left out with `eot` > 1, got 2"),
        (network(), {"success": own_success}, "`certify` must be left out with a `success` of your own"),
        (network().half(), {}, "`certify` needs a model in float32 or float64, got float16"),
        (eb.BlackBox(network()), {}, "a black box shows none; randomised smoothing"),
        (Noisy(), {}, "`certify` needs a model that answers the same in every call"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 4), Odd()), {}, r"2 \(Odd\).*smoothing"),
        (network(), {"certify": "yes"}, "`certify` must be true, or seconds >= 0 and finite, got 'yes'"),
    ],
)
def test_what_has_no_certificate_is_refused_before_it_is_attacked(
    model: Any, options: dict[str, Any], said: str, data: Examples, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=said):
        eb.evaluate(
            model, (data.x, data.y), BALL, "fgsm", **{"certify": True, "diagnose": 0} | options, run_dir=tmp_path / "no"
        )
    assert not (tmp_path / "no" / "config.json").exists()


def test_seconds_of_the_search_are_those_given_or_ten() -> None:
    given = [(None, False, 0), (False, False, 0), (True, True, 10), (0, True, 0), (2.5, True, 2.5)]
    for value, certifies, seconds in given:
        config = EvaluationConfig(certify=value)
        assert (config.certifies, config.search_seconds) == (certifies, seconds)


def changed(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Write a table again, edited, with its metadata."""
    table = run_directory.load(path)
    run_directory.save(path, edit(table).replace_schema_metadata(table.schema.metadata))


def with_value(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    place = table.column_names.index(name)
    values = table[name].to_pylist()
    values[row] = value
    return table.set_column(place, table.schema.field(place), pa.array(values, table[name].type))


def first(table: pa.Table, *, verified: bool, method: str | None = None) -> int:
    """The first row that is verified, or not, by a method."""
    names = table["method"].to_pylist()
    return next(
        row
        for row, is_so in enumerate(table["verified"].to_pylist())
        if is_so == verified and method in (None, names[row])
    )


def swapped(stored: bytes) -> bytes:
    """The certificate with its slopes in another order."""
    from epsball.certify.certificate import Certificate

    read = Certificate.from_bytes(stored)
    arrays = {name: 1 - part if part.dtype.kind == "f" else part for name, part in read.arrays.items()}
    assert any(not np.array_equal(arrays[name], part) for name, part in read.arrays.items())
    return Certificate(read.method, arrays).to_bytes()


def test_untouched_certificates_prove_their_examples_again(net: nn.Sequential, data: Examples, finished: Path) -> None:
    for more in (None, data):
        found = eb.verify(finished, net, data=more)
        assert found.differences == ()
        assert found.certified == found.recertified == len(proved_at(eb.Evaluation.load(finished).records, RADII[0]))
        assert found.certified_accuracy == eb.Evaluation.load(finished).certified_accuracy


def swap_slopes(table: pa.Table) -> tuple[pa.Table, int, str]:
    row = first(table, verified=True, method="alpha-crown")
    return with_value(table, "certificate", row, swapped(table["certificate"][row].as_py())), row, "margin"


def flip_to_true(table: pa.Table) -> tuple[pa.Table, int, str]:
    row = first(table, verified=False)
    return with_value(table, "verified", row, True), row, "certified"


def flip_to_false(table: pa.Table) -> tuple[pa.Table, int, str]:
    row = first(table, verified=True)
    return with_value(table, "verified", row, False), row, "certified"


def claim_more(table: pa.Table) -> tuple[pa.Table, int, str]:
    row = first(table, verified=True)
    return with_value(table, "margin", row, 1.001 * table["margin"][row].as_py() + 1e-5), row, "margin"


def claim_a_proof(table: pa.Table) -> tuple[pa.Table, int, str]:
    """An undecided example is said to be verified, with the certificate and the example of another."""
    row, other = first(table, verified=False), first(table, verified=True)
    for name in ("certificate", "crc32", "x", "margin", "as_run"):
        table = with_value(table, name, row, table[name][other].as_py())
    return with_value(table, "verified", row, True), row, "x"


def break_bytes(table: pa.Table) -> tuple[pa.Table, int, str]:
    row = first(table, verified=True)
    return with_value(table, "certificate", row, b"{}\nnothing"), row, "damaged"


@pytest.mark.parametrize("fault", [swap_slopes, flip_to_true, flip_to_false, claim_more, claim_a_proof, break_bytes])
def test_fault_in_a_certificate_is_found_at_its_example(
    fault: Callable[[pa.Table], tuple[pa.Table, int, str]], net: nn.Sequential, run: Path
) -> None:
    name = next(stage["name"] for stage in eb.Evaluation.load(run).config["stages"] if stage.get("certifies"))
    path, seen = run / "stages" / f"00000-{name}.parquet", {}

    def edit(table: pa.Table) -> pa.Table:
        table, row, what = fault(table)
        seen.update(id=table["id"][row].as_py(), what=what)
        return table

    changed(path, edit)
    found = eb.verify(run, net)
    assert (seen["id"], seen["what"]) in [(row.id, row.what) for row in found.differences]
    assert not found.agrees


def test_record_that_claims_a_proof_is_found(net: nn.Sequential, run: Path) -> None:
    records = run_directory.load(run / "records" / "00000.parquet")
    row = records["certified"].to_pylist().index(False)
    changed(run / "records" / "00000.parquet", lambda table: with_value(table, "certified", row, True))
    found = eb.verify(run, net)
    assert (records["id"][row].as_py(), "certified") in [(one.id, one.what) for one in found.differences]


def test_lost_table_of_proofs_is_a_difference_and_confirms_nothing(net: nn.Sequential, run: Path) -> None:
    name = next(stage["name"] for stage in eb.Evaluation.load(run).config["stages"] if stage.get("certifies"))
    (run / "stages" / f"00000-{name}.parquet").unlink()
    found = eb.verify(run, net)
    assert "missing" in [one.what for one in found.differences]
    assert found.recertified is not None
    assert found.certified is not None
    assert 0 < found.recertified < found.certified


def test_report_shows_a_band_and_lists_the_undecided(finished: Path, found: eb.Evaluation) -> None:
    run = Run.load(finished)
    text = of_run(run)
    assert '"fill":"tonexty"' in text
    assert "Undecided examples" in text
    assert all(f"<li>id {id}: {reason}</li>" in text for id, reason in run.undecided)
    assert len(run.undecided) == found.undecided
    assert f"certify={found.config['certify']:g}" in run.python
    assert "Robust accuracy" in run.sentence


def test_status_and_comparison_show_both_ends(finished: Path, found: eb.Evaluation) -> None:
    so_far = run_status(finished).so_far
    assert so_far is not None
    assert (so_far.certified_accuracy, so_far.undecided) == (found.certified_accuracy, found.undecided)
    same = eb.compare(found, found)
    assert same.certified_a == same.certified_b == found.certified_accuracy
    assert same.contradicted == ()


def test_comparison_names_examples_that_one_run_proves_and_the_other_broke(found: eb.Evaluation) -> None:
    row = int(np.flatnonzero(column(found.records, "certified"))[0])
    lied = with_value(with_value(found.records, "status", row, "fooled"), "eps", row, RADII[0])
    id = int(column(found.records, "id")[row])
    other = eb.compare(found, replace(found, records=lied))
    assert other.contradicted == (id,)
    assert "epsball verify" in other.sentence


def test_command_line_shows_both_ends_in_80_columns(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("certify = 0\n")
    arguments = ("evaluate", "--limit", "32", "--ball", "linf:0.02", "--attacks", "fgsm", "--diagnose", "0")
    done = command(*arguments, "--config", "run.toml", "--out", "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = done.stdout[done.stdout.index("\nattack ") :].splitlines()
    assert max(len(line) for line in shown if not line.startswith("report:")) <= 80
    found = eb.Evaluation.load(tmp_path / "a")
    assert f"robust accuracy {found.certified_accuracy:.2%} to {found.robust_accuracy:.2%}" in done.stdout
    assert [word for word in ("proved", "broken", "undecided") if f"\n{word}" not in done.stdout] == []
    assert "certificates evaluated anew" in command("verify", "a", cwd=tmp_path).stdout
