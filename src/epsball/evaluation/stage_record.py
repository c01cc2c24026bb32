"""What one attack at one radius did, and what it cost: a record of a run."""

from __future__ import annotations

from dataclasses import dataclass

from epsball.common.record import Record


@dataclass(frozen=True)
class Stage(Record):
    """One attack at one radius over all shards: the examples it `attacked` and `fooled`, and what that cost.

    Or, in a run that certifies, one certification, whose name is in `attack`: the examples that it worked on
    (`attacked`), and how many of them it `certified`.

    Costs are in rows: `forwards` and `backwards` the forward and backward passes that the records name, `speculative_*`
    those of jobs that another job made needless, `padding_*` those of rows that only filled a batch, `verification` the
    forward passes that verified what is stored; `unconfirmed` successes were not reproduced there and do not count. For
    a black box `queries` are those that count for its budget, which ran out for the `exhausted` examples.
    """

    name: str
    attack: str
    eps: float | None
    attacked: int
    fooled: int
    unconfirmed: int = 0
    exhausted: int = 0
    certified: int = 0
    queries: int = 0
    forwards: int = 0
    backwards: int = 0
    speculative_forwards: int = 0
    speculative_backwards: int = 0
    padding_forwards: int = 0
    padding_backwards: int = 0
    verification: int = 0
    seconds: float = 0.0

    def plus(self, other: Stage) -> Stage:
        """The same stage over more shards."""
        same = {"name", "attack", "eps"}
        mine, theirs = vars(self), vars(other)
        return Stage(**{key: value if key in same else value + theirs[key] for key, value in mine.items()})
