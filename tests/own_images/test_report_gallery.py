"""The gallery of your own images in a real browser, at phone and desktop size."""

from __future__ import annotations

from pathlib import Path

from tests.browser import DESKTOP, PHONE, Browser
from tests.own_images.folder import N_IMAGES, adapt, place, read

__all__ = ["place"]


def test_the_gallery_filters_sorts_and_shows_attention_maps(browser: Browser, place: Path) -> None:
    assert adapt("--label-first", "4") == 0
    rows = read(place / "adapted" / "predictions.csv")
    changed = sum(row["class"] != row["zero_shot_class"] for row in rows)
    address = (place / "adapted" / "gallery.html").as_uri()
    for size in (PHONE, DESKTOP):
        with browser.visit(address, size) as seen:
            cards = seen.page.locator(".cards > li:visible")
            assert cards.count() == N_IMAGES
            assert seen.overflow_px() <= 0
            seen.page.get_by_text("unsure", exact=True).click()
            assert cards.count() == 4
            seen.page.get_by_text("differs from zero-shot", exact=True).click()
            assert cards.count() == changed
            seen.page.get_by_text("all", exact=True).click()
            seen.page.get_by_label("Order").select_option("unsure")
            sure = [float(card.get_attribute("data-sure")) for card in cards.all()]
            assert sure == sorted(sure)
            seen.page.get_by_text("[FG]", exact=True).click()
            assert seen.page.locator("canvas:visible").count() == N_IMAGES
            assert seen.page.get_by_text("Attention of [FG] to the patches").is_visible()
            assert seen.errors == []
            assert seen.outside(("file", "data")) == []
            assert seen.overflow_px() <= 0


def test_the_gallery_of_zero_shot_has_no_attention_maps(browser: Browser, place: Path) -> None:
    assert adapt("--method", "cupl") == 0
    with browser.visit((place / "adapted" / "gallery.html").as_uri(), PHONE) as seen:
        assert seen.page.locator(".cards > li:visible").count() == N_IMAGES
        assert seen.page.locator("canvas").count() == 0
        assert seen.page.get_by_text("[FG]", exact=True).count() == 0
        assert seen.errors == []
        assert seen.overflow_px() <= 0
