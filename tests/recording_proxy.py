"""A TCP proxy on loopback that keeps every byte a client sends: what left the trusted side, as it was on the wire."""

from __future__ import annotations

import socket
import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from urllib.parse import urlsplit


class Recorder:
    """The bytes of each connection, in order."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sent: list[bytearray] = []

    def connection(self) -> bytearray:
        with self._lock:
            self._sent.append(bytearray())
            return self._sent[-1]

    @property
    def sent(self) -> bytes:
        with self._lock:
            return b"\n".join(bytes(one) for one in self._sent)

    @contextmanager
    def through(self, url: str) -> Iterator[str]:
        """The URL of a proxy in front of `url`."""
        target = urlsplit(url)
        recorder = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                kept = recorder.connection()
                with socket.create_connection((target.hostname, target.port)) as service:
                    answers = Thread(target=_pump, args=(service, self.request, None))
                    answers.start()
                    _pump(self.request, service, kept)
                    answers.join()

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
            serving = Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
            serving.start()
            try:
                yield f"http://127.0.0.1:{proxy.server_address[1]}"
            finally:
                proxy.shutdown()
                serving.join()


def _pump(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
    """Pass bytes on until one side ends."""
    try:
        while data := source.recv(65536):
            if kept is not None:
                kept += data
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass
