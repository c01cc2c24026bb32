"""What the page asks: every question holds all that its answer depends on. Types here, rules where they are used."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from epsball.serve.images import MOST_BYTES

MOST_POINTS = 201


class Question(BaseModel):
    """An image, a ball around it, and an attack in it.

    The image is row `row` of the data, or `png`, a PNG file in base64 with the models' size and colours, as
    /api/upload answers. `label` is the class that the attack leaves; where there is none it is the data's, or, for
    an uploaded image, each model's prediction. `attack` is a short form as on the command line, `target` a class to
    be reached. With `made_on` one model's adversarial image is shown to all models, else each gets its own.
    `iterate` shows that iterate of the attack (0 is its start) without a stop at the first success. `points` > 0
    asks for the logits at so many points of the line through image and adversarial image, from -`reach` to `reach`
    in the ball's norm.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    row: int | None = None
    png: str | None = Field(default=None, max_length=2 * MOST_BYTES)
    label: int | None = None
    norm: str = "linf"
    eps: float = 0.1
    attack: str = "fgsm"
    target: int | None = None
    made_on: int | None = None
    iterate: int | None = None
    seed: int = 0
    points: int = 0
    reach: float = 1.0


class File(Question):
    """The adversarial image of model number `of`, as a PNG file."""

    of: int = 0


class Looking(BaseModel):
    """A PNG file in base64, and the `question` that it answered: is it still misclassified?"""

    model_config = ConfigDict(extra="forbid", strict=True)

    file: str = Field(max_length=2 * MOST_BYTES)
    question: Question
