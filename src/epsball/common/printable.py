"""Text of others, from files, services and libraries, without what a terminal would obey."""

from __future__ import annotations


def printable(text: str, instead: str = " ", *, keep: str = "") -> str:
    """`text` with `instead` in the place of every character that is not printed, but for those of `keep`.

    >>> printable("net\\x1b[31m\\n", "?")
    'net?[31m?'
    """
    return "".join(character if character.isprintable() or character in keep else instead for character in text)
