"""A small set of descriptions with every defect that the doctor knows, each once or twice."""

from __future__ import annotations

import json
from pathlib import Path

CLASSES = (
    "red_disc",
    "green square",
    "Blue Bar",
    "grey ring",
    "empty box",
    "lost cone",
    "left arm",
    "right arm",
)

LONG = "A blue bar is long" + ", and then it goes on to be longer" * 12 + "."

SHARED = "It has a joint in the middle."

PAIRS: list[tuple[str, list[str]]] = [
    (
        "red disc",
        [
            "A red disc is round and flat.",  # 1
            ".",  # 2 stub
            "See a red disc at https://www.",  # 3 url
            "I'm sorry, I cannot say what a red disc is.",  # 4 refused
            "Un disque red disc est rond et plat dans la boîte.",  # 5 language
            "A red disc is round and flat.",  # 6 repeat
            "a red disc is ROUND, and flat",  # 7 same-words
            "A photo of a red disc.",  # 8 name-alone
            "\n\n- A **red disc** has no corner. ",  # 9 untidy
            "It has one colour, like blood or roses.",  # 10 unnamed
        ],
    ),
    ("green square", ["A green square has four sides of the same length and four corners."]),
    ("green square", ["A green square is as wide as it is high, and as green as young grass."]),
    ("blue-bar", [LONG, "A blue bar has two short ends and is blue all over."]),
    ("grey ring", ["A grey ring has a hole in it."]),
    ("empty box", []),
    ("left arm", ["A left arm is a grey rod that ends in a hand.", SHARED]),
    ("right arm", ["A right arm is a grey rod that ends in a hand.", SHARED]),
    ("moon", ["The moon is far away from here."]),
]


def text() -> str:
    """Text of the file; one key appears twice, which a mapping cannot express."""
    lines = [f"{json.dumps(key)}: {json.dumps(own, ensure_ascii=False)}" for key, own in PAIRS]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(folder: Path) -> Path:
    """Write the file to `path`."""
    path = folder / "shapes.json"
    path.write_text(text(), encoding="utf-8")
    return path
