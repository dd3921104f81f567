"""A blob stays as long as one row names it, whatever happens at the same time, and nobody learns of others' rows."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from threading import Thread

import pytest

import rapt.service.storage.store as store_module
from rapt.errors import DamagedError, NotFoundError, UnavailableError
from rapt.service.storage.callers import OPERATOR
from rapt.service.storage.file_rows import add_file, delete_file, get_file, open_file
from rapt.service.storage.job_runs import claim_next_job, name_result
from rapt.service.storage.model_rows import (
    delete_model,
    get_model,
    insert_model,
    read_adapter_archive,
)
from rapt.service.storage.recovery import join_store, open_store
from rapt.service.storage.store import naming, release
from rapt.service.storage.tenant_rows import delete_tenant, get_usage
from stored_blobs import Watched
from stored_material import SUMMARY, finish, imported, kept_bytes, queue, tenant


def upload(store, caller, content=b"some bytes"):
    with store.directory.stage_bytes(content) as staged:
        return add_file(store, staged, SUMMARY, filename="f", caller=caller, now=7, max_bytes=10**9)


def content_of(store, file):
    with open_file(store, file) as stream:
        return stream.read()


def claim(store):
    return claim_next_job(store, worker="worker-1", models=["toy"], now=8)


def failing(question):
    """Fail once this is asked, as if the store had gone away."""

    def before(asked):
        if asked == question:
            raise UnavailableError("gone")

    return before


def test_models_of_the_same_bytes_share_a_blob_until_the_last_is_deleted(store, ada, bob):
    mine, second, theirs = imported(store, ada), imported(store, ada), imported(store, bob)
    assert kept_bytes(store) == [mine.sha256]
    assert len({mine.adapter, second.adapter, theirs.adapter}) == 3
    delete_model(store, mine.id, caller=ada)
    delete_tenant(store, "ada", caller=OPERATOR, now=9)
    assert read_adapter_archive(store, theirs) == b"an adapter"
    delete_model(store, theirs.id, caller=bob)
    assert kept_bytes(store) == []


def test_a_file_and_a_model_of_the_same_bytes_share_a_blob(store, ada):
    file, model = upload(store, ada, b"either"), imported(store, ada, b"either")
    delete_file(store, file.id, caller=ada)
    assert read_adapter_archive(store, model) == b"either"
    delete_model(store, model.id, caller=ada)
    assert kept_bytes(store) == []


@pytest.mark.parametrize("make", [upload, imported])
def test_what_the_store_is_asked_and_what_a_tenant_sees_is_the_same_whoever_has_the_bytes(store, ada, bob, make):
    """The broken twin, a store that skips bytes that it has, would be asked less the second time."""
    asked, seen = [], []
    delete = delete_file if make is upload else delete_model
    make(store, bob, b"shared")
    for content in (b"alone ", b"shared"):
        watched = Watched(store.blobs)
        through = replace(store, blobs=watched)
        made = make(through, ada, content)
        seen.append((made.bytes, get_usage(store, "ada")))
        delete(through, made.id, caller=ada)
        asked.append(watched.asked)
    assert seen[0] == seen[1]
    assert asked == [["put", "delete"], ["put", "delete_nothing"]]


@pytest.mark.parametrize("lock", ["held", "of the broken twin"])
def test_bytes_that_others_are_about_to_name_are_not_deleted(store, ada, monkeypatch, lock):
    model = imported(store, ada, b"both")
    delete_model(store, model.id, caller=ada)
    if lock != "held":
        monkeypatch.setattr(store_module, "_hold_lock", lambda store, digest, how: nullcontext())
    with store.directory.stage_bytes(b"both") as staged, naming(store, staged):
        # Here the bytes are there and the row is not: whoever deletes the other row, or sweeps, has to wait.
        deleting = Thread(target=release, args=(store, [staged.sha256]))
        deleting.start()
        deleting.join(0.3 if lock == "held" else 60)  # nothing holds the twin
        with store.database.write() as connection:
            insert_model(connection, model)
    deleting.join()
    if lock == "held":
        assert read_adapter_archive(store, model) == b"both"
    else:
        with pytest.raises(DamagedError):
            read_adapter_archive(store, model)


def test_many_who_put_and_delete_the_same_bytes_never_lose_those_that_are_named(store, tmp_path, ada, bob):
    with join_store(tmp_path / "data") as other:

        def turn(number):
            at, caller = (store, ada) if number % 2 else (other, bob)
            mine = upload(at, caller, b"same" if number % 3 else b"others")
            found = content_of(at, mine)
            delete_file(at, mine.id, caller=caller)
            return found in (b"same", b"others")

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(turn, range(60)))
    assert kept_bytes(store) == []


@pytest.mark.parametrize("make", [upload, imported])
def test_a_kill_between_bytes_and_row_leaves_nothing_after_the_next_start(tmp_path, make):
    with open_store(tmp_path) as store:
        ada = tenant(store, "ada")
        # Put, and never named: as if the process had died before its row.
        with store.directory.stage_bytes(b"unnamed") as staged:
            store.blobs.put(staged)
        # Unnamed, and never deleted: as if it had died after its row was gone.
        through = replace(store, blobs=Watched(store.blobs, before=failing("delete")))
        made = make(store, ada)
        with pytest.raises(UnavailableError):
            (delete_file if make is upload else delete_model)(through, made.id, caller=ada)
        kept = make(store, ada, b"kept")
        assert len(kept_bytes(store)) == 3
    with open_store(tmp_path) as store:
        assert kept_bytes(store) == [kept.sha256]


def test_what_cannot_be_put_is_not_named(store, ada):
    through = replace(store, blobs=Watched(store.blobs, before=failing("put")))
    with pytest.raises(UnavailableError):
        upload(through, ada)
    assert get_usage(store, "ada").bytes == 0
    assert kept_bytes(store) == []
    assert list(store.directory.incoming.iterdir()) == []


@pytest.mark.parametrize("wrong", ["other bytes", "cut off", "missing"])
def test_what_was_damaged_where_it_is_kept_is_an_error_and_no_answer(store, ada, wrong):
    queue(store, ada, upload(store, ada))
    job = claim(store)
    assert finish(store, job)
    model = get_model(store, name_result(job), tenant="ada")
    file = get_file(store, job.training_file, tenant="ada")
    for kept in (model, file):
        path = store.blobs.path(kept.sha256)
        if wrong == "missing":
            path.unlink()
        else:
            path.write_bytes(b"x" * (kept.bytes - (wrong == "cut off")))
    with pytest.raises(DamagedError):
        read_adapter_archive(store, model)
    with pytest.raises(DamagedError):
        content_of(store, file)


def test_what_was_deleted_between_two_questions_is_not_found(store, ada):
    file, model = upload(store, ada), imported(store, ada)
    delete_file(store, file.id, caller=ada)
    delete_model(store, model.id, caller=ada)
    with pytest.raises(NotFoundError):
        open_file(store, file)
    with pytest.raises(NotFoundError):
        read_adapter_archive(store, model)
