"""Records that a run keeps in its directory."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from epsball.common.json_files import write_json
from epsball.common.record import Record


class RunRecord(Record):
    """A record in the file `file_name` of a run's directory."""

    file_name: ClassVar[str]
    repeats: ClassVar[str]
    """What the same command computes again once the file is deleted."""

    def keep(self, directory: Path) -> None:
        """Write the record into a run's directory."""
        write_json(directory / self.file_name, self.to_record())

    @classmethod
    def kept(cls, directory: Path) -> Self | None:
        """The record in a run's directory, None where there is none. Raises `BadInput` where it is damaged."""
        path = directory / cls.file_name
        if not path.exists():
            return None
        return cls.load(path, remedy=f"delete it and start the run again: only {cls.repeats} is repeated")
