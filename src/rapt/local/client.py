"""The way to a service: only privatized files and wire values go out.

No signature here takes a text. `upload` reads the whole file first, as strictly as the service will, before it sends a
byte: a plain CSV, or a privatized file that somebody edited, does not leave. A file's own name stays here too.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

from rapt.errors import CorpusError, TuningError, UsageError, VocabularyError, WireError
from rapt.local.service_connection import Connection, quote_part
from rapt.local.service_downloads import fetch_adapter, fetch_codebook, fetch_vocabulary
from rapt.local.service_objects import (
    FileInfo,
    JobEvent,
    JobInfo,
    ModelInfo,
    PoolInfo,
    Prediction,
    clean_line,
    not_understood,
    prediction,
    read_file_info,
    read_items,
    read_job_event,
    read_job_info,
    read_model_info,
    read_pool_info,
)
from rapt.wire.code_bundle import CodeBundle
from rapt.wire.manifest import Manifest, digest_setting, dump_manifest
from rapt.wire.privatized_file import (
    PrivatizedFile,
    PrivatizedRecord,
    dump_query,
    dump_record,
    iterate_privatized_lines,
    read_bounded_lines,
    remove_labels,
)
from rapt.wire.strict_json import read_field
from rapt.wire.vocabulary_bundle import VocabularyBundle

__all__ = ["FileInfo", "JobEvent", "JobInfo", "ModelInfo", "Prediction", "ServiceClient"]

T = TypeVar("T")
UPLOAD_NAME: Final = "privatized.jsonl"
RECORDS_PER_REQUEST: Final = 256
_EVENTS_PER_REQUEST: Final = 100
_JOBS_PER_REQUEST: Final = 100
_MOST_LISTED: Final = 1000


class ServiceClient:
    """A connection to one service; close it, or use it in a `with` block."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        ca_file: Path | None = None,
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
            patience: How long a request that is harmless when repeated is sent again after a connection was lost, s.
            on_retry: Called with what to tell a person when that begins.

        Raises:
            UsageError: The URL is not one of HTTP, the key cannot be sent or would be sent in clear, or the file holds
                no certificate.
        """
        self._service = Connection(
            url,
            api_key=api_key,
            ca_file=ca_file,
            timeout=timeout,
            insecure=insecure,
            patience=patience,
            on_retry=on_retry,
        )

    def __enter__(self) -> Self:
        """Use it in a block."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the connection to the service."""
        self.close()

    def close(self) -> None:
        """Close the connection to the service."""
        self._service.close()

    def upload(self, path: Path) -> FileInfo:
        """Send a privatized file, unless the service has the same bytes already: then that file is the answer.

        Raises:
            WireError: It is not a privatized file, or damaged; nothing was sent.
            CorpusError: It cannot be read; nothing was sent.
            ServiceError: The service refused it, or gave no answer.
        """
        try:
            with path.open("rb") as stream:
                for _ in iterate_privatized_lines(read_bounded_lines(stream)):
                    pass
                stream.seek(0)
                known = self._uploaded_before(hashlib.file_digest(stream, "sha256").hexdigest())
                if known is not None:
                    return known
                answer = self._service.ask(
                    "POST",
                    "/v1/files",
                    data={"purpose": "fine-tune"},
                    files={"file": (UPLOAD_NAME, stream, "application/jsonl")},
                    key=secrets.token_hex(16),
                )
        except OSError as error:
            raise CorpusError(
                f"a privatized file must be readable, got {error.strerror or type(error).__name__}; check the path"
            ) from None
        return _read(read_file_info, answer)

    def _uploaded_before(self, sha256: str) -> FileInfo | None:
        answer = self._service.ask("GET", "/v1/files", params={"sha256": sha256, "limit": 1})
        return next((file for file in _read_each(read_file_info, answer) if file.sha256 == sha256), None)

    def files(self) -> list[FileInfo]:
        """The files of the tenant, newest first, the newest thousand at most."""
        return _read_each(read_file_info, self._service.ask("GET", "/v1/files", params={"limit": _MOST_LISTED}))

    def file(self, file_id: str) -> FileInfo:
        """An uploaded file. Raises `NotFoundError`."""
        return _read(read_file_info, self._service.ask("GET", f"/v1/files/{quote_part(file_id)}"))

    def delete_file(self, file_id: str) -> None:
        """Delete an uploaded file. Raises `NotFoundError`, and `ServiceError` while a job needs it."""
        self._service.ask("DELETE", f"/v1/files/{quote_part(file_id)}")

    def create_job(
        self,
        *,
        file_id: str,
        model: str,
        method: Mapping[str, Any],
        suffix: str | None = None,
        seed: int | None = None,
        priority: int = 0,
        validation_file: str | None = None,
    ) -> JobInfo:
        """Queue a tuning job.

        Args:
            file_id: An uploaded file, with labels.
            model: A base model of the service, the one that the file was privatized for.
            method: Method and hyper-parameters, such as
                `{"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"n_epochs": 3}}}`.
            suffix: Part of the tuned model's name.
            seed: Seed of the training, to repeat it.
            priority: Among the tenant's own jobs; the highest is first.
            validation_file: Another uploaded file, by whose loss the best epoch is chosen.
        """
        body: dict[str, Any] = {"training_file": file_id, "model": model, "method": dict(method)}
        given = {"suffix": suffix, "seed": seed, "validation_file": validation_file}
        body |= {name: value for name, value in given.items() if value is not None}
        if priority:
            body["rapt"] = {"priority": priority}
        answer = self._service.ask("POST", "/v1/fine_tuning/jobs", json=body, key=secrets.token_hex(16))
        return _read(read_job_info, answer)

    def job(self, job_id: str) -> JobInfo:
        """How a job stands. Raises `NotFoundError`."""
        return _read(read_job_info, self._service.ask("GET", f"/v1/fine_tuning/jobs/{quote_part(job_id)}"))

    def jobs(self) -> list[JobInfo]:
        """The jobs of the tenant, newest first, the newest thousand at most."""
        found: list[JobInfo] = []
        query: dict[str, str | int] = {"limit": _JOBS_PER_REQUEST}
        while len(found) < _MOST_LISTED:
            answer = self._service.ask("GET", "/v1/fine_tuning/jobs", params=query)
            page = _read_each(read_job_info, answer)
            found += page
            if answer.get("has_more") is not True or not page:
                break
            query["after"] = page[-1].id
        return found

    def cancel_job(self, job_id: str) -> JobInfo:
        """Stop a job. Raises `NotFoundError`, and `ServiceError` if it has ended."""
        return _read(read_job_info, self._service.ask("POST", f"/v1/fine_tuning/jobs/{quote_part(job_id)}/cancel"))

    def events(self, job_id: str, *, after: str | None = None) -> list[JobEvent]:
        """Return what happened to a job since the event `after`, oldest first; all of it without `after`."""
        found: list[JobEvent] = []
        query: dict[str, str | int] = {"limit": _EVENTS_PER_REQUEST}
        while True:  # the service lists the newest first
            answer = self._service.ask("GET", f"/v1/fine_tuning/jobs/{quote_part(job_id)}/events", params=query)
            for event in _read_each(read_job_event, answer):
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
            job_id: Name that the service gave the job.
            on_event: Called with each event.
            seconds_between: Pause between two questions, at first and after each event, s.
            most_seconds_between: Longest pause between two questions, however long nothing happens, s.
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
        return _read_each(read_model_info, self._service.ask("GET", "/v1/models"))

    def model(self, model: str) -> ModelInfo:
        """A model; of a tuned one with the card that says how queries must be privatized. Raises `NotFoundError`."""
        return _read(read_model_info, self._service.ask("GET", f"/v1/models/{quote_part(model)}"))

    def base_model(self, manifest: Manifest, *, asked: str | None = None) -> str:
        """The name of the base model that a file can tune: the one that is asked for, its own, or the only one left.

        Raises:
            NotFoundError: There is no model of the name that is asked for.
            UsageError: Several models have the vocabulary of the file, and none of them is named.
            VocabularyError: No model has it, or the one that is asked for has another.
        """
        if asked is not None:
            check_same_vocabulary(self.model(asked), manifest)
            return asked
        bases = [model for model in self.models() if model.id == model.base]
        fitting = [model.id for model in bases if model.vocabulary_hash == manifest.vocabulary_hash]
        if manifest.model in fitting:
            return manifest.model
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise UsageError(
                f"a tuning must be of one model, got {len(fitting)} with the vocabulary of the file "
                f"({clean_line(', '.join(fitting))}); name one with --model"
            )
        raise _other_vocabulary(manifest)

    def delete_model(self, model: str) -> None:
        """Delete a tuned model. Raises `NotFoundError`."""
        self._service.ask("DELETE", f"/v1/models/{quote_part(model)}")

    def open_pool(self, manifest: Manifest, *, least: int = 20, most: int = 100_000) -> PoolInfo:
        """A new pool, for contributions that are privatized as a manifest says.

        Args:
            manifest: Manifest of a privatized file, the setting of which contributions must have.
            least: Number of contributions below which the pool cannot be closed.
            most: Number of contributions that it takes.
        """
        body = {"manifest": dump_manifest(manifest), "least": least, "most": most}
        return _read(read_pool_info, self._service.ask("POST", "/v1/pools", json=body))

    def pool(self, pool: str) -> PoolInfo:
        """The pool of an id. Raises `NotFoundError`."""
        return _read(read_pool_info, self._service.ask("GET", f"/v1/pools/{quote_part(pool)}"))

    def pools(self) -> list[PoolInfo]:
        """The newest hundred pools of the tenant."""
        return _read_each(read_pool_info, self._service.ask("GET", "/v1/pools", params={"limit": 100}))

    def make_pool_keys(self, pool: str, *, count: int = 1, contributions: int = 1) -> list[str]:
        """New API keys that add so many contributions each to a pool, and do nothing else; shown this once."""
        body = {"count": count, "contributions": contributions}
        answer = self._service.ask("POST", f"/v1/pools/{quote_part(pool)}/keys", json=body)
        return _read_each(lambda item: str(read_field(item, "value", str, what="a key")), answer)

    def contribute(
        self, pool: PoolInfo, records: Sequence[PrivatizedRecord], *, setting: str, receipts: Sequence[str]
    ) -> None:
        """Add privatized records to a pool, all or none; the same receipt twice is one contribution.

        Args:
            pool: Pool, as the service describes it.
            records: 1 to 1,000 records, privatized by the manifest of the pool.
            setting: Digest of the manifest that they were privatized by, `digest_setting`.
            receipts: 64 hexadecimal digits for each that nobody else can guess; they take the contribution back.

        Raises:
            UsageError: The record was privatized by another setting than the pool's.
            ServiceError: The pool takes no more.
        """
        check_pool_setting(pool, setting)
        first, *others = (
            {"receipt": receipt, "record": dump_record(record)}
            for receipt, record in zip(receipts, records, strict=True)
        )
        body = {"setting": setting, **first, "others": others}
        self._service.ask("POST", f"/v1/pools/{quote_part(pool.id)}/contributions", json=body, repeatable=True)

    def take_back(self, pool: str, *, receipt: str) -> None:
        """Take a contribution out of an open pool. Raises `NotFoundError` where it is not in it."""
        path = f"/v1/pools/{quote_part(pool)}/contributions/take-back"
        self._service.ask("POST", path, json={"receipt": receipt})

    def close_pool(self, pool: str) -> PoolInfo:
        """Take nothing more into a pool; it becomes a file of the tenant, in a random order."""
        return _read(read_pool_info, self._service.ask("POST", f"/v1/pools/{quote_part(pool)}/close", repeatable=True))

    def delete_pool(self, pool: str) -> None:
        """Delete a pool with its contributions and keys. Raises `NotFoundError`."""
        self._service.ask("DELETE", f"/v1/pools/{quote_part(pool)}")

    def classify(
        self, model: str, file: PrivatizedFile, *, on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Prediction]:
        """Predictions for all records, in order. Labels of the records are not sent.

        Args:
            model: A tuned model.
            file: Privatized as the model's training text was.
            on_progress: Called with the number of records answered so far.
        """
        predictions: list[Prediction] = []
        for found in self.classify_in_parts(model, file):
            predictions += found
            on_progress(len(predictions))
        return predictions

    def classify_in_parts(self, model: str, file: PrivatizedFile, *, first: int = 0) -> Iterator[list[Prediction]]:
        """Predictions for the records from position `first` on, in order, as they come; see `classify`."""
        bare = remove_labels(file)
        for start in range(first, len(bare.records), RECORDS_PER_REQUEST):
            part = PrivatizedFile(manifest=bare.manifest, records=bare.records[start : start + RECORDS_PER_REQUEST])
            answer = self._service.ask(
                "POST", "/v1/classify", json={"model": model, **dump_query(part)}, repeatable=True
            )
            found = _read_each(prediction, answer, name="predictions")
            if len(found) != len(part.records):
                raise not_understood()
            yield found

    def vocabulary(self, model: str, folder: Path) -> VocabularyBundle:
        """The vocabulary of a model, fetched into a folder, its hash computed again from what came.

        The bundle that stands in the folder is kept if it is the same. What came of a table whose connection was lost
        waits in the cache folder, and the next time the rest is fetched.

        Args:
            model: A base model, or a tuned one for that of its base.
            folder: Appears whole or not at all; another bundle that stands there already is replaced.

        Raises:
            VocabularyError: What came does not match its hash, or the folder cannot be written.
            UsageError: The folder holds something else, or is a link.
        """
        return fetch_vocabulary(self._service, model, folder)

    def codebook(self, model: str, folder: Path) -> CodeBundle:
        """The codebook of a model, fetched into a folder as `vocabulary` is; the encoder of its codes does not come.

        Args:
            model: A base model whose unit is the text, or a tuned one for that of its base.
            folder: Appears whole or not at all; a code bundle that stands there already is replaced.

        Raises:
            VocabularyError: What came does not match its hash, or the folder cannot be written.
            UsageError: The folder holds something else, or is a link.
            NotFoundError: The model has a vocabulary of tokens.
        """
        return fetch_codebook(self._service, model, folder)

    def adapter(self, model: str, *, form: Literal["rapt", "hub"] = "rapt") -> dict[str, bytes]:
        """The files of a tuned model by name: its card and weights, and PEFT's configuration where it has one.

        Args:
            model: Name of a tuned model.
            form: `rapt`, as a service imports it, or `hub`, as plain PEFT, vLLM and the hub take it, with a README.

        Raises:
            NotFoundError: There is no such tuned model.
            WireError: What came is no adapter.
        """
        return fetch_adapter(self._service, model, form=form)


def check_same_vocabulary(model: ModelInfo, manifest: Manifest) -> None:
    """Refuse a model with another vocabulary than that of a file (`VocabularyError`)."""
    if model.vocabulary_hash != manifest.vocabulary_hash:
        raise _other_vocabulary(manifest)


def check_pool_setting(pool: PoolInfo, setting: str) -> None:
    """Refuse a record that was privatized by another setting than a pool states and describes (`UsageError`)."""
    if digest_setting(pool.manifest) != setting or pool.setting != setting:
        raise UsageError(
            "a contribution must be privatized as the pool asks, with its codebook or vocabulary, mechanism, labels "
            "and plain tokens; privatize the text again"
        )


def _other_vocabulary(manifest: Manifest) -> VocabularyError:
    if manifest.unit == "text":
        return VocabularyError(
            "the model must have the codebook that the file was privatized with; name the model of that codebook with "
            "--model, or privatize the texts again with the code of a model of the service, as "
            "`ServiceClient.codebook` fetches it"
        )
    return VocabularyError(
        "the model must have the vocabulary that the file was privatized with; privatize the texts again with the "
        "vocabulary of a model of the service, as `rapt vocabulary fetch` gets it"
    )


def _read_each(parse: Callable[[Mapping[str, Any]], T], answer: Mapping[str, Any], *, name: str = "data") -> list[T]:
    return _read(lambda value: [parse(item) for item in read_items(value, name)], answer)


def _read(parse: Callable[[Mapping[str, Any]], T], answer: Mapping[str, Any]) -> T:
    try:
        return parse(answer)
    except WireError:
        raise not_understood() from None


def follow_job(
    client: ServiceClient,
    job_id: str,
    *,
    on_step: Callable[[int, int, str], None],
    on_warning: Callable[[str], None] = lambda message: None,
) -> JobInfo:
    """The job, once it has succeeded.

    Args:
        client: Client of the service that runs it.
        job_id: Name that the service gave the job.
        on_step: Called with the steps made, the steps in all, and the losses in words.
        on_warning: Called with what went wrong on the way.

    Raises:
        TuningError: It failed or was cancelled.
        ServiceError: The service stopped answering.
    """

    def show(event: JobEvent) -> None:
        if event.data is not None and "step" in event.data:
            on_step(int(event.data["step"]), int(event.data.get("total_steps", 0)), describe_losses(event.data))
        elif event.level != "info":
            on_warning(event.message)

    job = client.wait(job_id, on_event=show)
    if job.fine_tuned_model is None:
        reason = job.error_message or "somebody cancelled it"
        raise TuningError(f"the job must succeed, got status={job.status!r}: {reason}")
    return job


def describe_losses(data: Mapping[str, Any]) -> str:
    """The figures of a step: training loss, reconstruction loss if there is one, accuracy on the step's own texts."""
    names = (
        ("train_loss", "loss"),
        ("reconstruction_loss", "reconstruction"),
        ("train_mean_token_accuracy", "accuracy"),
    )
    return ", ".join(f"{name} {data[key]:.3f}" for key, name in names if data.get(key) is not None)
