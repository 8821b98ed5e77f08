"""docs/reliability.md names tests that exist, and all of this folder's."""

from __future__ import annotations

import re

from tests.workflow.folder import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_test_that_the_page_names_is_in_the_suite() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 50
    assert PAGE.count("tests/") == len(named)  # no name is written in another form
    for path, test in named:
        source = ROOT / path
        assert source.is_file(), path
        assert f"\ndef {test}(" in source.read_text(encoding="utf-8"), f"{path}::{test}"


def test_every_fault_row_has_a_test_and_every_injection_a_row() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    tables = [row for row in rows if not row.endswith("| test |")]
    assert all(NAMED.search(row) for row in tables)
    known = {test for _, test in NAMED.findall(PAGE)}
    for path in (ROOT / "tests" / "chaos").glob("test_*.py"):
        for test in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE):
            assert test in known or path.name == "test_page.py", f"{path.name}::{test}"
