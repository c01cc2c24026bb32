"""The exact range of a piecewise linear network in a small region: the vertices of all its linear pieces.

The region has one to three free coordinates. It is cut into simplices; for each switch of the network (a ReLU's input
at 0, two candidates of a maximum that are equal) every simplex with both signs is cut along it. Between two switches
the network is linear, so its extremes over the region are among the vertices. Nothing here is shared with `certify`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.balls.ball import Ball

CORNERS = 24
"""Of the polygon inside an L2 disc: its extremes are those of the disc within 1 %."""
TINY = 1e-12


class Clamp(nn.Module):
    """torch.clamp as a module, whose input the search can see."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, z: Tensor) -> Tensor:
        return z.clamp(self.low, self.high)


PIECEWISE = (nn.ReLU, nn.LeakyReLU, Clamp, nn.MaxPool2d)


def switches(layer: nn.Module, z: Tensor) -> Tensor:
    """What changes sign where a piecewise linear layer switches, (n, switches)."""
    if isinstance(layer, nn.ReLU | nn.LeakyReLU):
        return z.flatten(1)
    if isinstance(layer, Clamp):
        return torch.cat([z.flatten(1) - layer.low, z.flatten(1) - layer.high], 1)
    assert isinstance(layer, nn.MaxPool2d)
    pad = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,) * 2
    padded = F.pad(z, (pad[1], pad[1], pad[0], pad[0]), value=-1e6)
    windows = F.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    windows = windows.reshape(len(z), z.shape[1], -1, windows.shape[-1])
    pairs = itertools.combinations(range(windows.shape[2]), 2)
    return torch.cat([(windows[:, :, i] - windows[:, :, j]).flatten(1) for i, j in pairs], 1)


@dataclass
class Pieces:
    """Simplices that cover the balls of some examples: `corners` (s, d + 1) are rows of `points` (m, d)."""

    x: np.ndarray  # (n, features)
    shape: tuple[int, ...]
    free: np.ndarray  # (n, d): the features that may change
    points: np.ndarray  # (m, d): values of the free features
    example: np.ndarray  # (m,)
    corners: np.ndarray

    def inputs(self) -> Tensor:
        """The points as inputs of the network, (m, *shape)."""
        rows = self.x[self.example]
        np.put_along_axis(rows, self.free[self.example], self.points, 1)
        return torch.from_numpy(rows).reshape(-1, *self.shape)

    def cut(self, values: np.ndarray) -> np.ndarray:
        """Cut along the zeros of `values` (m, k), linear on each simplex; what they are at all points since then."""
        for k in range(values.shape[1]):
            scale = np.abs(values[:, k]).max(initial=1.0)
            while True:
                at = values[self.corners, k]
                at[np.abs(at) <= TINY * scale] = 0
                mixed = (at.max(1) > 0) & (at.min(1) < 0)
                if not mixed.any():
                    break
                rows, old, at = np.arange(mixed.sum()), self.corners[mixed], at[mixed]
                high, low = at.argmax(1), at.argmin(1)
                share = (at[rows, high] / (at[rows, high] - at[rows, low]))[:, None]
                a, b = old[rows, high], old[rows, low]
                new = len(self.points) + rows
                between = values[a] + share * (values[b] - values[a])
                between[:, k] = 0
                values = np.concatenate([values, between])
                self.points = np.concatenate([self.points, self.points[a] + share * (self.points[b] - self.points[a])])
                self.example = np.concatenate([self.example, self.example[a]])
                upper, lower = old.copy(), old.copy()
                upper[rows, low], lower[rows, high] = new, new
                self.corners = np.concatenate([self.corners[~mixed], upper, lower])
        return values

    def keep_negative(self, values: np.ndarray) -> None:
        """Cut along the zeros of `values` (m, k) and leave out what is above them."""
        values = self.cut(values)
        inside = (values[self.corners] <= TINY * np.abs(values).max(initial=1.0)).all((1, 2))
        self.corners = self.corners[inside]

    def drop_unused(self) -> None:
        """Leave out points that are no simplex's corner."""
        used, places = np.unique(self.corners, return_inverse=True)
        self.points, self.example = self.points[used], self.example[used]
        self.corners = places.reshape(self.corners.shape)

    def extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the greatest of `values` (m, k) over the points of each example, (n, k) both."""
        index = torch.from_numpy(self.example)[:, None].expand(values.shape)
        low = values.new_full((len(self.x), values.shape[1]), math.inf)
        high = values.new_full((len(self.x), values.shape[1]), -math.inf)
        return low.scatter_reduce(0, index, values, "amin"), high.scatter_reduce(0, index, values, "amax")


def region(ball: Ball, x: Tensor, free: Tensor) -> Pieces:
    """Ball, box and mask around each row of x (n, *shape) float64, which may change at the features `free` (n, d)."""
    d, rows = free.shape[1], x.flatten(1)
    unit = torch.zeros_like(rows).scatter(1, free, 1)
    ends = []
    for sign in (-1, 1):  # the farthest that each coordinate goes, one at a time
        steps = torch.stack([unit * F.one_hot(free[:, i], rows.shape[1]) * sign for i in range(d)])
        moved = torch.stack([ball.argmax(step.reshape(x.shape), x).flatten(1).gather(1, free)[:, i]
                             for i, step in enumerate(steps)], 1)  # fmt: skip
        ends.append(moved.numpy())
    low, high = ends
    points, example, corners = [], [], []
    for order in itertools.permutations(range(d)):
        walk = np.zeros((d + 1, d))
        for step, axis in enumerate(order):
            walk[step + 1 :, axis] = 1
        for row in range(len(x)):
            corners.append(len(points) + np.arange(d + 1))
            points.extend(low[row] + walk * (high[row] - low[row]))
            example.extend([row] * (d + 1))
    parts = (np.array(part) for part in (points, example, corners))
    pieces = Pieces(rows.numpy(), tuple(x.shape[1:]), free.numpy(), *parts)
    if "intervals" in ball.traits or d == 1:
        return pieces
    centre = np.take_along_axis(pieces.x, pieces.free, 1)
    radius = np.broadcast_to(ball.bind(x).radius_like(rows).numpy(), (len(x), 1))
    if "sparse" in ball.traits:
        pieces.cut(pieces.points - centre[pieces.example])
        away = np.abs(pieces.points - centre[pieces.example]).sum(1, keepdims=True)
        pieces.keep_negative(away - radius[pieces.example])
    else:
        if d != 2:
            raise ValueError("an L2 ball is cut into a polygon in two dimensions only")
        angles = 2 * np.pi * np.arange(CORNERS) / CORNERS
        normals = np.stack([np.cos(angles), np.sin(angles)])
        inner = radius * math.cos(math.pi / CORNERS)
        pieces.keep_negative((pieces.points - centre[pieces.example]) @ normals - inner[pieces.example])
    pieces.drop_unused()
    return pieces


def linear_pieces(model: nn.Module, ball: Ball, x: Tensor, free: Tensor) -> Pieces:
    """The simplices in the balls on each of which the float64 `model` is linear."""
    pieces = region(ball, x, free)
    layers = [layer for layer in model.modules() if isinstance(layer, PIECEWISE)]
    for done in range(len(layers)):  # one activation after the other, in the order in which they run
        seen: list[Tensor] = []

        def note(layer: nn.Module, given: tuple[Tensor, ...], seen: list[Tensor] = seen) -> None:
            seen.append(switches(layer, given[0]))

        hooks = [layer.register_forward_pre_hook(note) for layer in layers]
        with torch.no_grad():
            model(pieces.inputs())
        for hook in hooks:
            hook.remove()
        pieces.cut(seen[done].numpy())
        pieces.drop_unused()
    return pieces
