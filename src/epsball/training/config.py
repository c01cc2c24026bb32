"""How a training is run: the keywords of `fit`, the flags of `epsball train`, its TOML file, and its record."""

from typing import Annotated, Literal

from epsball.common.checks import check_at_least, check_between, check_positive, check_whole
from epsball.common.config import Config, Rule

Average = Literal["none", "ema", "swa"]


class TrainingConfig(Config):
    """How a training is run; every value is checked.

    Parameters
    ----------
    epochs
        Passes through the data.
    batch_size
        Examples of one step of the optimiser, over all processes; the batches of an epoch differ by at most one.
    accumulate
        Parts that a batch is computed in, one after the other, where it does not fit into memory.
    lr
        The largest learning rate; usual is 1e-3 for adam, 0.1 for sgd.
    weight_decay
        The optimiser's weight decay.
    optimizer
        adam, or sgd with a Nesterov momentum of 0.9.
    schedule
        The learning rate over the training: one-cycle (up for 30 %, down for 70 %, linear), cosine (down), constant.
    ramp
        The fraction of the training over which the radius grows from 0 to the ball's, linearly. Default: 0, and half
        of the training for the objectives that train bounds.
    precision
        float32, or bf16 for autocast.
    channels_last
        Lay out images and convolutions with the channels last in memory.
    accelerate
        Cheaper input gradients, by `accelerate(trainable=True)`. Default: where a short trial says that it pays.
    average
        Weights that are averaged over the steps and returned at the end: ema or swa (the last quarter).
    decay
        The decay of the ema.
    hold_out
        Number of examples that are not trained on: accuracies are measured on them, and the weights of the best robust
        accuracy are returned.
    checks
        Checks on the held-out examples in an epoch.
    patience
        Stop after so many epochs without a better robust accuracy. Default: never.
    on_overfit
        The answer to catastrophic overfitting (PGD's accuracy collapses, FGSM's does not): rollback to the last good
        weights and continue at half the learning rate, switch to PGD training from there, stop there, or ignore it.
    seed
        Keys all randomness.
    """

    epochs: Annotated[int, Rule(check_whole, 1)] = 5
    batch_size: Annotated[int, Rule(check_whole, 1)] = 128
    accumulate: Annotated[int, Rule(check_whole, 1)] = 1
    lr: Annotated[float, Rule(check_positive, "usual is 1e-3 for adam, 0.1 for sgd")] = 1e-3
    weight_decay: Annotated[float, Rule(check_at_least, 0, "usual is 5e-4")] = 0.0
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    ramp: Annotated[float | None, Rule(check_between, 0, 1, "0.3 for the first 30 %", ends="[)")] = None
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    accelerate: bool | None = None
    average: Average = "none"
    decay: Annotated[float, Rule(check_between, 0, 1, "usual is 0.999", ends="[)")] = 0.999
    hold_out: Annotated[int, Rule(check_whole, 0, "as in hold_out=500")] = 0
    checks: Annotated[int, Rule(check_whole, 1)] = 4
    patience: Annotated[int | None, Rule(check_whole, 1, "leave it out for never")] = None
    on_overfit: Literal["rollback", "switch", "stop", "ignore"] = "rollback"
    seed: int = 0

    def radius_share(self, fraction: float) -> float:
        """The share of the ball's radius that is trained on when `fraction` of the training is done."""
        return fraction / self.ramp if self.ramp and fraction < self.ramp else 1.0
