"""A headless Chromium for the tests of pages, or why a test can't have one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),  # no sandbox: tests may run as root
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module", name="chromium")
def chromium_fixture() -> Iterator[Any]:
    """Playwright's browser over the Chromium of SPARRING_CHROMIUM, else the first on the path.

    Absent it skips, or fails where SPARRING_REQUIRE_BROWSER is 1. A module's, not the session's: while it is open no
    other event loop can run in this thread.
    """
    executable = os.environ.get("SPARRING_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if sync_playwright is None or executable is None:
        missing = (
            "playwright is not installed" if sync_playwright is None else "there is no Chromium (SPARRING_CHROMIUM)"
        )
        assert os.environ.get("SPARRING_REQUIRE_BROWSER") != "1", missing
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=QUIET)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, fragment: str = "", dark: bool = False, phone: bool = False) -> Iterator[Any]:
    """A file as a page. On leaving it must have asked nothing of a network and told the console no error."""
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport=PHONE if phone else WIDE, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri() + fragment)
    try:
        yield page
        assert wrong == []
        assert [url for url in asked if not url.startswith((path.as_uri(), "blob:"))] == []
    finally:
        context.close()
