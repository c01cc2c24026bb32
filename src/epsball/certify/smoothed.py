"""The smoothed classifier as a model: it answers and abstains as certified, and attacks can climb its probabilities.

Salman et al., "Provably robust deep learning via adversarially trained smoothed classifiers" (NeurIPS 2019), section
3.1: the loss of the smoothed classifier is -log of the mean, over draws of noise, of the softmax of f(x + noise)_y.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from epsball.certify.gaussian_noise import GridGaussian
from epsball.certify.smoothing import KEY, Smoothing, smooth_predict
from epsball.common.checks import check_whole
from epsball.common.noise import Noise
from epsball.data.labels import row_ids
from epsball.models.given import as_model
from epsball.models.last_activation import before_activation
from epsball.problem.outputs import masked_to_finite, two_columns

NOBODY = -1
"""The id of noise that all inputs share."""


class SmoothedClassifier(nn.Module):
    """`model` under Gaussian noise, (n, *shape) -> log of the mean softmax over `draws` draws, (n, classes).

    The draws are fixed by `seed` and the same for all inputs: the module is a deterministic, differentiable function
    that any attack can be run on, and that `evaluate` takes. One call is `draws` model calls. An attack that fools
    these draws may still fail on others: `predict`, with n draws of each input's own, decides.

    Raises `BadInput` for a model that gives labels only, where it is called; `predict` takes that, too.

    >>> smoothed = SmoothedClassifier(lambda x: x.sum(1), Smoothing(sigma=0.5), draws=64)
    >>> x = torch.tensor([[2.0, 1.0], [0.0, 0.0]])
    >>> smoothed(x).exp().sum(1), smoothed.predict(x)
    (tensor([1.0000, 1.0000]), tensor([ 1, -1]))
    """

    def __init__(self, model: Any, smoothing: Smoothing, *, draws: int = 16, seed: int = 0) -> None:
        super().__init__()
        check_whole("draws", draws, 1)
        self.model, self.smoothing, self.draws, self.seed = as_model(model), smoothing, draws, seed
        if isinstance(model, nn.Module):
            self.training = model.training

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        gaussian, shape = GridGaussian(self.smoothing.sigma), x.shape[1:]
        rows = torch.full((self.draws,), NOBODY, device=x.device)
        noise = Noise(self.seed, rows, torch.full_like(rows, KEY))
        drawn = gaussian.draw(noise, shape, torch.arange(self.draws, device=x.device))
        noisy = gaussian.from_grid(gaussian.to_grid(x)[:, None] + drawn, x.dtype)
        noisy = noisy + (x - x.detach())[:, None]  # adds zero; the gradient goes past the rounding
        output = before_activation(self.model, noisy.flatten(0, 1))[0]
        logs = masked_to_finite(two_columns(output)).log_softmax(1)
        return logs.unflatten(0, (len(x), self.draws)).logsumexp(1) - math.log(self.draws)

    def predict(
        self, x: Float[Tensor, "n *shape"], *, ids: Int64[Tensor, " n"] | None = None, batch_size: int = 512
    ) -> Int64[Tensor, " n"]:
        """The class, or -1 where the smoothed classifier abstains; `ids` key the noise (default: row numbers)."""
        ids = torch.arange(len(x), device=x.device) if ids is None else row_ids(ids, x)
        return smooth_predict(self.model, x, self.smoothing, ids, seed=self.seed, batch_size=batch_size)
