"""A local HTTP server that speaks the chat-completions protocol, well or badly, as its script says; it records all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What to send: `body` as JSON, or as it is where it is text. `drip` is seconds between its bytes."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float | None = None
    hang_up: bool = False


@dataclass(frozen=True)
class Seen:
    """One request as it came in, and when."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    at: float

    @property
    def last_turn(self) -> str:
        return self.body["messages"][-1]["content"]


Script = Callable[[Seen, int], Reply]


def answer(text: Any, *, finish: str = "stop", tokens: int | None = 3, **more: Any) -> Reply:
    """A well-formed chat completion."""
    message = {"role": "assistant", "content": text, **more}
    body: dict[str, Any] = {
        "id": "c-1", "object": "chat.completion", "created": 1, "model": "served-model", "system_fingerprint": "fp_7",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
    }  # fmt: skip
    if tokens is not None:
        body["usage"] = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    return Reply(body)


def failure(status: int, *, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An error in OpenAI's form; `retry_after="1"` becomes the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply({"error": {"message": message, "type": "t", "code": code}}, status, named)


class FakeAPI:
    """`script(seen, n)` answers the n-th POST (from 0, per server); `models` is what GET /v1/models lists."""

    def __init__(self, script: Script, *, models: Any = None) -> None:
        self.script, self.models = script, models
        self.seen: list[Seen] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def count(self, change: int) -> None:
        with self.lock:
            self.at_once += change
            self.most_at_once = max(self.most_at_once, self.at_once)

    def reply_to(self, path: str, headers: Mapping[str, str], body: dict[str, Any], *, get: bool) -> Reply:
        if get:
            return Reply({"error": {"message": "none"}}, 404) if self.models is None else Reply(self.models)
        with self.lock:
            seen, n = Seen(path, headers, body, time.monotonic()), len(self.seen)
            self.seen.append(seen)
        return self.script(seen, n)


@contextmanager
def serving(script: Script, *, models: Any = None) -> Iterator[FakeAPI]:
    """A running server, gone at the end."""
    api = FakeAPI(script, models=models)
    thread = threading.Thread(target=api.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.server.shutdown()
        api.server.server_close()


def _handler(api: FakeAPI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

        def do_GET(self) -> None:
            self._send(api.reply_to(self.path, dict(self.headers), {}, get=True))

        def do_POST(self) -> None:
            api.count(+1)
            try:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(api.reply_to(self.path, dict(self.headers), body, get=False))
            finally:
                api.count(-1)

        def _send(self, reply: Reply) -> None:
            time.sleep(reply.delay)
            if reply.hang_up:
                self.close_connection = True
                return
            content = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                for chunk in [content] if reply.drip is None else [content[i : i + 1] for i in range(len(content))]:
                    self.wfile.write(chunk)
                    self.wfile.flush()
                    time.sleep(reply.drip or 0.0)
            except (BrokenPipeError, ConnectionResetError):  # the client gave up, as it should
                self.close_connection = True

    return Handler
