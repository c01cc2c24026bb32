"""What the page asks: every question holds all that its answer depends on. Types here, rules where they are used."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from epsball.serve.images import MOST_BYTES

MOST_POINTS = 201
MOST_WHOLE = (1 << 63) - 1
Whole = Annotated[int, Field(ge=-MOST_WHOLE, le=MOST_WHOLE)]
"""A whole number that a tensor holds."""


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

    row: Whole | None = None
    png: str | None = Field(default=None, max_length=2 * MOST_BYTES)
    label: Whole | None = None
    norm: str = "linf"
    eps: float = 0.1
    attack: str = "fgsm"
    target: Whole | None = None
    made_on: Whole | None = None
    iterate: Whole | None = None
    seed: Whole = 0
    points: Whole = 0
    reach: float = 1.0


class File(Question):
    """The adversarial image of model number `of`, as a PNG file."""

    of: Whole = 0


class Looking(BaseModel):
    """A PNG file in base64, and the `question` that it answered: is it still misclassified?"""

    model_config = ConfigDict(extra="forbid", strict=True)

    file: str = Field(max_length=2 * MOST_BYTES)
    question: Question
