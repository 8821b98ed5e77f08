"""Names of files and classes cannot become elements of a page, whatever they hold."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from microclip.measure.typesetting import template
from microclip.own_images.report import Card
from tests.browser import Browser
from tests.fuzz.judge import judged
from tests.fuzz.strategies import SIGNS

HOSTILE = (
    *('"><script>alert(1)</script>', "' onerror=alert(1) x='", "</title><img src=x onerror=hit()>"),
    *(
        "--><svg onload=hit()>",
        "</script><script>hit()</script>",
        "{{ 7 * 7 }}",
        "javascript:hit()",
    ),
    *("&lt;b&gt;", "<!--", "<![CDATA[", "</li></ul></body>", "`${hit()}`", "<b>fox</b>"),
)
NAMES = st.lists(st.sampled_from(HOSTILE + SIGNS) | st.text(max_size=4), max_size=4).map("".join)


class Structure(HTMLParser):
    """The elements of a page with the names of their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.values: list[str | None] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.values += [value for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def page(title: str, file: str, name: str, other: str, reason: str) -> str:
    """The gallery of own images, with these names on one card."""
    card = Card(file, name, other, 0.5, "unsure", ((name, 0.5), (other, 0.25)), "data:image/png,")
    return template("own_gallery.html").render(
        title=title,
        cards=[card],
        n_images=1,
        n_classes=2,
        made_by=reason,
        is_bad=False,
        verdict=reason,
        reasons=reason,
        classes=[name, other],
        grid_columns=0,
    )


PLAIN = Structure(page("title", "file", "name", "other", "reason"))


@given(NAMES, NAMES, NAMES, NAMES, NAMES)
def test_no_name_becomes_an_element_or_an_attribute(
    title: str, file: str, name: str, other: str, reason: str
) -> None:
    with judged("pages"):
        found = Structure(page(title, file, name, f"{other} 2", reason))
        assert found.elements == PLAIN.elements
        assert (
            file.replace("\r\n", "\n").replace("\r", "\n")
            in [value.replace("\r\n", "\n").replace("\r", "\n") for value in found.values if value]
            or not file
        )


def test_a_browser_shows_hostile_names_and_runs_none(tmp_path: Path, browser: Browser) -> None:
    path = tmp_path / "gallery.html"
    names = "".join(HOSTILE)
    path.write_text(page(names, names, names, "owl", names), encoding="utf-8")
    with browser.visit(path.as_uri()) as seen:
        assert seen.errors == []
        assert seen.outside() == []
        assert seen.page.inner_text("h1") == " ".join(names.split())
        assert seen.page.locator("svg[onload], b, li img[src=x]").count() == 0
