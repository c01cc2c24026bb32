"""Colour images: a convolutional maxout network on CIFAR-10, the panda figure, and noise that is called an airplane.

Goodfellow, Shlens and Szegedy (ICLR 2015): section 4, an error of 87.15 % and a mean confidence of 96.6 % in the
mistakes at eps = .1, on images preprocessed to a standard deviation of about .5; figure 1, a perturbation of eps =
.007, too small to be seen; figure 5, noise from N(0, I) that one step of the fast gradient sign turns into an airplane.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from epsball.attacks.fgsm import FGSM
from epsball.balls.linf import Linf
from epsball.common.noise import Noise
from epsball.models.builtin import Normalize
from epsball.models.registry import build
from epsball.reproduce.nets import Net, Nets, Recipe, logits_of, probabilities_of
from epsball.reproduce.notes import images_seen
from epsball.reproduce.outcome import mean_outcome, percent
from epsball.reproduce.reproduction import Line, Missing, Reproduction, Strip
from epsball.reproduce.strips import predicted, tiles
from epsball.training.plain import Plain

EPS = 0.1
"""The paper's radius for CIFAR-10."""
SPREAD = 0.5
"""The standard deviation of the paper's pixels, about."""
UNSEEN = 0.007
"""The radius of the paper's panda."""
PAPER = (None, 87.15, 96.6)
"""Clean error, error on the network's own FGSM examples, mean confidence in those mistakes, in percent."""
NAME, SHOWN, DRAWS, AIRPLANE = "convolutional maxout", 6, 1000, 0


def cifar(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Reproduction:
    """Train convolutional maxout networks on CIFAR-10, and count their errors on FGSM examples of three radii.

    The networks are those of `nets.colours`, trained where they are not yet. The box of the pixels bounds nothing, as
    in the paper. `on_progress` is called with the steps done, the
    steps in total, and the name of the network in training. Raises `Missing`
    where CIFAR-10 is not there, and `BadInput`.
    """
    if nets.colours is None:
        raise Missing(
            "`cifar` must be CIFAR-10 for the experiment cifar, got none: name a folder of parquet files with the "
            "splits train and test, or let $EPSBALL_DATA/cifar10 be one"
        )
    nets = nets.colours
    found = [net for (net,) in nets.trained({NAME: Recipe(objective=Plain(), build=_network)}, on_progress)]
    test, spread = nets.source.test, nets.source.train.x.std().item()
    same = EPS * spread / SPREAD
    clean = mean_outcome([nets.outcome(net, test.x) for net in found])
    lines = []
    for eps, what, paper in ((EPS, "", PAPER), (same, ", the paper's units", PAPER), (UNSEEN, "", None)):
        fgsm = mean_outcome([nets.outcome(net, nets.fgsm(net, Linf(eps=eps))) for net in found])
        lines.append(
            Line(f"eps {eps:.3g}{what}", tuple(map(percent, (clean.error, fgsm.error, fgsm.confidence))), paper)
        )
    noise, pushed, share = _airplanes(nets, found[0], same)
    channels, seconds = nets.budget.of("channels"), [net.seconds for net in found]
    config = nets.config() | {"channels": channels, "pieces": 2, "pixel_std": spread, "draws": DRAWS}
    del config["units"]
    names = test.label_names or tuple(map(str, range(test.classes)))
    notes = (
        f"Pixels in [0, 1], not clipped after the step, error over all {config['test_rows']:,} test images. The "
        f"paper's pixels are preprocessed to a standard deviation of about {SPREAD:g}, ours have {spread:.2f}: its eps "
        f"of {EPS:g} is {same:.3g} in our units. The same published figures stand beside both.",
        f"Ours: three convolutional maxout layers of {channels}, {2 * channels}, {2 * channels} channels, a maxout "
        f"layer of {5 * channels} units, dropout {config['dropout']} %, {images_seen(config)} in steps of "
        f"{config['batch_size']}, {config['optimizer']}; {sum(seconds) / len(seconds):.0f} s each. The paper's has 96, "
        "192, 192 channels, larger kernels and "
        "500 units, and whitened images: nearer with --full.",
        f"The panda figure (GoogLeNet on ImageNet: panda with 57.7 % confidence, at eps {UNSEEN:g} gibbon with 99.3 "
        "%) cannot be made from CIFAR-10: the pictures are the first of our test images that are right and "
        "change their class at that eps, if there are any: example, sign of the gradient, and their sum.",
        f"Noise: {DRAWS:,} inputs drawn from N(0, I) in the paper's units; one step of eps {same:.3g} towards "
        f"{names[AIRPLANE]} gives {share:.1%} of those that are not called so a p > .5 of it (figure 5).",
    )
    return Reproduction(
        title="A convolutional maxout network on CIFAR-10 under FGSM: error in %",
        columns=("clean", "FGSM", "confidence"),
        lines=tuple(lines),
        notes=notes,
        strips=(*_panda(nets, found[0], names), *_noise(found[0], noise, pushed, names)),
        config=config,
    )


def _network(nets: Nets, seed: int) -> nn.Module:
    """The pixels of each channel are brought to mean 0 and standard deviation 1 first."""
    train, (std, middle) = nets.source.train, _statistics(nets)
    spec = f"conv-maxout:channels={nets.budget.of('channels')},dropout={nets.budget.of('dropout')}"
    return nn.Sequential(
        Normalize(middle.flatten().tolist(), std.flatten().tolist()),
        build(spec, train.shape, train.classes, seed=seed),
    )


def _statistics(nets: Nets) -> tuple[Float[Tensor, "1 c 1 1"], Float[Tensor, "1 c 1 1"]]:
    """Standard deviation and mean of each channel over the training images."""
    std, middle = torch.std_mean(nets.source.train.x, (0, 2, 3), keepdim=True)
    return std, middle


def _panda(nets: Nets, net: Net, names: tuple[str, ...]) -> tuple[Strip, ...]:
    """The first test images that are right and change their class at `UNSEEN`."""
    test, shape = nets.source.test, nets.source.test.shape
    moved = nets.fgsm(net, Linf(eps=UNSEEN))
    before, after = (logits_of(net.module, x).argmax(1) for x in (test.x, moved))
    rows = ((before == test.y) & (after != test.y)).nonzero().squeeze(1)[:SHOWN]
    if not len(rows):
        return ()
    x, x_adv, y = test.x[rows], moved[rows], test.y[rows]
    return (
        Strip("example", shape, test.lo, test.hi, predicted(net, x, y, names=names)),
        Strip("sign of the gradient", shape, -1.0, 1.0, tiles((x_adv - x).sign(), [""] * len(rows))),
        Strip(f"moved by eps {UNSEEN:g}", shape, test.lo, test.hi, predicted(net, x_adv, y, names=names)),
    )


def _airplanes(nets: Nets, net: Net, eps: float) -> tuple[Tensor, Tensor, float]:
    """Noise, the same after one step towards `AIRPLANE`, and the share that becomes one of what was none."""
    train, index, (std, middle) = nets.source.train, torch.arange(DRAWS), _statistics(nets)
    drawn = Noise(0, index, torch.zeros_like(index)).normal(train.shape).to(train.x)
    noise = middle + std / SPREAD * drawn
    ball, unread = Linf(eps=eps), torch.full((DRAWS,), AIRPLANE + 1)
    parts = zip(noise.split(100), unread.split(100), strict=True)
    pushed = torch.cat([FGSM()(net.module, x, y, ball, target=AIRPLANE) for x, y in parts])
    before, after = (probabilities_of(net, x)[:, AIRPLANE] > 0.5 for x in (noise, pushed))
    return noise, pushed, (after & ~before).sum().item() / max(int((~before).sum()), 1)


def _noise(net: Net, noise: Tensor, pushed: Tensor, names: tuple[str, ...]) -> tuple[Strip, ...]:
    shown, shape = noise[:SHOWN], tuple(noise.shape[1:])
    low, high = shown.min().item(), shown.max().item()
    return (
        Strip("noise", shape, low, high, predicted(net, shown, names=names)),
        Strip(
            f"noise, one step towards {names[AIRPLANE]}", shape, low, high, predicted(net, pushed[:SHOWN], names=names)
        ),
    )
