"""The serving process: a socket, the application behind it, and word to whoever waits that it answers."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import torch
import uvicorn

from rapt.errors import UsageError
from rapt.service.http.app import create_app
from rapt.service.http.assembly import load_backbones, open_service
from rapt.service.http.memory import giving_back
from rapt.service.http.settings import Settings
from rapt.service.http.variables import warn_of_unknown_variables
from rapt.service.model.backbone import Backbone
from rapt.service.storage.durable_files import write_atomically
from rapt.service.traces import switch_tracebacks
from rapt.wire.addresses import is_loopback

log = logging.getLogger(__name__)

# uvicorn's own access log has paths and queries in it, so it is off; `middleware.Envelope` writes ours.
LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "rapt": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        # It tells of bytes in a form that it does not like, and those come from outside.
        "python_multipart": {"level": "CRITICAL", "propagate": False},
    },
}


class Server(uvicorn.Server):
    """uvicorn's server, which says when it answers."""

    def __init__(self, config: uvicorn.Config, *, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` once the socket is served."""
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve."""
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()


def serve(settings: Settings, *, on_ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until the process is asked to stop (SIGINT or SIGTERM).

    Args:
        settings: Where, what, and for whom.
        on_ready: Called with the URL, port filled in, once the service answers; the ready file is there by then.

    Raises:
        UsageError: The address or the data directory cannot be used.
        VocabularyError: The files of a model are missing.
    """
    logging.config.dictConfig(LOGGING)
    warn_of_unknown_variables(os.environ)
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    switch_tracebacks(log, on=settings.debug)
    with stopped_by_signals(), listen(settings) as listener, giving_back():
        serve_on(listener, settings, backbones=load_backbones(settings), on_ready=lambda server, url: on_ready(url))


def serve_on(
    listener: socket.socket,
    settings: Settings,
    *,
    backbones: Mapping[str, Backbone],
    on_ready: Callable[[Server, str], None],
) -> None:
    """Serve loaded models on a socket that listens; `on_ready` gets the server too, so that it can be stopped."""
    url = url_of(listener, tls=settings.tls_cert is not None)
    _check_tls(settings)

    def ready() -> None:
        if settings.ready_file is not None:
            content = json.dumps({"url": url, "pid": os.getpid()}) + "\n"
            write_atomically(settings.ready_file, content.encode("ascii"))
        log.info("serving %s on %s", ", ".join(backbones), url)
        on_ready(server, url)

    with open_service(settings, backbones=backbones, started_at=int(time.time())) as service:
        config = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=10,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
        )
        server = Server(config, on_ready=ready)
        try:
            server.run(sockets=[listener])
        finally:
            if settings.ready_file is not None:
                settings.ready_file.unlink(missing_ok=True)


def listen(settings: Settings) -> socket.socket:
    """A socket that listens at the address of the settings.

    Raises:
        UsageError: The address is taken, or not ours.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise UsageError(
            f"the address must be free and ours, got {error.strerror or type(error).__name__} for "
            f"port={settings.port}; choose another, or 0 for any"
        ) from None
    # Connections inherit it. An answer is two writes, head and body; without this the kernel keeps the second back
    # until the client has confirmed the first, 40 ms late. asyncio sets it by itself only on sockets whose protocol
    # number is that of TCP, and `create_server` leaves that number at 0.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """The URL at which a listening socket is reached from this machine."""
    scheme = "https" if tls else "http"
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _check_tls(settings: Settings) -> None:
    """Try the certificate before anything is opened, and say once if there is none where there should be."""
    if settings.tls_cert is None or settings.tls_key is None:
        if not is_loopback(settings.host):
            log.warning(
                "serving plain HTTP beyond this machine: give --tls-cert and --tls-key, or put a proxy before it"
            )
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UsageError(
            f"tls_cert and tls_key must be a readable certificate and its key in PEM, got {type(error).__name__}"
        ) from None
    key = settings.tls_key.stat()
    # As PostgreSQL has it: a key of the system's may be read by a group of those who serve with it.
    if key.st_mode & (0o037 if key.st_uid == 0 else 0o077):
        raise UsageError("tls_key must be readable by its owner only, and is not; try: chmod 600 on it")


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGINT end the block in order.

    uvicorn stops serving and then raises the signal again, and the default answer to SIGTERM would end the process
    before the worker has put its job back and the ready file is gone.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        log.info("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
