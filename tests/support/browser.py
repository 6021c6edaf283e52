"""A browser without a window, for tests that look at what a page draws.

Playwright drives it. It is Chromium, Chrome or Edge: what CHROMIUM names, what is on the PATH, or
what `playwright install chromium` has downloaded, in this order.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_NONE = (
    "no browser: install Chromium (apt install chromium, or playwright install chromium), or set "
    "CHROMIUM to its path"
)


@contextmanager
def open_browser() -> Iterator["Browser"]:
    """The browser; skips the test, saying what to install, where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api",
        reason="no Playwright: pip install -e '.[browser]' -c constraints.txt",
    )
    with playwright.sync_playwright() as driver:
        path = _installed() or driver.chromium.executable_path
        if not Path(path).exists():
            pytest.skip(_NONE)
        browser = driver.chromium.launch(executable_path=path)
        try:
            yield browser
        finally:
            browser.close()


def _installed() -> str | None:
    if named := os.environ.get("CHROMIUM"):
        assert shutil.which(named), f"CHROMIUM={named}: no such program"
        return shutil.which(named)
    return next(filter(None, map(shutil.which, _NAMES)), None)
