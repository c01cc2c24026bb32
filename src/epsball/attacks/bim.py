"""The basic iterative method: FGSM in small steps, from the clean input.

Kurakin, Goodfellow and Bengio, "Adversarial examples in the physical world" (ICLR workshop 2017), section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from epsball.attacks.iterated import Iterated
from epsball.problem.task import Task


@dataclass(frozen=True, kw_only=True)
class BIM(Iterated):
    """Iterated ascent from x itself; a row that is misclassified already comes back as it is."""

    def start(self, task: Task) -> Float[Tensor, "n *shape"]:
        return task.x
