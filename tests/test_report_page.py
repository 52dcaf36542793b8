"""The page in headless Chromium: what it shows, does, and never does."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser import MISSING, Page, find_chromium
from report_runs import EVIL, large_run, small_run

from u2s_datasets.report.decisions import DECISIONS_FILE, Decision, read_decisions
from u2s_datasets.report.folder import RunFolder
from u2s_datasets.report.originals import Originals
from u2s_datasets.report.page import write_page
from u2s_datasets.report.server import ReviewServer

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason=MISSING),
]


class Threads(ThreadingHTTPServer):
    block_on_close = (
        False  # Chromium opens a connection for a frame before it refuses it, and leaves it silent
    )


READY = "!!document.querySelector('.card, .nothing') && !document.querySelector('[aria-busy]')"
TITLES = "[...document.querySelectorAll('.card h3')].map(h => h.textContent)"
FOCUSED = "document.activeElement.closest('.card')?.querySelector('h3').textContent ?? null"


def written(run, originals, out):
    folder = RunFolder(run)
    write_page(folder, Originals(folder, str(originals)) if originals else None, out)
    return out.as_uri()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def url(small, tmp_path_factory):
    return written(*small, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    return written(*large_run(folder / "of", 5000), folder / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser, url):
    browser.open(url)
    browser.wait(READY)
    return browser


def titles(page):
    return page.eval(TITLES)


def choose(page, name, value):
    page.eval(
        f"{{const e = document.getElementById({name!r}); e.value = {json.dumps(value)};"
        "e.dispatchEvent(new Event('change', {bubbles: true}))}"
    )
    page.wait(READY)


def test_it_opens_quietly_and_asks_for_nothing(page, url):
    assert titles(page)[-4:] == [f"train, row {n}" for n in (7, 1, 2, 5)]
    for key in "jjbvronp":
        page.press(key)
    assert page.problems == []
    assert page.requests == [url]
    assert "Must not be shared" in page.eval("document.querySelector('.banner').innerText")


def test_user_text_is_text(page):
    assert page.eval("window.hacked") is None
    assert EVIL in page.eval("document.querySelector('.text.private:nth-child(2) dd').textContent")
    assert page.eval("document.querySelectorAll('img[onerror], img[src=x]').length") == 0


def test_no_request_can_leave(page):
    """What a slip in escaping could try to load: the policy lets no request out."""
    hits = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with Threads(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        there = f"http://127.0.0.1:{server.server_address[1]}"
        assert page.eval(f"fetch('{there}/fetch').then(() => 'sent', () => 'blocked')") == "blocked"
        assert (
            page.eval(
                f"new Promise(r => {{const i = new Image(); i.onload = i.onerror = e => r(e.type); i.src = '{there}/image'}})"
            )
            == "error"
        )
        page.eval(f"navigator.sendBeacon('{there}/beacon', 'x')")
        page.eval(
            f"{{const f = document.createElement('iframe'); f.src = '{there}/frame'; document.body.append(f)}}"
        )
        page.eval(
            f"{{const s = document.createElement('link'); s.rel = 'stylesheet'; s.href = '{there}/css'; document.head.append(s)}}"
        )
        page.eval(
            f"{{const f = document.createElement('form'); f.action = '{there}/form'; document.body.append(f); f.submit()}}"
        )
        for code in (
            "document.body.innerHTML = '<b>x</b>'",
            "document.createElement('script').text = 'window.hacked = 1'",
        ):
            assert (
                page.eval(f"(() => {{try {{ {code}; return 'ran' }} catch {{ return 'blocked' }}}})()")
                == "blocked"
            )
        page.eval("new Promise(r => setTimeout(r, 300))")
        server.shutdown()
    assert hits == []


def test_filters(page):
    page.eval("document.querySelector('[data-status=edited]').click()")
    page.wait(READY)
    assert page.eval("document.getElementById('count').textContent") == "1–4 of 4 rows shown, 8 in the run"
    assert set(
        page.eval("[...document.querySelectorAll('.card .badge:not(.decision)')].map(b => b.textContent)")
    ) == {"edited"}
    page.eval("document.querySelector('[data-status=withheld]').click()")
    assert len(titles(page)) == 5
    page.eval("document.querySelector('[data-group=unreadable]').click()")
    page.wait(READY)
    assert titles(page) == ["train, row 7"]
    page.eval("document.querySelector('#filters button[type=reset]').click()")
    page.wait("document.querySelectorAll('.card').length === 8")
    choose(page, "reason", "the image is damaged or cut short")
    assert titles(page) == ["train, row 7"]
    choose(page, "reason", "")
    choose(page, "score", "change_inside")
    assert len(titles(page)) == 4
    choose(page, "low", "2")
    assert page.eval("document.getElementById('rows').innerText") == "No row passes these filters."
    choose(page, "low", "")
    choose(page, "decision", "accept")
    assert titles(page) == []
    choose(page, "decision", "none")
    assert len(titles(page)) == 4
    assert page.problems == []


def test_orders(page):
    choose(page, "order", "row")
    assert titles(page) == [f"train, row {n}" for n in range(8)]
    choose(page, "order", "attempts")
    assert set(titles(page)[:4]) == {f"train, row {n}" for n in (0, 3, 4, 6)}
    assert "stores no time per row" in page.eval("document.getElementById('order-note').textContent")


def test_a_histogram_bar_filters(page):
    assert page.eval("document.querySelectorAll('.chart').length") == 6
    label = page.eval("document.querySelector('.chart:last-child svg').getAttribute('aria-label')")
    assert label == "Attempts: 8 rows, lowest 0, median 2, highest 2"
    page.eval(
        "document.querySelectorAll('.chart:last-child .bin')[2].dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    page.wait(READY)
    assert page.eval("[score.value, low.value, high.value]") == ["attempts", "2", "2"]
    assert len(titles(page)) == 4


def test_keys(page):
    page.press("j")
    page.press("j")
    second = page.eval(FOCUSED)
    assert second == titles(page)[1]
    view = "document.activeElement.closest('.card').querySelector('.comparison').dataset.view"
    assert page.eval(view) == "slider"
    shown = []
    for key in "bbvv":
        page.press(key)
        shown.append(page.eval(view))
    assert shown == ["before", "after", "slider", "both"]
    page.press("k")
    assert page.eval(FOCUSED) == titles(page)[0]
    page.press("r")
    assert page.eval("getComputedStyle(document.querySelector('.regions')).display") == "none"
    assert page.eval("document.getElementById('regions').checked") is False
    page.press("r")
    page.press("?")
    assert page.eval("document.getElementById('keys').open")
    page.press("j")  # goes nowhere behind the list
    page.press("Escape")
    assert not page.eval("document.getElementById('keys').open")
    page.press("o")
    assert page.eval("document.querySelector('#large[open] img') !== null")
    page.press("Escape")
    page.press("f")
    assert page.eval("document.activeElement.id") == "reason"
    page.eval("document.getElementById('low').focus()")
    page.press("j")  # typed into a field, not obeyed
    assert page.eval("document.activeElement.id") == "low"


def test_the_slider_moves_with_the_arrow_keys(page):
    page.eval("document.querySelector('.slider input').focus()")
    for _ in range(5):
        page.press("ArrowRight")
    assert (
        page.eval("document.querySelector('.slider input').getAttribute('aria-valuetext')") == "55 % before"
    )
    clip = page.eval("getComputedStyle(document.querySelector('.slider .before')).clipPath")
    assert clip == "inset(0px 45% 0px 0px)"


@pytest.mark.parametrize("view", ["slider", "both", "before", "after"])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_regions_lie_where_the_picture_has_them(view, width, page):
    page.send(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
    )
    choose(page, "view", view)
    boxes = page.eval("""[...document.querySelectorAll('.card .side:not(.empty)')].map(side => {
        const [i, s] = [side.querySelector('img'), side.querySelector('svg.regions')].map(e => e.getBoundingClientRect());
        return [Math.abs(i.left - s.left), Math.abs(i.top - s.top), Math.abs(i.width - s.width), Math.abs(i.height - s.height),
                Math.abs(i.width / i.height - side.querySelector('img').naturalWidth / side.querySelector('img').naturalHeight)]
    })""")
    page.send("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    assert len(boxes) >= 7
    assert max(max(box) for box in boxes) < 1.01


CONTRAST = """(() => {
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0.5) return c } return [255, 255, 255] };
  const worst = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.disabled || ['SCRIPT', 'STYLE', 'text', 'title', 'OPTION'].includes(e.tagName)) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    worst.push([(a + 0.05) / (b + 0.05), e.tagName + '.' + e.className, e.textContent.slice(0, 30)]);
  }
  return worst.sort((a, b) => a[0] - b[0]).slice(0, 3);
})()"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out(theme, page):
    if theme == "dark":
        page.eval("document.getElementById('theme').click()")
    assert page.eval("document.documentElement.dataset.theme") == theme
    page.eval("document.querySelector('[data-status=edited]').click()")
    worst = page.eval(CONTRAST)
    assert worst[0][0] >= 4.5, worst


def test_controls_have_names(page):
    page.send("Accessibility.enable")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "combobox", "spinbutton", "slider", "checkbox", "link", "image", "dialog"}
    found = [node for node in nodes if not node["ignored"] and node.get("role", {}).get("value") in roles]
    assert len(found) > 40
    nameless = [node["role"]["value"] for node in found if not node.get("name", {}).get("value")]
    assert nameless == []


def test_a_phone_shows_rows_without_sideways_scrolling(url, tmp_path):
    with Page(tmp_path, width=360, height=740, phone=True, dark=True) as page:
        page.open(url)
        page.wait(READY)
        assert page.eval("document.documentElement.scrollWidth") == 360
        assert page.eval("document.documentElement.dataset.theme") == "dark"
        page.eval("document.getElementById('filters-panel').open = true")
        assert page.eval("document.documentElement.scrollWidth") == 360
        assert page.problems == []


def test_results_only(small, browser, tmp_path):
    browser.open(written(small[0], None, tmp_path / "r.html"))
    browser.wait(READY)
    assert "Results only." in browser.eval("document.querySelector('.notice').innerText")
    assert browser.eval("document.querySelectorAll('.before').length") == 0
    assert browser.eval("document.querySelectorAll('.card img').length") == 7
    assert browser.problems == []


def test_five_thousand_rows(large, browser):
    browser.open(large)
    browser.wait(READY)
    assert (
        browser.eval("document.getElementById('count').textContent")
        == "1–20 of 5,000 rows shown, 5,000 in the run"
    )
    assert browser.eval("document.getElementById('pages').textContent") == "of 250"
    assert browser.eval("document.querySelectorAll('.card').length") == 20
    choose(browser, "order", "face_similarity")
    assert (
        browser.eval("index.checks.face_similarity[document.querySelector('.card').dataset.number]") == 0.999
    )
    browser.eval("document.querySelector('[data-status=withheld]').click()")
    browser.wait(READY)
    assert "of 100 rows shown" in browser.eval("document.getElementById('count').textContent")
    browser.eval("document.querySelector('#filters button[type=reset]').click()")
    browser.wait("document.getElementById('pages').textContent === 'of 250'")
    choose(browser, "order", "row")
    for _ in range(2):
        browser.press("n")
    browser.wait(READY)
    assert titles(browser)[0] == "train, row 40"
    for _ in range(21):
        browser.press("j")
    assert browser.eval(FOCUSED) == "train, row 60"
    choose(browser, "page", "250")
    assert titles(browser)[-1] == "train, row 4999"
    browser.wait("[...document.querySelectorAll('.card img')].every(i => i.complete && i.naturalWidth)")
    assert browser.problems == []
    assert browser.requests == [large]


@pytest.fixture
def server(small, tmp_path):
    run = RunFolder(shutil.copytree(small[0], tmp_path / "run"))
    with ReviewServer(run, Originals(run, str(small[1]))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_review_writes_decisions(server, browser):
    browser.open(server.url)
    browser.wait(READY)
    first, second, third = (int(title.split()[-1]) for title in titles(browser)[:3])
    browser.eval("document.querySelector('.card .decide.withhold').click()")
    browser.wait("document.querySelectorAll('.card[data-decision=withhold]').length === 1")
    for key in "jj":
        browser.press(key)
    browser.press("a")
    browser.wait("document.querySelectorAll('.card[data-decision=accept]').length === 1")
    browser.press("j")
    browser.press("d")
    browser.wait("document.querySelectorAll('.card[data-decision=redo]').length === 1")
    expected = {first: Decision.WITHHOLD, second: Decision.ACCEPT, third: Decision.REDO}
    assert read_decisions(server.run.path) == {("train", row): value for row, value in expected.items()}
    browser.press("u")
    browser.wait("document.querySelectorAll('.card[data-decision=redo]').length === 0")
    del expected[third]
    assert read_decisions(server.run.path) == {("train", row): value for row, value in expected.items()}
    choose(browser, "decision", "accept")
    assert titles(browser) == [f"train, row {second}"]
    assert browser.problems == []
    assert all(address.startswith(server.url) for address in browser.requests)
    browser.open(server.url)  # another load shows what was decided
    browser.wait(READY)
    assert browser.eval("document.querySelectorAll('.card[data-decision=withhold]').length") == 1


def test_a_decision_that_was_not_written_is_not_shown_as_made(server, browser):
    browser.open(server.url)
    browser.wait(READY)
    (server.run.path / DECISIONS_FILE).write_text("{")
    browser.press("j")
    browser.press("a")
    browser.wait("!document.getElementById('problem').hidden")
    assert "The decision was not written: decisions.jsonl is damaged" in browser.eval("problem.textContent")
    assert browser.eval("document.querySelectorAll('.card[data-decision=accept]').length") == 0
