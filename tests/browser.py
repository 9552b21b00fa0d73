"""A headless Chromium, driven over its DevTools protocol through two pipes: no driver, no port, no package.

The protocol: https://chromedevtools.github.io/devtools-protocol; messages are JSON that ends with a NUL byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--no-sandbox", # root, in a container, has no sandbox; only the project's own pages are opened
)  # fmt: skip
PATIENCE = 90  # seconds for one answer; starting on a busy machine takes many
DARK = [{"name": "prefers-color-scheme", "value": "dark"}]


def command():
    """The browser on the PATH, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One running browser with one tab; `events` holds all it was told since the last page was opened."""

    def __init__(self, folder):
        ours, theirs = os.pipe(), os.pipe()
        arguments = [command(), *FLAGS, f"--user-data-dir={folder}"]
        # It reads from descriptor 3 and writes to 4.
        through = f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        self.process = subprocess.Popen(
            ["bash", "-c", through, "bash", *arguments],
            pass_fds=(ours[0], theirs[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self.write, self.read = ours[1], theirs[0]
        self.number, self.unread, self.events, self.session = 0, b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        self.session = None
        self.call("Browser.close")
        self.process.wait(PATIENCE)
        os.close(self.write)
        os.close(self.read)

    def call(self, method, **parameters):
        """A command's result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self.write, left) :]
        while True:
            answer = self._message(method)
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _message(self, waiting_for):
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self.unread:
            assert select.select([self.read], [], [], max(0, deadline - time.monotonic()))[0], (
                f"no answer to {waiting_for}"
            )
            got = os.read(self.read, 1 << 20)
            assert got, f"the browser ended before {waiting_for}"
            self.unread += got
        message, self.unread = self.unread.split(b"\0", 1)
        return json.loads(message)

    def open(self, path, *, width=1280, media="", dark=False):
        """Load a local file anew, as wide as said, for `screen` ('') or `print`."""
        self.events = []
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", media=media, features=DARK if dark else [])
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message("the page"))

    def ask(self, expression):
        """The value of JavaScript on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def complaints(self):
        """Everything in the console, and uncaught exceptions."""
        told = []
        for event in self.events:
            about = event.get("params", {})
            if event.get("method") == "Runtime.consoleAPICalled":
                told.append(f"{about['type']}: {[each.get('value') for each in about['args']]}")
            elif event.get("method") == "Log.entryAdded":
                told.append(f"{about['entry']['level']}: {about['entry']['text']}")
            elif event.get("method") == "Runtime.exceptionThrown":
                told.append(about["exceptionDetails"]["text"])
        return told

    def requests(self):
        """The addresses it asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def picture(self):
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def pdf(self):
        """The page as it is printed on A4."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69}
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True, **size)["data"])
