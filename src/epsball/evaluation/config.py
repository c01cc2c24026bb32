"""How an evaluation is run: the keywords of `evaluate`, the flags of `epsball evaluate`, its TOML file, `config.json`.

It needs no torch, so that the command line shows its help at once.
"""

import math
from typing import Annotated, Any, Literal

from epsball.common.checks import check_at_least, check_distinct, check_positive, check_whole, check_whole_or
from epsball.common.config import Config, Rule
from epsball.common.errors import BadInput

COUNT = "it is a number of examples, 0 for none"
SECONDS = 10.0
"""What the search for a proof may take per example, unless it is said otherwise."""


def check_seconds(name: str, value: Any) -> None:
    """Raise unless `value` is true, false, or seconds."""
    if not isinstance(value, bool):
        number = isinstance(value, int | float)
        if not (number and 0 <= value < math.inf):
            raise BadInput(
                f"`{name}` must be true, or seconds >= 0 and finite, got {value!r}; as in {name}={SECONDS:g}, or 0 for "
                "bounds without a search"
            )


def radii_of(eps: Any) -> tuple[float | str, ...] | None:
    """What a caller gives as `eps`, one radius or several, of Python, numpy or torch."""
    if eps is None:
        return None
    radii: Any = [eps] if isinstance(eps, str | float | int) or getattr(eps, "ndim", 1) == 0 else eps
    try:
        return tuple(radius if isinstance(radius, str) else float(radius) for radius in radii)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"`eps` must be radii, numbers or texts such as '8/255', got {eps!r}; as in [0.1, 0.2]"
        ) from error


class EvaluationConfig(Config):
    """The settings of an evaluation.

    Parameters
    ----------
    eps
        Several radii instead of the ball's one, numbers or fractions such as 8/255: the robustness curve.
    min_norm
        Search the minimum-norm adversarial example of each example, whatever the ball's radius: the distance to the
        decision boundary. Attacks of a fixed radius then check the distances, at `eps` or just within each distance.
    eot
        Average so many model calls (expectation over transformation), for a model that draws random numbers: 20, say.
    storage
        How adversarial examples are stored and evaluated: float, or 8bit for the 256 levels of an image, rounded
        towards the example; a success that the rounding undoes does not count.
    seed
        Keys all randomness.
    batch_size
        Examples of one model call; auto measures for a few seconds and takes the smallest size that is about as fast as
        any. Sizes of 32 or more give the same records to the last bit, on CPU; smaller ones may round differently. A
        call that runs out of memory is made again with fewer examples.
    shard_size
        Examples of a shard, the unit that a resumed run does not repeat. Default: as many as `shard_mib` holds, at
        most 1,024.
    shard_mib
        MiB of a shard's examples in memory, where `shard_size` is not given: 64, which are 96 float32 images of
        3 x 224 x 224. A process takes some ten times as much.
    on_bad
        What becomes of rows of lazy data that cannot be used (a broken image, a label out of range): stop the run, or
        skip them, which lists each with its name in the result.
    binarization_test
        Hide adversarial examples in the balls of so many examples and count how many the attacks find (Zimmermann et
        al. 2022): attacks that miss them are too weak for this model.
    diagnose
        Run the reliability checks on so many examples; 0 for none. Default: 16 to 128, as many as cost no more than a
        quarter of the run (or 40 model calls per example); where that is less than 16, the result says "not checked".
    convergence
        Where no attack takes gradients: search again with twice the queries on so many examples that were not broken;
        0 for none. It says whether the search had converged, and goes beyond a black box's budget by as much.
    certify
        Also prove examples robust, for a result with both ends. Bounds are computed on what ten steps of PGD leave;
        what is proved is not attacked. After the attacks and many restarts of PGD, branch and bound searches on what is
        neither proved nor broken, for so many seconds per example: 10, or the number given; 0 leaves the search out.
    accelerate
        Let the attacks use a network of the same function with cheaper gradients. Default: where a short trial is
        likely to pay. Results always come from the model itself.
    compile
        Compile the accelerated network with torch.compile, too: it takes a minute or more once, for long runs.
    draft
        On a GPU: run each attack that takes gradients in bf16 first, then in full precision on what is still robust.
    workers
        Run so many shards at a time, each in a process of its own, by Ray. Default: all in this process.
    gpus_per_worker
        GPUs of a worker process, also parts of one: 0.5.
    ray
        The address of a running Ray cluster for the workers, such as auto or ray://head:10001. Default: this machine.
    """

    eps: tuple[float | str, ...] | None = None
    min_norm: bool = False
    eot: Annotated[int, Rule(check_whole, 1, "1 is right for all but stochastic models")] = 1
    storage: Literal["float", "8bit"] = "float"
    seed: int = 0
    batch_size: Annotated[int | Literal["auto"], Rule(check_whole_or, 1, "auto")] = 128
    shard_size: Annotated[int | None, Rule(check_whole, 1)] = None
    shard_mib: Annotated[float, Rule(check_positive)] = 64.0
    on_bad: Literal["stop", "skip"] = "stop"
    binarization_test: Annotated[int, Rule(check_whole, 0, COUNT)] = 0
    diagnose: Annotated[int | None, Rule(check_whole, 0, COUNT)] = None
    convergence: Annotated[int, Rule(check_whole, 0, COUNT)] = 32
    certify: Annotated[float | bool | None, Rule(check_seconds)] = None
    accelerate: bool | None = None
    compile: bool = False
    draft: Literal["bf16"] | None = None
    workers: Annotated[int | None, Rule(check_whole, 1, "leave it out for one process")] = None
    gpus_per_worker: Annotated[float, Rule(check_at_least, 0)] = 0.0
    ray: str | None = None

    def check(self) -> None:
        if self.eps is not None:
            if not self.eps:
                raise BadInput("`eps` must be distinct radii, at least one, got none; or leave it out")
            check_distinct("eps", self.radii or ())
        if self.workers is None and (self.ray is not None or self.gpus_per_worker):
            raise BadInput("`workers` must be given with `ray` and `gpus_per_worker`: how many shards run at a time?")
        if self.gpus_per_worker > 1 and self.gpus_per_worker != int(self.gpus_per_worker):
            raise BadInput(
                "`gpus_per_worker` must be a whole number, or less than 1 where workers share a GPU, got "
                f"{self.gpus_per_worker:g}"
            )
        if self.certifies:
            self._check_certify()
        if not self.min_norm:
            return
        if self.eot > 1:
            raise BadInput(
                f"`eot` must be 1 with `min_norm`, got {self.eot}: a stochastic model has no decision boundary to "
                "measure a distance to; evaluate it at a radius, or fix its random numbers"
            )
        if self.binarization_test:
            raise BadInput(
                "`binarization_test` must be 0 with `min_norm`: it hides adversarial examples in balls of one radius; "
                "run it at one"
            )

    def _check_certify(self) -> None:
        if self.min_norm:
            raise BadInput(
                "`certify` must be left out with `min_norm`: a proof is about the ball of one radius, and this search "
                "has none; certify at radii, with `eps`"
            )
        if self.eot > 1:
            raise BadInput(
                f"`certify` must be left out with `eot` > 1, got {self.eot}: the logits of a stochastic model have no "
                "bounds; fix its random numbers, or smooth it"
            )

    @property
    def certifies(self) -> bool:
        """Whether examples are also proved robust."""
        return self.certify is not None and self.certify is not False

    @property
    def search_seconds(self) -> float:
        """Seconds per example of the search for a proof; 0 for bounds alone."""
        return SECONDS if self.certify is True else float(self.certify or 0)

    @property
    def first_batch_size(self) -> int:
        """The batch size before one is found."""
        return 128 if self.batch_size == "auto" else self.batch_size

    @property
    def radii(self) -> tuple[float, ...] | None:
        """The radii of the curve, smallest first; None without `eps`."""
        if self.eps is None:
            return None
        from epsball.balls.registry import parse_radius  # imports torch

        return tuple(sorted(parse_radius(eps) if isinstance(eps, str) else float(eps) for eps in self.eps))
