"""Text, JSON, YAML and bytes as people, programs and damaged disks write them, and worse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

SIGNS = (
    *("\ufeff", "\u2028", "\u2029", "\x85", "\x00", "\x1b[2J", "\r\n", "\n", "\n\n", "\t", "\v"),
    *("\u200b", "\u200d", "\u202e", "e\u0301", "é", "ﬁ", "ＡＢ", "🦊", "\U0010ffff", "İ", "ß"),
    *('"', "'", "“", "`", "\\", "%", "{}", "{", "}", "[", "]", "<", "&amp;", "#", "//", "-- "),
    *(
        ",",
        ";",
        ":",
        "|",
        "=",
        "- ",
        "* ",
        "• ",
        "1. ",
        "2) ",
        "(3) ",
        "0 ",
        "n01440764 ",
        "_",
        "__",
    ),
    *(
        "fox",
        "wolf",
        "Fox",
        "crane_",
        "class",
        "name",
        "names:",
        "classes:",
        "null",
        "NaN",
        "1e999",
    ),
    *("9" * 400, "9" * 5000, "²", "١", "-1", "x" * 300),
)
WORDS = st.sampled_from(SIGNS) | st.text(max_size=4)
TEXTS = st.lists(WORDS, max_size=12).map("".join)
LINES = st.lists(TEXTS, max_size=8).map("\n".join)

_DEEP: Any = "bottom"
for _ in range(90):  # just less than `loads` refuses
    _DEEP = [_DEEP]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 12),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 2**63, 1e308, [], {}, _DEEP, ["a", 1], {"text": 3}]),
    TEXTS,
    st.sampled_from(["\ud800", "a\udfffb", "stop", "length", "text", "fox"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS | st.sampled_from(SIGNS), inner, max_size=4)
    ),
    max_leaves=8,
)


class Bomb(str):
    """A text that a test's report names by its beginning alone."""

    def __repr__(self) -> str:
        return f"Bomb of {len(self)} characters: {self[:30]!r}"


_LETTERS = "abcdefghijkl"
_ALIASES = [  # each line is nine times the one before: 9 ** 12 words in 600 bytes
    f"{name}: &{name} [{', '.join([f'*{before}' if before else 'x'] * 9)}]"
    for before, name in zip(("", *_LETTERS), _LETTERS, strict=False)
]
BOMBS = st.sampled_from(
    [
        Bomb(text)
        for text in (
            *("[" * 100_000, '{"a":' * 100_000, "- " * 20_000, "{a: " * 20_000),
            '{"descriptions":' * 5000 + "1" + "}" * 5000,
            *("[" * 900 + "]" * 900, "9" * 100_000, '["' + "a" * 100_000 + '"]', "a," * 50_000),
            "\n".join(_ALIASES),
            *("&a [*a]", "a: &a {b: *a}", "!!python/object/apply:os.system [true]"),
            *("{}", "[]", "", "\ufeff"),
        )
    ]
)


def dumped(values: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    """Values as JSON, with and without escapes."""
    return st.builds(
        lambda value, is_ascii: json.dumps(value, ensure_ascii=is_ascii), values, st.booleans()
    )


def encoded(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Texts as bytes in the encodings that programs write, whole or cut."""
    encodings = st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"))
    return st.builds(lambda text, name: text.encode(name, "replace"), texts, encodings)


@st.composite
def mutated(
    draw: st.DrawFn, seeds: Sequence[bytes], tokens: Sequence[bytes] = (b"\x00", b"\xff" * 8)
) -> bytes:
    """One of the seeds with up to four edits: bytes cut, put in, turned, doubled, the end lost."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        n = draw(st.sampled_from((1, 1, 2, 4, 8, 64, 512)))
        match draw(st.integers(0, 5)):
            case 0:
                data = data[:at] + data[at + n :]
            case 1:
                data = data[:at] + draw(st.sampled_from(tokens)) + data[at:]
            case 2:
                data = data[:at] + draw(st.binary(max_size=8)) + data[at + n :]
            case 3:
                data = data[:at] + data[at : at + n] * 2 + data[at + n :]
            case 4:
                data = data[:at]
            case 5:
                turned = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in data[at : at + 1])
                data = data[:at] + turned + data[at + 1 :]
    return data


def mutated_text(seeds: Sequence[str], tokens: Sequence[str] = SIGNS) -> st.SearchStrategy[str]:
    """One of the seeds with edits between its characters."""
    return mutated(
        [seed.encode() for seed in seeds], [token.encode("utf-8", "replace") for token in tokens]
    ).map(lambda data: data.decode("utf-8", "replace"))
