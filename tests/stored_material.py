"""What tests of the store put into it."""

import io

from sqlalchemy import select

from rapt.service.storage.callers import OPERATOR, Caller, list_audit
from rapt.service.storage.database import Cursor
from rapt.service.storage.file_rows import FileSummary, add_file
from rapt.service.storage.job_rows import add_job
from rapt.service.storage.job_runs import add_checkpoint_model, claim_next_job, succeed_job
from rapt.service.storage.model_rows import add_imported_model
from rapt.service.storage.tables import MODELS
from rapt.service.storage.tenant_rows import Quotas, create_tenant
from rapt.wire.manifest import Manifest, PlainTokens, Randomness
from rapt.wire.mechanism_setting import MechanismSetting

METHOD = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {}}}
SUMMARY = FileSummary(
    manifest=Manifest(
        model="toy",
        vocabulary_hash="sha256:ab",
        mechanism=MechanismSetting(name="laplace", parameters={"eta": 2.5}),
        randomness=Randomness(source="operating system"),
        plain_tokens=PlainTokens(count=2, pool=(1, 2), fixed=(1, 2)),
        labels=("no", "yes"),
        records=3,
        tokens=9,
        records_sha256="",
        created_by="test",
    ),
    longest=5,
)


def kept_bytes(store):
    """The digests of all that is kept."""
    return sorted(store.blobs.list())


def finish(store, job, adapter=b"12345"):
    """End a job with an adapter."""
    with store.directory.stage_bytes(adapter) as staged:
        return succeed_job(store, job, staged, trained_tokens=18, now=9)


def queue(store, caller, file=None, max_jobs=1000, **changes):
    """A job that waits, on a file or on a new one."""
    file = file or upload(store, caller)
    job = {"model": "toy", "training_file": file.id, "seed": 1, "suffix": None}
    limits = {"max_jobs": max_jobs, "max_bytes": 10**9}
    return add_job(store, **{**limits, **job, **changes}, method=METHOD, caller=caller, now=7)


def tenant(store, name, **quotas):
    """A new tenant, as one of its keys."""
    create_tenant(store, name, quotas=Quotas(**quotas), caller=OPERATOR, now=1)
    return Caller(tenant=name, key=f"key-of-{name}", role="tenant")


def upload(store, caller, content=b"some bytes", request=None, max_bytes=10**9, seconds=None):
    """A file of a tenant."""
    with store.directory.stage(io.BytesIO(content), max_bytes=1000) as staged:
        return add_file(
            store,
            staged,
            SUMMARY,
            filename="f",
            caller=caller,
            now=7,
            max_bytes=max_bytes,
            request=request,
            seconds=seconds,
        )


def imported(store, caller, content=b"an adapter"):
    """A model of a tenant, from outside."""
    with store.directory.stage_bytes(content) as staged:
        return add_imported_model(store, staged, suffix="x", base="toy", caller=caller, now=7, max_bytes=10**9)


def claim(store, worker="worker-1"):
    """The next job, for a worker that has the model of these tests."""
    return claim_next_job(store, worker=worker, models=["toy"], now=8)


def actions(store):
    """What the audit log has, oldest first."""
    return [(entry.action, entry.object) for entry in list_audit(store, Cursor(limit=1000)).items[::-1]]


def checkpoint(store, job, step, max_bytes=10**9):
    """What came of a checkpoint of a step."""
    with store.directory.stage_bytes(b"cp%d" % step) as staged:
        return add_checkpoint_model(store, job, staged, step=step, metrics={"step": step}, now=9, max_bytes=max_bytes)


def adapters_of(store, tenant):
    """The names in memory of a tenant's models and checkpoints."""
    with store.database.read() as connection:
        return sorted(connection.execute(select(MODELS.c.adapter).where(MODELS.c.tenant == tenant)).scalars())
