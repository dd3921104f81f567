"""Connections: how many there may be, and how long one may take over a request or leave an answer unread.

uvicorn waits for the end of a request's head as long as the client likes. Here a connection that nobody waits for an
answer on is closed after its time, or before it when another one comes and there is no room.
"""

from __future__ import annotations

import errno
import resource
import socket
import time
from asyncio import TimerHandle
from typing import Any, Final, cast

import h11
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from rapt.service.http.http_errors import make_error_response
from rapt.service.http.settings import Settings
from rapt.service.http.shares import find_meter

_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# A client may still be sending when it was refused: if it is cut off at once it never sees why.
_SECONDS_AFTER_A_REFUSAL: Final = 5.0
_MOST_FILES: Final = 65_536


class Listener(socket.socket):
    """A socket that listens and knows what it has accepted; beyond `most` the one that has waited longest goes."""

    def __init__(self, listening: socket.socket, *, most: int) -> None:
        """Take a listening socket over."""
        super().__init__(fileno=listening.detach())
        self.most = most
        # By descriptor, in the order in which they were accepted, or were served last.
        self._accepted: dict[int, socket.socket] = {}
        self._answered: set[int] = set()
        self._is_making_room = False

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises `BlockingIOError` while one that had to go is being closed."""
        if self._is_making_room:
            self._is_making_room = False
            raise BlockingIOError(errno.EAGAIN, "room is being made")
        try:
            accepted, address = super().accept()
        except OSError as error:
            if error.errno in _NO_ROOM and self._close_one():
                raise BlockingIOError(errno.EAGAIN, "room is being made") from None
            raise
        self._accepted.pop(accepted.fileno(), None)
        self._accepted[accepted.fileno()] = accepted
        if len(self._accepted) > self.most:
            self._accepted = {number: one for number, one in self._accepted.items() if one.fileno() == number}
        if len(self._accepted) > self.most:
            self._is_making_room = True
            self._close_one()
        return accepted, address

    def mark(self, number: int, *, is_answered: bool) -> None:
        """Note whether a request on the connection of a descriptor is being answered: then it stays."""
        if not is_answered and number in self._answered and number in self._accepted:
            self._accepted[number] = self._accepted.pop(number)  # who has just been served goes last
        (self._answered.add if is_answered else self._answered.discard)(number)

    def _close_one(self) -> bool:
        """Close the connection that has been silent longest of those without a request that is being answered."""
        for number, one in self._accepted.items():
            if one.fileno() == number and number not in self._answered:
                del self._accepted[number]
                one.shutdown(socket.SHUT_RDWR)  # whoever serves it sees its end, and closes it
                return True
        return False


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with limits in time, and errors in the shape of the API."""

    def __init__(self, *, listener: Listener, settings: Settings, **of_uvicorn: Any) -> None:
        """Prepare to serve one connection."""
        super().__init__(**of_uvicorn)
        self._listener = listener
        self._settings = settings
        self._descriptor = -1
        self._closing: TimerHandle | None = None
        self._closing_because: str | None = None
        self._unread: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Watch the connection, which has just opened."""
        super().connection_made(transport)
        self._descriptor = transport.get_extra_info("socket").fileno()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the connection, which has just closed."""
        self._listener.mark(self._descriptor, is_answered=False)
        self._close_after(None, 0.0)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        start = time.thread_time()
        super().data_received(data)
        if self.cycle is not None:
            meter = find_meter(cast("Scope", self.cycle.scope))
            meter.count(time.thread_time() - start)
            if self.cycle.response_complete and (wait := meter.wait()):  # the rest of a refused body
                self.flow.pause_reading()
                self.loop.call_later(wait, self._read_on)
        self._watch()

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end of the one that was answered."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client does not read its answer."""
        super().pause_writing()
        self._unread = self.loop.call_later(self._settings.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read some."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        if self.flow is not None:
            super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, where no answer has begun."""
        del msg
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = make_error_response(
                "the request must be HTTP/1.1 with a head of at most 16 KiB; ask as a client for HTTP does",
                status=400,
                code="invalid_request",
            )
            headers = [*answer.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=400, headers=headers),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request is answered as if it had not asked for another protocol."""

    def _watch(self) -> None:
        """Set the time until which what is missing must have come."""
        is_answered = self.cycle is not None and not self.cycle.response_complete
        self._listener.mark(self._descriptor, is_answered=is_answered)
        if is_answered:
            self._close_after(None, 0.0)  # the body has its own time, in `middleware.BodyLimit`
        elif self.conn.their_state is h11.SEND_BODY:
            self._close_after("rest of a refused body", _SECONDS_AFTER_A_REFUSAL)
        elif self.timeout_keep_alive_task is not None:
            self._close_after(None, 0.0)  # uvicorn closes what is not used
        else:
            self._close_after("head", self._settings.head_seconds)

    def _close_after(self, because: str | None, seconds: float) -> None:
        if because == self._closing_because:
            return  # the time of what is missing runs on, whatever dribbles in
        if self._closing is not None:
            self._closing.cancel()
        self._closing_because = because
        self._closing = None if because is None else self.loop.call_later(seconds, self.transport.abort)


def count_connections(setting: int) -> tuple[int, int]:
    """How many connections there may be, and how many may wait to be accepted, by what the process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    files = _MOST_FILES if soft == resource.RLIM_INFINITY else soft
    # The others are for the database, files and whatever a library opens.
    return max(8, min(setting, files // 2)), max(8, min(128, files // 8))
