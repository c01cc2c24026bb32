"""The checks of a set-up that need no model: do data, box and radius go together, do the labels hold all classes?

The units of x and those of the ball are the user's to choose, and most faults are a mismatch of the two: images in
0..255 under a radius for [0, 1], images normalised outside the model, a box that is another's. How each threshold was
chosen is in docs/setup.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.shapes import flat
from epsball.diagnosis.setup_record import BallFacts, DataFacts, Finding, LabelFacts

ROWS, NUMBERS = 64, 1 << 16
"""A grid of values is looked for in so many rows, and so many numbers of each channel."""
LEAST_LEVELS, LEVELS = 8, 256
"""Fewer equally spaced values say nothing of images; 8 bits have 256."""
CHANNELS = (1, 3, 4)
SIDE, FLAT = 8, 64
"""An image is at least so many pixels wide and high; flattened, it has at least so many."""
NARROW = 0.02
"""Images that use less than this share of their box are in other units than it."""
PIXELS = 200.0
"""Images with values above this one are taken for pixels in 0..255."""
ENDS = 0.2
"""Images reach within this share of the range that they are in."""
DUPLICATES = 0.25
"""Copies among images above this share are no chance."""


def data_facts(x: Float[Tensor, "n *shape"]) -> DataFacts:
    """What can be seen of the examples."""
    low, high = (end.item() for end in x.aminmax())
    stride = max(1, len(x) // ROWS)
    sample = x[::stride][:ROWS]
    shape = tuple(x.shape[1:])
    grid = _grid(sample)
    pixels = _is_image_shape(shape)
    image = pixels or (grid is not None and math.prod(shape) >= FLAT and len(shape) <= 2)
    return DataFacts(
        n=len(x),
        shape=shape,
        dtype=str(x.dtype).removeprefix("torch."),
        low=low,
        high=high,
        step=None if grid is None else grid[0],
        levels=None if grid is None else grid[1],
        image=image,
    )


def check_units(x: Float[Tensor, "n *shape"], ball: Ball) -> None:
    """Raise `BadInput` for images that are outside a box of [0, 1] or [0, 255] because they are in other units."""
    if not x.numel() or not _is_image_shape(tuple(x.shape[1:])):
        return
    if isinstance(ball.lo, Tensor) or isinstance(ball.hi, Tensor) or (ball.lo, ball.hi) not in ((0, 1), (0, 255)):
        return
    low, high = (end.item() for end in x.aminmax())
    got = f"`x` must lie in the ball's box [0, {ball.hi:g}], got values from {low:.4g} to {high:.4g}"
    if low < -0.02:
        raise BadInput(
            f"{got}: x was normalised outside the model; give x as images in [0, {ball.hi:g}], and put "
            "epsball.models.builtin.Normalize(mean, std) in front of the model"
        )
    if ball.hi == 1 and 2 < high <= 255 and low >= 0:
        raise BadInput(f"{got}: x is in pixels of 0 to 255; divide x by 255, or give eps in pixels with lo=0, hi=255")


def _is_image_shape(shape: tuple[int, ...]) -> bool:
    if len(shape) != 3:
        return False
    channels_first = shape[0] in CHANNELS and min(shape[1:]) >= SIDE
    return channels_first or (shape[2] in CHANNELS and min(shape[:2]) >= SIDE)


def _grid(sample: Float[Tensor, "n *shape"]) -> tuple[float, int] | None:
    """The step and the number of the equally spaced values that the sample's first channel is on; None without any."""
    shape = sample.shape[1:]
    channel = sample[:, 0] if len(shape) == 3 and shape[0] in CHANNELS else sample
    channel = channel[..., 0] if len(shape) == 3 and shape[2] in CHANNELS else channel
    values = channel.reshape(-1)
    values = values[:: max(1, len(values) // NUMBERS)].double().unique()
    if not LEAST_LEVELS <= len(values) <= LEVELS:
        return None
    scale = float(values.abs().amax())
    gaps = values.diff()
    step = float(gaps.amin())
    if step < 64 * torch.finfo(sample.dtype).eps * scale:  # rounding makes such gaps
        return None
    places = (values - values[0]) / step
    step *= float(places[-1] / places[-1].round())  # the whole range knows it better than one gap
    places = (values - values[0]) / step
    on_grid = bool(((places - places.round()).abs() < 0.05).all())
    levels = round(float(places[-1])) + 1
    return (step, levels) if on_grid and levels <= LEVELS else None


def ball_facts(ball: Ball, radii: tuple[float, ...] | None, x: Float[Tensor, "n *shape"]) -> BallFacts:
    """What can be seen of the ball, bound to x, or of its box and several radii."""
    lo, hi = (torch.as_tensor(side, dtype=torch.float64) for side in (ball.lo, ball.hi))
    eps = torch.as_tensor(radii if radii else ball.eps, dtype=torch.float64)
    counts = "count" in ball.traits
    largest = float(eps.amax())
    one = torch.ones(1, *x.shape[1:], dtype=torch.float64, device=x.device)
    width = hi - lo if (hi - lo).ndim == 0 else (hi - lo).amax(0, keepdim=True)
    size = math.prod(x.shape[1:]) if counts else float(ball.norm(one * width)) if width.isfinite().all() else math.nan
    share = largest / size if size > 0 and math.isfinite(largest) else None
    if eps.ndim > 1 and width.isfinite().all():  # one radius per feature
        share = float((eps / width).amax())
    speck = (torch.arange(one.numel(), device=x.device) % 100 == 0).reshape(one.shape)
    return BallFacts(
        symbol=ball.symbol,
        lo=float(lo.amin()),
        hi=float(hi.amax()),
        eps=float(eps.amin()),
        largest=largest,
        share=share,
        whole=float(ball.norm(one)),
        speck=float(ball.norm(one * speck)),
        counts=counts,
        varies=tuple(
            name
            for name in ("eps", "lo", "hi")
            if isinstance(part := getattr(ball, name), Tensor) and part.numel() > 1 and not (radii and name == "eps")
        ),
    )


def label_facts(y: Int64[Tensor, " n"], classes: int) -> LabelFacts:
    """What can be seen of the labels, where `classes` are known."""
    counts = y.bincount(minlength=classes)
    return LabelFacts(int((counts > 0).sum()), max(classes, len(counts)), float(counts.amax()) / max(len(y), 1))


def unit_findings(data: DataFacts, ball: BallFacts, box_of_data: tuple[float, float]) -> Iterator[Finding]:
    """What speaks against the units of x, box and radius; `box_of_data` is the one that the examples know."""
    width, span = ball.hi - ball.lo, data.high - data.low
    eps = f"ε = {ball.largest:.4g}" if math.isfinite(ball.largest) else "minimum norms are searched"
    held = f"x holds values from {data.low:.4g} to {data.high:.4g}"
    radius = ball.largest if math.isfinite(ball.largest) and not ball.counts else None
    pixels = data.image and data.low >= 0 and data.high >= PIXELS and data.high <= 255
    if span == 0 and data.n > 1:
        yield Finding("constant-data", "all values of x are equal", held, "look at how x was read")
        return
    if data.image and ball.boxed and span < NARROW * width and data.n > 1:
        if ball.hi > 2 and data.high <= 1:
            yield Finding(
                "box-of-pixels",
                "the ball is in pixels of 0 to 255 and x is not (uint8 images are divided by 255)",
                f"{held}, the box is [{ball.lo:.4g}, {ball.hi:.4g}] and {eps}",
                f"give the ball in the units of x: eps={ball.largest / width:.4g}, lo=0, hi=1; or x in 0..255",
            )
            return
        yield Finding(
            "scaled-twice",
            "x was divided by 255 twice",
            f"{held}, {100 * span / width:.3g} % of the box [{ball.lo:.4g}, {ball.hi:.4g}]",
            "divide x by 255 once",
        )
        return
    if pixels and radius is not None and 0 < radius < ball.speck:
        yield Finding(
            "eps-of-unit-range",
            "the radius is in units of [0, 1] and x is in pixels of 0 to 255",
            f"{held}, and {eps} is less than one of its 256 levels",
            f"divide x by 255 if the model expects that; else eps={255 * radius:.4g}, lo=0, hi=255",
        )
        return
    normalised = data.image and data.low < 0 and span > 1.05 and not _is_centred(ball, data)
    open_grid = not ball.boxed and data.step is not None and not ball.counts
    if normalised and ((radius is not None and _is_levels(radius)) or open_grid):
        level = "" if data.step is None or radius is None else f", which is {radius / data.step:.3g} of its levels"
        yield Finding(
            "normalised-data",
            "x was normalised outside the model, so radius and box are in other units than pixels",
            f"{held}, and {eps}{level}",
            "evaluate images in [0, 1] with lo=0, hi=1, and put epsball.models.builtin.Normalize(mean, std) in front "
            "of the model; or divide eps by std",
        )
        return
    if radius is not None and data.image and data.step is not None and 0 < radius < 0.5 * data.step * (1 - 1e-6):
        yield Finding(
            "eps-below-level",
            "the radius is too small for such images",
            f"{eps} is {radius / data.step:.2g} of the distance between two levels of x ({data.step:.4g}): no pixel "
            "can change",
            "give eps in the units of x; 8 levels of an image in [0, 1] are 8/255",
        )
    yield from _of_precision(data, ball)
    yield from _of_box(data, ball, box_of_data)


def _of_precision(data: DataFacts, ball: BallFacts) -> Iterator[Finding]:
    scale = max(abs(data.low), abs(data.high))
    ulp = torch.finfo(getattr(torch, data.dtype)).eps * scale
    if ball.largest == 0:
        yield Finding("eps-zero", "the radius is 0", "no example can change", "give a radius > 0")
    elif not ball.counts and ball.largest < 2 * ulp:
        yield Finding(
            "eps-below-precision",
            "the radius vanishes in the rounding of x",
            f"ε = {ball.largest:.4g}, and {data.dtype} at {scale:.4g} has steps of {ulp:.2g}",
            "subtract a constant from x or scale it, or use float64",
        )


def _of_box(data: DataFacts, ball: BallFacts, box_of_data: tuple[float, float]) -> Iterator[Finding]:
    held = f"x holds values from {data.low:.4g} to {data.high:.4g}"
    known = all(map(math.isfinite, box_of_data))
    open_box = ball.lo == -math.inf or ball.hi == math.inf
    units = [(-1.0, 1.0)] if data.low < -0.9 else [(0.0, 1.0), (0.0, 255.0)]
    near = [
        (lo, hi)
        for lo, hi in units
        if lo <= data.low <= lo + ENDS * (hi - lo) and hi - ENDS * (hi - lo) <= data.high <= hi
    ]
    if open_box and (known or (data.image and near)):
        lo, hi = box_of_data if known else near[0]
        yield Finding(
            "no-box",
            "the ball has no box, so that attacks leave the range of the data",
            f"{held}, and the ball reaches from {ball.lo:.4g} to {ball.hi:.4g}",
            f"give the ball lo={lo:.4g}, hi={hi:.4g}",
        )
    least, share = ball.eps, ball.share
    if share is None and data.image and not ball.counts and data.high > data.low:
        share = ball.largest / (ball.whole * (data.high - data.low))  # of the data's range
    if share is not None and math.isfinite(ball.largest) and share * least > ball.largest:
        meant = (data.high - data.low) <= 1 and 1 < least <= 128
        yield Finding(
            "eps-covers-box",
            "the radius is in pixels of 0 to 255 and the box is not" if meant else "the ball holds the whole box",
            f"ε = {least:.4g}, and {f'the box is [{ball.lo:.4g}, {ball.hi:.4g}]' if ball.boxed else held}",
            f"write eps={least:.4g} / 255" if meant else "give a radius that is smaller than the box",
        )


def _is_levels(radius: float) -> bool:
    """Whether a radius is k/255 for a small k, and was not written as a decimal."""
    levels = round(255 * radius)
    return 1 <= levels <= 64 and math.isclose(levels, 255 * radius, rel_tol=1e-5) and float(f"{radius:.3g}") != radius


def _is_centred(ball: BallFacts, data: DataFacts) -> bool:
    """Whether the box is that of images in [-1, 1]: two wide, so that a radius is in units that people know."""
    return (ball.lo, ball.hi) == (-1, 1) or (data.low >= -1 and data.high <= 1 and not ball.boxed)


def copies_finding(x: Float[Tensor, "n *shape"], data: DataFacts) -> Finding | None:
    """Examples that are there several times: all alike, or too many copies for images."""
    rows = flat(x)
    weights = torch.cos(torch.arange(rows.shape[1], device=x.device, dtype=torch.float64)).to(rows.dtype)
    sums = rows @ weights
    copies = 1 - len(torch.stack([sums, rows.amax(1), rows[:, 0]], 1).unique(dim=0)) / len(rows)
    same = len(rows) > 3 and copies > 1 - 1.5 / len(rows)
    if not same and not (data.image and copies > DUPLICATES and len(rows) > 3):
        return None
    return Finding(
        "duplicated-rows",
        "examples were repeated or overwritten when x was put together (a buffer that is used again?)",
        f"{100 * copies:.0f} % of {len(rows):,} examples are copies of another one",
        "look at how x was put together",
    )
