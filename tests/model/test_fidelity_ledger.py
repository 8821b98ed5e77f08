"""Every departure that a docstring names is explained in the ledger."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_departure_has_its_paragraph() -> None:
    ledger = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^## ([a-z-]+)$", ledger, flags=re.MULTILINE))
    assert set(re.findall(r"\(#([a-z-]+)\)", ledger)) <= headings
    for path in sorted((ROOT / "microclip").rglob("*.py")):
        named = re.findall(r"fidelity\.md#([a-z-]+)", path.read_text(encoding="utf-8"))
        assert set(named) <= headings, path
