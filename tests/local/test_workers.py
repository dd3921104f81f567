"""One table for all workers: what is shared comes out equal and read-only, and everything else by value."""

import os
import pickle
import signal
import sys
from multiprocessing import get_context

import numpy as np
import pytest

from rapt.errors import CorpusError
from rapt.local.corpus import privatize_corpus
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.mechanisms import make_mechanism
from rapt.local.mechanisms.interface import share_memory
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream, secure_stream
from rapt.local.records import Chunk, ChunkSetting, SourceItem, cut_into_chunks
from rapt.local.workers import privatize_in_processes, receive_shared, shared
from rapt.wire.manifest import NO_PLAIN_TOKENS, LabelPrivacy
from rapt.wire.privatized_file import read_privatized_file
from toy_vocabularies import toy_vocabulary, toy_word

SECRET = "zanzibarsecret"


@pytest.fixture(scope="module")
def privatizer():
    vocabulary = toy_vocabulary(np.random.default_rng(1).standard_normal((300, 4)))
    return Privatizer(vocabulary, make_mechanism("laplace", vocabulary=vocabulary, eta=2.0), NO_PLAIN_TOKENS)


def chunks(count, *, labels=None):
    return iter([Chunk(10 * i, [" ".join([toy_word(7)] * (i + 1))] * 10, labels) for i in range(count)])


def setting_of(privatizer, *, response=None, stream=None):
    labels, privacy = (None, None) if response is None else (("no", "yes"), LabelPrivacy(epsilon=response.epsilon))
    stated = (stream or secure_stream()).provenance
    return ChunkSetting(
        privatizer, response, privatizer.manifest(labels=labels, randomness=stated, label_privacy=privacy)
    )


def run(privatizer, given, *, processes=2, response=None, stream=None, first_stream=0):
    setting = setting_of(privatizer, response=response, stream=stream)
    return privatize_in_processes(given, setting, processes=processes, first_stream=first_stream)


def ids(results):
    return [[record.token_ids for record in result] for result in results]


def test_texts_are_cut_into_chunks_in_order():
    found = list(cut_into_chunks((SourceItem(f"text {i}", i) for i in range(1_100)), first_position=5, labelled=True))
    assert [chunk.position for chunk in found] == [5, 517, 1029]
    assert [text for chunk in found for text in chunk.texts] == [f"text {i}" for i in range(1_100)]
    assert found[2].labels == list(range(1_024, 1_100))
    assert SECRET not in repr(Chunk(0, [SECRET], None))


@pytest.mark.parametrize(("count", "processes"), [(0, 2), (1, 3), (7, 3)])
def test_results_come_in_order_whatever_the_number_of_workers(privatizer, count, processes):
    results = list(run(privatizer, chunks(count), processes=processes))
    assert [len(result[0]) for result in ids(results)] == list(range(1, count + 1))
    assert all(len(result) == 10 for result in results)


def test_no_two_workers_and_no_two_runs_draw_the_same_noise(privatizer):
    results = ids(run(privatizer, chunks(4), processes=2)) + ids(run(privatizer, chunks(4), processes=2))
    # 10 texts of up to 4 tokens from 300: two of them agree by chance less than once in 10^9 runs.
    longest = [tuple(text for text in result) for result in results if len(result[0]) == 4]
    assert len(set(longest)) == len(longest) == 2
    again = ids(run(privatizer, iter([Chunk(0, [toy_word(7)] * 40, None)] * 2)))
    assert again[0] != again[1]


def test_a_seed_repeats_the_run_and_each_worker_has_its_own_noise(privatizer):
    same = [Chunk(0, [toy_word(7)] * 40, None)] * 3
    first, second = (ids(run(privatizer, iter(same), stream=insecure_stream(5))) for _ in range(2))
    assert first == second
    assert len({tuple(result) for result in first}) == 3
    assert ids(run(privatizer, iter(same), stream=insecure_stream(5), first_stream=9)) != first


def test_labels_are_randomized_in_the_worker(privatizer):
    result = next(
        run(
            privatizer,
            iter([Chunk(0, [toy_word(7)] * 400, [0] * 400)]),
            response=RandomizedResponse(classes=2, epsilon=1.0),
        )
    )
    # 27 % of 400 on average; outside of 60 to 160 less than once in a million runs.
    assert 60 < sum(record.label for record in result) < 160


def test_an_error_in_a_worker_is_the_error_of_the_run(privatizer):
    bad = [*chunks(2), Chunk(20, [toy_word(1), SECRET + " \ud800"], None), *chunks(1)]
    with pytest.raises(CorpusError, match="record 22 must be valid unicode") as caught:
        list(run(privatizer, iter(bad)))
    assert SECRET not in str(caught.value)


def test_a_worker_that_dies_is_one_clear_line(privatizer):
    import multiprocessing

    def killing():
        yield from chunks(2)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        yield from chunks(2)

    with pytest.raises(CorpusError, match="a worker process must live to the end, got one of 2"):
        list(run(privatizer, killing()))


def test_no_worker_outlives_its_run(privatizer):
    import multiprocessing

    results = run(privatizer, chunks(5))
    next(results)
    results.close()
    assert multiprocessing.active_children() == []


def test_the_environment_is_left_as_it_was(privatizer, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    list(run(privatizer, chunks(2)))
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_a_corpus_is_privatized_by_several_processes(privatizer, tmp_path):
    source = tmp_path / "a.csv"
    counts = [1 + i % 9 for i in range(1_300)]
    source.write_text("text,label\n" + "".join(f"{' '.join([toy_word(3)] * n)},{n % 3}\n" for n in counts))
    privatize_corpus(source, tmp_path / "out", privatizer=privatizer, stream=secure_stream(), processes=2)
    records = read_privatized_file(tmp_path / "out").records
    assert [len(record.token_ids) for record in records] == counts
    assert [record.label for record in records] == [n % 3 for n in counts]
    assert len({record.token_ids for record in records}) > 1_000


def read_only(array):
    array.flags.writeable = False
    return array


def value_of():
    rng = np.random.default_rng(5)
    return {
        "table": read_only(rng.standard_normal((3_001, 7)).astype(np.float32)),
        "again": read_only(rng.integers(0, 9, size=70_001, dtype=np.uint8)),
        "none": read_only(np.empty((0, 5))),
        "few": read_only(np.arange(5)),
        "own": np.arange(70_000),
        "word": "film",
    }


def describe(connection):
    """In another process: what arrived, and whether it can be written to."""
    with connection:
        value = receive_shared(connection)
        arrays = {name: array for name, array in value.items() if isinstance(array, np.ndarray)}
        connection.send((pickle.dumps(value), {name: array.flags.writeable for name, array in arrays.items()}))
        connection.recv()  # until the other end has looked at how much memory there is


def sent_to(processes, value):
    """What each of so many processes says of the value, and the number of bytes that it was pickled into."""
    context, running = get_context("spawn"), []
    with shared(value) as given:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=describe, args=(theirs,))
            process.start()
            theirs.close()
            given.send(ours, process=process.pid)
            running.append((process, ours))
    answers = []
    for process, connection in running:
        with connection:
            answers.append(connection.recv())
            connection.send("done")
        process.join()
    return answers, len(given.pickled)


def test_what_is_shared_arrives_equal_in_every_process():
    value = value_of()
    answers, size = sent_to(2, value)
    for pickled, writeable in answers:
        found = pickle.loads(pickled)
        assert found.keys() == value.keys()
        assert found["word"] == "film"
        for name in value.keys() - {"word"}:
            assert found[name].dtype == value[name].dtype
            np.testing.assert_array_equal(found[name], value[name])
        # What a worker may write to is its own.
        assert writeable["own"]
        assert not writeable["table"]
    if sys.platform == "linux":
        assert size < value["own"].nbytes + 10_000


def test_nothing_is_left_open_or_lying_about(tmp_path):
    with shared(value_of()) as given:
        assert (given.file is None) == (sys.platform != "linux")
    if given.file is not None:
        import os

        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(given.file)


def test_several_processes_keep_to_the_bound_of_one_cache():
    vocabulary = toy_vocabulary(np.random.default_rng(1).standard_normal((30, 4)))
    whole = make_mechanism("exponential", vocabulary=vocabulary, eta=2.0)
    part = share_memory(whole, among=4)
    assert 4 * part.cache_bytes <= whole.cache_bytes
    assert part.setting == whole.setting
    uncached = make_mechanism("laplace", vocabulary=vocabulary, eta=2.0)
    assert share_memory(uncached, among=4) is uncached
