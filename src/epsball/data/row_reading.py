"""The rows of a torch `Dataset`, one by one: here, or by worker processes as those of its `DataLoader`.

A row that cannot be used is an answer like the others, so it ends no worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from epsball.common.errors import BadInput
from epsball.data.arrays import inputs_of
from epsball.data.pairs import batch_of, input_and_label, pair_of

Row = tuple[Tensor, float, int]
"""The input, what its values were divided by, and the label."""


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of `dataset`; each is put together by itself with a loader's `collate`, where it has one.

    With `workers` > 0 so many processes read them, each started as those of the loader: by `context`, with `start`.
    """

    dataset: Any
    collate: Any = None
    workers: int = 0
    context: Any = None
    start: Any = None

    @staticmethod
    def of_loader(loader: DataLoader) -> RowReader:
        """The reader of a loader's rows."""
        return RowReader(
            loader.dataset, loader.collate_fn, loader.num_workers, loader.multiprocessing_context, loader.worker_init_fn
        )

    def rows(self, ids: Sequence[int]) -> Iterator[Row | BadInput]:
        """The rows with these ids, in their order; an error in the place of each that cannot be used."""
        count = min(self.workers, len(ids))
        if count < 1 or len(ids) < 2:
            yield from map(self.row, ids)
            return
        generator = torch.Generator()
        generator.seed()  # not that of the caller, which stays as it is
        loader = DataLoader(
            _Answers(self, ids), batch_size=None, num_workers=count, collate_fn=_as_it_is, worker_init_fn=self.start,
            multiprocessing_context=self.context, generator=generator,
        )  # fmt: skip
        try:
            for answer in loader:  # a copy, as each shared tensor keeps a file open
                yield answer if isinstance(answer, BadInput) else (answer[0].clone(), *answer[1:])
        except Exception as error:  # a worker was killed, or could not start
            raise BadInput(
                f"`data` must be read by the {count} workers of its DataLoader, but they end with "
                f"{_in_words(error)}; see to that, or set num_workers=0 to read the rows in this process"
            ) from error

    def row(self, id: int) -> Row | BadInput:
        """A row, or why it cannot be used."""
        what = f"a row of {type(self.dataset).__name__}"
        try:
            row = self.dataset[id]
        except BadInput as error:
            return error
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
    """What a worker reads: the row at each place of `ids`, or the error in its place."""

    def __init__(self, reader: RowReader, ids: Sequence[int]):
        self.reader, self.ids = reader, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Row | BadInput:
        return self.reader.row(self.ids[index])


def _as_it_is(answer: Any) -> Any:
    return answer


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
