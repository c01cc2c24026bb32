"""The rows of a torch `Dataset`, one by one: here, or by worker processes as those of its `DataLoader`.

A row that cannot be used is an answer like the others, so it ends no worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from epsball.common.errors import BadInput
from epsball.data.arrays import inputs_of
from epsball.data.image_decoding import NotNow
from epsball.data.pairs import batch_of, input_and_label, pair_of

Row = tuple[Tensor, float, int]
"""The input, what its values were divided by, and the label."""


class RowReader:
    """Reads the rows of `dataset`; each is put together by itself with a loader's `collate`, where it has one.

    With `workers` > 0 so many processes read them, each started as those of the loader: by `context`, with `start`.
    They start when rows are first asked for, and stay: a process that has threads by then is no place to fork one.
    """

    def __init__(self, dataset: Any, collate: Any = None, workers: int = 0, context: Any = None, start: Any = None):
        self.dataset, self.collate = dataset, collate
        self.workers, self.context, self.start = workers, context, start
        self._asked: list[int] = []
        self._loader: DataLoader | None = None

    @staticmethod
    def of_loader(loader: DataLoader) -> RowReader:
        """The reader of a loader's rows."""
        return RowReader(
            loader.dataset, loader.collate_fn, loader.num_workers, loader.multiprocessing_context, loader.worker_init_fn
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_asked": [], "_loader": None}

    def rows(self, ids: Sequence[int]) -> Iterator[Row | BadInput]:
        """The rows with these ids, in their order; an error in the place of each that cannot be used.

        Raises `NotNow` where the system could not read one.
        """
        if not self.workers:
            yield from map(_unless_not_now, map(self.row, ids))
            return
        self._asked[:] = ids
        try:
            self._loader = self._loader or self._started()
            for answer in map(_unless_not_now, self._loader):  # a copy, as each shared tensor keeps a file open
                yield answer if isinstance(answer, BadInput) else (answer[0].clone(), *answer[1:])
        except NotNow:
            raise
        except Exception as error:  # a worker was killed, or could not start
            self._stop()
            raise BadInput(
                f"`data` must be read by the {self.workers} workers of its DataLoader, but they end with "
                f"{_in_words(error)}; see to that, or set num_workers=0 to read the rows in this process"
            ) from error

    def _started(self) -> DataLoader:
        generator = torch.Generator()
        generator.seed()  # not that of the caller, which stays as it is
        return DataLoader(
            _Answers(self), sampler=self._asked, batch_size=None, num_workers=self.workers, collate_fn=_as_it_is,
            worker_init_fn=self.start, multiprocessing_context=self.context, generator=generator,
            persistent_workers=True,
        )  # fmt: skip

    def _stop(self) -> None:
        """End the workers now: torch would tell of a dead one again, at the end of any other process."""
        iterator = getattr(self._loader, "_iterator", None)
        self._loader = None
        if iterator is not None:
            iterator._shutdown_workers()

    def row(self, id: int) -> Row | BadInput:
        """A row, or why it cannot be used."""
        what = f"a row of {type(self.dataset).__name__}"
        try:
            row = self.dataset[id]
        except BadInput as error:
            return error
        except OSError as error:
            if error.errno is None or isinstance(error, FileNotFoundError):  # it is the row's own
                return BadInput(f"it raises {_in_words(error)}")
            return NotNow(
                f"`data` could not be read: row {id} of {type(self.dataset).__name__} raises {_in_words(error)}; see "
                "to the disk or the network, and start again with the same arguments to go on"
            )
        except Exception as error:  # whatever a data set raises
            return BadInput(f"it raises {_in_words(error)}")
        try:
            if self.collate is None:
                x, label = input_and_label(row, what)
            else:
                inputs, labels = pair_of(batch_of(self.collate, [row]), "a batch of the DataLoader")
                x, label = input_and_label((inputs[0], labels[0]), what)
            x, scale = inputs_of(x[None])
        except BadInput as error:
            return error
        return x[0].cpu(), scale, label


class _Answers(Dataset):
    """What a worker reads: a row, or the error in its place."""

    def __init__(self, reader: RowReader):
        self.reader = reader

    def __getitem__(self, id: int) -> Row | BadInput:
        return self.reader.row(id)


def _unless_not_now(answer: Row | BadInput) -> Row | BadInput:
    if isinstance(answer, NotNow):
        raise answer
    return answer


def _as_it_is(answer: Any) -> Any:
    return answer


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
