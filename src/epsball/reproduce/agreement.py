"""Do other models fall into the same wrong class? Examples made on a maxout network, shown to shallow models.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 8: of the FGSM examples that the maxout network gets wrong, softmax
regression calls 54.6 % by the network's wrong class and an RBF network 16.0 %; of those that both get wrong, 84.6 % and
54.3 %. The direction that fools is shared, as far as the models are linear.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Bool
from torch import Tensor

from epsball.reproduce.nets import PAIR, PLAIN, Nets, conventions, logits_of, mean_of, percent, spent, stand_in
from epsball.reproduce.record import Line, Measured, Strip
from epsball.reproduce.shallow import RBF, RECIPES, SOFTMAX
from epsball.reproduce.strips import first_of_each, predicted
from epsball.reproduce.threes_sevens import EPS

PAPER = {SOFTMAX: (54.6, 84.6), RBF: (16.0, 54.3)}
"""In percent: the network's wrong class, of all its mistakes, and of those that are mistakes of both."""


def agreement(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Measured:
    """Make FGSM examples on plain maxout networks, and ask shallow models for the class that they are.

    The models are those of `nets`, trained where they are not yet. `on_progress` is called with the steps made, those
    of all, and what is trained. Raises `BadInput`.
    """
    makers = [group[0] for group in nets.trained({PLAIN: PAIR[PLAIN]}, on_progress)]
    judges = nets.trained(RECIPES, on_progress)
    test, shares, errors = nets.source.test, {said: [] for said in RECIPES}, {said: [] for said in RECIPES}
    for maker, few in zip(makers, judges, strict=True):
        x_adv = nets.moved(maker)
        theirs = logits_of(maker.module, x_adv).argmax(1)
        wrong = theirs != test.y
        for evaluator in few:
            own = logits_of(evaluator.module, x_adv).argmax(1)
            same, both = (own == theirs) & wrong, (own != test.y) & wrong
            shares[evaluator.said].append([_share(same, wrong), _share(same, both)])
            errors[evaluator.said].append((own != test.y).double().mean().item())
    lines = tuple(
        Line(
            said,
            tuple(mean_of(pair[at] for pair in shares[said]) for at in (0, 1)),
            PAPER[said] if nets.eps == EPS else None,
        )
        for said in RECIPES
    )
    config = nets.config()
    wrongly = ", ".join(f"{said} {percent(sum(found) / len(found)):.1f} %" for said, found in errors.items())
    notes = (
        *stand_in(config),
        conventions(config),
        f"Of the examples made on the network the others get wrong: {wrongly}. Two models that both err agree by "
        "chance on one of the classes - 1 wrong ones, 11 % of ten classes, where errors spread evenly.",
        spent(config),
    )
    rows, eps = first_of_each(test), nets.eps
    x_adv = nets.moved(makers[0])[rows]
    box = (test.lo - eps, test.hi + eps)
    seers = ((f"maxout, {PLAIN},", makers[0]), *((f"the {net.said}", net) for net in judges[0]))
    strips = tuple(
        Strip(f"as {said} sees it", test.shape, *box, predicted(net, x_adv, test.y[rows])) for said, net in seers
    )
    return Measured(
        title=f"The wrong class of a maxout network, eps {eps:g}: share of others that agree, in %",
        heads=("of its mistakes", "where both err"),
        lines=lines,
        notes=notes,
        strips=strips,
        config=config,
    )


def _share(part: Bool[Tensor, " n"], whole: Bool[Tensor, " n"]) -> float | None:
    """In percent."""
    count = int(whole.sum())
    return 100 * int(part.sum()) / count if count else None
