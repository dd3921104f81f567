"""Jobs as tests run them: in the process of the test, on models that are loaded, within limits that a test can set."""

import json

from rapt.service.http.admission import Gate
from rapt.service.jobs import job_run
from rapt.service.jobs.hyperparameters import method_to_json
from rapt.service.jobs.job_limits import JobLimits, JobSettings
from rapt.service.jobs.job_run import make_runner_here
from rapt.service.jobs.worker import JobRunner
from rapt.service.storage.callers import DEVELOPER
from rapt.service.storage.database import Cursor
from rapt.service.storage.file_rows import add_file
from rapt.service.storage.job_rows import add_job, get_job, list_events
from rapt.service.storage.model_rows import get_model, read_adapter_archive
from rapt.wire.adapter_files import unpack_adapter

LIMITS = JobLimits(memory_bytes=4 * 2**30)


def job_settings(**changes):
    """Settings of a service with room."""
    return JobSettings(**{"tenant_bytes": 10**9, "limits": LIMITS, **changes})


def runner_on(store, backbones, **changes):
    """A worker that runs jobs right here."""
    settings = job_settings(**changes)
    run = make_runner_here(store, backbones, settings)
    return JobRunner(store, models=tuple(backbones), run=run, most_deaths=settings.most_deaths)


def run_job(store, job, *, backbones, should_stop, between_questions=job_run.BETWEEN_QUESTIONS, **changes):
    """One run of a claimed job."""
    job_run.run_job(
        store,
        job,
        backbone=backbones[job.model],
        models=tuple(backbones),
        should_stop=should_stop,
        settings=job_settings(**changes),
        between_questions=between_questions,
    )


def queue_job(store, backbones, content, config, *, caller=DEVELOPER, validation=None, model="bert-tiny"):
    """Put a job on the queue, on a file of its own, given as a path or bytes; return its row."""
    models = backbones.values()
    gate = Gate([one.bundle for one in models], codes=[one.code for one in models if one.code is not None])

    def keep(given):
        read = given if isinstance(given, bytes) else given.read_bytes()
        with store.directory.stage_bytes(read) as staged:
            summary = gate.admit_file(staged.path)
            return add_file(store, staged, summary, filename="f", caller=caller, now=1, max_bytes=10**9)

    return add_job(
        store,
        model=model,
        training_file=keep(content).id,
        validation_file=None if validation is None else keep(validation).id,
        method=method_to_json(config),
        seed=config.seed,
        suffix=None,
        caller=caller,
        now=2,
        max_jobs=100,
        max_bytes=10**9,
    )


def messages_of(store, job):
    """What its events say, oldest first."""
    page = list_events(store, job.id, Cursor(limit=1000, newest_first=False), tenant=job.tenant)
    return [event.message for event in page.items]


def weights_of(store, job):
    """The digest of the weights that a job has left."""
    name = get_job(store, job.id, tenant=job.tenant).fine_tuned_model
    archive = unpack_adapter(read_adapter_archive(store, get_model(store, name, tenant=job.tenant)))
    return json.loads(archive["rapt.json"])["weights_sha256"]
