"""Drives a headless Chromium over its DevTools protocol.

The script must have entered an environment that has `websockets`. Every wait is for an event of the
browser or a change of the page, and has a deadline.
"""

import asyncio
import itertools
import json

from websockets.asyncio.client import connect

from evidence import install, programs

DEADLINE = 120  # seconds for a page: a small machine may compile something meanwhile

# Waits inside the page until an expression is truthy. Evaluates it again after each change.
WHEN = """new Promise(done => {
  const look = () => { const found = (%s); if (found) { watch.disconnect(); done(found); } };
  const watch = new MutationObserver(look);
  watch.observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
  look();
})"""

# Opens a WebSocket from the page. Resolves to its first message, or to its close code.
SOCKET = """new Promise(done => {
  const socket = new WebSocket(%s);
  socket.onmessage = ({data}) => { done({opened: true, said: data}); socket.close(); };
  socket.onclose = ({code}) => done({opened: false, code});
})"""


class Browser(programs.Program):
    """A Chromium that reaches loopback only: names in `hosts` resolve to 127.0.0.1, others to
    nothing.
    """

    def __init__(self, folder, hosts=()):
        names = "".join(f"MAP {host} 127.0.0.1, " for host in hosts)
        super().__init__(
            install.require("chromium"),
            "--headless=new",
            "--no-sandbox",  # required as root; it only loads pages of this script
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--no-proxy-server",
            f"--host-resolver-rules={names}MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={folder}",
            "--remote-debugging-port=0",
            "about:blank",
            name="chromium",
        )
        self.url = self.expect(r"DevTools listening on (ws://\S+)").group(1)
        self.numbers = itertools.count(1)
        self.calls = {}
        self.tabs = {}

    async def __aenter__(self):
        self.connection = await connect(self.url, max_size=None, proxy=None, ping_interval=None)
        self.listening = asyncio.create_task(self._listen())
        self.version = (await self.call("Browser.getVersion"))["product"]
        return self

    async def __aexit__(self, *_):
        self.listening.cancel()
        await self.connection.close()
        self.stop()

    async def _listen(self):
        async for text in self.connection:
            message = json.loads(text)
            if "id" in message:
                self.calls.pop(message["id"]).set_result(message)
            elif tab := self.tabs.get(message.get("sessionId")):
                await tab.add_event(message["method"], message["params"])

    async def call(self, method, session=None, **parameters):
        number = next(self.numbers)
        self.calls[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        await self.connection.send(
            json.dumps({**message, "sessionId": session} if session else message)
        )
        answer = await asyncio.wait_for(self.calls[number], DEADLINE)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    async def open(self, url):
        """Opens a new tab and loads `url`."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))[
            "sessionId"
        ]
        tab = self.tabs[session] = Tab(self, target, session)
        for domain in ("Page", "Network", "Runtime"):
            await tab.call(f"{domain}.enable")
        # Background tabs accept input like the front one.
        await tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
        await tab.load(url)
        return tab


class Tab:
    def __init__(self, browser, target, session):
        self.browser, self.target, self.session = browser, target, session
        self.events = []
        self.changed = asyncio.Condition()

    async def add_event(self, name, parameters):
        async with self.changed:
            self.events.append((name, parameters))
            self.changed.notify_all()

    async def call(self, method, **parameters):
        return await self.browser.call(method, self.session, **parameters)

    async def event(self, name, since=0, like=lambda _: True):
        """Waits for an event with this name. Events that arrived since index `since` count, too."""

        def found():
            return next(
                (one for kind, one in self.events[since:] if kind == name and like(one)), None
            )

        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(found), DEADLINE)
            return found()

    async def load(self, url):
        """Navigates to a page. `status` is the status of its answer."""
        since = len(self.events)
        went = await self.call("Page.navigate", url=url)
        if "errorText" in went:
            raise RuntimeError(f"{url}: {went['errorText']}")
        await self.event("Page.loadEventFired", since)
        answer = await self.event(
            "Network.responseReceived", since, lambda one: one["requestId"] == went["loaderId"]
        )
        self.status = answer["response"]["status"]

    async def run(self, expression):
        """Evaluates JavaScript in the page and returns the value; promises are awaited."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def when(self, expression):
        """Waits until an expression is truthy and returns its value."""
        return await self.run(WHEN % expression)

    async def text(self):
        return await self.run("document.body.innerText")

    async def type(self, text):
        """Types the text into the focused element and presses Enter."""
        for letter in text:
            await self.call("Input.dispatchKeyEvent", type="char", text=letter)
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text="\r", **enter)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **enter)

    async def socket(self, url):
        """Opens a WebSocket from the page. Returns the outcome, with the browser's own message if
        it failed.
        """
        since = len(self.events)
        outcome = await self.run(SOCKET % json.dumps(url))
        if not outcome["opened"]:
            outcome["why"] = (await self.event("Network.webSocketFrameError", since))[
                "errorMessage"
            ]
        return outcome

    async def close(self):
        await self.browser.call("Target.closeTarget", targetId=self.target)
