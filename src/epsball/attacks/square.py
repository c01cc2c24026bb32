"""Square: random search over windows that shrink, for any model that shows its logits.

Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient black-box adversarial attack via random
search" (ECCV 2020, arXiv:1912.00049), algorithm 1: a proposal changes the best point so far in a window at a random
place, and is kept where the loss rises. The defaults are AutoAttack's (Croce and Hein, ICML 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.attacks.attack import Attack, State
from epsball.attacks.grid import BLOCK
from epsball.attacks.pace import hopeful, looked, no_pace
from epsball.attacks.windows import FILLINGS, Filling
from epsball.common.checks import whole
from epsball.common.errors import BadInput
from epsball.common.shapes import Batch, column, flat
from epsball.problem.losses import Loss, margin
from epsball.problem.objective import Point
from epsball.problem.task import Task

PATIENCE = 256
"""The queries that no job is given up before."""


@dataclass(frozen=True, eq=False)
class Searching(State):
    """With the loss at `best`, what `best` and `z` spend of the budget, and the next proposals and which is due."""

    height: Float[Tensor, " n"]
    budget: Float[Tensor, " n"]
    held: Float[Tensor, " n"]
    tried: Float[Tensor, " n"]
    moves: Int64[Tensor, "n BLOCK columns"]
    due: Int64[Tensor, " n"]
    pace: Float[Tensor, "n ..."]


@dataclass(frozen=True, kw_only=True)
class Square(Attack[Searching]):
    """Random search, logits only: one query a step, kept where the loss rises; windows shrink as queries run out.

    `steps` queries; the first windows cover the share 0 < `p` <= 1 of the places, and halve nine times on a schedule
    that scales with `steps`. In Linf cells go to the ends of ball and box; in L2 and L1 mass moves between windows.
    `onward` starts from the best point of the attacks before it, and where there is none (none ended at a valid point,
    or the attack is a transfer) as ever, with windows of the same `p`; `hope` < inf gives hopeless jobs up (`pace.py`).
    Examples (n, d) have windows along d, (n, h, w) one channel; with more dimensions the first is the channel.

    On linear models of 1 to 36 coordinates 2,000 queries reach the exact optimum in Linf, at least .4 of it in L2 and
    L1, and in the median over the examples .8; in one dimension 60 reach it in every norm.

    >>> from epsball import Linf
    >>> logits = lambda x: torch.stack([x[:, 0], x[:, 1]], 1)  # a black box would do
    >>> x = torch.tensor([[0.6, 0.1], [0.6, 0.5]])
    >>> Square(steps=20)(logits, x, torch.tensor([0, 0]), Linf(eps=0.2, lo=0, hi=1))
    tensor([[0.4000, 0.3000],
            [0.4000, 0.7000]])
    """

    needs = "logits"
    norms = tuple(FILLINGS)

    loss: Loss = margin
    steps: int = 5000
    p: float = 0.8
    onward: bool = False
    hope: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps, 1)
        if not 0 < self.p <= 1:
            raise BadInput(f"`p` must be > 0 and <= 1, got {self.p}; it is the first windows' share of the places")
        hopeful("hope", self.hope)
        if self.hope < math.inf and self.loss is not margin:
            raise BadInput(f"`hope` must be inf with another loss than margin, got {self.hope}: it measures the margin")

    @property
    def passes(self) -> int | None:
        return self.steps if self.hope == math.inf else None

    @property
    def goes_on(self) -> bool:
        return self.onward

    def _start(self, task: Task, filling: Filling) -> Batch:
        if not self.onward or task.near is None:
            return filling.start(task)
        found = flat(task.near != task.x).any(1)  # elsewhere no attack ended at a point
        if bool(found.all()):
            return task.near
        return torch.where(column(found, task.x.ndim), task.near, filling.start(task))

    def init(self, task: Task) -> Searching:
        filling = FILLINGS[task.ball.name]
        z = self._start(task, filling).contiguous()
        at = filling.windows(tuple(z.shape[1:]), self.steps, self.p, z.device)
        t = torch.zeros_like(task.y)
        spent = filling.spent(z, task.x)
        return Searching.at(
            z,
            height=torch.full_like(spent, -torch.inf),
            budget=filling.budget(task),
            held=spent,
            tried=spent,
            moves=at.draw(task.noise, t, filling.corners),
            due=t,
            pace=no_pace(spent, self.hope),
        )

    def step(self, state: Searching, point: Point, task: Task) -> Searching:
        filling = FILLINGS[task.ball.name]
        at = filling.windows(tuple(state.z.shape[1:]), self.steps, self.p, state.z.device)
        least, most = (end.item() for end in state.due.aminmax())
        if most == BLOCK:
            moves = at.draw(task.noise, state.t, filling.corners)
            state, least, most = replace(state, moves=moves, due=torch.zeros_like(state.due)), 0, 0
        better = point.loss > state.height
        # By 0 or by 1, for which it is exact: `where` takes four times as long with a condition per row.
        best = torch.lerp(state.best, state.z, column(better, state.z.ndim).to(state.z.dtype))
        held = state.held if state.tried is state.held else torch.where(better, state.tried, state.held)
        if least == most:  # until rows of another age come in
            move = state.moves[:, int(most)]
        else:
            move = state.moves[torch.arange(len(state.due), device=state.due.device), state.due]
        z, tried = filling.propose(at, move, task, best, state.budget, held)
        height = torch.where(better, point.loss, state.height)
        done, pace = state.done, state.pace
        if self.hope < math.inf:
            done = state.t + 1 >= self.steps
            if bool(((state.t & (state.t - 1)) == 0).any()):  # the best margin is all that counts between two marks
                pace, lost = looked(pace, height, state.t, self.steps, self.hope, first=PATIENCE)
                done = done | lost
        return Searching(
            z=z,
            best=best,
            t=state.t + 1,
            done=done,
            pace=pace,
            height=height,
            budget=state.budget,
            held=held,
            tried=tried,
            moves=state.moves,
            due=state.due + 1,
        )
