"""The type of error of a key that was written down."""

from __future__ import annotations

# Set from the prompts, or what would change the form of an answer or who pays for it.
SECRET = "secret"  # type of an error whose input must not be shown
