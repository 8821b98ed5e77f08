"""Table 10 from small copies of the public datasets, each in its true layout, and from cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from microclip import settings
from microclip.data import passport
from microclip.measure import tables, typesetting
from microclip.measure.typesetting import Table
from microclip.settings import reports
from tests.data import public_project
from tests.data.public_project import COPIES, ROOT
from tests.measure.reports import plan

PAPER = tuple(settings.read_yaml(ROOT / "config/paper.yaml")["datasets"])


def table10(names: tuple[str, ...]) -> Table:
    titles = {name: settings.load_dataset(name).title for name in names}
    selection = plan("table10", titles).tables["table10"]
    return tables.count_table(reports.load_table("table10"), titles, selection, "paper")


def cells(table: Table, title: str) -> list[str]:
    [row] = [row for row in table.rows if row.label == title]
    return [cell.text for cell in row.cells]


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_in_its_publishers_layout_is_counted(
    name: str, own_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetch, store, examine and tabulate: classes in label order, sizes by the rule."""
    public_project.lay_out(own_project, name, monkeypatch=monkeypatch)
    for file in ("tables/table10.yaml", "published/table10.csv"):
        (own_project / "config" / file).parent.mkdir(exist_ok=True)
        (own_project / "config" / file).write_bytes((ROOT / "config" / file).read_bytes())
    public_project.bring(name)
    copy, declared = public_project.copy_of(name), settings.load_dataset(name)
    found = passport.check(declared)
    assert found.classes == tuple(copy.CLASSES)
    if "paper" in copy.SPLITS:
        assert (found.train, found.test) == copy.SPLITS["paper"]
    row = cells(table10((name,)), declared.title)
    assert row[2::2] == [str(len(copy.CLASSES)), str(found.train), str(found.test)]
    assert all(text.startswith("≠ ") for text in row[3::2])  # a copy is smaller than the paper's
    assert found.expected is not None
    assert len(found.differences) == 3 - [found.expected.train, found.expected.test].count(None)
    notes = table10((name,)).notes
    assert all(f"{declared.title}: {line}" in notes for line in found.differences)


@pytest.fixture
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """The table of the shipped cards where nothing was fetched."""
    monkeypatch.setenv("MICROCLIP_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return table10(PAPER)


def test_a_dataset_that_was_not_fetched_shows_its_cards_counts_with_their_source(
    declared: Table,
) -> None:
    for row in declared.rows:
        ours = [cell.text for cell in row.cells[2::2]]
        assert all(text.endswith("*") for text in ours if text), row.label
        assert row.cells[2].text, row.label
    [sources] = [note for note in declared.notes if note.startswith("* declared by")]
    assert all(f"{settings.load_dataset(name).title} (" in sources for name in PAPER)


def test_the_papers_slips_are_marked_and_explained(declared: Table) -> None:
    assert cells(declared, "FGVC")[2:4] == ["100*", "≠ 102"]
    assert cells(declared, "Caltech101")[4:] == ["3000*", "≠ 4403", "5242*", "≠ 6645"]
    notes = "\n".join(declared.notes)
    assert "Table 10 prints 102 classes; the release has 100 variants" in notes
    assert "at least 2,806 must be in both sets" in notes
    assert "are CoOp's split, not VISSL's" in notes
    assert "Birdsnap: " in notes
    assert "\n| Caltech101 " in typesetting.to_markdown(declared)


def test_every_dataset_of_the_paper_has_a_copy() -> None:
    assert set(COPIES) == set(PAPER)
