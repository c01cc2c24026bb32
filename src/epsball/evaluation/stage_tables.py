"""The tables of a run, a stage of a shard each, and a shard's records: files of its directory, or in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, Self
from weakref import finalize

import pyarrow as pa

from epsball.data.bad_row import BadRow
from epsball.evaluation.run_directory import load, notes, plain, save


def stage_file(directory: Path, shard: int, stage: str) -> Path:
    """The file of a stage of a shard."""
    return directory / "stages" / f"{shard:05d}-{stage}.parquet"


def records_file(directory: Path, shard: int) -> Path:
    """The file of the records of a shard."""
    return directory / "records" / f"{shard:05d}.parquet"


class StageTables:
    """Where the tables of a run are: in `directory`, or, where that is None, in memory.

    Whoever keeps or reads one does not ask which of the two it is.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory
        self._memory: dict[tuple[int, str], pa.Table] = {}
        self._records: dict[int, pa.Table] = {}

    @classmethod
    def of_run(cls, directory: Path | None, *, in_files: bool) -> Self:
        """The tables of a run; without a directory in memory, or `in_files` that go with the last who reads them."""
        if directory is not None or not in_files:
            return cls(directory)
        temporary = Path(mkdtemp(prefix="epsball-"))
        tables = cls(temporary)
        finalize(tables, rmtree, temporary, ignore_errors=True)
        return tables

    def has(self, shard: int, stage: str) -> bool:
        """Whether the table of a stage is there."""
        if self.directory is None:
            return (shard, stage) in self._memory
        return stage_file(self.directory, shard, stage).exists()

    def stage(self, shard: int, stage: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of a stage, with its notes; only the named columns, those of them that it has.

        Raises `BadInput` where it is missing or damaged.
        """
        if self.directory is not None:
            return load(stage_file(self.directory, shard, stage), columns)
        table = self._memory[shard, stage]
        return table if columns is None else table.select([name for name in columns if name in table.column_names])

    def kept(self, shard: int, stage: str, make: Callable[[], pa.Table]) -> pa.Table:
        """The table of a stage, as it is kept, or made and kept now."""
        if not self.has(shard, stage):
            self.keep(shard, stage, make())
        return self.stage(shard, stage)

    def keep(self, shard: int, stage: str, table: pa.Table) -> None:
        """Keep the table of a stage."""
        if self.directory is None:
            self._memory[shard, stage] = plain(table)  # another process may have sent it
        else:
            save(stage_file(self.directory, shard, stage), table)

    def records(self, shard: int) -> pa.Table | None:
        """The records of a shard, if they are there with every stage that they name."""
        if self.directory is None:
            return self._records.get(shard)
        path = records_file(self.directory, shard)
        if not path.exists():
            return None
        table = load(path)
        return table if all(self.has(shard, name) for name in notes(table)["stages"]) else None

    def finished(self, shards: int) -> dict[int, pa.Table]:
        """The records of the finished ones among so many shards, by number."""
        found = {shard: self.records(shard) for shard in range(shards)}
        return {shard: table for shard, table in found.items() if table is not None}

    def keep_records(self, shard: int, table: pa.Table) -> None:
        """Keep the records of a shard, after its last stage."""
        if self.directory is None:
            self._records[shard] = table
        else:
            save(records_file(self.directory, shard), table)

    def of_shard(self, shard: int, stages: Sequence[str]) -> dict[str, pa.Table]:
        """The tables that are there of these stages of a shard."""
        return {name: self.stage(shard, name) for name in stages if self.has(shard, name)}


def bad_rows(noted: Mapping[str, Any]) -> tuple[BadRow, ...]:
    """The rows of a shard that could not be used, as the notes of its clean stage list them.

    Raises `ValueError` where they list something else.
    """
    listed = noted.get("bad", [])
    if not isinstance(listed, list):
        raise ValueError(f"its list of bad rows is {type(listed).__name__}")
    return tuple(map(BadRow.from_record, listed))
