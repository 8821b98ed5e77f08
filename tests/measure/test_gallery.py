"""The gallery page of a run."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microclip.data.loading import spread
from microclip.measure import gallery
from microclip.measure.trained_runs import FusedRun, read
from tests.fixtures.project import CLASSES, N_TEST, draw
from tests.measure.tiny_run import CLIP, MICROCLIP, finished_runs

N_IMAGES = N_TEST * len(CLASSES)
# What a reader does: wrong images alone, least confident first, with the attention over them.
READER = """<script>
for (const [name, value] of [["which", "wrong"], ["overlay", "fg"]]) {
  const radio = document.querySelector(`[name=${name}][value=${value}]`);
  radio.checked = true;
  radio.dispatchEvent(new Event("change", { bubbles: true }));
}
const order = document.querySelector("[name=order]");
order.value = "unsure";
order.dispatchEvent(new Event("change", { bubbles: true }));
const pen = document.querySelector("li.wrong canvas").getContext("2d");
document.title = [...pen.getImageData(0, 0, 1, 1).data].join(" ");
</script></body>"""


@pytest.fixture(scope="module", autouse=True)
def workplace(project_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with finished_runs(project_source, tmp_path_factory.mktemp("gallery")) as folder:
        yield folder


class Cards(HTMLParser):
    """Collects the cards of a page: their attributes, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cards: list[dict[str, str | None]] = []
        self.canvases: list[dict[str, str | None]] = []
        self.pictures: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "li" and "data-sure" in found:
            self.cards.append(found)
        if tag == "canvas":
            self.canvases.append(found)
        if tag == "img":
            self.pictures.append(str(found["src"]))


def smallest_side() -> int:
    """The least side of all test images, px."""
    images = (draw(label, n, seed=1) for label in range(len(CLASSES)) for n in range(N_TEST))
    return min(min(image.size) for image in images)


def test_every_test_image_is_a_card_with_prediction_maps_and_picture() -> None:
    target = gallery.write(MICROCLIP)
    assert target == MICROCLIP / "gallery.html"
    found = Cards(target.read_text())
    tested = read(MICROCLIP)
    assert [card["class"] == "right" for card in found.cards] == list(tested.predictions["correct"])
    shares = [float(str(card["data-sure"])) for card in found.cards]
    assert shares == pytest.approx(tested.predictions["confidence"].tolist(), abs=1e-5)
    assert len(found.cards) == len(found.canvases) == len(found.pictures) == N_IMAGES
    for canvas in found.canvases:
        for kind, levels in (
            ("data-fg", "[0-9a-f]"),
            ("data-cls", "[0-9a-f]"),
            ("data-mask", "[01]"),
        ):
            assert re.fullmatch(levels + "{16}", str(canvas[kind]))
    data = base64.b64decode(found.pictures[0].partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (smallest_side(), smallest_side())


def test_maps_have_sixteen_levels_from_least_to_greatest() -> None:
    run = FusedRun(read(MICROCLIP))
    ((top, look),) = gallery._seen(run, [3])
    assert "0" in look.local_map
    assert "f" in look.local_map
    with_attention = run.after.fusion(run.views([3])).attention[0, :-1]
    assert look.local_map.index("f") == int(with_attention.argmax())
    shares = [share for _, share in top]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)  # three classes in all
    assert top[0][0] == run.tested.class_of("prediction", 3)


def test_a_run_without_tokens_has_only_pictures_and_confidence() -> None:
    page = gallery.write(CLIP).read_text()
    found = Cards(page)
    assert len(found.cards) == len(found.pictures) == N_IMAGES
    assert not found.canvases
    assert "Overlay" not in page


def test_the_page_requests_nothing_and_is_the_same_each_time() -> None:
    first = gallery.write(MICROCLIP).read_bytes()
    assert gallery.write(MICROCLIP).read_bytes() == first
    text = first.decode()
    assert not re.search(r"https?://|url\(|@import|<link (?!rel=\"icon\" href=\"data:)", text)
    assert "default-src 'none'" in text
    assert all(address.startswith("data:image/") for address in Cards(text).pictures)


def test_names_are_escaped() -> None:
    bad = '<script>alert("x")</script>'
    page = gallery.page(replace(read(MICROCLIP), class_names=(bad, "a & b", "c' \"d")))
    assert bad not in page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in page
    assert "a &amp; b" in page
    assert {card["data-class"] for card in Cards(page).cards} == {bad, "a & b", "c' \"d"}


def test_a_large_test_set_is_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(12, 12) == list(range(12))
    assert len(spread(8041, gallery.MAX_IMAGES)) == 731  # every 11th
    monkeypatch.setattr(gallery, "MAX_IMAGES", 5)
    page = gallery.page(read(MICROCLIP))
    assert len(Cards(page).cards) == 4
    assert "This page shows 4 of them" in page


def test_pictures_shrink_until_they_fit() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    large, small = (gallery.encoded([noise] * 4, budget) for budget in (10**6, 20_000))
    assert sum(map(len, small)) <= 20_000 < sum(map(len, large))
    assert len(gallery.encoded([noise], 1)) == 1  # nothing is left out


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_a_browser_filters_sorts_and_paints(tmp_path: Path) -> None:
    target = tmp_path / "gallery.html"
    target.write_text(gallery.page(read(MICROCLIP)).replace("</body>", READER))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", profile, "--dump-dom"]
    done = subprocess.run(
        [*command, target.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = Cards(done.stdout)
    assert [card["class"] for card in found.cards if "hidden" not in card] == ["wrong"] * sum(
        card["class"] == "wrong" for card in found.cards
    )
    shares = [float(str(card["data-sure"])) for card in found.cards]
    assert shares == sorted(shares)
    n_wrong = sum(card["class"] == "wrong" for card in found.cards)
    assert f"{n_wrong} of {N_IMAGES} images" in done.stdout
    assert not any("hidden" in canvas for canvas in found.canvases)
    title = re.search(r"<title>(\d+) (\d+) (\d+) 255</title>", done.stdout)
    assert title is not None  # a pixel of viridis, drawn on an opaque canvas
