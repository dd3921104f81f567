import numpy as np
import pytest

from rapt.service.answers.fair_queue import FairQueue


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
