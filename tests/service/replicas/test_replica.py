"""A replica without a cluster around it: what it answers, what it lacks, whom it prefers."""

import asyncio
import pickle
from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest

from closeness import assert_close
from rapt.cluster import check_version
from rapt.errors import BusyError, ClusterError, UsageError, VocabularyError
from rapt.service.adapter.adapter import adapter_to_files
from rapt.service.answers.generation import GenerationRow, Sampling
from rapt.service.answers.prediction import classify, row_of
from rapt.service.http.settings import load_settings
from rapt.service.replicas.calls import (
    MissingAdapter,
    ReplicaRequest,
    rank_replicas,
    send_row,
)
from rapt.service.replicas.front import Room
from rapt.service.replicas.replica import Replica, check_node
from rapt.service.tuning.tuner import TuningConfig, tune
from rapt.wire.privatized_file import PrivatizedRecord, remove_labels
from replica_material import make_plan
from tiny_backbones import tiny_backbone
from tuning_material import separable_file


def plan(backbones, **changes):
    return make_plan(**{"models": backbones, "vocabularies": dict.fromkeys(backbones, ""), **changes})


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer") / "tiny-llama"
    return tiny_backbone("llama", folder), folder


@pytest.fixture(scope="module")
def replica(backbone, writer):
    models = {"bert-tiny": "bert-tiny", "tiny-llama": str(writer[1])}
    hashes = {"bert-tiny": backbone.bundle.hash, "tiny-llama": writer[0].bundle.hash}
    with closing(Replica(plan(models, vocabularies=hashes))) as opened:
        yield opened


@pytest.fixture(scope="module")
def adapter(backbone):
    config = TuningConfig(prompt_length=3, epochs=1, batch_size=16)
    return tune(backbone, separable_file(backbone, records=16, seed=3), config=config)


def request(rows, *, model="bert-tiny", number=1):
    return ReplicaRequest(
        number=number, model=model, tenant="a", rows=tuple(rows), cost=sum(len(row.token_ids) for row in rows)
    )


def test_a_replica_asks_for_an_adapter_once_and_answers_as_one_machine(replica, backbone, adapter):
    rows = [row_of(record, adapter=adapter) for record in remove_labels(separable_file(backbone, records=3)).records]
    # As they travel.
    sent = pickle.loads(pickle.dumps(request([send_row(row, adapter="d1") for row in rows])))

    async def ask():
        files = asyncio.get_running_loop().create_future()
        files.set_result(adapter_to_files(adapter))
        (first,) = await replica.classify([sent], {})
        (second,) = await replica.classify([sent], {"d1": [files]})
        return first, second, *await replica.classify([sent], {})

    missing, with_files, again = asyncio.run(ask())
    assert isinstance(missing, MissingAdapter)
    expected = classify(backbone, rows)
    assert_close(with_files, expected, of=backbone)
    assert_close(again, expected, of=backbone)


def test_a_request_that_fails_spoils_no_other_of_its_call(replica):
    row = send_row(row_of(PrivatizedRecord(token_ids=(2204,) * 5), adapter=None), adapter=None)
    lacking = request([replace(row, adapter="d2")], number=2)
    before, failed, after = asyncio.run(replica.classify([request([row]), lacking, request([row], number=3)], {}))
    assert isinstance(failed, MissingAdapter)
    assert [len(before), len(after)] == [1, 1]


def test_a_text_is_written_token_by_token_and_the_same_again(replica):
    row = GenerationRow(token_ids=(5, 9, 17), most_tokens=6, sampling=Sampling(seed=4, repeatable=True))

    async def write():
        return [
            one
            async for some in replica.write(request([send_row(row, adapter=None)], model="tiny-llama"), {})
            for one in some
        ]

    first, second = asyncio.run(write()), asyncio.run(write())
    assert [one.choice for one in first] == [one.choice for one in second]
    assert first[-1].finish in ("length", "stop")
    assert all(one.finish is None for one in first[:-1])


def test_a_text_that_cannot_be_written_is_an_error_in_its_place(replica):
    row = GenerationRow(token_ids=(5, 9, 17), most_tokens=10_000)

    async def write():
        return [some async for some in replica.write(request([send_row(row, adapter=None)], model="tiny-llama"), {})]

    ((written,),) = asyncio.run(write())
    assert isinstance(written.error, UsageError)


def test_a_node_says_what_it_lacks(backbone, tmp_path):
    with pytest.raises(ClusterError, match=r"every node of the cluster must have rapt 0\.0\.1"):
        check_version("0.0.1")
    assert check_node(plan({}).version, {"bert-tiny": "bert-tiny"}) is None
    assert isinstance(check_node(plan({}).version, {"one": str(tmp_path / "nowhere")}), VocabularyError)
    with pytest.raises(VocabularyError, match="must have the same files of model='bert-tiny'"):
        Replica(plan({"bert-tiny": "bert-tiny"}, vocabularies={"bert-tiny": "another"}))


def test_keys_are_spread_over_replicas_and_only_those_of_a_lost_one_move():
    ids, keys = [f"replica-{number}" for number in range(4)], [f"{number:02x}.0" for number in range(256)]
    first = {key: ids[rank_replicas(ids, [0] * 4, key=key)[0]] for key in keys}
    # Fixed names, fixed hashes: each has a quarter of 256, give or take.
    assert all(40 <= count <= 90 for count in Counter(first.values()).values())
    left = ids[1:]
    moved = {key for key in keys if left[rank_replicas(left, [0] * 3, key=key)[0]] != first[key]}
    assert moved == {key for key in keys if first[key] == ids[0]}


def test_calls_of_one_key_go_to_one_replica_until_it_has_more_than_its_share():
    ids, calls = [f"replica-{number}" for number in range(4)], [0] * 4
    first, second = rank_replicas(ids, calls, key="0a")[:2]
    places = []
    for _ in range(100):
        places.append(rank_replicas(ids, calls, key="0a")[0])
        calls[places[-1]] += 1
    assert places[:3] == [first, first, second]
    # A hot key fills all, none by more than a quarter above the mean.
    assert min(calls) > 0
    assert max(calls) <= 1.25 * 100 / 4 + 1
    assert rank_replicas(["alone"], [1000], key="0a") == [0]


def test_what_waits_on_replicas_has_the_room_of_one_machine():
    room = Room(100)
    room.take("a", 500)  # alone, whatever its size
    with pytest.raises(BusyError, match="got 500 tokens that wait already"):
        room.take("b", 1)
    room.give_back("a", 500)
    room.take("a", 50)
    with pytest.raises(BusyError):
        room.take("a", 1)  # half of the room is for the others
    room.take("b", 50)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"ray_address": "10.0.0.5:6379"}, "ray_address must come with engine=ray"),
        ({"replicas": 3}, "replicas must come with engine=ray"),
        ({"jobs_at_once": 2}, "jobs_at_once must come with engine=ray"),
        ({"engine": "ray", "replicas": 3, "most_replicas": 2}, "most_replicas must be at least replicas"),
        ({"engine": "ray", "job_process": False}, "job_process must be true with engine=ray"),
        ({"engine": "ray", "ray_address": "10.0.0.5:6379"}, "must find a database and an object store"),
        (
            {"engine": "ray", "ray_address": "h:1", "database_url": "postgresql://d/d", "blobs": "file:///shared"},
            "blobs, other than file://",
        ),
    ],
)
def test_settings_of_a_cluster_that_cannot_work_are_refused(given, rule):
    with pytest.raises(UsageError, match=rule):
        load_settings(given)


def test_a_service_whose_jobs_run_elsewhere_may_have_a_database_of_its_own():
    assert load_settings({"engine": "ray", "ray_address": "h:1", "worker_in_service": False}).engine == "ray"
