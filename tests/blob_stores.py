"""Stores of blobs for tests: in a folder, in fsspec's memory, in a folder through fsspec, and in an S3 of their own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from rapt.service.storage.blobs import BlobStore, FsspecBlobs, open_blobs

KINDS = ("data directory", "file://", "memory://", "folder through fsspec", "s3://")


@contextmanager
def blobs_of(kind: str, folder: Path) -> Iterator[BlobStore]:
    """A store that is empty."""
    if kind == "data directory":
        yield open_blobs(None, folder=folder / "blobs")
    elif kind == "file://":
        yield open_blobs(f"file://{folder}/elsewhere", folder=folder / "blobs")
    elif kind == "folder through fsspec":
        yield FsspecBlobs(DirFileSystem(path=str(folder), fs=LocalFileSystem(auto_mkdir=True)), "below")
    else:
        with object_store(kind) as url:
            yield open_blobs(url, folder=folder / "blobs")


@contextmanager
def object_store(kind: str) -> Iterator[str]:
    """The URL of an empty object store; that of S3 needs `make test-s3`."""
    name = f"rapt-{secrets.token_hex(6)}"
    if kind == "s3://":
        _bucket(name)
        yield f"s3://{name}/below/this"
        return
    yield f"memory://{name}"
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{name}"):
        memory.rm(f"/{name}", recursive=True)


def has_s3() -> bool:
    """Whether there is a server of S3 for tests."""
    return "RAPT_TEST_S3" in os.environ


@contextmanager
def own_s3() -> Iterator[None]:
    """Moto's server of S3 in a thread, which everything in this process is told of."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "of-a-test",
        "AWS_SECRET_ACCESS_KEY": "of-a-test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        try:
            yield
        finally:
            server.stop()


def _bucket(name: str) -> None:
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
