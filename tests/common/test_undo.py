"""What was changed is changed back in the right order, also where an exit was missed."""

from __future__ import annotations

from typing import Any

import pytest

from epsball.common.undo import Undo


def test_an_outer_stack_closes_an_inner_one_that_was_left_open() -> None:
    state = {"mode": "train"}
    with Undo() as outer:
        outer.callback(state.update, mode="train")
        state["mode"] = "eval"
        inner = Undo()
        inner.__enter__()
        inner.callback(state.update, mode="eval")
    del inner
    assert state == {"mode": "train"}


def test_a_callback_that_is_interrupted_is_called_again() -> None:
    calls: list[int] = []

    def put_back() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Undo() as undo:
        undo.callback(put_back)
    assert len(calls) == 2


def test_a_stack_that_is_dropped_leaves_later_ones_open() -> None:
    state: dict[str, Any] = {"first": True, "second": True}
    first = Undo()
    first.__enter__()
    first.callback(state.update, first=False)
    with Undo() as second:
        second.callback(state.update, second=False)
        del first
        assert state == {"first": False, "second": True}
    assert state == {"first": False, "second": False}
