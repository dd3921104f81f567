"""One table for all workers: what is shared comes out equal and read-only, and everything else by value."""

import pickle
import sys
from multiprocessing import get_context

import numpy as np
import pytest

from rapt.local.mechanisms import make_mechanism
from rapt.local.mechanisms.interface import with_share_of_memory
from rapt.local.shared_arrays import receive_shared, shared
from toy_vocabularies import toy_vocabulary


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
    part = with_share_of_memory(whole, among=4)
    assert 4 * part.cache_bytes <= whole.cache_bytes
    assert part.setting == whole.setting
    uncached = make_mechanism("laplace", vocabulary=vocabulary, eta=2.0)
    assert with_share_of_memory(uncached, among=4) is uncached
