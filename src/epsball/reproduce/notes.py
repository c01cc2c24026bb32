"""Sentences that the experiments share: the paper's conventions, and what was spent on the networks."""

from __future__ import annotations

from typing import Any

from epsball.reproduce.sources import STAND_IN


def about_training(config: dict[str, Any]) -> str:
    """What the maxout networks are, and what was spent on them."""
    seeds = len(config["seeds"])
    over = "" if seeds == 1 else f" The mean over {seeds} seeds."
    return (
        f"Our maxout networks: 2 x {config['units']:,} maxout units of {config['pieces']} pieces, {dropout(config)}, "
        f"{images_seen(config)} in steps of {config['batch_size']}, {config['optimizer']}: the same for all.{over} "
        "The paper trained with dropout 50 % until validation no longer improved: nearer with --full."
    )


def small_print(config: dict[str, Any]) -> str:
    """The line below a figure: data, budget, seeds, version."""
    seeds = len(config["seeds"])
    stand_in = f"{STAND_IN}; " if config["stands_in"] else ""
    return (
        f"{stand_in}{images_seen(config)}, {seeds} seed{'s' if seeds > 1 else ''}; error over all "
        f"{config['test_rows']:,} test images; epsball {config['versions']['epsball']}"
    )


def images_seen(config: dict[str, Any]) -> str:
    """The training of a network, as in "7 epochs of 60,000 images"."""
    return f"{config['epochs']} epoch{'s' if config['epochs'] > 1 else ''} of {config['train_rows']:,} images"


def dropout(config: dict[str, Any]) -> str:
    """The dropout, as in "dropout 20 %"."""
    return f"dropout {config['dropout']} %" if config["dropout"] else "no dropout"


def about_conventions(config: dict[str, Any]) -> str:
    """The paper's conventions."""
    return (
        f"FGSM: at x + eps sign(gradient), eps {config['eps']:g}, not clipped, as in the paper. Error over all "
        f"{config['test_rows']:,} test images; confidence: the mean over the mistakes on FGSM examples."
    )


def about_stand_in(config: dict[str, Any]) -> tuple[str, ...]:
    """A warning where the data are not the paper's."""
    return (f"{STAND_IN}: the paper's figures are not for them.",) if config["stands_in"] else ()
