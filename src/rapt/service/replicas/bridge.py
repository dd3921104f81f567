"""The process between a service and its replicas: it joins the cluster, deploys them, and passes calls and answers on.

Ray may end the process that speaks with it; that is this one, and the service says of its predictions that they are
away, and starts another. Ray Serve's own proxies are not used: they keep whole bodies in memory, and take from a
client's headers how long its request may take and whether it ends when the client leaves. A client speaks with the
service alone.

*A lost replica* loses nothing: predictions depend on their rows alone, so they are computed again elsewhere, and a text
is written again and goes on behind the tokens that were told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, Final

from rapt.cluster import explain
from rapt.errors import ClusterError, RaptError, UnavailableError
from rapt.service.answers.batching import told
from rapt.service.answers.writing import Written
from rapt.service.jobs.job_run import Outcome
from rapt.service.jobs.tuning_process import ChildSettings, name_run
from rapt.service.replicas.calls import MissingAdapter, ReplicaPlan, ReplicaRequest
from rapt.service.replicas.replica import JobPlace, Replica, check_node
from rapt.service.storage.job_rows import StoredJob

# How often a request is sent to another replica after one that died, and the pauses before, s: a new one takes a while.
_TRIES: Final = 8
_PAUSES: Final = (0.0, 0.1, 0.3, 1.0, 1.0, 2.0, 2.0)
# Positions up to which requests for one replica travel together; one that takes more goes alone: nobody waits for it.
_LIGHT: Final = 128
_BETWEEN_LOOKS: Final = 5.0  # at whether the application is still there, s
# Serve counts calls against this; who waits waits in the replica's own queue, which is fair.
_CALLS_AT_ONCE: Final = 4096
_COUNTED_OVER: Final = 30.0  # s over which Serve averages the calls at once by which it scales, at most
_LONG_START: Final = 30.0  # s after which a job that waits for its place is told to who runs the service
_DRAIN: Final = 30.0  # s that a replica may take to finish what it has, before it is stopped


def attend(ray: Any, connection: Connection) -> None:
    """Deploy the replicas of the plan that comes first, and hand on what comes then until the pipe is closed."""
    plan, jobs, shares_disk = connection.recv()
    bridge = _Bridge(ray, connection, plan, jobs, shares_disk=shares_disk)
    bridge.deploy()
    connection.send([(0, "ready", None)])
    asyncio.run(bridge.forward())


class _Bridge:
    """Calls of one service on their way."""

    def __init__(
        self, ray: Any, connection: Connection, plan: ReplicaPlan, jobs: ChildSettings | None, *, shares_disk: bool
    ) -> None:
        self._ray, self._serve = ray, import_module("ray.serve")
        self._connection, self._plan, self._jobs, self._shares_disk = connection, plan, jobs, shares_disk
        self._handle: Any = None
        self._handles: dict[tuple[str, bool], Any] = {}
        self._files: dict[str, Any] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._places: dict[int, Any] = {}
        self._said: list[tuple[int, str, Any]] = []

    def deploy(self, *, again: bool = False) -> None:
        """Start the replicas, or take those of the same plan that are there; `again` replaces them a few at a time.

        Raises:
            ClusterError: They could not be started.
        """
        plan, serve = self._plan, self._serve
        self._check_nodes()
        serve.start(proxy_location="Disabled")
        application = serve.status().applications.get(plan.name)
        if again or application is None or application.status != "RUNNING":
            scaling: dict[str, Any] = {} if plan.most > plan.least else {"num_replicas": plan.least}
            if plan.most > plan.least:
                counted_over = min(_COUNTED_OVER, plan.up_after, plan.down_after)
                scaling["autoscaling_config"] = {
                    "min_replicas": plan.least,
                    "max_replicas": plan.most,
                    "target_ongoing_requests": plan.requests,
                    "upscale_delay_s": plan.up_after,
                    "downscale_delay_s": plan.down_after,
                    "look_back_period_s": counted_over,
                    "metrics_interval_s": counted_over / 3,
                }
            replicas = serve.deployment(
                name="replicas",
                ray_actor_options={"num_cpus": plan.cores, "num_gpus": plan.gpus},
                max_ongoing_requests=_CALLS_AT_ONCE,
                graceful_shutdown_timeout_s=_DRAIN,
                graceful_shutdown_wait_loop_s=0.2,
                request_router_config={"request_router_class": "rapt.service.replicas.routing.RendezvousRouter"},
                logging_config={"enable_access_log": False, "log_level": "ERROR"},
                **scaling,
            )(Replica)
            try:
                serve.run(replicas.bind(plan), name=plan.name, route_prefix=None)
            except Exception as error:  # Ray Serve raises errors of no common class where a deployment fails
                raise self._explain(error, was_there=application is not None) from None
        self._handle, self._handles = serve.get_app_handle(plan.name), {}

    def _check_nodes(self) -> None:
        """Ask each node whether it can hold a replica: Serve itself would try for minutes, and say it in many lines."""
        affinity = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        nodes = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        check = self._ray.remote(num_cpus=0)(check_node)
        asked = [
            check.options(scheduling_strategy=affinity(node["NodeID"], soft=False)).remote(
                self._plan.version, self._plan.models
            )
            for node in nodes
        ]
        try:
            answers = self._ray.get(asked)
        except self._ray.exceptions.RayError as error:
            raise explain(self._ray, error) from None
        for answer in answers:
            if answer is not None:
                raise ClusterError(f"every node of the cluster must be able to hold a replica: {answer}")

    def _explain(self, error: Exception, *, was_there: bool) -> ClusterError:
        with suppress(Exception):  # what cannot be deleted stays for whoever runs the cluster
            # Those that were to be replaced serve on, where Serve had not begun with the last of them.
            application = self._serve.status().applications.get(self._plan.name)
            found = [] if application is None else application.deployments.values()
            if not (was_there and any(one.replica_states.get("RUNNING") for one in found)):
                self._serve.delete(self._plan.name)
        return ClusterError(
            f"the replicas must start, got {type(error).__name__}; look at the logs of Ray Serve, and give the cluster "
            "more cores or memory"
        )

    async def forward(self) -> None:
        """Hand on what comes, until the pipe is closed."""
        loop, inbox = asyncio.get_running_loop(), asyncio.Queue[list[tuple[str, Any]] | None]()
        Thread(target=_hear, args=(self._connection, loop, inbox), name="rapt-hear", daemon=True).start()
        looking = loop.create_task(self._look())
        is_open = True
        while is_open:
            parts = [await inbox.get()]
            while not inbox.empty():
                parts.append(inbox.get_nowait())
            is_open = None not in parts
            light: dict[tuple[str, str], list[ReplicaRequest]] = {}
            for kind, value in (message for part in parts if part is not None for message in part):
                if kind == "ask" and not value.is_written_to and value.cost <= _LIGHT:
                    light.setdefault((value.model, value.key), []).append(value)
                elif kind == "close":
                    looking.cancel()
                    await self._close(keep=value)
                    return
                else:
                    self._take(kind, value)
            for requests in light.values():
                self._begin(requests, self._classify(requests))

    def _take(self, kind: str, value: Any) -> None:
        if kind == "ask":
            self._begin([value], self._write(value) if value.is_written_to else self._classify([value]))
        elif kind == "cancel":
            if value in self._tasks:
                self._tasks[value].cancel()
        elif kind == "keep":
            digest, files = value
            try:
                self._files[digest] = [self._ray.put(files)]
            except Exception as error:  # whoever asks for the adapter is told, and then it is sent again
                self._files[digest] = explain(self._ray, error)
        elif kind == "drop":
            self._files.pop(value, None)
        elif kind == "job":
            number, slot, job = value
            self._tasks[number] = asyncio.ensure_future(self._run(number, slot, job))
        elif kind == "stop":
            slot, job = value
            if slot in self._places:
                self._places[slot].stop.remote(name_run(job))
        elif kind == "restart":
            self._tasks[-1] = asyncio.ensure_future(self._restart())

    def _handle_for(self, key: str, *, stream: bool) -> Any:
        if (key, stream) not in self._handles:
            self._handles[key, stream] = self._handle.options(stream=stream, multiplexed_model_id=key)
        return self._handles[key, stream]

    def _begin(self, requests: Sequence[ReplicaRequest], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        if len(requests) == 1:  # those that travel together are light: one caller's leaving ends them for nobody
            self._tasks[requests[0].number] = task
        task.add_done_callback(lambda _: self._end(requests))

    def _end(self, requests: Sequence[ReplicaRequest]) -> None:
        for request in requests:
            self._tasks.pop(request.number, None)

    async def _classify(self, requests: Sequence[ReplicaRequest]) -> None:
        left = list(requests)

        async def ask(files: dict[str, Any]) -> None:
            answers = await self._handle_for(requests[0].key, stream=False).classify.remote(left, files)
            for request, answer in zip(list(left), answers, strict=True):
                if not isinstance(answer, MissingAdapter):
                    left.remove(request)
                    self._say(request.number, "error" if isinstance(answer, Exception) else "answers", answer)
            if left:
                raise MissingAdapter

        error = await self._ask_until_done(ask, requests)
        for request in left if error is not None else ():
            self._say(request.number, "error", error)

    async def _write(self, request: ReplicaRequest) -> None:
        tokens: list[int | None] = []

        async def ask(files: dict[str, Any]) -> None:
            behind = len(tokens)  # so many were told before the replica that wrote them was lost
            async for some in self._handle_for(request.key, stream=True).write.remote(request, files):
                if some and isinstance(some[0].error, MissingAdapter):
                    raise MissingAdapter
                for written in some:
                    token = None if written.choice is None else written.choice.token_id
                    if not behind:
                        tokens.append(token)
                        self._say(request.number, "written", written)
                        continue
                    if token != tokens[-behind]:
                        raise UnavailableError("the text could not be gone on with elsewhere; ask for it again")
                    behind -= 1

        error = await self._ask_until_done(ask, [request])
        if error is not None:
            self._say(request.number, "written", Written(error=error))

    async def _ask_until_done(
        self, ask: Callable[[dict[str, Any]], Coroutine[Any, Any, None]], requests: Sequence[ReplicaRequest]
    ) -> Exception | None:
        """Ask again while replicas die; returns the error that is left."""
        files: dict[str, Any] = {}
        lost = (self._ray.exceptions.RayActorError, self._ray.exceptions.NodeDiedError)
        pauses = iter((*_PAUSES, None))
        while True:
            try:
                await ask(files)
                return None
            except MissingAdapter:
                wanted = {row.adapter for request in requests for row in request.rows if row.adapter is not None}
                if files or not wanted <= self._files.keys():
                    return UnavailableError("the adapter could not reach a replica; ask again")
                files = {digest: self._files[digest] for digest in wanted}
                for digest, found in files.items():
                    if isinstance(found, ClusterError):
                        self._say(0, "not kept", digest)
                        return UnavailableError(f"the adapter could not reach a replica: {found}")
            except lost:
                pause = next(pauses)
                if pause is None:
                    return UnavailableError(f"a replica must answer, and {_TRIES} were lost in turn; ask again later")
                await asyncio.sleep(pause)
            except RaptError as error:
                return error
            except Exception as error:  # callers wait: whatever it is, they are told
                return told(error)

    async def _run(self, number: int, slot: int, job: StoredJob) -> None:
        """Run a job in the place of a slot, which begins with its first job and ends with its node."""
        if slot not in self._places:
            place = self._ray.remote(num_cpus=1, max_concurrency=2, max_restarts=0)(JobPlace)
            assert self._jobs is not None, "only a service that runs jobs here asks for it"
            self._places[slot] = place.remote(self._plan.version, self._jobs, shares_disk=self._shares_disk)
        used = self._places[slot]
        try:
            running = used.run.remote(job)
            try:
                await asyncio.wait_for(asyncio.shield(used.__ray_ready__.remote()), _LONG_START)
            except TimeoutError:
                self._say(0, "waits", None)
            outcome = await running
        except self._ray.exceptions.RayActorError:
            if self._places.get(slot) is used:  # else a run that was stopped before, and ended late, has seen it first
                del self._places[slot]
            outcome = Outcome(kind="died", message="its node was lost, or its worker was killed")
        except Exception as error:  # the job's worker waits: whatever it is, the job has ended
            outcome = Outcome(kind="died", message=f"the cluster met {type(error).__name__}")
        self._tasks.pop(number, None)
        self._say(number, "outcome", outcome)

    def _say(self, number: int, kind: str, value: Any) -> None:
        """Say something to the service: all that is said in one turn of the loop at once."""
        if not self._said:
            asyncio.get_running_loop().call_soon(self._flush)
        self._said.append((number, kind, value))

    def _flush(self) -> None:
        said, self._said = self._said, []
        with suppress(OSError):  # the service is gone, which the other thread sees
            self._connection.send(said)

    async def _restart(self) -> None:
        try:
            await asyncio.to_thread(self.deploy, again=True)
            self._say(0, "restarted", None)
        except ClusterError as error:
            self._say(0, "restarted", error)
        except Exception as error:  # of Ray or Serve, whatever it is: who asked for it looks for its end in the log
            why = f"the cluster must answer, got {type(error).__name__}; look at the logs of Ray Serve"
            self._say(0, "restarted", ClusterError(why))

    async def _look(self) -> None:
        """Deploy again if somebody deleted the application."""
        while True:
            await asyncio.sleep(_BETWEEN_LOOKS)
            with suppress(Exception):  # the next look may find it well
                if self._plan.name not in (await asyncio.to_thread(self._serve.status)).applications:
                    await asyncio.to_thread(self.deploy)

    async def _close(self, *, keep: bool) -> None:
        for place in self._places.values():
            self._ray.kill(place)
        if not keep:
            with suppress(Exception):  # what cannot be deleted stays for whoever runs the cluster
                await asyncio.to_thread(self._serve.delete, self._plan.name, _blocking=False)


def _hear(
    connection: Connection, loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[list[tuple[str, Any]] | None]
) -> None:
    with suppress(EOFError, OSError):
        while True:
            loop.call_soon_threadsafe(inbox.put_nowait, connection.recv())
    with suppress(RuntimeError):  # the loop has ended before
        loop.call_soon_threadsafe(inbox.put_nowait, None)
