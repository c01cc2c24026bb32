"""What was changed for a while is changed back, wherever an exception comes from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


class Undo(ExitStack):
    """An ExitStack that also unwinds when it is dropped.

    An exception may arrive between the last line of a `with` block and its exit (an interrupt, a debugger's), and then
    Python calls no exit.
    """

    def __del__(self) -> None:
        self.close()


@contextmanager
def without_warnings(category: type[Warning] = Warning) -> Iterator[None]:
    """Warnings of that category are ignored inside; on leaving, Python's filters are as they were."""
    with Undo() as undo:
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", category)
        yield
