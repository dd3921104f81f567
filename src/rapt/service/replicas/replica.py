"""What runs in the cluster: replicas of the base models, and places where jobs are tuned.

A replica has no database, no files of tenants and no keys. It is given privatized rows, and the files of an adapter
when it does not have them; it batches as one machine does, fairly between tenants. A place for jobs runs one job at a
time in a process of its own, and reads and writes the service's store as any worker does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rapt.cluster import check_version
from rapt.errors import RaptError, VocabularyError
from rapt.service.adapter.adapter import Adapter, adapter_from_files
from rapt.service.adapter.adapter_cache import AdapterCache
from rapt.service.answers.batching import BatchLimits
from rapt.service.answers.prediction import Answer
from rapt.service.answers.writing import Written, compute_answers
from rapt.service.backbone.opening import check_model_files, load_served
from rapt.service.jobs.job_run import Outcome
from rapt.service.jobs.tuning_process import ChildSettings, TuningProcess, name_run
from rapt.service.replicas.calls import MissingAdapter, ReplicaPlan, ReplicaRequest, receive_row
from rapt.service.storage.job_rows import StoredJob

# References to the files of adapters in Ray's store, by digest; each in a list, so that Ray does not fetch it.
References = Mapping[str, Sequence[Any]]


def check_node(version: str, models: Mapping[str, str]) -> RaptError | None:
    """Return what keeps a replica from this node: another version of rapt, or files of a model that are not here."""
    try:
        check_version(version)
        for model in models.values():
            check_model_files(model)
    except RaptError as error:
        return error
    return None


class Replica:
    """The base models of a service, once more."""

    def __init__(self, plan: ReplicaPlan) -> None:
        """Load the models that the plan names.

        Raises:
            ClusterError: This node has another version of rapt.
            VocabularyError: It lacks the files of a model, or has others than the service.
        """
        check_version(plan.version)
        if plan.torch_threads is not None:
            torch.set_num_threads(plan.torch_threads)
        self._backbones = {
            name: load_served(
                model,
                name=name,
                precision=plan.precision,
                device=plan.device,
                served=plan.models,
                weights=plan.weights,
                device_map=plan.device_map,
            )
            for name, model in plan.models.items()
        }
        for name, backbone in self._backbones.items():
            if backbone.bundle.hash != plan.vocabularies[name]:
                raise VocabularyError(
                    f"every node of the cluster must have the same files of model={name!r}, and one has others; copy "
                    "those of the service"
                )
        self._adapters = AdapterCache(plan.adapter_bytes)
        self._closing = ExitStack()
        computing = compute_answers(self._backbones, limits=BatchLimits(waiting_cost=plan.waiting_cost))
        self._predictors, self._writers = self._closing.enter_context(computing)

    async def classify(self, requests: Sequence[ReplicaRequest], files: References) -> list[list[Answer] | RaptError]:
        """The answers to each request, or the error of one that was refused; `MissingAdapter` asks for files."""
        return await asyncio.gather(*(self._classify(request, files) for request in requests))

    async def _classify(self, request: ReplicaRequest, files: References) -> list[Answer] | RaptError:
        predictor = self._predictors[request.model]
        try:
            rows = [
                receive_row(row, await self._find_adapter(request.model, row.adapter, files)) for row in request.rows
            ]
            ticket = predictor.submit_spelled(rows, tenant=request.tenant)
        except RaptError as error:
            return error
        try:
            return await asyncio.wrap_future(ticket.future)
        except RaptError as error:
            return error
        except asyncio.CancelledError:  # the caller has left
            predictor.cancel(ticket)
            raise

    async def write(self, request: ReplicaRequest, files: References) -> AsyncIterator[list[Written]]:
        """The tokens of a text as they come, its end or its error last."""
        (sent,), writer = request.rows, self._writers[request.model]
        said: asyncio.Queue[Written] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(written: Written) -> None:
            loop.call_soon_threadsafe(said.put_nowait, written)

        try:
            row = receive_row(sent, await self._find_adapter(request.model, sent.adapter, files))
            text = writer.submit(row, tenant=request.tenant, tell=tell)
        except RaptError as error:
            yield [Written(error=error)]
            return
        try:
            while True:
                some = [await said.get()]
                while not said.empty():
                    some.append(said.get_nowait())
                yield some
                if some[-1].finish is not None or some[-1].error is not None:
                    return
        finally:
            writer.cancel(text)

    async def _find_adapter(self, model: str, digest: str | None, files: References) -> Adapter | None:
        """The adapter of a digest. Raises `MissingAdapter` where it is neither here nor among the files."""
        if digest is None:
            return None
        if self._adapters.has(digest):
            with suppress(MissingAdapter):  # it had to make room at this moment
                return self._adapters.get(digest, _refuse_to_load)
        if digest not in files:
            raise MissingAdapter
        (reference,) = files[digest]
        found: Mapping[str, bytes] = await reference
        backbone = self._backbones[model]
        return await asyncio.to_thread(self._adapters.get, digest, lambda: adapter_from_files(found, backbone=backbone))

    def close(self) -> None:
        """Refuse what waits, and end the threads."""
        self._closing.close()


def _refuse_to_load() -> Adapter:
    raise MissingAdapter


class JobPlace:
    """A place on some node where one job runs at a time."""

    def __init__(self, version: str, settings: ChildSettings, *, shares_disk: bool) -> None:
        """Prepare to run jobs.

        Args:
            version: Version of rapt that this node must have.
            settings: Settings of the process that runs jobs.
            shares_disk: Whether the data directory of the service is on this machine; else this place has its own.

        Raises:
            ClusterError: This node has another version.
        """
        check_version(version)
        self._folder = None if shares_disk else TemporaryDirectory(prefix="rapt-jobs-")
        if self._folder is not None:
            settings = replace(settings, data_directory=self._folder.name)
        self._process = TuningProcess(settings)
        self._stopped: set[str] = set()

    def run(self, job: StoredJob) -> Outcome:
        """Run a claimed job until it has ended or is stopped."""
        return self._process.run(job, lambda: name_run(job) in self._stopped)

    def stop(self, run: str) -> None:
        """Stop one run of a job, by its name, within a step."""
        self._stopped.add(run)
