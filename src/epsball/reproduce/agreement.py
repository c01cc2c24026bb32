"""Do other models fall into the same wrong class? Examples made on a maxout network, shown to shallow models.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 8: of the FGSM examples that the maxout network gets wrong, softmax
regression calls 54.6 % by the network's wrong class and an RBF network 16.0 %; of those that both get wrong, 84.6 % and
54.3 %. The direction that fools is shared, as far as the models are linear.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Bool
from torch import Tensor

from epsball.reproduce.nets import PAIR, PLAIN, Nets, logits_of
from epsball.reproduce.notes import about_conventions, about_stand_in, about_training
from epsball.reproduce.outcome import EPS, mean_of_known, percent
from epsball.reproduce.reproduction import Line, Reproduction, Strip
from epsball.reproduce.shallow import RBF, RECIPES, SOFTMAX
from epsball.reproduce.strips import first_of_each, predicted

PAPER = {SOFTMAX: (54.6, 84.6), RBF: (16.0, 54.3)}
"""In percent: the network's wrong class, of all its mistakes, and of those that are mistakes of both."""


def agreement(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Reproduction:
    """Make FGSM examples on plain maxout networks, and ask shallow models for the class that they are.

    The models are those of `nets`, trained where they are not yet. `on_progress` is called with the steps done, the
    steps in total, and the name of the network in training. Raises `BadInput`.
    """
    makers = [group[0] for group in nets.trained({PLAIN: PAIR[PLAIN]}, on_progress)]
    evaluators = nets.trained(RECIPES, on_progress)
    test, shares, errors = nets.source.test, {name: [] for name in RECIPES}, {name: [] for name in RECIPES}
    for maker, shallow in zip(makers, evaluators, strict=True):
        x_adv = nets.fgsm(maker)
        theirs = logits_of(maker.module, x_adv).argmax(1)
        wrong = theirs != test.y
        for evaluator in shallow:
            own = logits_of(evaluator.module, x_adv).argmax(1)
            same, both = (own == theirs) & wrong, (own != test.y) & wrong
            shares[evaluator.name].append([_share(same, wrong), _share(same, both)])
            errors[evaluator.name].append((own != test.y).double().mean().item())
    lines = tuple(
        Line(
            name,
            tuple(mean_of_known(pair[at] for pair in shares[name]) for at in (0, 1)),
            PAPER[name] if nets.eps == EPS else None,
        )
        for name in RECIPES
    )
    config = nets.config()
    wrongly = ", ".join(f"{name} {percent(sum(found) / len(found)):.1f} %" for name, found in errors.items())
    notes = (
        *about_stand_in(config),
        about_conventions(config),
        f"Of the examples made on the network the others get wrong: {wrongly}. Two models that both err agree by "
        "chance on one of the classes - 1 wrong ones, 11 % of ten classes, where errors spread evenly.",
        about_training(config),
    )
    rows, eps = first_of_each(test), nets.eps
    x_adv = nets.fgsm(makers[0])[rows]
    box = (test.lo - eps, test.hi + eps)
    viewers = ((f"maxout, {PLAIN},", makers[0]), *((f"the {net.name}", net) for net in evaluators[0]))
    strips = tuple(
        Strip(f"as {name} sees it", test.shape, *box, predicted(net, x_adv, test.y[rows])) for name, net in viewers
    )
    return Reproduction(
        title=f"The wrong class of a maxout network, eps {eps:g}: share of others that agree, in %",
        columns=("of its mistakes", "where both err"),
        lines=lines,
        notes=notes,
        strips=strips,
        config=config,
    )


def _share(part: Bool[Tensor, " n"], whole: Bool[Tensor, " n"]) -> float | None:
    """In percent."""
    count = int(whole.sum())
    return 100 * int(part.sum()) / count if count else None
