"""Checkpoints that can be asked: models of a run that go with it, on a real store."""

import pytest

from rapt.errors import NotFoundError, QuotaError
from rapt.service.storage.callers import OPERATOR
from rapt.service.storage.checkpoint_models import list_checkpoint_models, make_checkpoint_id
from rapt.service.storage.database import Cursor
from rapt.service.storage.file_rows import list_files
from rapt.service.storage.job_rows import cancel_job
from rapt.service.storage.job_runs import (
    fail_job,
    name_result,
)
from rapt.service.storage.model_rows import delete_model, get_model, list_models
from rapt.service.storage.recovery import requeue_abandoned_jobs
from rapt.service.storage.tenant_rows import (
    delete_tenant,
    get_usage,
)
from stored_material import actions, adapters_of, checkpoint, claim, finish, kept_bytes, queue, upload


def test_checkpoints_are_models_that_are_listed_with_their_job_alone(store, ada, bob):
    queue(store, ada)
    job = claim(store)
    assert [checkpoint(store, job, step) for step in (2, 4, 6)] == ["kept"] * 3
    listed = list_checkpoint_models(store, job.id, Cursor(), tenant="ada").items
    assert [model.step for model in listed] == [6, 4, 2]
    rest = list_checkpoint_models(store, job.id, Cursor(after=make_checkpoint_id(listed[0]), limit=1), tenant="ada")
    assert ([model.step for model in rest.items], rest.has_more) == ([4], True)
    for unknown in ("ftckpt-x", listed[0].id):
        with pytest.raises(NotFoundError):
            list_checkpoint_models(store, job.id, Cursor(after=unknown), tenant="ada")
    assert listed[0].id == f"{name_result(job)}:ckpt-step-6"
    assert get_model(store, listed[0].id, tenant="ada") == listed[0]
    with pytest.raises(NotFoundError):
        get_model(store, listed[0].id, tenant="bob")
    assert list_models(store, Cursor(), tenant="ada").items == ()
    assert get_usage(store, "ada").models == 0


def test_an_attempt_that_repeats_steps_keeps_the_checkpoints_of_the_one_before(store, ada):
    queue(store, ada)
    job = claim(store)
    assert checkpoint(store, job, 2) == "kept"
    assert requeue_abandoned_jobs(store) == 1
    again = claim(store)
    assert checkpoint(store, job, 4) == "not mine"
    assert [checkpoint(store, again, step) for step in (2, 4)] == ["known", "kept"]


@pytest.mark.parametrize("way", ["cancel the job", "delete the model", "delete the tenant"])
def test_checkpoints_go_with_their_job_their_model_and_their_tenant(store, ada, way):
    queue(store, ada)
    job = claim(store)
    assert [checkpoint(store, job, step) for step in (2, 4)] == ["kept", "kept"]
    if way == "cancel the job":
        adapters = adapters_of(store, "ada")
        assert sorted(cancel_job(store, job.id, caller=ada, now=9)[1]) == adapters
    else:
        assert finish(store, job)
        adapters = adapters_of(store, "ada")
        assert len(kept_bytes(store)) == 1 + 3
    if way == "delete the model":
        assert sorted(delete_model(store, name_result(job), caller=ada)) == adapters
    if way == "delete the tenant":
        delete_tenant(store, "ada", caller=OPERATOR, now=9)
    else:
        assert list_checkpoint_models(store, job.id, Cursor(), tenant="ada").items == ()
        assert get_usage(store, "ada").bytes == len(b"some bytes")
    assert len(kept_bytes(store)) == (0 if way == "delete the tenant" else 1)


def test_one_checkpoint_is_deleted_by_its_name_and_those_of_a_failed_job_stay(store, ada):
    queue(store, ada, suffix="written-by-somebody")
    job = claim(store)
    assert [checkpoint(store, job, step) for step in (2, 4)] == ["kept", "kept"]
    fail_job(store, job, code="x", message="y", now=9)
    name = f"{name_result(job)}:ckpt-step-2"
    model = get_model(store, name, tenant="ada")
    assert delete_model(store, name, caller=ada) == (model.adapter,)
    assert model.sha256 not in kept_bytes(store)
    assert actions(store)[-1] == ("model.delete", f"{job.id[6:18]}:ckpt-step-2")
    assert [model.step for model in list_checkpoint_models(store, job.id, Cursor(), tenant="ada").items] == [4]


def test_models_and_checkpoints_count_against_the_bytes_of_a_tenant(store, ada):
    queue(store, ada)
    job = claim(store)
    assert checkpoint(store, job, 2, max_bytes=13) == "kept"
    assert checkpoint(store, job, 4, max_bytes=13) == "no room"
    assert get_usage(store, "ada").bytes == 10 + 3
    assert finish(store, job)  # what a run leaves is never lost to a quota
    assert get_usage(store, "ada").bytes == 10 + 3 + 5
    with pytest.raises(QuotaError, match="at most 17 bytes of files and models"):
        queue(store, ada, list_files(store, Cursor(), tenant="ada").items[0], max_bytes=17)
    with pytest.raises(QuotaError):
        upload(store, ada, b"1", max_bytes=18)
