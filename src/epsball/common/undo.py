"""What was changed for a while is changed back, wherever an exception comes from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partialmethod
from threading import local
from typing import Any, Self
from weakref import ReferenceType, ref


class Undo(ExitStack):
    """An ExitStack that unwinds wherever an exception arrives, an interrupt's or a debugger's.

    Between the last line of a `with` block and its exit, Python calls no exit: it unwinds when it is dropped, and what
    was opened inside it and is still open unwinds first, since the inner one would bring back what the outer one
    had made. Inside a callback the rest of it would be lost: each is called twice, and has to bear that.
    """

    _around: list[ReferenceType[Undo]] | tuple[()] = ()

    def __enter__(self) -> Self:
        self._around = around = _OPEN.__dict__.setdefault("stacks", [])
        around.append(ref(self))
        return super().__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        self._close_inner()
        return super().__exit__(*error)

    def callback(self, callback: Callable[..., object], /, *args: Any, **kwds: Any) -> Callable[..., object]:
        """Have `callback(*args, **kwds)` called, twice, on leaving."""
        super().callback(callback, *args, **kwds)
        return super().callback(callback, *args, **kwds)

    def _close_inner(self) -> None:
        """Close what was opened in the same thread after this one, the last first, and forget it and this one."""
        if not any(one() is self for one in self._around):
            return  # it was not entered, or an outer one has closed it
        assert isinstance(self._around, list)
        while (inner := self._around.pop()()) is not self:
            if inner is not None:
                inner.close()

    __del__ = partialmethod(ExitStack.__exit__, None, None, None)


_OPEN = local()


@contextmanager
def without_warnings(category: type[Warning] = Warning) -> Iterator[None]:
    """Warnings of that category are ignored inside; on leaving, Python's filters are as they were."""
    with Undo() as undo:
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", category)
        yield
