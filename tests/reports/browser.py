"""A page in headless Chromium, driven through the DevTools pipe: no port, no library."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowUp": 38}
DRAWN = """new Promise((done) => {
  const look = () => document.documentElement.dataset.drawn ? done(true) : setTimeout(look, 50);
  look();
})"""


class Browser:
    """One tab of one Chromium."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self._process, self._write, self._read = process, write, read
        self._buffer = b""
        self._number = 0
        self._session = ""
        self._loaded = False
        self.complaints: list[str] = []
        """What the console said, and what the page's policy refused."""
        self.requests: list[str] = []
        """Addresses that were asked for; those of ``data:`` are none."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a file and wait until its charts are drawn."""
        self.media(dark=dark)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self._loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._note(self._next())
        self.run(DRAWN)

    def media(self, *, dark: bool = False, kind: str = "") -> None:
        """Colours that the reader prefers, and the medium: ``print`` or none."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=kind, features=[scheme])

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Strike one of `KEYS`."""
        told = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **told, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def click(self, selector: str, *, place: int = 0) -> None:
        """Click the middle of an element with the mouse, scrolled into view."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelectorAll({json.dumps(selector)})[{place}];"
            "e.scrollIntoView({block: 'center', inline: 'center'});"
            "const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error"):
            self.complaints.append(str([arg.get("value") for arg in params["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith("data:"):
                self.requests.append(address)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A Chromium of one's own, ended on the way out.

    Args:
        profile: An empty folder for its profile.
    """
    assert CHROMIUM is not None
    (their_read, write), (read, their_write) = os.pipe(), os.pipe()
    # The protocol's pipe is descriptors 3 and 4 of the child; copies above them cannot be hit.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (their_read, their_write)]
    os.close(their_read)
    os.close(their_write)
    become = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
        "os.execv(sys.argv[3], sys.argv[3:])"
    )
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    command = [CHROMIUM, *flags, f"--user-data-dir={profile}", "about:blank"]
    with (profile / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", become, *map(str, ends), *command],
            pass_fds=ends,
            stdout=log,
            stderr=log,
        )
    for end in ends:
        os.close(end)
    try:
        browser = Browser(process, write, read)
        yield browser
        with suppress(AssertionError, OSError):
            browser.call("Browser.close")
    finally:
        os.close(write)
        os.close(read)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
