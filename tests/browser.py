"""A headless Chromium without network, spoken to over a pipe: what a page says, looks like and asks for."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
    """A Chromium of this machine; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page of a browser.

    Args:
        complaints: what its console and its security policy have said.
        requests: the addresses that it has asked for.
    """

    def __init__(self, write: int, read: Any) -> None:
        self._write, self._read = write, read
        self._num_calls = 0
        self._session: str | None = None
        self._events: list[str] = []
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers to one of its DevTools methods."""
        self._num_calls += 1
        message: dict[str, Any] = {"id": self._num_calls, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._num_calls:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, path: Path, *, width: int, dark: bool) -> None:
        """Opens a file and waits until it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._next()

    def ask(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=self._all())
        path.write_bytes(base64.b64decode(shot["data"]))

    def _all(self) -> dict[str, float]:
        box = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": box["width"], "height": box["height"], "scale": 1}

    def _next(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser is gone")
            text += byte
        message: dict[str, Any] = json.loads(text)
        method, params = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(params)[:500])
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message


def _moved(fd: int) -> int:
    """The descriptor under a number that is out of the way of 3 and 4."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved


@contextmanager
def page(browser: str, profile: Path) -> Iterator[Page]:
    """A page of a browser that is started for it, and ended afterwards."""
    (to_browser, ours_out), (ours_in, from_browser) = os.pipe(), os.pipe()
    to_browser, from_browser = _moved(to_browser), _moved(from_browser)
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    arguments += ["--disable-background-networking", "--disable-extensions", f"--user-data-dir={profile}"]
    # DevTools' pipe is descriptors 3 and 4 of the browser.
    command = ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", browser, *arguments]
    process = subprocess.Popen(command, pass_fds=[to_browser, from_browser], stderr=subprocess.DEVNULL)
    os.close(to_browser)
    os.close(from_browser)
    try:
        with os.fdopen(ours_in, "rb") as read:
            yield Page(ours_out, read)
    finally:
        os.close(ours_out)
        process.terminate()
        process.wait()
