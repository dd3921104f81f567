"""Continuous batching with real small models: who joins, who leaves, who is refused."""

import time
from queue import Queue

import pytest

from rapt.errors import BusyError, UnavailableError, UsageError
from rapt.service.model.batching import BatchLimits
from rapt.service.model.decoding import DecodingBatch
from rapt.service.model.generation_row import GenerationRow
from rapt.service.model.sampling import Sampling
from rapt.service.model.writing import LineSpeed, Writer, Written
from running_service import wait_until
from tiny_backbones import tiny_backbone

LONG = 60.0


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request, tmp_path_factory):
    return tiny_backbone(request.param, tmp_path_factory.mktemp(request.param) / "model")


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


def test_who_has_enough_makes_room_at_once(backbone):
    writer = Writer(backbone, rows=1)
    try:
        told, second = [], Queue()

        def enough_after_two(written):
            told.append(written)
            return len(told) == 2

        writer.submit(row_of(backbone, 0, most=50), tenant="a", tell=enough_after_two)
        writer.submit(row_of(backbone, 1, most=3), tenant="a", tell=second.put)
        assert until_the_end(second)[0] == alone(backbone, row_of(backbone, 1, most=3))
        assert len(told) == 2
    finally:
        writer.close()


def test_it_refuses_what_it_cannot_write_and_everything_when_it_stops(backbone):
    writer = Writer(backbone)
    with pytest.raises(UsageError):
        writer.submit(GenerationRow(token_ids=(), most_tokens=1), tenant="a", tell=print)
    writer.close()
    with pytest.raises(UnavailableError):
        writer.submit(row_of(backbone, 0), tenant="a", tell=print)


@pytest.mark.parametrize("speed", [0.5, 7.0, 300.0])
def test_the_speed_of_a_line_is_that_of_what_leaves_it(speed):
    line, now, left = LineSpeed(), 100.0, 1000
    line.moved(64, left=left, now=now)  # those who find room at once say nothing about the line
    assert line.seconds_per_cost == 0
    for taken in (30, 0, 55, 0, 0, 7):  # 0: a token was written, and nobody left the line
        now += taken / speed
        left -= taken
        line.moved(taken, left=left, now=now)
    assert line.seconds_per_cost == pytest.approx(1 / speed)


def test_the_time_in_which_nobody_waits_is_no_time_of_the_line():
    line = LineSpeed()
    line.moved(0, left=50, now=0.0)
    line.moved(50, left=0, now=1.0)
    line.moved(0, left=0, now=500.0)
    line.moved(10, left=0, now=900.0)  # an idle hour later
    line.moved(0, left=50, now=1000.0)
    line.moved(50, left=0, now=1001.0)
    assert line.seconds_per_cost == pytest.approx(1 / 50)


def test_the_time_to_come_again_is_that_of_the_line_and_not_of_its_tokens_one_by_one(backbone):
    texts, most, cost = 30, 2, 52
    row = GenerationRow(token_ids=tuple(int(i) for i in backbone.bundle.eligible[:50]), most_tokens=most)
    writer = Writer(backbone, rows=1, limits=BatchLimits(waiting_cost=2 * texts * cost))
    refusals = []
    try:
        for _ in range(texts):  # so that the line was seen to move
            writer.submit(row, tenant="t", tell=lambda written: None)
        wait_until(lambda: not writer.waiting_cost)
        while not refusals:  # a tenant may fill half of the line
            try:
                writer.submit(row, tenant="t", tell=lambda written: None)
            except BusyError as refusal:
                refusals.append(refusal.retry_after)
        start = time.monotonic()
        wait_until(lambda: not writer.waiting_cost)
        taken = time.monotonic() - start
    finally:
        writer.close()
    # Each text takes two passes. By the time of a token it would be 52 / 2 of them for each.
    assert refusals[0] < 8 * taken
