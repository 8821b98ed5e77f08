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
RELIABILITY = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
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
        or (name and f"\ndef {name}(" not in (ROOT / file).read_text(encoding="utf-8"))
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


def test_every_fault_has_a_row_with_a_test_and_every_injection_is_in_a_row() -> None:
    known = [name for _, name in NAMED.findall(RELIABILITY)]
    assert RELIABILITY.count("tests/") == len(known)  # no name is written in another form
    assert len(list(filter(None, known))) == len(known) > 50  # and each is that of one test
    rows = [line for line in RELIABILITY.splitlines() if line.startswith("| ")]
    faults = [row for row in rows if "---" not in row and not row.endswith("| test |")]
    assert all(NAMED.search(row) for row in faults)
    for path in (ROOT / "tests/chaos").glob("test_*.py"):
        own = set(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE))
        assert own <= set(known), path.name
