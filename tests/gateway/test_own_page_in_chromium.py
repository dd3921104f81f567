"""The page on the user's machine in a real browser: what one sees and can do, by keyboard too, and what stays here."""

import json
import re
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from chromium import UNNAMED, chromium, click, go, needs_chromium, says, sign_in
from http_requests import open_client
from rapt.severity import PALETTE
from rapt.wire.privatized_file import read_privatized_lines
from running_gateway import KEY, running_gateway, token_privatizer, training_setting
from running_service import wait_until

# Slow, because a browser starts: `make test` has the tests of the page that need none.
pytestmark = [needs_chromium, pytest.mark.slow]

SECTIONS = ("text", "file", "ask", "ledger")
SECRET = "the zeppelin is ill"


@pytest.fixture(scope="module")
def base(recorded, backbones, tmp_path_factory):
    privatizer = token_privatizer(backbones["bert-tiny"].bundle, eta=40.0, truncate_to=40)
    ledger = tmp_path_factory.mktemp("page") / "ledger.sqlite"
    training = training_setting(privatizer, allow_weak=True)
    with running_gateway(recorded, privatizer, ledger=ledger, training=training, page=True) as url:
        yield url.removesuffix("/v1")


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser, base):
    """The browser, signed in."""
    browser.size(1000, 800)
    browser.prefer("light")
    browser.open(f"{base}/")
    sign_in(browser, KEY)
    browser.wait_for("!document.querySelector('[aria-busy]')")
    return browser


def counted(base):
    with open_client(base, headers={"authorization": f"Bearer {KEY}"}) as client:
        return client.get("/own/ledger").json()["releases"]


def show(page, text):
    page.run("document.querySelector('#section textarea').focus()")
    page.type(text)
    click(page, "Show what would leave")
    page.wait_for("document.querySelector('.example') && !document.querySelector('[aria-busy]')")


def headline(page):
    return page.run("document.querySelector('.seen .headline').textContent")


def move(page, place):
    """Move the slider, and wait until the text was looked at again."""
    before = headline(page)
    page.run(f"(() => {{ const one = document.getElementById('slide'); one.value = {place};"
             " one.dispatchEvent(new Event('input')); })()")  # fmt: skip
    page.wait_for(f"document.querySelector('.seen .headline').textContent !== {json.dumps(before)}")
    page.wait_for("!document.querySelector('[aria-busy]')")


def test_the_key_stays_in_the_tab_and_everything_comes_from_the_gateway(page, base):
    for name in SECTIONS:
        go(page, name)
    assert all(address.startswith(f"{base}/") for address in page.requests())
    assert not any(KEY in address for address in page.requests())
    assert KEY not in page.run("location.href + document.cookie + JSON.stringify({...localStorage, ...sessionStorage})")
    assert page.complaints() == []
    click(page, "Sign out")
    says(page, "forgotten the key")


def test_a_text_is_looked_at_at_any_strength_and_nothing_of_it_is_sent_or_counted(page, base, recorder, caplog):
    sent, before = len(recorder.sent), counted(base)
    show(page, SECRET)
    assert page.run("document.querySelector('.example .badge').textContent") == "Example, not sent"
    shown = page.run("[...document.querySelectorAll('.token span')].map((one) => one.textContent).join(' ')")
    assert shown.replace(" ##", "") == SECRET
    move(page, 200)
    assert headline(page).startswith("At η = 80, ")
    move(page, 0)
    assert headline(page).startswith("At η = 16, ")
    assert "Not measured for this vocabulary and mechanism" in page.text()
    click(page, "Back to η = 40")
    page.wait_for("document.querySelector('.seen .headline').textContent.startsWith('At η = 40, ')")
    assert (len(recorder.sent), counted(base)) == (sent, before)
    assert not [address for address in page.requests() if "zeppelin" in address]
    assert "zeppelin" not in caplog.text
    assert page.complaints() == []


def test_what_an_attacker_reads_stands_in_red_with_words_beside_it_and_never_in_green(page):
    light, _, dark = PALETTE.partition("@media")
    show(page, "the soup was cold")
    page.run("(() => { const one = document.querySelector('.strength input[type=number]'); one.value = 1000;"
             " one.dispatchEvent(new Event('input')); })()")  # fmt: skip
    page.wait_for("document.querySelector('.seen .headline').textContent.includes('100 of 100')")
    assert "Much is given away" in page.text()
    for scheme, palette in (("light", light), ("dark", dark)):
        page.prefer(scheme)
        bad = tuple(bytes.fromhex(re.search(r"--bad: #([0-9a-f]{6})", palette)[1]))
        found = page.run("getComputedStyle(document.querySelector('.seen .grade')).color")
        assert tuple(map(int, re.findall(r"\d+", found))) == bad, scheme


def test_a_token_is_chosen_by_keyboard_and_its_replacements_are_read_out(page):
    show(page, "the soup was cold")
    page.run("document.querySelectorAll('.token')[1].focus()")
    page.tab(back=True)
    page.tab()
    page.enter()
    assert page.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert page.run("document.querySelector('.detail').getAttribute('aria-live')") == "polite"
    assert page.run("document.querySelector('.detail h3').textContent") == "What leaves for soup"
    assert page.run("document.querySelectorAll('.token[aria-pressed=true]').length") == 1


def test_a_file_is_dropped_privatized_saved_and_counted(page, base, tmp_path):
    source = tmp_path / "reviews.csv"
    source.write_text("stars,review\n" + "".join(f"{i % 2},the zeppelin was {i}\n" for i in range(4)))
    before = counted(base)
    go(page, "file")
    page.choose_file(".drop input", source)
    page.wait_for("document.querySelector('#section form')")
    chosen = page.run("[...document.querySelectorAll('#section select')].map((one) => one.value)")
    assert chosen == ["review", "stars"]
    assert counted(base) == before
    click(page, "Privatize")
    says(page, "Privatized 4 records")
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.run("document.querySelector('a[download]').click()")
    saved = tmp_path / "reviews.rapt.jsonl"
    wait_until(saved.exists)
    file = read_privatized_lines(saved.read_bytes().splitlines(keepends=True))
    assert (file.manifest.records, file.manifest.labels) == (4, ("0", "1"))
    assert counted(base) == before + 4
    assert page.run("document.querySelectorAll('.preview li').length") == 3
    go(page, "ledger")
    assert "laplace, η = 40" in page.text()
    assert "zeppelin" not in page.text()
    assert page.complaints() == []


def test_every_control_has_a_name_and_a_phone_needs_no_scrolling_sideways(page):
    page.size(390, 844, phone=True)
    page.prefer("dark")
    for name in SECTIONS:
        go(page, name)
        if name == "text":
            show(page, "pneumonoultramicroscopicsilicovolcanoconiosis " * 3)
        assert page.run(UNNAMED) == [], name
        assert page.run("document.documentElement.scrollWidth") <= 390, name
        assert (
            page.run("document.getElementById('section').firstElementChild.getAttribute('aria-labelledby')") == "title"
        )


class _Elsewhere(BaseHTTPRequestHandler):
    """A page of another origin on this machine, whose script tries what it can."""

    def __init__(self, *given, target, **others):
        self._target = target
        super().__init__(*given, **others)

    def do_GET(self):
        page = f"""<!doctype html><form id="form" method="post" enctype="text/plain" target="frame"
            action="{self._target}/own/file"><input name='{{"kind":"csv","text_column":"text"}}' value="x"></form>
            <iframe name="frame"></iframe><script>
            window.tried = (async () => {{
              const own = ["{self._target}/own/ledger", "{self._target}/own/ask", "{self._target}/v1/models"];
              const read = [];
              for (const url of own) for (const headers of [{{}}, {{ authorization: "Bearer {KEY}" }}])
                for (const method of ["GET", "POST"]) for (const mode of ["cors", "no-cors"])
                  await fetch(url, {{ method, mode, headers }}).then((answer) => answer.text())
                    .then((text) => read.push(text), () => read.push(""));
              document.getElementById("form").submit();
              return read;
            }})();</script>""".encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        """Say nothing."""


def test_a_page_of_another_origin_reads_nothing_and_counts_nothing_even_with_the_key(browser, base, recorder):
    sent, before = len(recorder.sent), counted(base)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Elsewhere, target=base)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            browser.open(f"http://127.0.0.1:{server.server_address[1]}/")
            assert set(browser.run("window.tried")) == {""}
        finally:
            server.shutdown()
            thread.join()
    assert (len(recorder.sent), counted(base)) == (sent, before)
