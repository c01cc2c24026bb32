"""A radius as text."""

from epsball.common.errors import BadInput


def parse_radius(text: str) -> float:
    """A radius written as a number or a fraction.

    >>> parse_radius("8/255")
    0.03137254901960784
    """
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError) as error:
        raise BadInput(f"`eps` must be a number or a fraction such as 8/255, got {text!r}") from error
