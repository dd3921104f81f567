"""Batching without a model: a row is a number, its answer the number doubled, and a pass can be held up."""

from concurrent.futures import CancelledError
from queue import Queue
from threading import Event

import numpy as np
import pytest
import torch

from rapt.errors import BusyError, UnavailableError, UsageError
from rapt.service.answers.batching import Batcher, BatchLimits, FairQueue

LONG = 60.0  # s; ends a test that would hang
TOO_LARGE = 10_000  # of all rows of a pass


class Recorder:
    """Doubles numbers, remembers its passes, and waits where it is told to."""

    def __init__(self):
        self.passes = []
        self.started = Queue()
        self.go_on = Event()
        self.go_on.set()

    def __call__(self, rows):
        self.passes.append(list(rows))
        self.started.put(len(rows))
        assert self.go_on.wait(LONG)
        if sum(rows) > TOO_LARGE:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if any(row < 0 for row in rows):
            raise UsageError("a row must not be negative")
        if any(row == 666 for row in rows):
            raise ValueError("the patient said that it hurts")
        return [2 * row for row in rows]


def all_at_once(rows):
    return [list(range(len(rows)))]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def make(recorder):
    made = []

    def start(*, plan=all_at_once, cost=lambda row: 1, **limits):
        batcher = Batcher(recorder, plan=plan, cost=cost, limits=BatchLimits(**({"longest_wait": 0.0} | limits)))
        made.append(batcher)
        return batcher

    yield start
    recorder.go_on.set()
    for batcher in made:
        batcher.close()


@pytest.fixture
def busy(make, recorder):
    """A batcher whose thread is held up in a pass, and the ticket of that pass."""

    def start(**limits):
        batcher = make(**limits)
        recorder.go_on.clear()
        ticket = batcher.submit([0], tenant="first")
        recorder.started.get(timeout=LONG)
        return batcher, ticket

    return start


def test_answers_come_in_the_order_of_the_rows(make):
    batcher = make(plan=lambda rows: [[index] for index in reversed(range(len(rows)))])
    assert batcher.submit([3, 1, 2], tenant="a").future.result(LONG) == [6, 2, 4]
    assert batcher.submit([], tenant="a").future.result(LONG) == []


def test_callers_that_come_while_it_computes_share_a_pass(busy, recorder):
    batcher, _ = busy()
    tickets = [batcher.submit([number], tenant=str(number)) for number in range(1, 9)]
    recorder.go_on.set()
    assert [ticket.future.result(LONG) for ticket in tickets] == [[2 * number] for number in range(1, 9)]
    assert [len(rows) for rows in recorder.passes] == [1, 8]


def test_an_idle_batcher_does_not_wait(make, recorder):
    # With an hour of patience: if it waited for company at all, this would end at the time limit.
    batcher = make(longest_wait=3600.0, wait_share=1e12)
    assert batcher.submit([1], tenant="a").future.result(LONG) == [2]


def test_after_a_batch_it_waits_for_as_many_callers_as_it_had(make, recorder):
    batcher = make(longest_wait=3600.0, wait_share=1e12)
    recorder.go_on.clear()
    first = batcher.submit([0], tenant="a")
    recorder.started.get(timeout=LONG)
    pair = [batcher.submit([number], tenant="a") for number in (1, 2)]
    recorder.go_on.set()
    assert [ticket.future.result(LONG) for ticket in (first, *pair)] == [[0], [2], [4]]
    back = batcher.submit([3], tenant="a")
    assert recorder.started.get(timeout=LONG) == 2
    assert recorder.started.empty()  # one of two is back: it waits for the other
    assert not back.future.done()
    other = batcher.submit([4], tenant="b")
    assert [ticket.future.result(LONG) for ticket in (back, other)] == [[6], [8]]
    assert recorder.passes[-1] == [3, 4]


def test_who_leaves_is_not_computed_and_the_others_are(busy, recorder):
    batcher, _ = busy()
    leaving, staying = batcher.submit([1, 2], tenant="a"), batcher.submit([3], tenant="a")
    batcher.cancel(leaving)
    assert batcher.waiting_cost == 1
    recorder.go_on.set()
    assert staying.future.result(LONG) == [6]
    assert recorder.passes == [[0], [3]]
    with pytest.raises(CancelledError):
        leaving.future.result(LONG)


def test_who_leaves_during_its_pass_disturbs_nobody(busy, recorder):
    batcher, first = busy()
    batcher.cancel(first)
    recorder.go_on.set()
    assert batcher.submit([5], tenant="a").future.result(LONG) == [10]


def test_a_full_queue_says_when_to_come_back(busy, recorder):
    batcher, _ = busy(waiting_cost=10)
    waiting = [batcher.submit([1] * 5, tenant="a"), batcher.submit([1] * 5, tenant="b")]
    with pytest.raises(BusyError, match="10 tokens that wait already") as error:
        batcher.submit([1], tenant="c")
    assert error.value.status == 429
    assert error.value.retry_after > 0
    recorder.go_on.set()
    assert all(ticket.future.result(LONG) == [2] * 5 for ticket in waiting)
    assert batcher.submit([1], tenant="c").future.result(LONG) == [2]


def test_one_tenant_does_not_fill_the_queue(busy):
    batcher, _ = busy(waiting_cost=10)
    batcher.submit([1] * 5, tenant="crowd")
    with pytest.raises(BusyError):
        batcher.submit([1], tenant="crowd")
    batcher.submit([1] * 4, tenant="other")


def test_a_request_that_is_larger_than_the_queue_passes_when_nothing_waits(make):
    assert make(waiting_cost=3).submit([1] * 8, tenant="a").future.result(LONG) == [2] * 8


def test_a_large_request_is_served_in_rounds_and_lets_others_between(busy, recorder):
    batcher, _ = busy(round_cost=4, quantum=1)
    large, small = batcher.submit([1] * 12, tenant="large"), batcher.submit([7], tenant="small")
    recorder.go_on.set()
    assert small.future.result(LONG) == [14]
    assert large.future.result(LONG) == [2] * 12
    assert 7 in recorder.passes[1]
    assert all(len(rows) <= 4 for rows in recorder.passes)


@pytest.mark.parametrize(("seconds", "most"), [(1e-9, 8), (1e9, 16)])
def test_a_round_is_what_is_computed_in_its_time(busy, recorder, seconds, most):
    batcher, _ = busy(round_seconds=seconds, least_cost=8, round_cost=16)
    ticket = batcher.submit([1] * 100, tenant="a")
    recorder.go_on.set()
    assert ticket.future.result(LONG) == [2] * 100
    assert max(map(len, recorder.passes[1:])) == most


def test_callers_of_few_tokens_go_before_the_others_of_their_round(busy, recorder):
    batcher, _ = busy(quantum=4)
    tickets = [batcher.submit(rows, tenant=tenant) for rows, tenant in (([1] * 12, "large"), ([7], "b"), ([8], "c"))]
    recorder.go_on.set()
    assert [ticket.future.result(LONG) for ticket in tickets] == [[2] * 12, [14], [16]]
    assert recorder.passes[1:] == [[7, 8], [1] * 12]


def test_a_row_that_fails_fails_its_own_caller_only(busy, recorder):
    batcher, _ = busy()
    good, bad, worse = (batcher.submit([row], tenant="a") for row in (1, -1, 666))
    recorder.go_on.set()
    assert good.future.result(LONG) == [2]
    with pytest.raises(UsageError):
        bad.future.result(LONG)
    with pytest.raises(RuntimeError, match="a pass failed with ValueError") as error:
        worse.future.result(LONG)
    assert "patient" not in str(error.value)
    assert batcher.submit([4], tenant="a").future.result(LONG) == [8]


def test_a_caller_whose_rows_are_too_many_for_the_memory_gets_them_in_smaller_passes(busy, recorder):
    batcher, _ = busy()
    many, large = batcher.submit([4000] * 5, tenant="a"), batcher.submit([2 * TOO_LARGE], tenant="a")
    recorder.go_on.set()
    assert many.future.result(LONG) == [8000] * 5
    assert [len(rows) for rows in recorder.passes if 4000 in rows][-4:] == [2, 3, 1, 2]
    with pytest.raises(UnavailableError, match="must have memory for a pass over a row, got too little"):
        large.future.result(LONG)


def test_it_stops_after_the_pass_that_runs_and_refuses_the_rest(busy, recorder):
    batcher, running = busy()
    waiting = batcher.submit([1], tenant="a")
    waiting.future.add_done_callback(lambda _: None)
    recorder.go_on.set()
    batcher.close()
    assert running.future.result(LONG) == [0]
    if waiting.future.exception(LONG) is None:  # it may have been taken in the round before
        assert waiting.future.result() == [2]
    else:
        assert isinstance(waiting.future.exception(), UnavailableError)
    with pytest.raises(UnavailableError, match="must not be stopping"):
        batcher.submit([1], tenant="a")


def test_closing_twice_is_closing(make):
    batcher = make()
    batcher.close()
    batcher.close()


def filled(costs, *, quantum):
    """A queue with the given costs by tenant; items are (tenant, position)."""
    queue = FairQueue(quantum=quantum)
    for tenant, line in costs.items():
        for position, cost in enumerate(line):
            queue.push((tenant, position), tenant=tenant, cost=cost)
    return queue


def test_a_line_keeps_its_order_and_nothing_is_lost(rng):
    costs = {str(tenant): rng.integers(1, 60, size=int(rng.integers(1, 40))).tolist() for tenant in range(9)}
    queue = filled(costs, quantum=64)
    assert queue.cost == sum(map(sum, costs.values()))
    taken = []
    while len(queue):
        taken += queue.take(budget=100)
    for tenant, line in costs.items():
        assert [position for name, position in taken if name == tenant] == list(range(len(line)))
    assert queue.cost == 0


def widest_gap(take, costs, *, tenants=("a", "b")):
    """The largest difference between what two tenants were served while both waited."""
    served, widest = dict.fromkeys(tenants, 0), 0
    left = {tenant: sum(costs[tenant]) for tenant in tenants}
    for tenant, position in take:
        cost = costs[tenant][position]
        served[tenant] += cost
        left[tenant] -= cost
        if min(left.values()) <= 0:
            break
        widest = max(widest, abs(served["a"] - served["b"]))
    return widest


QUANTUM, LONGEST = 64, 60


def unequal(rng):
    # One tenant sends many short items, the other long ones.
    return {"a": rng.integers(1, 5, size=2000).tolist(), "b": rng.integers(40, LONGEST, size=200).tolist()}


@pytest.mark.parametrize("budget", [1, 17, 100, 10_000])
def test_two_that_wait_get_the_same_share_of_the_work(rng, budget):
    costs = unequal(rng)
    queue = filled(costs, quantum=QUANTUM)
    taken = []
    while len(queue):
        taken += queue.take(budget=budget)
    assert widest_gap(taken, costs) <= QUANTUM + 2 * LONGEST


@pytest.mark.parametrize("seed", range(5))
def test_taking_turns_item_by_item_would_not_be_fair(seed):
    costs = unequal(np.random.default_rng(seed))
    turns = [(tenant, position) for position in range(200) for tenant in ("a", "b")]
    assert widest_gap(turns, costs) > 10 * (QUANTUM + 2 * LONGEST)


def test_a_crowd_of_one_tenant_does_not_hold_up_another():
    queue = filled({"crowd": [10] * 1000}, quantum=20)
    queue.push(("late", 0), tenant="late", cost=10)
    assert ("late", 0) in queue.take(budget=40)


def test_a_budget_is_kept_except_by_a_single_item():
    queue = filled({"a": [50, 50, 50]}, quantum=10)
    assert queue.take(budget=10) == [("a", 0)]
    assert queue.take(budget=100) == [("a", 1), ("a", 2)]
    assert queue.take(budget=100) == []


def test_what_is_removed_is_not_served_and_not_counted():
    queue = filled({"a": [1, 2, 3], "b": [4]}, quantum=8)
    queue.remove(lambda item: item[1] != 1, tenant="a")
    queue.remove(lambda item: True, tenant="nobody")
    assert (len(queue), queue.cost, queue.cost_of("a"), queue.cost_of("nobody")) == (2, 6, 2, 0)
    assert set(queue.take(budget=100)) == {("a", 1), ("b", 0)}
    queue = filled({"a": [1], "b": [2]}, quantum=8)
    assert set(queue.clear()) == {("a", 0), ("b", 0)}
    assert (len(queue), queue.cost) == (0, 0)
