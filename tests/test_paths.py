"""Paths in messages can be pasted into a shell, whatever is in their names."""

import os
import subprocess
from pathlib import Path

import pytest

from microclip import paths


@pytest.mark.parametrize(
    "name",
    [
        *("plain.jpg", "two  blanks", "it's", 'say "so"', "a#b", "50%", "what?=1", "{y}", "$HOME"),
        *("a`id`;b&c", "日本 ü", "back\\slash", "line\nbreak and 'quote'", "tab\there"),
        os.fsdecode(b"latin-\xe9 'x'"),
    ],
)
def test_a_quoted_path_is_the_same_path_for_a_shell(name: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"printf %s {paths.quoted(Path(name))}"], capture_output=True, check=True
    )
    assert done.stdout == os.fsencode(name)


def test_a_plain_path_is_printed_as_it_is() -> None:
    assert paths.quoted(Path("out/photos-1.adapted")) == "out/photos-1.adapted"


def test_a_quoted_path_is_one_line() -> None:
    assert "\n" not in paths.quoted("a\nb")
