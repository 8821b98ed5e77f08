"""Every test that a page names exists, so that a page cannot promise one that was renamed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from microclip.methods.base import known_methods
from microclip.settings import load_method_file

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
METHODS = (ROOT / "docs/methods.md").read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    """The sections of docs/methods.md by heading."""
    _, *parts = re.split(r"^## ", METHODS, flags=re.MULTILINE)
    return {part.split("\n", 1)[0]: part for part in parts}


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    found = NAMED.findall((ROOT / page).read_text(encoding="utf-8"))
    missing = [
        f"{file}::{name}"
        for file, name in found
        if not (ROOT / file).is_file()
        or (name and f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8"))
    ]
    assert not missing


def test_every_method_of_the_paper_has_its_checks() -> None:
    own = set(known_methods()) - {"linear_probe", "oracle"}  # bounds, from no paper
    titles = {load_method_file(name).title for name in own}
    assert sections().keys() == {*titles, "Descriptions"}
    for heading, text in sections().items():
        rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
        assert len(rows) >= 8, heading
        assert all(NAMED.search(row) for row in rows), heading
        assert "Not settled:" in text, heading
        assert "\nDefects" in text, heading


def test_its_links_lead_somewhere_and_other_pages_link_to_it() -> None:
    headings = re.findall(
        r"^## ([a-z-]+)$", (ROOT / "docs/fidelity.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    for file, anchor in re.findall(r"\]\(([^)#]+)(?:#([^)]*))?\)", METHODS):
        assert (ROOT / "docs" / file).is_file(), file
        assert not anchor or anchor in headings, anchor
    for page in ("README.md", "docs/fidelity.md", "docs/add-a-method.md"):
        assert "methods.md" in (ROOT / page).read_text(encoding="utf-8"), page
