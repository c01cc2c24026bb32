"""scikit-learn's handwritten digits, which need no network."""

from __future__ import annotations

from dataclasses import replace

import torch

from epsball.common.checks import check_one_of
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples


def read_digits(split: str) -> Examples:
    """The 8x8 digits as (1, 8, 8), scaled by 1/16 to [0, 1]: the last 20 % of the rows are "test", the rest "train"."""
    from sklearn.datasets import load_digits

    check_one_of("split", split, ("train", "test"))
    pixels, y = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float().div_(16).reshape(-1, 1, 8, 8)
    n_train = len(x) * 4 // 5
    names = [str(digit) for digit in range(10)]
    digits = replace(from_arrays(x, y, lo=0, hi=1, name="digits", label_names=names), scale=16)
    return digits.rows(slice(n_train, None) if split == "test" else slice(n_train))
