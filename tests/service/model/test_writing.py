"""Continuous batching with a real small decoder: who joins, who leaves, who is refused."""

from queue import Queue

import pytest

from rapt.errors import BusyError, UnavailableError, UsageError
from rapt.service.model.batching import BatchLimits
from rapt.service.model.decoding import DecodingBatch, GenerationRow
from rapt.service.model.sampling import Sampling
from rapt.service.model.writing import Writer, Written
from tiny_backbones import tiny_backbone

LONG = 60.0


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny_backbone("llama", tmp_path_factory.mktemp("llama") / "model")


def row_of(backbone, number, *, most=8):
    eligible = backbone.bundle.eligible
    ids = tuple(int(eligible[(7 * number + place) % len(eligible)]) for place in range(1 + number % 5))
    return GenerationRow(token_ids=ids, most_tokens=most, sampling=Sampling(seed=number))


def alone(backbone, row):
    batch = DecodingBatch(backbone)
    tokens = [batch.join([row])[0].token_id]
    while len(tokens) < row.most_tokens and tokens[-1] != backbone.frame.eos_id:
        tokens.append(batch.step()[0].token_id)
    return [token for token in tokens if token != backbone.frame.eos_id]


def until_the_end(told):
    """The tokens of a text and how it ended."""
    tokens = []
    while True:
        written: Written = told.get(timeout=LONG)
        if written.error is not None:
            raise written.error
        if written.choice is not None:
            tokens.append(written.choice.token_id)
        if written.finish:
            return tokens, written.finish


def test_many_texts_at_once_are_what_each_is_alone(backbone):
    writer = Writer(backbone, rows=4)
    try:
        told = [Queue() for _ in range(11)]
        rows = [row_of(backbone, number, most=3 + number % 6) for number in range(11)]
        for number, row in enumerate(rows):
            writer.submit(row, tenant=str(number % 3), tell=told[number].put)
        for row, queue in zip(rows, told, strict=True):
            tokens, finish = until_the_end(queue)
            assert tokens == alone(backbone, row)
            assert (finish == "length") == (len(tokens) == row.most_tokens)
    finally:
        writer.close()


def endless(backbone, writer, told):
    """A text that keeps the batch occupied until it is told to stop: each token waits to be taken."""

    def tell(written):
        told.put(written, timeout=LONG)

    return writer.submit(row_of(backbone, 0, most=50), tenant="first", tell=tell)


def test_who_leaves_makes_room_and_who_waits_too_long_is_refused(backbone):
    writer = Writer(backbone, rows=1, limits=BatchLimits(waiting_cost=20, quantum=1))
    try:
        held = Queue(maxsize=1)
        first = endless(backbone, writer, held)
        held.get(timeout=LONG)
        second = Queue()
        waiting = writer.submit(row_of(backbone, 1, most=3), tenant="b", tell=second.put)
        with pytest.raises(BusyError):
            writer.submit(row_of(backbone, 2, most=30), tenant="c", tell=Queue().put)
        writer.cancel(first)
        while second.empty():
            if not held.empty():
                held.get()
        assert until_the_end(second)[0] == alone(backbone, row_of(backbone, 1, most=3))
        writer.cancel(waiting)
    finally:
        writer.close()


def test_it_refuses_what_it_cannot_write_and_everything_when_it_stops(backbone):
    writer = Writer(backbone)
    with pytest.raises(UsageError):
        writer.submit(GenerationRow(token_ids=(), most_tokens=1), tenant="a", tell=print)
    writer.close()
    with pytest.raises(UnavailableError):
        writer.submit(row_of(backbone, 0), tenant="a", tell=print)
