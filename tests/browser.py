"""A real browser for tests: Debian's chromium, driven by playwright; nothing is downloaded.

A test takes the fixture `browser` and opens what it wants to see:

    def test_the_page_opens(browser: Browser) -> None:
        with browser.visit("http://127.0.0.1:5000", PHONE) as seen:
            seen.page.get_by_role("button", name="Compare").click()
            assert seen.errors == []                 # console errors, uncaught exceptions
            assert seen.outside(("file", "data")) == []  # requests by other schemes
            seen.page.screenshot(path="page.png", full_page=True)

Where there is no chromium the test is skipped, and says how to install it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

PHONE = (390, 844)
DESKTOP = (1280, 900)
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Seen:
    """An open page, and what happened in it so far."""

    page: Any  # playwright.sync_api.Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def outside(self, schemes: tuple[str, ...] = ("file", "data", "blob")) -> list[str]:
        """Return the requests by other schemes than these."""
        return [url for url in self.requests if url.partition(":")[0] not in schemes]

    def overflow_px(self) -> int:
        """Return by how much the page is wider than the window."""
        root = "document.documentElement"
        return int(self.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))


class Browser:
    """One chromium for all tests of a process; every visit is a profile of its own."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium

    @contextlib.contextmanager
    def visit(
        self, url: str, size: tuple[int, int] = DESKTOP, *, wait: str = "load", **context: Any
    ) -> Iterator[Seen]:
        """Open an address at a window's size.

        `wait` is when it counts as open: "load", "domcontentloaded" or "networkidle". `context`
        goes to playwright's `new_context`, e.g. color_scheme="dark", java_script_enabled=False.
        """
        width, height = size
        opened = self._chromium.new_context(
            viewport={"width": width, "height": height}, **{"reduced_motion": "reduce", **context}
        )
        try:
            seen = Seen(opened.new_page())
            seen.page.on("request", lambda request: seen.requests.append(request.url))
            seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
            seen.page.on(
                "console",
                lambda said: seen.errors.append(said.text) if said.type == "error" else None,
            )
            seen.page.goto(url, wait_until=wait)
            yield seen
        finally:
            opened.close()


def executable() -> str | None:
    """Return chromium's path, MICROCLIP_CHROMIUM first; None if there is none."""
    named = os.environ.get("MICROCLIP_CHROMIUM")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return the browser; skip where chromium or playwright is not installed."""
    path = executable()
    if path is None:
        pytest.skip("no chromium; Debian: apt-get install chromium, else set MICROCLIP_CHROMIUM")
    api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright; pip install -e '.[dev]'"
    )
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--hide-scrollbars"],
        )
        yield Browser(chromium)
        chromium.close()
