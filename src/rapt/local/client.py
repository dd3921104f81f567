"""The way to a service: only privatized files and wire values go out.

No signature here takes a text. `upload` reads the whole file first, as strictly as the service will, before it sends a
byte: a plain CSV, or a privatized file that somebody edited, does not leave. A file's own name stays here too.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx2

from rapt.errors import (
    AccessError,
    BusyError,
    CorpusError,
    ForbiddenError,
    LimitError,
    NotFoundError,
    RaptError,
    ServiceError,
    UnavailableError,
    UsageError,
    VocabularyError,
    WireError,
)
from rapt.local.service_objects import (
    FileInfo,
    JobEvent,
    JobInfo,
    ModelInfo,
    Prediction,
    file_info,
    items_of,
    job_event,
    job_info,
    model_info,
    not_understood,
    prediction,
    refusal,
)
from rapt.wire.addresses import is_loopback
from rapt.wire.privatized_file import PrivatizedFile, bounded_lines, iterate_privatized_lines
from rapt.wire.query import query_to_json, without_labels
from rapt.wire.vocabulary_bundle import VocabularyBundle, read_bundle

__all__ = ["FileInfo", "JobEvent", "JobInfo", "ModelInfo", "Prediction", "ServiceClient"]

T = TypeVar("T")
UPLOAD_NAME: Final = "privatized.jsonl"
RECORDS_PER_REQUEST: Final = 256
# The last two are what a host name that cannot be one becomes.
_NO_ANSWER: Final = (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError)
# How often a request is sent while the service says that it is busy, and the longest wait that is obeyed, s.
_ATTEMPTS: Final = 5
_LONGEST_WAIT: Final = 60
_KEY: Final = re.compile(r"[!-~]+")
_EVENTS_PER_REQUEST: Final = 100
_BUNDLE_FILES: Final = ("vocabulary.json", "tokenizer.json", "embeddings.safetensors")
_KINDS: Final[Mapping[int, type[ServiceError]]] = {
    kind.status: kind for kind in (NotFoundError, AccessError, ForbiddenError, LimitError, UnavailableError)
}


class ServiceClient:
    """A connection to one service; close it, or use it in a `with` block."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 300.0) -> None:
        """Prepare a connection; nothing is sent yet.

        Args:
            url: Such as `http://127.0.0.1:8420`.
            api_key: If the service asks for one.
            timeout: Longest silence that is waited through, s; it checks an upload before it answers.

        Raises:
            UsageError: The URL is not one of HTTP, or the key cannot be sent.
        """
        if api_key is not None and not _KEY.fullmatch(api_key):
            raise UsageError("an API key must be one word of printable ASCII; copy it again")
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError):
            parsed = httpx2.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError("the service must be given as a URL, such as http://127.0.0.1:8420")
        self._http = httpx2.Client(
            base_url=parsed,
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            timeout=httpx2.Timeout(timeout, connect=10.0),
            # A proxy of the environment must not get to see what is meant for this machine.
            trust_env=not is_loopback(parsed.host),
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        """Use it in a block."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def upload(self, path: Path) -> FileInfo:
        """Send a privatized file.

        Raises:
            WireError: It is not a privatized file, or damaged; nothing was sent.
            CorpusError: It cannot be read; nothing was sent.
            ServiceError: The service refused it, or gave no answer.
        """
        try:
            with path.open("rb") as stream:
                for _ in iterate_privatized_lines(bounded_lines(stream)):
                    pass
                stream.seek(0)
                file = (UPLOAD_NAME, stream, "application/jsonl")
                answer = self._ask("POST", "/v1/files", data={"purpose": "fine-tune"}, files={"file": file})
        except OSError as error:
            raise CorpusError(
                f"a privatized file must be readable, got {error.strerror or type(error).__name__}; check the path"
            ) from None
        return _read(file_info, answer)

    def delete_file(self, file_id: str) -> None:
        """Delete an uploaded file. Raises `NotFoundError`, and `ServiceError` while a job needs it."""
        self._ask("DELETE", f"/v1/files/{_part(file_id)}")

    def create_job(
        self,
        *,
        file_id: str,
        model: str,
        method: Mapping[str, Any],
        suffix: str | None = None,
        seed: int | None = None,
    ) -> JobInfo:
        """Queue a tuning job.

        Args:
            file_id: An uploaded file, with labels.
            model: A base model of the service, the one that the file was privatized for.
            method: Such as `{"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"n_epochs": 3}}}`.
            suffix: A part of the tuned model's name.
            seed: Of the training, to repeat it.
        """
        body: dict[str, Any] = {"training_file": file_id, "model": model, "method": dict(method)}
        body |= {name: value for name, value in (("suffix", suffix), ("seed", seed)) if value is not None}
        return _read(job_info, self._ask("POST", "/v1/fine_tuning/jobs", json=body))

    def job(self, job_id: str) -> JobInfo:
        """How a job stands. Raises `NotFoundError`."""
        return _read(job_info, self._ask("GET", f"/v1/fine_tuning/jobs/{_part(job_id)}"))

    def cancel_job(self, job_id: str) -> JobInfo:
        """Stop a job. Raises `NotFoundError`, and `ServiceError` if it has ended."""
        return _read(job_info, self._ask("POST", f"/v1/fine_tuning/jobs/{_part(job_id)}/cancel"))

    def events(self, job_id: str, *, after: str | None = None) -> list[JobEvent]:
        """What happened to a job since the event `after`, oldest first; all of it without `after`."""
        found: list[JobEvent] = []
        query: dict[str, str | int] = {"limit": _EVENTS_PER_REQUEST}
        while True:  # the service lists the newest first
            answer = self._ask("GET", f"/v1/fine_tuning/jobs/{_part(job_id)}/events", params=query)
            for event in _read(_events, answer):
                if event.id == after:
                    return found[::-1]
                found.append(event)
            if answer.get("has_more") is not True or not found:
                return found[::-1]
            query["after"] = found[-1].id

    def wait(
        self,
        job_id: str,
        *,
        on_event: Callable[[JobEvent], None] = lambda event: None,
        seconds_between: float = 0.5,
        most_seconds_between: float = 5.0,
    ) -> JobInfo:
        """The job once it has ended, well or not; `on_event` gets everything that happens, in order.

        While nothing happens the service is asked less and less often.

        Args:
            job_id: As the service named it.
            on_event: Gets the events.
            seconds_between: Two questions, at first and after each event, s.
            most_seconds_between: Two questions, however long nothing happens, s.
        """
        latest, pause = None, seconds_between
        while True:
            job = self.job(job_id)  # before the events: then none of an ended job is missed
            news = self.events(job_id, after=latest)
            for event in news:
                latest = event.id
                on_event(event)
            if job.ended:
                return job
            pause = seconds_between if news else min(1.5 * pause, max(seconds_between, most_seconds_between))
            time.sleep(pause)

    def models(self) -> list[ModelInfo]:
        """Base models and tuned ones, without their cards."""
        return _read(_models, self._ask("GET", "/v1/models"))

    def model(self, model: str) -> ModelInfo:
        """A model; of a tuned one with the card that says how queries must be privatized. Raises `NotFoundError`."""
        return _read(model_info, self._ask("GET", f"/v1/models/{_part(model)}"))

    def delete_model(self, model: str) -> None:
        """Delete a tuned model. Raises `NotFoundError`."""
        self._ask("DELETE", f"/v1/models/{_part(model)}")

    def classify(
        self, model: str, file: PrivatizedFile, *, on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Prediction]:
        """Predictions for all records, in order. Labels of the records are not sent.

        Args:
            model: A tuned model.
            file: Privatized as the model's training text was.
            on_progress: Called with the number of records answered so far.
        """
        bare = without_labels(file)
        predictions: list[Prediction] = []
        for start in range(0, len(bare.records), RECORDS_PER_REQUEST):
            part = PrivatizedFile(manifest=bare.manifest, records=bare.records[start : start + RECORDS_PER_REQUEST])
            answer = self._ask("POST", "/v1/classify", json={"model": model, **query_to_json(part)})
            found = _read(_predictions, answer)
            if len(found) != len(part.records):
                raise not_understood()
            predictions += found
            on_progress(len(predictions))
        return predictions

    def vocabulary(self, model: str, folder: Path) -> VocabularyBundle:
        """The vocabulary of a model, fetched into a folder, its hash computed again from what came.

        Args:
            model: A base model, or a tuned one for that of its base.
            folder: Appears whole or not at all; a bundle that stands there already is replaced.

        Raises:
            VocabularyError: What came does not match its hash, or the folder cannot be written.
            UsageError: The folder holds something else.
        """
        try:
            _check_replaceable(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".vocabulary-", dir=folder.parent) as scratch:
                partial = Path(scratch) / "bundle"
                partial.mkdir()
                for name in _BUNDLE_FILES:
                    self._download(model, name, partial / name)
                bundle = read_bundle(partial)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        except OSError as error:
            raise VocabularyError(
                f"the folder of a vocabulary must be writable, got {error.strerror or type(error).__name__}; "
                "choose another"
            ) from None
        return bundle

    def _download(self, model: str, name: str, target: Path) -> None:
        path = f"/v1/vocabularies/{_part(model)}" + ("" if name == _BUNDLE_FILES[0] else f"/{name}")
        try:
            with self._http.stream("GET", path) as response, target.open("wb") as stream:
                if response.is_success:
                    for chunk in response.iter_bytes():
                        stream.write(chunk)
                    return
                response.read()
        except _NO_ANSWER as error:
            raise _no_answer(error) from None
        raise _refused(response)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str | int] | None = None,
        data: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, IO[bytes], str]] | None = None,
    ) -> dict[str, Any]:
        """One request; the JSON object in its answer. One that comes too early is sent again when it may come."""
        for left in reversed(range(_ATTEMPTS)):
            try:
                response = self._http.request(method, path, json=json, params=params, data=data, files=files)
            except _NO_ANSWER as error:
                raise _no_answer(error) from None
            after = _retry_after(response)
            # An upload would have to be read again from its start.
            if after is None or not left or files is not None:
                break
            time.sleep(after)
        if not response.is_success:
            raise _refused(response)
        value = _json(response)
        if not isinstance(value, dict):
            raise not_understood()
        return value


def _events(answer: Mapping[str, Any]) -> list[JobEvent]:
    return [job_event(item) for item in items_of(answer)]


def _models(answer: Mapping[str, Any]) -> list[ModelInfo]:
    return [model_info(item) for item in items_of(answer)]


def _predictions(answer: Mapping[str, Any]) -> list[Prediction]:
    return [prediction(item) for item in items_of(answer, "predictions")]


def _read(parse: Callable[[Mapping[str, Any]], T], answer: Mapping[str, Any]) -> T:
    try:
        return parse(answer)
    except WireError:
        raise not_understood() from None


def _check_replaceable(folder: Path) -> None:
    """Refuse to take the place of anything but a bundle."""
    if folder.exists() and not (folder.is_dir() and {item.name for item in folder.iterdir()} <= set(_BUNDLE_FILES)):
        raise UsageError("the folder of a vocabulary must be new, or hold an older vocabulary only; choose another")


def _json(response: httpx2.Response) -> object:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _retry_after(response: httpx2.Response) -> float | None:
    """When a service that is busy wants to be asked again, s; None if it is not, or wants it too late."""
    after = response.headers.get("retry-after", "")
    if response.status_code != BusyError.status or not after.isdecimal() or int(after) > _LONGEST_WAIT:
        return None
    return float(after)


def _refused(response: httpx2.Response) -> RaptError:
    if response.status_code == BusyError.status:
        message = f"the service is busy or a quota is used up: {refusal(_json(response))}"
        return BusyError(message, retry_after=_retry_after(response))
    kind = _KINDS.get(response.status_code, ServiceError)
    return kind(f"the service refused, status={response.status_code}: {refusal(_json(response))}")


def _no_answer(error: Exception) -> UnavailableError:
    return UnavailableError(f"the service must be reachable, got {type(error).__name__}; is it running at that URL?")


def _part(name: str) -> str:
    """A name as one part of a path, whatever is in it."""
    return quote(name, safe=":")
