"""A browser without a window, which takes the pictures."""

from __future__ import annotations

import tempfile
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--hide-scrollbars",
)
_SECONDS = 60.0
_COLOURS = 128


class Browser:
    """A Chromium with a profile of its own. Use it as a context manager.

    Args:
        chromium: The program.
        driver: Its `chromedriver`.
    """

    def __init__(self, chromium: Path, driver: Path) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="noukai-screenshots-")
        options = Options()
        options.binary_location = str(chromium)
        for flag in (*_FLAGS, f"--user-data-dir={self._profile.name}"):
            options.add_argument(flag)
        self._driver = webdriver.Chrome(options=options, service=Service(str(driver)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._driver.quit()
        self._profile.cleanup()

    def take(
        self,
        url: str,
        picture: Path,
        *texts: str,
        width: int = 1400,
        height: int = 900,
        keys: str = "",
        click: str = "",
        lines: int | None = None,
    ) -> None:
        """Take a picture of a page.

        Args:
            url: The page.
            picture: The file.
            *texts: What the page shows when it is complete.
            width: The width of the window.
            height: Its height.
            keys: Keys to press before the picture is taken.
            click: The label of a button to press before the picture is taken.
            lines: How many lines of pixels the picture keeps; by default all.
        """
        self._driver.set_window_size(width, height)
        self._driver.get(url)
        waiting = WebDriverWait(self._driver, _SECONDS)
        for text in texts:
            waiting.until(lambda driver, text=text: text in driver.find_element(By.TAG_NAME, "body").text)
        if keys:
            self._driver.find_element(By.TAG_NAME, "body").send_keys(keys)
        if click:
            self._driver.find_element(By.CSS_SELECTOR, f"[aria-label='{click}']").click()
        self._driver.execute_async_script("document.fonts.ready.then(() => setTimeout(arguments[0], 1500))")
        # A page has few colours, and a picture with a palette is a third as large.
        with Image.open(BytesIO(self._driver.get_screenshot_as_png())) as taken:
            kept = taken.crop((0, 0, taken.width, lines or taken.height))
            kept.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)
