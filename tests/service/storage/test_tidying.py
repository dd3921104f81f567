"""What time ends: uploads that expire, rows that tell of the past, and the bounds on how many there are in between."""

import pytest
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import DatabaseError

from rapt.errors import NotFoundError, QuotaError, UsageError
from rapt.service.http.housekeeping import Housekeeper
from rapt.service.storage.callers import KEPT_SECONDS, OPERATOR, mark_repeatable
from rapt.service.storage.database import Cursor
from rapt.service.storage.file_rows import get_file
from rapt.service.storage.job_rows import cancel_job, list_events
from rapt.service.storage.key_rows import create_key, has_keys, list_keys, rotate_key
from rapt.service.storage.tables import AUDIT, EVENTS, JOBS, KEYS, PARTS, REQUESTS, UPLOADS
from rapt.service.storage.tenant_rows import (
    MOST_PAST_ROWS,
    MOST_PENDING_UPLOADS,
    delete_tenant,
    get_usage,
)
from rapt.service.storage.tidying import KEPT_ENTRIES, KEPT_ROWS, tidy, warn_jobs_without_model
from rapt.service.storage.upload_rows import LIFETIME, MOST_PARTS, add_part, add_upload, end_upload, get_upload
from rapt.service.storage.worker_rows import hold_worker_lock, list_models_of_living
from running_service import wait_until
from stored_material import actions, claim, finish, queue, upload

# Several transactions; and one more than SQLite takes as arguments of a statement, and many more than PostgreSQL.
MANY = [12_000, pytest.param(250_001, marks=pytest.mark.slow)]


def begin(store, caller, size=100, now=7):
    return add_upload(store, filename="f", purpose="fine-tune", size=size, caller=caller, now=now)


def put_part(store, upload, caller, content=b"12345", now=8):
    with store.directory.stage_bytes(content) as staged:
        return add_part(store, upload.id, staged, caller=caller, now=now, max_bytes=10**9)


def rows(store, table, **values):
    with store.database.read() as connection:
        query = select(func.count()).select_from(table)
        for name, value in values.items():
            query = query.where(table.c[name] == value)
        return connection.execute(query).scalar_one()


def insert_uploads(store, count, tenant="ada", status="pending", expires_at=10):
    of_all = {"tenant": tenant, "filename": "f", "purpose": "fine-tune", "bytes": 1, "status": status, "created_at": 1}
    with store.database.write() as connection:
        made = [{"id": f"upload-{status}-{n}", "expires_at": expires_at, **of_all} for n in range(count)]
        connection.execute(insert(UPLOADS), made)


@pytest.mark.parametrize("many", MANY)
def test_uploads_that_expired_stop_nobody_however_many_they_are(store, ada, bob, many):
    insert_uploads(store, many)
    begun = begin(store, bob, now=11)
    assert tidy(store, now=11) >= many
    assert rows(store, UPLOADS, tenant="ada") <= KEPT_ROWS
    assert get_upload(store, begun.id, tenant="bob").status == "pending"
    begin(store, ada, now=12)


def test_parts_of_an_upload_that_expired_go_without_a_visitor(store, ada):
    upload = begin(store, ada)
    put_part(store, upload, ada)
    with store.database.write() as connection:
        connection.execute(update(UPLOADS).values(expires_at=9))
    housekeeper = Housekeeper(store, between=0.01)
    housekeeper.start()
    try:
        wait_until(lambda: not list(store.directory.parts.iterdir()))
    finally:
        housekeeper.close()
    assert get_usage(store, "ada").bytes == 0
    assert rows(store, PARTS) == 0
    assert get_upload(store, upload.id, tenant="ada").status == "expired"
    with pytest.raises(UsageError, match="got status=expired"):
        put_part(store, upload, ada)


def test_an_upload_has_not_expired_before_its_time(store, ada):
    upload = begin(store, ada, now=7)
    assert tidy(store, now=6 + LIFETIME) == 0
    assert get_upload(store, upload.id, tenant="ada").status == "pending"
    assert tidy(store, now=7 + LIFETIME) == 1


def test_a_tenant_begins_no_more_uploads_than_it_may(store, ada, bob):
    insert_uploads(store, MOST_PENDING_UPLOADS - 1)
    last = begin(store, ada)
    with pytest.raises(QuotaError, match="uploads that are pending"):
        begin(store, ada)
    begin(store, bob)
    end_upload(store, last.id, status="cancelled", caller=ada, now=9)
    begin(store, ada)


def test_the_parts_of_all_uploads_of_a_tenant_together_are_so_many(store, ada, bob):
    """Each takes a block of the disk: a million of one byte would take four thousand times what is counted."""
    first, second = begin(store, ada), begin(store, ada)
    one = {"bytes": 0, "sha256": "", "created_at": 0, "upload_id": first.id}
    with store.database.write() as connection:
        connection.execute(insert(PARTS), [one | {"id": f"part-{n}"} for n in range(MOST_PARTS)])
    with pytest.raises(QuotaError, match="parts of uploads that are pending"):
        put_part(store, second, ada)
    put_part(store, begin(store, bob), bob)
    end_upload(store, first.id, status="cancelled", caller=ada, now=9)
    put_part(store, second, ada)


def test_rows_of_uploads_that_were_cancelled_count_until_they_are_forgotten(store, ada):
    insert_uploads(store, MOST_PAST_ROWS, status="cancelled")
    with pytest.raises(QuotaError, match="wait until they are forgotten") as error:
        begin(store, ada)
    assert error.value.retry_after
    assert tidy(store, now=9) == MOST_PAST_ROWS - KEPT_ROWS
    begin(store, ada)
    with store.database.read() as connection:  # the newest are those that stay
        assert connection.execute(select(func.min(UPLOADS.c.number))).scalar_one() > MOST_PAST_ROWS - KEPT_ROWS


def test_rows_of_jobs_that_were_cancelled_count_until_they_are_forgotten(store, ada):
    file = upload(store, ada)
    queue(store, ada, file)
    done = claim(store)
    assert finish(store, done)  # its model is still there, so its row stays
    cancelled = queue(store, ada, file)
    cancel_job(store, cancelled.id, caller=ada, now=9)
    with store.database.write() as connection:
        row = dict(connection.execute(select(JOBS).where(JOBS.c.id == cancelled.id)).one()._mapping)
        del row["number"]
        copies = [row | {"id": f"ftjob-{n}"} for n in range(MOST_PAST_ROWS - 1)]
        connection.execute(insert(JOBS), copies)
    with pytest.raises(QuotaError, match="jobs that have ended"):
        queue(store, ada, file)
    assert tidy(store, now=9) == MOST_PAST_ROWS - KEPT_ROWS
    queue(store, ada, file)
    assert rows(store, JOBS, id=done.id) == 1
    assert rows(store, JOBS, id=cancelled.id) == rows(store, EVENTS, job_id=cancelled.id) == 0


def test_keys_that_are_good_count_and_those_that_ended_are_forgotten_but_for_the_newest(store, ada):
    first, _ = create_key(store, tenant="ada", role="tenant", caller=OPERATOR, now=5)
    for _ in range(99):
        rotate_key(store, first.id, grace=1000, caller=ada, now=6, tenant="ada")
    with pytest.raises(QuotaError, match="at most 100 good keys"):
        rotate_key(store, first.id, grace=1000, caller=ada, now=6, tenant="ada")
    with store.database.write() as connection:
        row = {"tenant": "ada", "role": "tenant", "created_at": 1, "revoked_at": 2}
        old = [{"id": f"key-{n}", "digest": f"{n}", **row} for n in range(KEPT_ROWS + 5)]
        connection.execute(insert(KEYS), old)
    assert tidy(store, now=7) == 5
    assert len(list_keys(store, Cursor(limit=5000), tenant="ada").items) == KEPT_ROWS + 100
    delete_tenant(store, "ada", caller=OPERATOR, now=8)
    tidy(store, now=9)
    assert has_keys(store)


def test_requests_that_came_once_are_forgotten_after_their_time(store, ada):
    upload(store, ada, request=mark_repeatable("key", "file"))  # at 7
    assert tidy(store, now=7 + KEPT_SECONDS) == 0
    assert tidy(store, now=8 + KEPT_SECONDS) == 1
    assert rows(store, REQUESTS) == 0


def test_the_audit_log_and_idempotency_keys_are_kept_for_the_newest_of_each_tenant(store, ada, bob):
    kept = upload(store, bob)
    of_all = {"created_at": 1, "tenant": "ada", "key": "key-1", "action": "file.create", "object": "file-1"}
    with store.database.write() as connection:
        connection.execute(insert(AUDIT), [{"id": f"audit-{n}", **of_all} for n in range(KEPT_ENTRIES + 10)])
        digests = {"tenant": "ada", "content_digest": "b", "object": "file-1", "created_at": 11}
        made = [{"key_digest": str(n), **digests} for n in range(KEPT_ENTRIES + 5)]
        connection.execute(insert(REQUESTS), made)
    assert tidy(store, now=11) == 15
    assert tidy(store, now=11) == 0
    assert rows(store, REQUESTS) == KEPT_ENTRIES
    assert rows(store, AUDIT, tenant="ada") == KEPT_ENTRIES
    assert rows(store, AUDIT, id="audit-9") == 0
    assert rows(store, AUDIT, id="audit-10") == 1
    assert rows(store, AUDIT, tenant="bob", object=kept.id) == 1  # older, and of the newest of its own tenant
    with pytest.raises(DatabaseError, match="only added to"), store.database.write() as connection:
        connection.execute(delete(AUDIT).where(AUDIT.c.id == "audit-10"))


def test_a_job_whose_base_model_nobody_has_says_so_once_and_is_taken_up_when_somebody_has_it(store, ada):
    job = queue(store, ada)
    with hold_worker_lock(store.directory, models=["other"]):
        assert list_models_of_living(store) == {"other"}
        for said in (1, 0):
            assert warn_jobs_without_model(store, served=list_models_of_living(store), now=9) == said
    latest = list_events(store, job.id, Cursor(limit=1), tenant="ada").items[0]
    assert latest.message == "no worker has the base model toy now; the job waits until one has"
    assert latest.level == "warn"
    with hold_worker_lock(store.directory, models=["other", "toy"]):
        assert warn_jobs_without_model(store, served=list_models_of_living(store), now=9) == 0
        assert claim(store).id == job.id
    assert list_models_of_living(store) == set()


def test_a_file_goes_when_its_time_has_come_unless_a_job_needs_it(store, ada, bob):
    kept = upload(store, ada)
    ends, needed = upload(store, ada, b"for an hour", seconds=3600), upload(store, bob, b"for a job", seconds=3600)
    assert (ends.expires_at, kept.expires_at) == (3607, None)
    job = queue(store, bob, needed)
    blobs = set(store.blobs.list())
    assert tidy(store, now=3606) == 0
    assert tidy(store, now=3607) == 1
    with pytest.raises(NotFoundError):
        get_file(store, ends.id, tenant="ada")
    assert blobs - set(store.blobs.list()) == {ends.sha256}
    assert get_file(store, kept.id, tenant="ada") == kept
    assert actions(store)[-1] == ("file.delete", ends.id)
    cancel_job(store, job.id, caller=bob, now=3700)
    assert tidy(store, now=3701) == 1
    with pytest.raises(NotFoundError):
        get_file(store, needed.id, tenant="bob")
