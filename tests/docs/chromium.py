"""A headless Chromium, spoken to over a pipe (`--remote-debugging-pipe`): no driver and no package are needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--disable-extensions", "--no-default-browser-check", "--mute-audio", "--remote-debugging-pipe"),
)

# The browser listens on 3 and answers on 4.
_LAUNCH = "import os, sys; a = sys.argv; os.dup2(int(a[1]), 3); os.dup2(int(a[2]), 4); os.execv(a[3], a[3:])"


def binary() -> str | None:
    """The browser's program, if there is one."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


@dataclass
class Visit:
    """A page as it was shown.

    Attributes:
        picture: of the whole page, PNG.
        complaints: what the console said (errors and warnings) and requests that failed.
        requests: addresses of all requests.
        values: of the expressions asked for.
    """

    picture: bytes
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


class Chromium:
    """A browser with one page, for the time of a `with`."""

    def __init__(self, program: str, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        theirs_in, ours_out = _pipe()
        ours_in, theirs_out = _pipe()
        command = [program, *FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), *command],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._rest, self._number = ours_in, ours_out, b"", 0
        self._events: list[dict[str, Any]] = []
        self._session: str | None = None

    def __enter__(self) -> Chromium:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda m: m.get("id") == message["id"])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def visit(self, address: str, width: int, height: int, **expressions: str) -> Visit:
        """Shows a page in a window, waits until it is still, and takes its picture.

        Args:
            address: of the page.
            width, height: of the window, in pixels.
            expressions: JavaScript whose values are wanted, by name.
        """
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **metrics)
        self._events.clear()
        self.ask("Page.navigate", url=address)
        self._wait_for("Page.loadEventFired")
        self.value("document.fonts.ready.then(() => true)")
        values = {name: self.value(text) for name, text in expressions.items()}
        picture = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        complaints = [text for text in map(_complaint, self._events) if text is not None]
        requests = [e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"]
        return Visit(base64.b64decode(picture), complaints, requests, values)

    def value(self, expression: str) -> Any:
        """The value of JavaScript in the page; a promise is waited for."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def _wait_for(self, event: str) -> None:
        if not any(e["method"] == event for e in self._events):
            self._until(lambda message: message.get("method") == event)

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first message that is wanted; events on the way are kept."""
        end = time.monotonic() + self.seconds
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
                data = os.read(self._in, 1 << 16) if ready else b""
                if not data:
                    reason = "ended" if ready else f"said nothing for {self.seconds:g} s"
                    raise RuntimeError(f"the browser {reason} (exit code {self._process.poll()})")
                self._rest += data
            text, _, self._rest = self._rest.partition(b"\0")
            message = json.loads(text)
            if "method" in message:
                self._events.append(message)
            if wanted(message):
                return dict(message)


def _pipe() -> tuple[int, int]:
    """A pipe whose ends have numbers above those that are given out anew in the child."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def _complaint(event: dict[str, Any]) -> str | None:
    """What is wrong by an event, if something is."""
    method, p = event["method"], event["params"]
    if method == "Runtime.exceptionThrown":
        return f"exception: {p['exceptionDetails'].get('exception', {}).get('description', p)}"
    if method == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
        return f"console {p['type']}: {[a.get('value', a.get('description')) for a in p['args']]}"
    if method == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
        return f"{p['entry']['level']}: {p['entry']['text']} {p['entry'].get('url', '')}"
    if method == "Network.loadingFailed" and not p.get("canceled"):
        return f"request failed: {p.get('errorText')}"
    if method == "Network.responseReceived" and p["response"]["status"] >= 400:
        return f"{p['response']['status']}: {p['response']['url']}"
    return None


def write_picture(visit: Visit, path: Path) -> None:
    """Keeps a page's picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(visit.picture)
