"""A stranger in the place of a service: it answers each request as a test says, or loses the connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@contextmanager
def answering(answer: Callable[..., Any]) -> Iterator[str]:
    """The URL of a server that answers by `answer(path, body)`, or with headers and method as well.

    An answer is a status, headers and bytes, or an iterator of bytes without an end; None loses the connection.
    """

    class Stranger(BaseHTTPRequestHandler):
        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            more = (dict(self.headers), self.command) if answer.__code__.co_argcount == 4 else ()
            reply = answer(self.path, body, *more)
            if reply is None:
                self.connection.close()
                return
            status, headers, content = reply
            whole = isinstance(content, bytes)
            self.send_response(status)
            for name, value in {**({"content-length": str(len(content))} if whole else {}), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client has read enough
                for part in [content] if whole else content:
                    self.wfile.write(part)

        do_GET = do_POST = do_DELETE = do_HEAD = reply

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
