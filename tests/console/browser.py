"""Chromium of the system, driven by Playwright."""

import os
from pathlib import Path

from playwright.sync_api import Browser, Playwright

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))


def launch(playwright: Playwright) -> Browser:
    """Starts the browser."""
    # Its sandbox needs another user than root.
    return playwright.chromium.launch(
        executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
    )
