"""A headless Chromium for tests, and a page that is open in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opskip_compile.report.page import render
from tests.helpers import pages


def _install() -> str:
    """Install Chromium where a test run asks for it; the reason if it can't be."""
    if not os.environ.get("OPSKIP_TEST_INSTALL"):
        return "OPSKIP_TEST_INSTALL is not set"
    if not Path("/etc/debian_version").exists() or not shutil.which("apt-get") or os.getuid() != 0:
        return "installing needs root on a Debian"
    command = "apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver"
    try:
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "apt-get took more than five minutes"
    return done.stderr.strip()[-200:] if done.returncode else ""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        why = _install()
        if why or not shutil.which("chromium") or not shutil.which("chromedriver"):
            pytest.skip(f"chromium and chromedriver are not installed: {why or 'the packages did not bring them'}")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument("--window-size=1440,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=service.Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Page:
    """An open page, and what a test asks it."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver, self.path = driver, path

    def open(self, diff: dict[str, Any] | None = None, hash: str = "") -> Page:
        if diff is not None:
            self.path.write_text(render(diff), encoding="utf-8")
        self.driver.get("about:blank")
        self.driver.get(self.path.as_uri() + ("#" + hash if hash else ""))
        return self

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script("return " + code, *arguments)

    def text(self, selector: str) -> str:
        """The text that is shown."""
        return str(self.js("document.querySelector(arguments[0]).innerText", selector))

    def count(self, selector: str) -> int:
        return int(self.js("document.querySelectorAll(arguments[0]).length", selector))

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def cell(self, name: str) -> Any:
        return self.find(f'#strip [data-op="{name}"]')

    def shown(self) -> str:
        """The name of the chosen operator."""
        return self.text("#head h2 code")

    def keys(self, keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(keys)

    def search(self, words: str) -> None:
        """Type into the search field and wait for its hits."""
        field = self.find("#search")
        field.clear()
        field.send_keys(words)
        self.until(lambda: self.js("state.q") == words and self.count("#hits p") > 0)

    def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < end, "waited ten seconds"
            time.sleep(0.02)

    def statuses(self) -> dict[str, int]:
        """How many lines of each status the chosen operator shows."""
        found = {status: self.count(f"#table .line.{status}") for status in pages.STATUSES}
        return {status: count for status, count in found.items() if count}

    def pairs(self) -> list[tuple[str, str]]:
        """Code before and after of every shown line."""
        lines = "[...document.querySelectorAll('#table .line:not(.top)')]"
        return [
            tuple(pair)
            for pair in self.js(lines + ".map(l => ['.old', '.new'].map(s => l.querySelector(s).textContent))")
        ]


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Page]:
    """Ends with a look at the console: no test may leave an error there."""
    browser.get_log("browser")
    yield Page(browser, tmp_path / "diff.html")
    assert browser.get_log("browser") == []
