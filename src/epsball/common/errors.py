"""The errors a user can cause: each names the argument, the rule, the value and the remedy."""

from __future__ import annotations


class BadInput(ValueError):
    """An argument breaks a rule of its function."""
