"""Class names in prompt templates."""

from __future__ import annotations

from collections.abc import Sequence


def readable(class_name: str) -> str:
    """Return a class name as it reads in a sentence: underscores become spaces."""
    return " ".join(class_name.replace("_", " ").split())


def fill(templates: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """Return the prompts of every class: each template with the readable name in its `{}`.

    Raises:
        ValueError: a template without exactly one `{}`.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"template {template!r} must hold {{}} once, got {template.count('{}')}; "
                "correct `templates` of the dataset"
            )
    return [[t.replace("{}", readable(name)) for t in templates] for name in class_names]
