"""The two clients of a service: one that waits for each answer, and one that awaits it.

Both have the same methods, made of the same steps. No signature takes a text: privatized files and values of
`rapt.wire` go out, and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx2

from rapt.arguments import check_arguments
from rapt.local.client import answer_steps, file_steps, job_steps, model_steps, pool_steps
from rapt.local.client.connection import Connection, Http
from rapt.local.client.objects import JobInfo, Prediction
from rapt.local.client.steps import Steps, take_steps, take_steps_async
from rapt.wire.privatized_file import PrivatizedFile

T = TypeVar("T")
P = ParamSpec("P")
_FIRST_ARGUMENT = "    service: Connection to the service.\n"


def _make_waiting_method(steps: Callable[Concatenate[Connection, P], Steps[T]]) -> Callable[Concatenate[Any, P], T]:
    """Make a method of `ServiceClient` of a function that gives steps."""
    checked = check_arguments(steps)

    def method(self: ServiceClient, /, *args: P.args, **options: P.kwargs) -> T:
        return take_steps(checked(self._service, *args, **options), self._http)

    _describe(method, steps, client="ServiceClient")
    return method


def _make_awaiting_method(
    steps: Callable[Concatenate[Connection, P], Steps[T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Make a method of `AsyncServiceClient` of a function that gives steps."""
    checked = check_arguments(steps)

    async def method(self: AsyncServiceClient, /, *args: P.args, **options: P.kwargs) -> T:
        return await take_steps_async(checked(self._service, *args, **options), self._http)

    _describe(method, steps, client="AsyncServiceClient")
    return method


def _describe(method: Any, steps: Callable[..., Any], *, client: str) -> None:
    """Give a method the words and the signature of the function that it is made of, for `help` and editors."""
    method.__name__, method.__qualname__ = steps.__name__, f"{client}.{steps.__name__}"
    method.__doc__ = (inspect.getdoc(steps) or "").replace(_FIRST_ARGUMENT, "")
    described = inspect.signature(steps)
    _, *arguments = described.parameters.values()
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    result = str(described.return_annotation).removeprefix("Steps[").removesuffix("]")
    # `inspect` reads it from any callable, though the type of functions has no such attribute.
    method.__signature__ = described.replace(parameters=[itself, *arguments], return_annotation=result)


class _Client(Generic[Http]):
    """Settings of a connection, and the client of HTTP that is opened with them."""

    _kind: type[Http]

    @check_arguments
    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        ca_file: Path | str | None = None,
        timeout: float = 300.0,
        insecure: bool = False,
        patience: float = 300.0,
        on_retry: Callable[[str], None] = lambda message: None,
    ) -> None:
        """Prepare a connection; nothing is sent yet.

        Args:
            url: URL of the service, such as `http://127.0.0.1:8420`.
            api_key: API key, if the service asks for one.
            ca_file: PEM certificates that vouch for the service, in place of those that this machine trusts.
            timeout: Longest silence before an answer, s; the service checks an upload before it answers.
            insecure: Send the key to another machine over `http://` too, where everybody on the way can read it.
            patience: Longest time for which a request that is harmless when repeated is sent again after a lost
                connection, s.
            on_retry: Called with what to tell a person when that begins.

        Raises:
            UsageError: The URL is not one of HTTP, the key cannot be sent or would be sent in clear, or the file holds
                no certificate.
        """
        self._service = Connection(
            url,
            api_key=api_key,
            ca_file=None if ca_file is None else Path(ca_file),
            timeout=timeout,
            insecure=insecure,
            patience=patience,
            on_retry=on_retry,
        )
        self._http: Http = self._service.open(self._kind)

    def __repr__(self) -> str:
        """The address alone: a key is not for a log."""
        return f"{type(self).__name__}({self._service.address!r})"


class ServiceClient(_Client[httpx2.Client]):
    """A connection to one service; close it, or use it in a `with` block."""

    _kind = httpx2.Client

    def __enter__(self) -> Self:
        """Use it in a block."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the connection to the service."""
        self.close()

    def close(self) -> None:
        """Close the connection to the service."""
        self._http.close()

    upload = _make_waiting_method(file_steps.upload)
    files = _make_waiting_method(file_steps.list_files)
    file = _make_waiting_method(file_steps.get_file)
    fetch_file = _make_waiting_method(file_steps.fetch_file)
    delete_file = _make_waiting_method(file_steps.delete_file)

    create_job = _make_waiting_method(job_steps.create_job)
    job = _make_waiting_method(job_steps.get_job)
    jobs = _make_waiting_method(job_steps.list_jobs)
    cancel_job = _make_waiting_method(job_steps.cancel_job)
    pause_job = _make_waiting_method(job_steps.pause_job)
    resume_job = _make_waiting_method(job_steps.resume_job)
    checkpoints = _make_waiting_method(job_steps.list_checkpoints)
    events = _make_waiting_method(job_steps.list_events)
    wait = _make_waiting_method(job_steps.wait)
    follow = _make_waiting_method(job_steps.follow)

    models = _make_waiting_method(model_steps.list_models)
    model = _make_waiting_method(model_steps.get_model)
    base_model = _make_waiting_method(model_steps.choose_base_model)
    delete_model = _make_waiting_method(model_steps.delete_model)
    vocabulary = _make_waiting_method(model_steps.fetch_vocabulary)
    codebook = _make_waiting_method(model_steps.fetch_codebook)
    adapter = _make_waiting_method(model_steps.fetch_adapter)
    import_adapter = _make_waiting_method(model_steps.import_adapter)

    open_pool = _make_waiting_method(pool_steps.open_pool)
    pool = _make_waiting_method(pool_steps.get_pool)
    pools = _make_waiting_method(pool_steps.list_pools)
    make_pool_keys = _make_waiting_method(pool_steps.make_pool_keys)
    contribute = _make_waiting_method(pool_steps.contribute)
    take_back = _make_waiting_method(pool_steps.take_back)
    advance_pool = _make_waiting_method(pool_steps.advance_pool)
    close_pool = _make_waiting_method(pool_steps.close_pool)
    delete_pool = _make_waiting_method(pool_steps.delete_pool)

    classify = _make_waiting_method(answer_steps.classify)
    generate = _make_waiting_method(answer_steps.generate)
    chat = _make_waiting_method(answer_steps.chat)

    def classify_in_parts(self, model: str, file: PrivatizedFile, *, first: int = 0) -> Iterator[list[Prediction]]:
        """Predictions for the records from position `first` on, in order, as they come; see `classify`."""
        for part in answer_steps.split_queries(file, first=first):
            yield take_steps(answer_steps.classify_part(self._service, model, part), self._http)


class AsyncServiceClient(_Client[httpx2.AsyncClient]):
    """The same connection for a program with an event loop: every method of `ServiceClient`, to be awaited.

    What is read from a disk and checked before it is sent is read in a thread, so that the loop goes on.
    """

    _kind = httpx2.AsyncClient

    async def __aenter__(self) -> Self:
        """Use it in a block."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close the connection to the service."""
        await self.close()

    async def close(self) -> None:
        """Close the connection to the service."""
        await self._http.aclose()

    upload = _make_awaiting_method(file_steps.upload)
    files = _make_awaiting_method(file_steps.list_files)
    file = _make_awaiting_method(file_steps.get_file)
    fetch_file = _make_awaiting_method(file_steps.fetch_file)
    delete_file = _make_awaiting_method(file_steps.delete_file)

    create_job = _make_awaiting_method(job_steps.create_job)
    job = _make_awaiting_method(job_steps.get_job)
    jobs = _make_awaiting_method(job_steps.list_jobs)
    cancel_job = _make_awaiting_method(job_steps.cancel_job)
    pause_job = _make_awaiting_method(job_steps.pause_job)
    resume_job = _make_awaiting_method(job_steps.resume_job)
    checkpoints = _make_awaiting_method(job_steps.list_checkpoints)
    events = _make_awaiting_method(job_steps.list_events)
    wait = _make_awaiting_method(job_steps.wait)
    follow = _make_awaiting_method(job_steps.follow)

    models = _make_awaiting_method(model_steps.list_models)
    model = _make_awaiting_method(model_steps.get_model)
    base_model = _make_awaiting_method(model_steps.choose_base_model)
    delete_model = _make_awaiting_method(model_steps.delete_model)
    vocabulary = _make_awaiting_method(model_steps.fetch_vocabulary)
    codebook = _make_awaiting_method(model_steps.fetch_codebook)
    adapter = _make_awaiting_method(model_steps.fetch_adapter)
    import_adapter = _make_awaiting_method(model_steps.import_adapter)

    open_pool = _make_awaiting_method(pool_steps.open_pool)
    pool = _make_awaiting_method(pool_steps.get_pool)
    pools = _make_awaiting_method(pool_steps.list_pools)
    make_pool_keys = _make_awaiting_method(pool_steps.make_pool_keys)
    contribute = _make_awaiting_method(pool_steps.contribute)
    take_back = _make_awaiting_method(pool_steps.take_back)
    advance_pool = _make_awaiting_method(pool_steps.advance_pool)
    close_pool = _make_awaiting_method(pool_steps.close_pool)
    delete_pool = _make_awaiting_method(pool_steps.delete_pool)

    classify = _make_awaiting_method(answer_steps.classify)
    generate = _make_awaiting_method(answer_steps.generate)
    chat = _make_awaiting_method(answer_steps.chat)

    async def classify_in_parts(
        self, model: str, file: PrivatizedFile, *, first: int = 0
    ) -> AsyncIterator[list[Prediction]]:
        """Predictions for the records from position `first` on, in order, as they come; see `classify`."""
        for part in answer_steps.split_queries(file, first=first):
            yield await take_steps_async(answer_steps.classify_part(self._service, model, part), self._http)


def follow_job(
    client: ServiceClient,
    job_id: str,
    *,
    on_step: Callable[[int, int, str], None] = lambda done, total, losses: None,
    on_warning: Callable[[str], None] = lambda message: None,
) -> JobInfo:
    """The job, once it has succeeded; `ServiceClient.follow` says the rest."""
    return client.follow(job_id, on_step=on_step, on_warning=on_warning)
