"""The same laws for every place where blobs may be."""

import hashlib
import itertools
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from fsspec.spec import AbstractFileSystem

from blob_stores import KINDS, blobs_of, object_store
from rapt.errors import DamagedError, UnavailableError, UsageError
from rapt.service.storage import blobs as blobs_module
from rapt.service.storage.blobs import FsspecBlobs, open_blob, open_blobs, read_blob
from rapt.service.storage.data_directory import ArrivingFile, StagedFile, write_staged
from rapt.service.storage.recovery import join_store, open_store
from rapt.service.storage.store import own_blobs
from stored_material import claim, finish, kept_bytes, queue, tenant

MEBIBYTE = 1024 * 1024


@pytest.fixture(params=KINDS)
def blobs(request, tmp_path):
    if request.param == "s3://":
        request.getfixturevalue("s3")
    with blobs_of(request.param, tmp_path) as store:
        yield store


@pytest.fixture
def put(blobs, tmp_path):
    """Keep bytes; returns their digest, or says that they have another."""

    def keep(content, sha256=None):
        digest = hashlib.sha256(content).hexdigest()
        path = tmp_path / f"staged-{digest}"
        path.write_bytes(content)
        blobs.put(StagedFile(path=path, bytes=len(content), sha256=sha256 or digest))
        return digest

    return keep


def content_of(blobs, digest, size, chunk=MEBIBYTE):
    """Chunks of a blob, as they come."""
    with open_blob(blobs, digest, size=size) as stream:
        while found := stream.read(chunk):
            yield found


def test_what_is_put_comes_back_until_it_is_deleted(blobs, put):
    contents = [b"", b"a", bytes(range(256)) * 100]
    digests = [put(content) for content in contents]
    assert sorted(blobs.list()) == sorted(digests)
    for digest, content in zip(digests, contents, strict=True):
        assert read_blob(blobs, digest, size=len(content)) == content
        assert b"".join(content_of(blobs, digest, len(content))) == content
        assert blobs.size(digest) == len(content)
    blobs.delete(digests[1])
    blobs.delete(digests[1])
    blobs.delete_nothing()
    assert sorted(blobs.list()) == sorted([digests[0], digests[2]])
    for ask in (blobs.size, lambda name: blobs.read(name, start=0, count=1)):
        with pytest.raises(FileNotFoundError):
            ask(digests[1])


def test_any_range_of_a_blob_is_that_range_of_its_bytes(blobs, put, rng):
    content = rng.bytes(1000)
    digest = put(content)
    for start, count in rng.integers(0, 1000, size=(20, 2)):
        assert blobs.read(digest, start=int(start), count=int(count)) == content[start : start + count]


def test_the_same_bytes_twice_are_one_blob_and_heal_what_was_damaged(blobs, put):
    digest = put(b"right")
    put(b"wrong", sha256=digest)
    with pytest.raises(DamagedError):
        read_blob(blobs, digest, size=5)
    assert put(b"right") == digest
    assert read_blob(blobs, digest, size=5) == b"right"
    assert list(blobs.list()) == [digest]


@pytest.mark.parametrize("wrong", ["another byte", "cut off", "longer"])
def test_a_damaged_blob_is_an_error_and_never_given_whole(blobs, put, rng, wrong):
    right = rng.bytes(5 * MEBIBYTE)
    damaged = {
        "another byte": right[:1000] + bytes([right[1000] ^ 1]) + right[1001:],
        "cut off": right[:-1],
        "longer": right + b"x",
    }[wrong]
    digest = hashlib.sha256(right).hexdigest()
    put(damaged, sha256=digest)
    received = []
    with pytest.raises(DamagedError, match="was damaged; tell the provider"):
        received.extend(content_of(blobs, digest, len(right)))
    assert sum(map(len, received)) < len(right)


def test_large_blobs_go_in_parts(blobs, put, rng, monkeypatch):
    monkeypatch.setattr(blobs_module, "_ONE_REQUEST", 10)
    content = rng.bytes(6 * MEBIBYTE)
    assert read_blob(blobs, put(content), size=len(content)) == content


# fsspec's own local file system writes in place: that is why blobs in a folder are ours.
@pytest.mark.parametrize("blobs", [kind for kind in KINDS if kind != "folder through fsspec"], indirect=True)
def test_whoever_reads_while_others_put_the_same_bytes_gets_them_whole(blobs, rng, tmp_path):
    content = rng.bytes(200_000)
    digest = hashlib.sha256(content).hexdigest()

    def keep(number):
        path = tmp_path / f"staged-{number}"
        path.write_bytes(content)
        blobs.put(StagedFile(path=path, bytes=len(content), sha256=digest))

    keep("first")
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(read_blob, blobs, digest, size=len(content)) for _ in range(20)]
        puts = [pool.submit(keep, number) for number in range(20)]
        assert all(found.result() == content for found in reads)
        assert all(done.result() is None for done in puts)


def test_what_is_not_a_blob_is_not_listed_and_an_owner_is_remembered(blobs, put):
    assert blobs.owner() is None
    blobs.claim("me")
    assert blobs.owner() == "me"
    assert list(blobs.list()) == []
    digest = put(b"1")
    assert list(blobs.list()) == [digest]


class _Broken(AbstractFileSystem):
    """A file system of another library whose errors say too much."""

    def _open(self, *_arguments, **_settings):
        raise PermissionError("the key rapt-secret may not")

    def info(self, path, **_settings):
        raise RuntimeError("the key rapt-secret may not")


def test_a_store_that_cannot_be_reached_is_one_clear_line_without_its_words(tmp_path):
    blobs = FsspecBlobs(_Broken(skip_instance_cache=True), "x")
    (tmp_path / "staged").write_bytes(b"1")
    for ask in (
        lambda: blobs.put(StagedFile(path=tmp_path / "staged", bytes=1, sha256="ab" * 32)),
        lambda: blobs.read("ab" * 32, start=0, count=1),
        lambda: blobs.size("ab" * 32),
        blobs.owner,
    ):
        with pytest.raises(UnavailableError, match="store of the blobs must be reachable, got") as error:
            ask()
        assert "secret" not in str(error.value)


def test_a_full_or_broken_disk_is_one_clear_line(tmp_path):
    blobs = open_blobs(None, folder=tmp_path / "taken")
    (tmp_path / "taken").write_text("a file")
    with (tmp_path / "x").open("wb+") as stream:
        staged = write_staged(stream, ArrivingFile(tmp_path / "staged", max_bytes=1))
    with pytest.raises(UnavailableError, match="could not store the file"):
        blobs.put(staged)


@pytest.mark.parametrize(
    "url", ["", "s3", "s3:/bucket", "s3://", "memory:///", "sftp://host/a", "file://host/a", "a.secret://x", "/a/b"]
)
def test_a_url_of_no_known_store_is_refused_and_not_repeated(url, tmp_path):
    with pytest.raises(UsageError, match="the setting blobs must be like s3://bucket/prefix") as error:
        open_blobs(url, folder=tmp_path)
    assert "secret" not in str(error.value)


def test_a_store_whose_package_is_missing_says_which(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match="must have the package gcsfs"):
        open_blobs("gs://bucket/prefix", folder=tmp_path)


def written(data):
    """The digests of what a service keeps in its data directory."""
    with open_store(data) as store:
        queue(store, tenant(store, "ada"))
        finish(store, claim(store))
        return kept_bytes(store)


def test_a_service_takes_its_blobs_along_to_an_object_store(tmp_path):
    digests = written(tmp_path)
    with object_store("memory://") as url:
        for _ in range(2):
            with open_store(tmp_path, blobs=url) as store:
                assert kept_bytes(store) == digests
                assert [path for path in store.directory.blobs.rglob("*") if path.is_file()] == []
        # Who forgets where they are gets none, and loses none.
        with pytest.raises(UsageError, match="none of them is there"), open_store(tmp_path):
            pass
        with join_store(tmp_path) as worker, pytest.raises(UsageError, match="the same to `rapt serve`"):
            own_blobs(worker)
        with open_store(tmp_path, blobs=url) as store:
            assert kept_bytes(store) == digests


@pytest.mark.parametrize("states", list(itertools.product(["here", "both", "there"], repeat=2)))
def test_wherever_a_move_of_the_blobs_was_killed_the_next_start_ends_it(tmp_path, states):
    digests, elsewhere = written(tmp_path / "data"), tmp_path / "elsewhere"
    assert len(digests) == len(states)
    for digest, state in zip(digests, states, strict=True):
        here, there = (root / digest[:2] / digest for root in (tmp_path / "data" / "blobs", elsewhere))
        if state != "here":
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(here, there)
        if state == "there":
            here.unlink()
    with open_store(tmp_path / "data", blobs=f"file://{elsewhere}") as store:
        assert kept_bytes(store) == digests
        assert all(hashlib.sha256(store.blobs.read(name, start=0, count=99)).hexdigest() == name for name in digests)
        assert list(store.directory.blobs.glob("*/*")) == []


def test_blobs_of_another_service_are_refused_and_left_alone(tmp_path):
    with object_store("memory://") as url:
        digests = [written(tmp_path / name) for name in ("mine", "other")]
        with open_store(tmp_path / "mine", blobs=url):
            pass
        with pytest.raises(UsageError, match="of this service only"), open_store(tmp_path / "other", blobs=url):
            pass
        for name, blobs, own in zip(("mine", "other"), (url, None), digests, strict=True):
            with open_store(tmp_path / name, blobs=blobs) as store:
                assert kept_bytes(store) == own


def test_what_is_missing_is_said_and_does_not_stop_the_rest(tmp_path, caplog):
    digest = written(tmp_path)[0]
    with open_store(tmp_path) as store:
        store.blobs.delete(digest)
    with open_store(tmp_path) as store:
        assert digest not in kept_bytes(store)
    assert "1 of the 2 blobs that files and models name are missing" in caplog.text
