"""The adversarial examples of a run where its stages have stored them, read when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from epsball.common.errors import BadInput
from epsball.evaluation import run_directory
from epsball.evaluation.point_storage import Storage
from epsball.evaluation.stage_tables import StageTables

POINTS: tuple[Literal["x_adv"], Literal["x"]] = ("x_adv", "x")


@dataclass(frozen=True, eq=False)
class StoredPoints:
    """The points of a run with the configuration `config`, by the ids of the fooled examples.

    `parts` are the tables that hold some, (shard, stage), in the order in which they were made: of an example that is
    in several (a minimum-norm run) the last has the nearest.
    """

    config: dict[str, Any]
    tables: StageTables
    parts: tuple[tuple[int, str], ...] = ()

    @property
    def ids(self) -> np.ndarray:
        """The ids of the fooled examples, (m,), ascending."""
        return self._index[0]

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the fooled examples, (m,), ascending, and the number of the part that has their points."""
        found = [self._fooled(part, "id")["id"].to_numpy() for part in self.parts]
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        part = np.repeat(np.arange(len(found)), list(map(len, found)))
        ids, last = np.unique(np.concatenate(found)[::-1], return_index=True)
        return ids, part[::-1][last]

    def read(self, column: Literal["x_adv", "x"], ids: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids, (m,), ascending, and the adversarial examples or their examples, (m, *shape); of all, or of these ids.

        Raises `BadInput` for ids that are not those of fooled examples.
        """
        known, part = self._index
        wanted = known if ids is None else np.unique(np.asarray(ids, dtype=np.int64))
        strange = np.setdiff1d(wanted, known)
        if len(strange):
            raise BadInput(f"`ids` must be those of fooled examples, got {strange[0]}; see records['status']")
        part = part[np.searchsorted(known, wanted)]
        shape, storage = tuple(self.config["data"]["shape"]), Storage.of(self.config)
        tables = [self._rows(number, wanted[part == number], column) for number in np.unique(part)]
        if not tables:
            return wanted, np.zeros((0, *shape), np.float64 if storage.dtype == "float64" else np.float32)
        order = np.argsort(np.concatenate([table["id"].to_numpy() for table in tables]))
        return wanted, np.concatenate([storage.points(table[column], shape) for table in tables])[order]

    def checksums(self, ids: np.ndarray) -> np.ndarray | None:
        """The checksums of the examples with these ids, (n,), as the clean stages have them; None where they do not."""
        shards = range(-(-self.config["data"]["n"] // self.config["shard_size"]))
        clean = [
            self.tables.stage(shard, "clean", ["id", "crc32"]) for shard in shards if self.tables.has(shard, "clean")
        ]
        if not clean or any("crc32" not in table.column_names for table in clean):
            return None
        known = pa.concat_tables([table.replace_schema_metadata() for table in clean]).sort_by("id")
        places = np.searchsorted(known["id"].to_numpy(), ids)
        return known["crc32"].to_numpy()[places]

    def table(self) -> pa.Table:
        """All of them as they are stored: `id`, `x_adv`, `x`, a row per fooled example, by id."""
        ids, part = self._index
        tables = [self._rows(number, ids[part == number], *POINTS) for number in np.unique(part)]
        if not tables:
            none = pa.array([], pa.list_(pa.float32()))
            return pa.table({"id": pa.array([], pa.int64()), "x_adv": none, "x": none})
        if len({(table["x_adv"].type, table["x"].type) for table in tables}) > 1:  # some examples are off the levels
            points = {name: run_directory.nested(self.read(name)[1], np.full(len(ids), True)) for name in POINTS}
            return pa.table({"id": ids, **points})
        return pa.concat_tables([table.replace_schema_metadata() for table in tables]).sort_by("id").combine_chunks()

    def _rows(self, number: int, ids: np.ndarray, *columns: str) -> pa.Table:
        """The rows of a part that have these ids, as they are stored."""
        table = self._fooled(self.parts[number], "id", *columns)
        return table.take(pa.array(np.flatnonzero(np.isin(table["id"].to_numpy(), ids)))).select(["id", *columns])

    def _fooled(self, part: tuple[int, str], *columns: str) -> pa.Table:
        table = self.tables.stage(*part, [*columns, "fooled"])
        return table.filter(table["fooled"])
