"""A headless Chromium, driven over a pipe by its own DevTools protocol: no driver, no package, no port.

Debian's package `chromium` is enough. Where it is missing, `needs_chromium` skips and says so.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium; Debian has it as the package chromium")

# Nothing that it would fetch from elsewhere, and no sandbox, which a container does not let it have.
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-default-apps --disable-extensions --disable-dev-shm-usage "
    "--disable-features=Translate,OptimizationHints,MediaRouter --password-store=basic --force-device-scale-factor=1 "
    "--remote-debugging-pipe"
).split()
_PATIENCE = 60.0  # s
# Every control by what a screen reader calls it.
UNNAMED = """
[...document.querySelectorAll("a, button, input, select, textarea, summary")]
  .filter((one) => one.offsetParent !== null)
  .filter((one) => !(one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label")))
  .map((one) => one.outerHTML)
"""


class Chromium:
    """One browser with one tab."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._rest = b""
        self._ids = itertools.count(1)
        self.events: list[dict] = []
        self._session: str | None = None  # of the browser itself, until there is a tab
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """The answer to one command; events that come before it are kept."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def run(self, script: str):
        """The value of an expression in the page; one that is a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str, *, seconds: float = 120.0):
        """The value of an expression once it is true."""
        deadline = time.monotonic() + seconds
        while (value := self.run(script)) in (None, False, 0, ""):  # an element comes as {}, and is there
            assert time.monotonic() < deadline, f"{script} stayed {value!r}; the page says {self.text()!r}"
            self.run("new Promise((done) => setTimeout(done, 30))")
        return value

    def text(self) -> str:
        """What can be read on the page."""
        return self.run("document.body.innerText")

    def open(self, url: str) -> None:
        """Go somewhere."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Give the tab a size in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def prefer(self, scheme: str) -> None:
        """Ask pages for their light or dark form."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str, *, code: int, text: str = "", modifiers: int = 0) -> None:
        """Press one key where the focus is."""
        shared = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def tab(self, *, back: bool = False) -> None:
        """Go to the next control."""
        self.press("Tab", code=9, modifiers=8 if back else 0)

    def enter(self) -> None:
        """Press Enter where the focus is."""
        self.press("Enter", code=13, text="\r")

    def type(self, text: str) -> None:
        """Write where the focus is."""
        self.call("Input.insertText", text=text)

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into a control."""
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Save what is seen, or the whole page, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def complaints(self) -> list[str]:
        """What the browser's console has to complain of since `open`, refusals of the service left out."""
        self.run("0")
        entries = [event["params"]["entry"] for event in self.events if event.get("method") == "Log.entryAdded"]
        said = [f"{entry['source']}: {entry['text']}" for entry in entries if entry["source"] != "network"]
        return said + [str(e["params"]) for e in self.events if e.get("method") == "Runtime.exceptionThrown"]

    def requests(self) -> list[str]:
        """The addresses that the page asked for since `open`."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def _receive(self) -> dict:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], _PATIENCE)
            assert ready, "the browser does not answer"
            read = os.read(self._from, 1 << 16)
            assert read, "the browser has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def chromium():
    """A browser that runs until the end of the block, with a profile that nothing of is kept."""
    assert PROGRAM is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(prefix="rapt-chromium-", ignore_cleanup_errors=True) as profile:
        # bash, because the protocol is spoken on the descriptors 3 and 4, and they are not ours to choose.
        command = [
            "bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash",
            PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        with subprocess.Popen(
            command,
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        ) as process:
            os.close(theirs_in)
            os.close(theirs_out)
            try:
                yield Chromium(ours_out, ours_in)
            finally:
                os.close(ours_out)  # it ends when nobody speaks to it any more
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                os.close(ours_in)


def sign_in(browser, key):
    """Sign in on any of our pages."""
    browser.wait_for("!document.getElementById('sign-in').hidden")
    browser.run("document.getElementById('key').focus()")
    browser.type(key)
    browser.enter()
    browser.wait_for("!document.getElementById('sections').hidden")


def go(browser, name):
    """Go to a section, and wait for it."""
    browser.run(f"document.querySelector('nav a[href=\"#/{name}\"]').click()")
    browser.wait_for(
        f"document.querySelector('nav [aria-current]')?.hash === '#/{name}' && !document.querySelector('[aria-busy]')"
    )


def click(browser, words, *, inside="document"):
    """Press the button with these words, once it is there."""
    button = f"[...{inside}.querySelectorAll('button')].find((one) => one.textContent === '{words}')"
    browser.wait_for(f"Boolean({button})")
    browser.run(f"{button}.click()")


def says(browser, words):
    """Wait until the line of the page that says what happened has these words."""
    browser.wait_for(f"document.getElementById('status').textContent.includes({json.dumps(words)})")
