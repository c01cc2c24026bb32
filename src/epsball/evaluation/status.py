"""How far a run is, read from its directory at any moment, also while another process writes there.

Nothing is locked and nothing is written. Every file is whole or absent, so whatever is there counts: a shard is
finished where its records are there with every stage that they name. Large files are not read: the figures are in the
records, seconds and bad rows in the stages' notes, the pace in the times at which records were written.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from epsball.common.errors import BadInput
from epsball.common.record import Record
from epsball.data.bad_row import BadRow
from epsball.evaluation.figures import Figures
from epsball.evaluation.run_directory import notes, read_config, read_notes
from epsball.evaluation.run_lock import LockHolder, holder_of
from epsball.evaluation.run_tables import check_records, number_of_shards
from epsball.evaluation.stage_record import Stage
from epsball.evaluation.stage_tables import StageTables, bad_rows, records_file, stage_file

State = Literal["running", "unfinished", "finished"]
TIMED = 20
"""Finished shards whose recorded seconds are added up, the last ones."""


@dataclass(frozen=True)
class ShardInWork(Record):
    """A shard that has stages and no records yet: the stages that are `done`, and those that may still come."""

    shard: int
    done: tuple[str, ...]
    to_come: tuple[str, ...]


@dataclass(frozen=True)
class SoFar(Record):
    """The result on the finished shards alone, `n` examples; `interval` is the 95 % one of `robust_accuracy`.

    `median_distance` takes the place of the robust accuracy in a run that searches minimum-norm adversarial examples.
    In a run that certifies, `certified_accuracy` is the lower end, and `undecided` examples are between the ends.
    The shards are no random sample where the data are in an order, as by class.
    """

    n: int
    clean_accuracy: float
    robust_accuracy: float
    interval: tuple[float, float]
    median_distance: float | None = None
    certified_accuracy: float | None = None
    undecided: int | None = None


@dataclass(frozen=True)
class RunStatus(Record):
    """How far the run in `path` is.

    `n` examples, `done` of which are finished: they have a record, or are among the `bad`, which cannot be used.
    `shards` of which `shards_done` are finished; `in_work` are others that have some stages. `so_far` is None before
    an example has a record. `rate` is in examples per second, and `seconds_left` follows from it; None where nothing is
    known. `rate_from` says where it comes from: the times of the files that were written since `holder`, the process
    that holds the lock, began; or the seconds that stages recorded, which is the rate of one worker. `state` is running
    with a holder, else finished or unfinished.
    """

    path: str
    name: str
    state: State
    n: int
    done: int
    shards: int
    shards_done: int
    in_work: tuple[ShardInWork, ...]
    so_far: SoFar | None
    rate: float | None
    rate_from: Literal["files", "stages"] | None
    seconds_left: float | None
    holder: LockHolder | None
    bad: tuple[BadRow, ...]

    @property
    def finished(self) -> bool:
        """Whether every shard is."""
        return self.shards_done == self.shards


def run_status(path: str | Path) -> RunStatus:
    """The status of the run in a directory. It may be finished, or not, and another process may be writing there.

    Raises `BadInput` for a directory that holds no run, and for a file that is damaged.
    """
    path = Path(path)
    holder = holder_of(path)
    if not (path / "config.json").exists():
        begun = "" if holder is None else f" (it is being started by {holder.sentence})"
        raise BadInput(
            f"`run` must be a directory with a run's config.json, got {path}{begun}; was it the --out of a run?"
        )
    config = read_config(path)
    n, shards = config["data"]["n"], number_of_shards(config)
    try:
        records = StageTables(path).finished(shards)
        stages = _stages_there(path)  # after the records, which come after their stages
        for table in records.values():
            check_records(table, config)
        clean = [shard for shard, there in stages.items() if "clean" in there]
        bad = {shard: bad_rows(read_notes(stage_file(path, shard, "clean"))) for shard in clean}
        sizes = {shard: len(table) + len(bad.get(shard, ())) for shard, table in records.items()}
        rate, rate_from = _rate(path, records, sizes, holder)
        so_far = _so_far(config, list(records.values()))
    except BadInput:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"`run` {path} must hold whole tables, but {error}; restore them, or make the run again"
        ) from error
    done = sum(sizes.values())
    whole = len(records) == shards
    in_work = [_in_work(shard, there, config) for shard, there in sorted(stages.items()) if shard not in records]
    return RunStatus(
        path=str(path),
        name=config["data"]["name"],
        state="running" if holder is not None else "finished" if whole else "unfinished",
        n=n,
        done=done,
        shards=shards,
        shards_done=len(records),
        in_work=tuple(in_work),
        so_far=so_far,
        rate=rate,
        rate_from=rate_from,
        seconds_left=0.0 if whole else None if rate is None else (n - done) / rate,
        holder=holder,
        bad=tuple(row for shard in sorted(bad) for row in bad[shard]),
    )


def _stages_there(path: Path) -> dict[int, set[str]]:
    """The names of the stages that are there, by shard: one listing of a folder."""
    found: dict[int, set[str]] = {}
    for file in (path / "stages").glob("[0-9]*-*.parquet"):
        shard, _, stage = file.stem.partition("-")
        if shard.isdecimal():
            found.setdefault(int(shard), set()).add(stage)
    return found


def _in_work(shard: int, there: set[str], config: dict[str, Any]) -> ShardInWork:
    names = ["clean", *(stage["name"] for stage in config["stages"])]
    return ShardInWork(shard, tuple(n for n in names if n in there), tuple(n for n in names if n not in there))


def _so_far(config: dict[str, Any], records: list[pa.Table]) -> SoFar | None:
    if not any(map(len, records)):
        return None
    table = pa.concat_tables([part.replace_schema_metadata() for part in records])
    found = Figures(config, table)
    median = found.quantiles((0.5,))[0][1] if config["min_norm"] else None
    certified = (found.certified_accuracy, found.undecided) if found.certifies else (None, None)
    return SoFar(len(found), found.clean_accuracy, found.robust_accuracy, found.interval, median, *certified)


def _rate(
    path: Path, records: dict[int, pa.Table], sizes: dict[int, int], holder: LockHolder | None
) -> tuple[float | None, Literal["files", "stages"] | None]:
    """Examples per second, and where that comes from: files written since the holder began, else recorded seconds.

    `sizes` are the numbers of examples of the finished shards, with those that cannot be used.
    """
    if holder is not None:
        began = datetime.fromisoformat(holder.since).timestamp()
        times = {shard: records_file(path, shard).stat().st_mtime for shard in records}
        session = sorted((at, shard) for shard, at in times.items() if at >= began)
        if len(session) > 1 and session[-1][0] > session[0][0]:
            rows = sum(sizes[shard] for _, shard in session[1:])
            return rows / (session[-1][0] - session[0][0]), "files"
    seconds, rows = 0.0, 0
    attacked = [shard for shard, table in records.items() if len(table)]  # others tell nothing of an attack's pace
    for shard in attacked[-TIMED:]:
        for name in notes(records[shard])["stages"]:
            stage = Stage.from_record(read_notes(stage_file(path, shard, name))["stage"])
            seconds += stage.seconds
        rows += sizes[shard]
    return (rows / seconds, "stages") if seconds > 0 else (None, None)
