"""A program as a user writes it: `make check` holds its types, which are those that the public names promise.

It is not run; `assert_type` is for the type checker.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import assert_type

import rapt
from rapt.local.client import Completion, FileInfo, JobInfo, ModelInfo, PoolInfo, Prediction


def privatize() -> None:
    private = rapt.privatize(["a text"], epsilon=4, ledger=None)
    assert_type(private, rapt.Privatized)
    assert_type(private.ids, list[tuple[int, ...]])
    assert_type(private.save("out.jsonl"), rapt.Manifest)
    assert_type(rapt.load_vocabulary("minilm"), rapt.Vocabulary)
    assert_type(rapt.read_privatized_file(Path("out.jsonl")), rapt.PrivatizedFile)
    with rapt.open_ledger("book.sqlite") as ledger:
        rapt.privatize(["a text"], eta=75.0, ledger=ledger)
    for record in rapt.read_corpus("in.csv"):
        assert_type(record, rapt.LabelledText)


def wait(file: rapt.PrivatizedFile) -> list[str]:
    with rapt.ServiceClient("http://127.0.0.1:8420", api_key=None) as client:
        assert_type(client.upload("out.jsonl"), FileInfo)
        job = client.create_job(file_id="file-1", model="minilm", patience=3, validation_file="file-2")
        assert_type(client.pause_job(job.id), JobInfo)
        assert_type(client.resume_job(job.id), JobInfo)
        assert_type(client.follow(job.id, on_step=lambda done, total, losses: None), JobInfo)
        assert_type(client.models(), list[ModelInfo])
        assert_type(client.pool("pool-1"), PoolInfo)
        assert_type(client.generate("smollm2", file, max_tokens=5, stop=["."]), list[Completion])
        assert_type(client.classify_in_parts("ft:1", file), Iterator[list[Prediction]])
        return [answer.label for answer in client.classify("ft:1", file)]


async def await_it(file: rapt.PrivatizedFile) -> list[str]:
    async with rapt.AsyncServiceClient("http://127.0.0.1:8420") as client:
        assert_type(await client.upload(Path("out.jsonl")), FileInfo)
        assert_type(await client.follow("ftjob-1"), JobInfo)
        assert_type(client.classify_in_parts("ft:1", file), AsyncIterator[list[Prediction]])
        return [answer.label for answer in await client.classify("ft:1", file)]
