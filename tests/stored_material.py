"""What tests of the store put into it."""

from rapt.service.storage.callers import OPERATOR, Caller
from rapt.service.storage.file_rows import FileSummary
from rapt.service.storage.job_rows import add_job
from rapt.service.storage.job_runs import succeed_job
from rapt.service.storage.tenant_rows import Quotas, create_tenant
from rapt.wire.manifest import Manifest, MechanismSetting, PlainTokens, Randomness

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


def queue(store, caller, file, max_jobs=1000, **changes):
    """A job that waits."""
    job = {"model": "toy", "training_file": file.id, "seed": 1, "suffix": None}
    limits = {"max_jobs": max_jobs, "max_bytes": 10**9}
    return add_job(store, **{**limits, **job, **changes}, method=METHOD, caller=caller, now=7)


def tenant(store, name, **quotas):
    """A new tenant, as one of its keys."""
    create_tenant(store, name, quotas=Quotas(**quotas), caller=OPERATOR, now=1)
    return Caller(tenant=name, key=f"key-of-{name}", role="tenant")
