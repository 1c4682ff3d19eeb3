"""report.html in a real browser: it asks for nothing and fits narrow and wide windows."""

import json
import os
from pathlib import Path

import pytest

from analysis import curves
from tests.browser import BROWSER, Tab, browser
from tests.made_up_runs import example

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (Debian: chromium)")


MEASURE = """(() => {
  const page = document.documentElement;
  const wide = [...document.querySelectorAll('body *')].filter(e => !e.parentElement.closest('.scroll')
    && e.getBoundingClientRect().right > page.clientWidth + 1).map(e => e.outerHTML.slice(0, 80));
  const hidden = [...document.images].filter(i => !i.complete || !i.naturalWidth).length;
  return JSON.stringify([page.scrollWidth - page.clientWidth, document.images.length, hidden, wide]);
})()"""


def test_report_asks_for_nothing_and_fits(tmp_path: Path) -> None:
    example(tmp_path / "runs")
    assert curves.main([f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'figures'}"]) == 0
    report = tmp_path / "figures" / "sweep" / "report.html"
    with browser(tmp_path / "profile") as tab:
        tab.ask("Network.enable")
        tab.ask("Page.enable")
        tab.ask("Page.navigate", url=report.as_uri())
        tab.wait("Page.loadEventFired")
        for width in (1280, 400):
            tab.ask(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
            )
            measured = tab.ask("Runtime.evaluate", expression=MEASURE)["result"]["value"]
            beyond, images, hidden, wide = json.loads(measured)
            assert (beyond, wide) == (0, [])
            assert images >= 4
            assert hidden == 0
            if folder := os.environ.get("SCREENSHOTS"):
                screenshot(tab, Path(folder) / f"report-{width}.png")
    asked = {e["params"]["request"]["url"] for e in tab.events if e.get("method") == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {report.as_uri()}


def screenshot(tab: Tab, path: Path) -> None:
    """The whole page as PNG."""
    import base64

    shot = tab.ask("Page.captureScreenshot", captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(shot["data"]))
