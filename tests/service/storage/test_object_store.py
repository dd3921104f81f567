"""The tests of the store that look at what is kept once more, with the blobs in an object store."""

import inspect

import pytest
import test_job_runs
import test_named_blobs
import test_store
import test_tenants

import stored_material
from blob_stores import object_store
from rapt.service.storage.callers import OPERATOR
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tenant_rows import delete_tenant

# What damages blobs by hand, in a folder.
_OF_A_FOLDER = {"test_what_was_damaged_where_it_is_kept_is_an_error_and_no_answer"}


@pytest.fixture(params=["memory://", "s3://"])
def store(request, tmp_path):
    if request.param == "s3://":
        request.getfixturevalue("s3")
    with object_store(request.param) as url, open_store(tmp_path / "data", blobs=url) as opened:
        yield opened
        assert [path.name for path in opened.directory.blobs.iterdir()] == []


def _shared():
    for module in (test_job_runs, test_named_blobs, test_store, test_tenants):
        for name, function in vars(module).items():
            if name.startswith("test_") and callable(function) and name not in _OF_A_FOLDER:
                wanted = inspect.signature(function).parameters
                if "store" in wanted and "tmp_path" not in wanted and "kept_bytes" in inspect.getsource(function):
                    yield f"{name}_in_an_object_store", function


globals().update(_shared())


def test_a_deleted_tenant_leaves_nothing_in_an_object_store(store):
    """And the store itself can be left: nothing of ours but whose it was."""
    caller = stored_material.tenant(store, "eve")
    stored_material.queue(store, caller)
    stored_material.finish(store, stored_material.claim(store))
    assert len(list(store.blobs.list())) == 2
    delete_tenant(store, "eve", caller=OPERATOR, now=9)
    assert list(store.blobs.list()) == []
    assert store.blobs.owner() is not None
