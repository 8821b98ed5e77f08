"""Our own Markdown, read back: tables with groups, lists, marks; everything else is text."""

import pytest

from microclip.measure import layout, markdown
from microclip.measure.markdown import Heading, Listing, MarkdownTable, Paragraph

TEXT = """# Ledger & co

**Table 2.** Accuracy (%) of A&B
in one paragraph.

| Variant | Cats | Dogs\\|Wolves |
| --- | ---: | :-: |
| *Fixed* | | |
| One | **44.10** ± 0.25 | — |
| Two | <u>43.00</u> | 1 |
| *Shared* | | |
| One | 5 | 6 |

## Notes
1. First, `gamma=1`
   goes on.
2. Second.

— a: no code  \n— b: no data
"""


def only_table() -> MarkdownTable:
    [table] = [block for block in markdown.read(TEXT) if isinstance(block, MarkdownTable)]
    return table


def test_blocks_come_in_order() -> None:
    kinds = [block.kind for block in markdown.read(TEXT)]
    assert kinds == ["heading", "paragraph", "table", "heading", "list", "paragraph", "paragraph"]


def test_headings_and_paragraphs_are_escaped_text() -> None:
    first, second, *_ = markdown.read(TEXT)
    assert first == Heading(1, "Ledger &amp; co")
    assert second == Paragraph(
        "<strong>Table 2.</strong> Accuracy (%) of A&amp;B in one paragraph."
    )


def test_a_list_keeps_its_numbers_and_a_broken_line_is_one_of_its_own() -> None:
    *_, listing, one, two = markdown.read(TEXT)
    assert listing == Listing(True, ("First, <code>gamma=1</code> goes on.", "Second."))
    assert (one.text, two.text) == ("— a: no code", "— b: no data")


def test_a_row_with_a_first_cell_alone_is_the_heading_of_those_below() -> None:
    groups = only_table().groups
    assert [group.heading for group in groups] == ["Fixed", "Shared"]
    assert [[row.cells[0] for row in group.rows] for group in groups] == [["One", "Two"], ["One"]]


def test_cells_keep_their_marks_and_columns_their_side() -> None:
    table = only_table()
    assert table.aligns == ("left", "right", "center")
    assert table.heads == ("Variant", "Cats", "Dogs|Wolves")
    assert table.groups[0].rows[0].cells == (
        "One",
        "<strong>44.10</strong> <small>± 0.25</small>",
        "—",
    )
    assert table.groups[0].rows[1].cells[1] == "<u>43.00</u>"


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("<u onclick=x>no</u>", "&lt;u onclick=x&gt;no&lt;/u&gt;"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("both_templates_x", "both_templates_x"),
        (r"\*plain\* and \<u>", "*plain* and &lt;u&gt;"),
        ("*soft*, **hard**", "<em>soft</em>, <strong>hard</strong>"),
        ("x<sup>2</sup>", "x<sup>2</sup>"),
        ('"quoted"', "&#34;quoted&#34;"),
    ],
)
def test_only_our_own_marks_become_tags(text: str, html: str) -> None:
    assert markdown.inline(text) == html


def test_what_a_table_writes_is_what_is_read() -> None:
    built = layout.Table(
        title="Table 9",
        caption="Accuracy.",
        label="tab:nine",
        source="s",
        corner="Variant",
        columns=(layout.Column("Cats"), layout.Column("A|B")),
        rows=(
            layout.Row("one", (layout.Cell("44.10", "0.25", 1), layout.Cell(hole="no code")), "G"),
            layout.Row("two", (layout.Cell("43.00", "0.10", 2), layout.Cell("1.00")), "G"),
        ),
        notes=("one (A|B): no code",),
    )
    caption, table, note = markdown.read(layout.to_markdown(built))
    assert caption == Paragraph("<strong>Table 9.</strong> Accuracy.")
    assert isinstance(table, MarkdownTable)
    assert table.heads == ("Variant", "Cats", "A|B")
    assert [group.heading for group in table.groups] == ["G"]
    assert table.groups[0].rows[1].cells == ("two", "<u>43.00</u> <small>± 0.10</small>", "1.00")
    assert note == Paragraph("— one (A|B): no code")
