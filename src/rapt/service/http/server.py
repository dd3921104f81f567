"""The two processes of a service: one that serves, with a socket and the application behind it, and a worker.

Both stop in order at SIGINT and SIGTERM, within a bounded time.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Event, Lock, Timer
from types import FrameType
from typing import Any, Final

import torch
import uvicorn

from rapt.errors import UsageError
from rapt.narration import log_to_stderr
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.opening import check_model_files, choose_dtype
from rapt.service.backbone.placement import choose_device
from rapt.service.http.app import create_app
from rapt.service.http.assembly import fork_job_processes, load_backbones, make_runner, open_service
from rapt.service.http.connections import BoundedProtocol, Listener, count_connections
from rapt.service.http.housekeeping import give_back_regularly
from rapt.service.http.middleware import Stopping
from rapt.service.http.settings import Settings, reveal, warn_of_unknown_variables
from rapt.service.jobs.fork_server import ForkServer
from rapt.service.storage.data_directory import refuse_other_folder
from rapt.service.storage.key_rows import has_keys
from rapt.service.storage.recovery import join_store
from rapt.service.storage.store import own_blobs
from rapt.service.traces import switch_tracebacks
from rapt.this_machine import is_loopback
from rapt.whole_files import write_whole

log = logging.getLogger(__name__)

# How long answers that are on their way may go on when the service is asked to stop, s; then they become 503. All
# that ends in order has ended by the last, and what has not is safe where it stands: as after a crash.
_GRACE: Final = 4
_GRACE_AFTER_IT: Final = 1
_GONE_WITHIN: Final = 7.0
_TURN: Final = 0.0005  # s


class Server(uvicorn.Server):
    """uvicorn's server, which says when it answers and when it is asked to stop, and stops in order."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        listener: Listener,
        settings: Settings,
        stopping: Stopping,
        on_ready: Callable[[], None],
        on_signal: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        """Call `on_ready` once the socket is served, `on_signal` at a signal, and `on_stop` after it."""
        super().__init__(config)
        self._listener = listener
        self._settings = settings
        self._stopping = stopping
        self._on_ready = on_ready
        self._on_signal = on_signal
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at a signal."""
        self._on_signal()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve; as uvicorn does, and with a time for handshakes of TLS."""
        loop, config = asyncio.get_running_loop(), self.config
        loop.set_exception_handler(_log_class)
        await self.lifespan.startup()
        protocol = functools.partial(
            BoundedProtocol,
            listener=self._listener,
            settings=self._settings,
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        self.servers = [
            await loop.create_server(
                protocol,
                sock=self._listener,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=None if config.ssl is None else self._settings.head_seconds,
            )
        ]
        self.started = True
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more; let the job stop and the answers end, and then end them."""
        self._on_stop()
        ending = asyncio.ensure_future(self._end_answers())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_answers(self) -> None:
        await asyncio.sleep(_GRACE)
        await self._stopping.end_all()


def _log_class(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the event loop met: its class, because messages and traces may hold what came in."""
    log.error("the event loop met %s", type(context.get("exception")).__name__)


def serve(settings: Settings, *, on_ready: Callable[[str], None] = lambda url: None, forks: bool = False) -> None:
    """Serve until the process is asked to stop (SIGINT, SIGTERM or SIGHUP).

    Args:
        settings: Settings of the service.
        on_ready: Called with the URL, port filled in, once the service answers; the ready file is there by then.
        forks: Whether processes of jobs may be forked from this one, which must have computed nothing yet.

    Raises:
        UsageError: The address or the data directory cannot be used.
        VocabularyError: The files of a model are missing.
    """
    _prepare_process(settings)
    if settings.admin_key is None and os.environ.get("RAPT_API_KEY"):
        log.warning("RAPT_API_KEY is the key of a client and is not looked at; the service's own is RAPT_ADMIN_KEY")
    with ExitStack() as stack:
        begin_to_stop = stack.enter_context(stop_at_signals())
        stack.enter_context(take_short_turns())
        listener = stack.enter_context(listen(settings))
        fork_server = None
        if forks and settings.worker_in_service and settings.engine == "local":
            fork_server = stack.enter_context(fork_job_processes(settings))
        stack.enter_context(give_back_regularly())
        serve_on(
            listener,
            settings,
            backbones=load_backbones(settings),
            on_ready=lambda server, url: on_ready(url),
            on_signal=begin_to_stop,
            fork_server=fork_server,
        )


def serve_on(
    listener: Listener,
    settings: Settings,
    *,
    backbones: Mapping[str, Backbone],
    on_ready: Callable[[Server, str], None],
    on_signal: Callable[[], None] = lambda: None,
    fork_server: ForkServer | None = None,
) -> None:
    """Serve loaded models on a socket that listens; `on_ready` gets the server too, so that it can be stopped."""
    url = make_service_url(listener, tls=settings.tls_cert is not None)
    _check_tls(settings)

    def ready() -> None:
        if settings.ready_file is not None:
            content = json.dumps({"url": url, "pid": os.getpid()}) + "\n"
            write_whole(settings.ready_file, content)
        log.info("serving %s on %s", ", ".join(backbones), url)
        on_ready(server, url)

    with open_service(settings, backbones=backbones, started_at=int(time.time()), fork_server=fork_server) as service:
        if settings.admin_key is None and not has_keys(service.store):
            log.warning(
                "the door is open: whatever runs on this machine may do everything, as the tenant local; "
                "close it with `rapt admin create-key --role admin`"
            )
        stopping = Stopping()
        config = uvicorn.Config(
            create_app(service, stopping=stopping),
            ws="none",
            loop="asyncio",  # others accept connections past `Listener`
            proxy_headers=False,
            backlog=count_connections(settings.max_connections)[1],
            timeout_keep_alive=settings.keep_alive_seconds,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_GRACE + _GRACE_AFTER_IT,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
        )
        if service.replicas is not None and threading.current_thread() is threading.main_thread():
            restart = service.replicas.restart

            def replace_replicas(_signal: int, _frame: FrameType | None) -> None:
                if not server.should_exit:
                    # In a thread: whatever lock it needs may be held by what the signal has interrupted.
                    threading.Thread(target=restart).start()

            signal.signal(signal.SIGHUP, replace_replicas)
        server = Server(
            config,
            listener=listener,
            settings=settings,
            stopping=stopping,
            on_ready=ready,
            on_signal=on_signal,
            on_stop=service.runner.stop,
        )
        try:
            server.run(sockets=[listener])
        finally:
            if settings.ready_file is not None:
                settings.ready_file.unlink(missing_ok=True)


def listen(settings: Settings) -> Listener:
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
    return Listener(listener, most=count_connections(settings.max_connections)[0])


def make_service_url(listener: socket.socket, *, tls: bool = False) -> str:
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


def _cut_off() -> None:
    log.warning("stopped without waiting for what was being computed")
    os._exit(1)


@contextmanager
def take_short_turns() -> Iterator[None]:
    """Within the block a thread that computes in Python lets another one go on after half a millisecond, not five.

    An answer needs a dozen turns of the event loop, and each may find another thread at work.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def stop_at_signals() -> Iterator[Callable[[], None]]:
    """End the block in order at a signal to stop; yields what else begins the time within which it must have ended.

    They are SIGTERM, SIGINT and, where nobody has it ignored, SIGHUP, which a closed terminal sends, and systemd behind
    a SIGTERM with `SendSIGHUP`.

    uvicorn stops serving and then raises the signal again, and the default answer to SIGTERM would end the process
    before the worker has put its job back and the ready file is gone. What does not end in order within its time, such
    as a long pass in a thread, is cut off: what is stored is as safe as after a crash.
    """
    cut_off = Timer(_GONE_WITHIN, _cut_off)
    cut_off.daemon = True
    # A signal may come in the middle of another one's handler: taking a lock is one step, starting a thread is not.
    is_running, is_interrupted = Lock(), Lock()

    def begin() -> None:
        if is_running.acquire(blocking=False):
            cut_off.start()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        # Once: a second one would break off what puts things in order after the first, which `cut_off` bounds.
        is_first = is_interrupted.acquire(blocking=False)
        begin()
        if is_first:
            raise KeyboardInterrupt

    def hang_up(_signal: int, _frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)  # to whoever takes it by now

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield begin
    except KeyboardInterrupt:
        log.info("stopped")
    finally:
        cut_off.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepare_process(settings: Settings) -> None:
    log_to_stderr()
    warn_of_unknown_variables(os.environ)
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    switch_tracebacks(log, on=settings.debug)


def work(settings: Settings, *, on_ready: Callable[[], None] = lambda: None, forks: bool = False) -> None:
    """Run jobs until the process is asked to stop (SIGINT or SIGTERM).

    Args:
        settings: Settings of the service.
        on_ready: Called once jobs are taken.
        forks: Whether processes of jobs may be forked from this one, which must have computed nothing yet.

    Raises:
        UsageError: The data directory is of no service, or cannot be used.
        VocabularyError: The files of a model are missing.
    """
    _prepare_process(settings)
    if settings.database_url is None or settings.blobs is None:  # else a folder of its own will do
        refuse_other_folder(settings.data_directory, instead="start `rapt serve` first, or give its --data")
    with ExitStack() as stack:
        stack.enter_context(stop_at_signals())
        if settings.job_process:
            for model in settings.models:  # that their files are there is said now and not when a job comes
                check_model_files(model)
        fork_server = stack.enter_context(fork_job_processes(settings)) if forks else None
        stack.enter_context(give_back_regularly())
        backbones = {} if settings.job_process else load_backbones(settings)
        work_with(settings, backbones=backbones, on_ready=on_ready, until=Event(), fork_server=fork_server)


def work_with(
    settings: Settings,
    *,
    backbones: Mapping[str, Backbone],
    on_ready: Callable[[], None],
    until: Event,
    fork_server: ForkServer | None = None,
) -> None:
    """Run jobs until the event, or until a signal interrupts the wait."""
    precision = str(choose_dtype(settings.precision, choose_device(settings.device))).removeprefix("torch.")
    with join_store(
        settings.data_directory,
        url=reveal(settings.database_url),
        blobs=reveal(settings.blobs),
        connections=settings.database_connections,
    ) as store:
        own_blobs(store)
        runner = make_runner(settings, store, backbones=backbones, precision=precision, fork_server=fork_server)
        runner.start()
        try:
            on_ready()
            until.wait()
        finally:
            runner.close()
