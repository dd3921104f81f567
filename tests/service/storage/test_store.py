import hashlib
import io
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import pytest

from rapt.errors import LimitError, NotFoundError, UsageError
from rapt.service.storage.callers import LOCAL, Caller
from rapt.service.storage.database import Cursor, find
from rapt.service.storage.file_rows import add_file, delete_file, get_file, list_files, open_file
from rapt.service.storage.job_rows import add_job, cancel_job, get_job, list_events, list_jobs
from rapt.service.storage.job_runs import claim_next_job, fail_job, name_result, record_progress
from rapt.service.storage.model_rows import delete_model, get_model, list_models, read_adapter_archive
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tables import FILES
from stored_material import METHOD, SUMMARY, finish, kept_bytes

CALLER = Caller(tenant=LOCAL, key="key-1", role="tenant")


def upload(store, content=b"some bytes"):
    with store.directory.stage(io.BytesIO(content), max_bytes=1000) as staged:
        return add_file(store, staged, SUMMARY, filename="mine.jsonl", caller=CALLER, now=7, max_bytes=10**9)


def queue(store, file=None, **changes):
    job = {"model": "toy", "training_file": (file or upload(store)).id, "method": METHOD, "seed": 1, "suffix": None}
    return add_job(store, **{"caller": CALLER, "max_jobs": 1000, "max_bytes": 10**9, **job, **changes}, now=7)


def claim(store, worker="worker-of-a-test"):
    return claim_next_job(store, worker=worker, models=["toy"], now=8)


def content(store, file):
    with open_file(store, file) as stream:
        return stream.read()


def test_a_file_comes_back_as_it_was_stored(store):
    file = upload(store, b"hello")
    assert get_file(store, file.id, tenant=LOCAL) == file
    assert content(store, file) == b"hello"
    assert (file.bytes, file.sha256) == (5, hashlib.sha256(b"hello").hexdigest())
    assert (file.records, file.tokens, file.longest, file.plain_tokens, file.labels) == (3, 9, 5, 2, 2)
    assert file.mechanism == {"name": "laplace", "parameters": {"eta": 2.5}}
    assert not file.insecure_seed


def test_the_same_bytes_twice_are_one_blob_until_both_are_deleted(store):
    first, second = upload(store), upload(store)
    assert first.id != second.id
    assert kept_bytes(store) == [first.sha256]
    delete_file(store, first.id, caller=CALLER)
    assert content(store, second) == b"some bytes"
    delete_file(store, second.id, caller=CALLER)
    assert kept_bytes(store) == []


def test_bytes_that_are_not_kept_leave_nothing(store):
    with pytest.raises(ZeroDivisionError), store.directory.stage(io.BytesIO(b"x"), max_bytes=10):
        raise ZeroDivisionError
    with (
        pytest.raises(LimitError, match="at most 10 bytes"),
        store.directory.stage(io.BytesIO(b"x" * 11), max_bytes=10),
    ):
        pass
    assert list(store.directory.incoming.iterdir()) == []
    assert kept_bytes(store) == []


def test_a_deleted_file_is_gone_from_the_database_file_too(store, tmp_path):
    secret = "a-name-that-nobody-else-has.jsonl"
    with store.directory.stage(io.BytesIO(b"x"), max_bytes=10) as staged:
        file = add_file(store, staged, SUMMARY, filename=secret, caller=CALLER, now=7, max_bytes=10**9)
    delete_file(store, file.id, caller=CALLER)
    store.database.close()
    with sqlite3.connect(store.directory.database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert secret.encode() not in store.directory.database.read_bytes()


@pytest.mark.parametrize(
    ("missing", "who"),
    [
        (get_file, {"tenant": LOCAL}),
        (get_job, {"tenant": LOCAL}),
        (get_model, {"tenant": LOCAL}),
        (delete_file, {"caller": CALLER}),
        (delete_model, {"caller": CALLER}),
    ],
)
def test_an_unknown_id_is_not_found_and_not_repeated(store, missing, who):
    with pytest.raises(NotFoundError) as error:
        missing(store, "made-up-by-a-stranger", **who)
    assert "made-up" not in str(error.value)


def test_a_file_is_not_deleted_while_a_job_needs_it(store):
    file = upload(store)
    job = queue(store, file)
    with pytest.raises(UsageError, match="cancel the job first"):
        delete_file(store, file.id, caller=CALLER)
    assert claim(store).id == job.id
    with pytest.raises(UsageError, match="cancel the job first"):
        delete_file(store, file.id, caller=CALLER)
    cancel_job(store, job.id, caller=CALLER, now=9)
    delete_file(store, file.id, caller=CALLER)
    assert get_job(store, job.id, tenant=LOCAL).training_file == file.id  # the job outlives its file


def test_a_job_needs_a_file_that_exists(store):
    file = upload(store)
    delete_file(store, file.id, caller=CALLER)
    with pytest.raises(NotFoundError):
        queue(store, file)
    assert list_jobs(store, Cursor(), tenant=LOCAL).items == ()


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_walking_the_pages_meets_every_file_once_in_order(store, newest_first, limit):
    made = [upload(store, bytes([n])).id for n in range(7)]
    seen, after = [], None
    while True:
        page = list_files(store, Cursor(after=after, limit=limit, newest_first=newest_first), tenant=LOCAL)
        seen += [file.id for file in page.items]
        if not page.has_more:
            break
        after = seen[-1]
    assert seen == (made[::-1] if newest_first else made)


def test_a_cursor_of_another_list_is_refused(store):
    mine, other = queue(store), queue(store)
    event = list_events(store, other.id, Cursor(), tenant=LOCAL).items[0]
    with pytest.raises(NotFoundError, match="cursor"):
        list_events(store, mine.id, Cursor(after=event.id), tenant=LOCAL)


def test_jobs_are_claimed_oldest_first_and_once(store):
    jobs = [queue(store).id for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        claimed = list(pool.map(lambda _: claim(store), range(14)))
    assert sorted(job.id for job in claimed if job) == sorted(jobs)
    assert claimed.count(None) == 2
    assert queue(store).id == claim(store).id


def test_success_publishes_job_and_model_together(store):
    queue(store)
    job = claim(store)
    assert finish(store, job, b"1234")
    done, model = get_job(store, job.id, tenant=LOCAL), get_model(store, name_result(job), tenant=LOCAL)
    assert (model.id, model.bytes) == (f"ft:toy:local:rapt:{job.id[6:18]}", 4)
    assert (done.status, done.finished_at, done.fine_tuned_model, done.trained_tokens) == ("succeeded", 9, model.id, 18)
    assert (model.base, model.job_id, read_adapter_archive(store, model)) == ("toy", job.id, b"1234")
    assert list_models(store, Cursor(), tenant=LOCAL).items == (model,)


@pytest.mark.parametrize("status", ["queued", "cancelled", "failed"])
def test_a_job_that_is_not_running_cannot_succeed_or_fail(store, status):
    job = queue(store)
    if status != "queued":
        job = claim(store)
    if status == "cancelled":
        cancel_job(store, job.id, caller=CALLER, now=8)
    if status == "failed":
        fail_job(store, job, code="x", message="y", now=8)
    before = get_job(store, job.id, tenant=LOCAL)
    assert not finish(store, job)
    assert not fail_job(store, job, code="other", message="other", now=9)
    assert get_job(store, job.id, tenant=LOCAL) == before
    assert list_models(store, Cursor(), tenant=LOCAL).items == ()


def test_a_failed_job_says_why_in_its_row_and_its_last_event(store):
    queue(store)
    job = claim(store)
    fail_job(store, job, code="invalid_file", message="a rule", now=9)
    failed = get_job(store, job.id, tenant=LOCAL)
    assert (failed.status, failed.error_code, failed.error_message) == ("failed", "invalid_file", "a rule")
    latest = list_events(store, job.id, Cursor(limit=1), tenant=LOCAL).items[0]
    assert (latest.level, latest.message) == ("error", "the job failed: a rule")


def test_a_job_that_has_ended_cannot_be_cancelled(store):
    job = queue(store)
    cancel_job(store, job.id, caller=CALLER, now=8)
    with pytest.raises(UsageError, match="status=cancelled"):
        cancel_job(store, job.id, caller=CALLER, now=9)
    assert claim(store) is None


def test_events_come_newest_first_with_their_figures(store):
    job = queue(store)
    record_progress(store, claim(store), message="step 1", data={"step": 1, "train_loss": 0.5}, now=8)
    metrics, running, queued = list_events(store, job.id, Cursor(), tenant=LOCAL).items
    assert running.message == "the job is running"
    assert (metrics.type, metrics.data, metrics.message) == ("metrics", {"step": 1, "train_loss": 0.5}, "step 1")
    assert (queued.type, queued.data) == ("message", None)


def test_opening_again_queues_what_was_running_before_what_was_waiting(tmp_path):
    with open_store(tmp_path) as store:
        first, second = queue(store), queue(store)
        claim(store)
    with open_store(tmp_path) as store:
        assert [get_job(store, job.id, tenant=LOCAL).status for job in (first, second)] == ["queued", "queued"]
        assert "queued again" in list_events(store, first.id, Cursor(), tenant=LOCAL).items[0].message
        assert claim(store).id == first.id


def test_opening_deletes_what_no_row_names_and_nothing_else(tmp_path):
    with open_store(tmp_path) as store:
        file, _ = upload(store), queue(store)
        finish(store, claim(store), b"published")
        named = kept_bytes(store)
        # What crashes leave: an upload half way, bytes without their row, a copy from another file system.
        (store.directory.incoming / "half").write_bytes(b"12")
        orphan = store.directory.blobs / "cd" / ("cd" * 32)
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"34")
        orphan.with_name(f"{orphan.name}.01234567.partial").write_bytes(b"3")
        # And what is nobody's of ours.
        (orphan.parent / "notes").write_text("keep")
    with open_store(tmp_path) as store:
        assert kept_bytes(store) == named
        assert len(named) == 2
        assert file.sha256 in named
        assert list(store.directory.incoming.iterdir()) == []
        assert [path.name for path in (store.directory.blobs / "cd").iterdir()] == ["notes"]


def test_a_deleted_model_takes_its_weights_along(store):
    queue(store)
    job = claim(store)
    finish(store, job)
    model = get_model(store, name_result(job), tenant=LOCAL)
    assert delete_model(store, model.id, caller=CALLER) == (model.adapter,)
    assert kept_bytes(store) == [get_file(store, job.training_file, tenant=LOCAL).sha256]
    assert list(store.directory.incoming.iterdir()) == []


def test_one_directory_has_one_service(store, tmp_path):
    with pytest.raises(UsageError, match="one service only"), open_store(tmp_path / "data"):
        pass


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UsageError, match="data directory must be writable"), open_store(tmp_path / "taken" / "data"):
        pass


def test_a_database_of_a_newer_version_is_refused(tmp_path):
    with open_store(tmp_path) as store, store.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UsageError, match="got a newer one"), open_store(tmp_path):
        pass


def test_others_on_the_machine_cannot_look_into_the_data_directory(store):
    assert store.directory.root.stat().st_mode & 0o077 == 0


def test_a_block_that_fails_changes_nothing(store):
    file = upload(store)

    def fail_halfway():
        with store.database.write() as connection:
            connection.execute(FILES.delete())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert get_file(store, file.id, tenant=LOCAL) == file


def test_a_reader_goes_on_while_a_writer_holds_the_lock(store):
    file = upload(store)
    reading, written = Event(), Event()

    def read():
        with store.database.read() as connection:
            found = find(connection, FILES, file.id, tenant=LOCAL).filename
            reading.set()
            assert written.wait(30)
            # A transaction sees one moment, whatever is committed meanwhile.
            return found, find(connection, FILES, file.id, tenant=LOCAL).filename

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(read)
        assert reading.wait(30)
        with store.database.write() as connection:
            connection.execute(FILES.update().values(filename="new"))
        written.set()
        assert answer.result() == (file.filename, file.filename)
    assert get_file(store, file.id, tenant=LOCAL) == replace(file, filename="new")


def test_two_writers_queue_and_neither_fails(store):
    job = queue(store)

    def count(_):
        with store.database.write() as connection:  # reads before it writes: deferred transactions would fail here
            seen = find(connection, FILES, job.training_file, tenant=LOCAL).records
            connection.execute(FILES.update().values(records=seen + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(40)))
    assert get_file(store, job.training_file, tenant=LOCAL).records == 3 + 40
