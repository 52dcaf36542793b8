"""Takes the screenshots of docs/report.md: `python docs/screenshots.py DEMO`, where DEMO is `u2s demo`'s folder.

The demo's photographs are public domain or CC0 (scikit-image's) or drawn on the spot.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Page

from u2s_datasets.report.folder import RunFolder
from u2s_datasets.report.originals import Originals
from u2s_datasets.report.page import write_page
from u2s_datasets.report.server import ReviewServer

IMAGES = Path(__file__).parent / "images"
READY = "!!document.querySelector('.card') && !document.querySelector('[aria-busy]')"
PEOPLE = "document.querySelector('[data-group=people]').click()"


def take(name: str, url: str, script: str = "", keys: str = "", **page: Any) -> None:
    """One screenshot after some clicks and keys."""
    with tempfile.TemporaryDirectory() as profile, Page(profile, **page) as tab:
        tab.open(url)
        tab.wait(READY)
        for step in (script, READY):
            tab.eval(step or "0")
        tab.wait(READY)
        for key in keys:
            tab.press(key)
        tab.eval("new Promise(done => setTimeout(done, 300))")
        tab.screenshot(IMAGES / name, "jpeg", quality=82)


def main(demo: Path) -> None:
    """Report and review of the demo's run, by day, by night and on a phone."""
    IMAGES.mkdir(exist_ok=True)
    run = RunFolder(demo / "safe")
    originals = Originals(run, str(demo / "photographs"))
    with tempfile.TemporaryDirectory() as folder:
        write_page(run, originals, Path(folder) / "report.html")
        report = (Path(folder) / "report.html").as_uri()
        take("report.jpg", report, height=1000)
        take("report-row.jpg", report, PEOPLE, "jj", height=820)
        # The second photograph of a person, under the thumb.
        take("report-phone.jpg", report, PEOPLE, "jj", width=390, height=844, phone=True)
    with ReviewServer(run, originals) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        take("review-dark.jpg", server.url, PEOPLE, "jjv", dark=True, height=820)
        server.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
