"""Fair shares: what a flood takes beside others, and that whoever is alone, or asks for little, waits for nobody."""

import asyncio
import itertools
import time
from contextlib import suppress

import pytest

from rapt.service.http.quotas import TenantPlaces
from rapt.service.http.settings import load_settings
from rapt.service.http.shares import (
    MOST_CREDIT,
    OPEN_TO_ALL,
    RECENT,
    Metered,
    RequestMeter,
    Shares,
    give_way,
    run_in_thread,
)
from rapt.service.storage.callers import Caller

STEP = 0.001  # s, of the clock of these tests


class World:
    """Tenants that share one processor, by a clock of their own: whoever may begin is worked for, in turns."""

    def __init__(self):
        self.now = 0.0
        self.shares = Shares(clock=lambda: self.now)
        self.taken, self.waited = {}, {}

    def run(self, seconds, **costs):
        """Let each tenant ask again and again for requests of its costs in turn; None asks for nothing in a step."""
        end, turns = self.now + seconds, {name: itertools.cycle(own) for name, own in costs.items()}
        while self.now < end:
            before = self.now
            for name, turn in turns.items():
                if wait := self.shares.wait(name):
                    self.waited[name] = max(self.waited.get(name, 0.0), wait)
                elif cost := next(turn):
                    deposit = self.shares.begin(name)
                    self.now += cost
                    self.shares.charge(name, cost - deposit)
                    self.shares.learn(name, cost)
                    self.taken[name] = self.taken.get(name, 0.0) + cost
            if self.now == before:
                self.now += STEP


@pytest.mark.parametrize("cost", [0.0005, 0.003, 0.08, 0.5])
def test_a_flood_leaves_two_thirds_to_one_who_asks_for_little(cost):
    world = World()
    little = [0.002, *(20 * [None])]
    world.run(3 * RECENT, flood=[cost], bob=little)
    world.taken.clear()
    start = world.now
    world.run(max(10.0, 20 * cost), flood=[cost], bob=little)
    lasted = world.now - start
    assert world.taken["flood"] <= lasted / 3 + MOST_CREDIT + cost
    assert world.taken["flood"] >= lasted / 3 / 3  # and it is served
    assert "bob" not in world.waited


def test_of_two_floods_each_takes_a_quarter_and_between_them_they_are_equal(rng):
    world = World()
    floods = {"one": rng.uniform(0.001, 0.02, 50).tolist(), "other": [0.05]}
    world.run(2.0, **floods, bob=[0.001, None, None, None, None])
    world.taken.clear()
    start = world.now
    world.run(20.0, **floods, bob=[0.001, None, None, None, None])
    assert sum(world.taken[name] for name in floods) <= (world.now - start) / 2 + 2 * MOST_CREDIT + 0.07
    assert world.taken["one"] == pytest.approx(world.taken["other"], rel=0.35)
    assert "bob" not in world.waited


def test_who_is_alone_never_waits_and_owes_little_when_another_comes():
    world = World()
    world.run(5.0, flood=[0.01])
    assert not world.waited
    assert world.taken["flood"] >= 4.9
    world.run(RECENT, flood=[0.01], bob=[0.001, *(50 * [None])])
    assert 0 < world.waited["flood"] < 0.5
    world.now += 1.1 * RECENT
    world.waited.clear()
    world.run(1.0, flood=[0.01])
    assert not world.waited


def test_who_asks_for_no_key_waits_for_tenants_and_they_for_nobody():
    world = World()
    world.run(2.0, **{OPEN_TO_ALL: [0.01], "bob": [0.002]})
    assert "bob" not in world.waited
    assert OPEN_TO_ALL in world.waited
    world.run(1.0, **{OPEN_TO_ALL: [0.001, *(20 * [None])], "bob": [0.05]})
    assert "bob" not in world.waited


def test_a_burst_rests_as_long_as_it_worked_for_each_of_the_others():
    world = World()
    shares = world.shares
    shares.wait("bob")
    assert shares.wait("flood") == 0
    world.now += 0.04  # by the clock: the processor did other things too
    shares.charge("flood", MOST_CREDIT + 0.02)
    wait = shares.wait("flood")
    assert wait >= 0.04
    world.now += wait / 2
    shares.wait("bob")
    assert 0 < shares.wait("flood")
    world.now += 10.0
    shares.wait("bob")
    assert shares.wait("flood") == 0


def test_no_debt_is_longer_than_a_client_waits():
    world = World()
    world.shares.wait("bob")
    world.shares.wait("flood")
    world.shares.charge("flood", 3600.0)
    world.shares.wait("bob")
    assert 5.0 < world.shares.wait("flood") < 20.0


def burn(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        give_way()


class Taken(Shares):
    """Shares that also say what was charged in all."""

    def __init__(self):
        super().__init__()
        self.taken = {}

    def begin(self, tenant):
        deposit = super().begin(tenant)
        self.taken[tenant] = self.taken.get(tenant, 0.0) + deposit
        return deposit

    def charge(self, tenant, seconds):
        super().charge(tenant, seconds)
        self.taken[tenant] = self.taken.get(tenant, 0.0) + seconds


def test_what_is_computed_is_counted_in_the_loop_and_in_threads_and_waiting_is_not():
    shares = Taken()

    async def app(scope, receive, send):
        meter = scope["state"]["meter"]
        meter.belongs_to("ada", shares=shares)
        meter.begin(shares.begin("ada"))
        if scope["waits"]:
            await asyncio.sleep(0.3)
            return
        burn(0.02)
        await run_in_thread(burn, 0.03)
        with suppress(ValueError):
            await run_in_thread(int, "no number")
        raise KeyError

    async def ask():
        with pytest.raises(KeyError):
            await Metered(app)({"type": "http", "waits": False}, None, None)
        computed = shares.taken["ada"]
        await Metered(app)({"type": "http", "waits": True}, None, None)
        return computed, shares.taken["ada"] - computed

    computed, waited = asyncio.run(ask())
    assert computed >= 0.05
    assert waited < 0.1  # of the processor, however busy the machine is


def test_what_is_counted_after_the_end_is_charged_at_once():
    shares, meter = Taken(), RequestMeter()
    meter.count(1.0)
    meter.belongs_to("ada", shares=shares)
    meter.end()
    before = shares.taken["ada"]
    meter.count(2.0)
    assert before >= 1.0
    assert shares.taken["ada"] == pytest.approx(before + 2.0)


def test_keys_of_one_tenant_have_one_share_and_beyond_twice_its_requests_a_connection_is_lost():
    settings = load_settings({"tenant_requests": 2})
    begun, over, statuses = [], asyncio.Event(), []

    async def app(scope, receive, send):
        begun.append(scope["state"]["caller"].key)
        await over.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append((message["status"], (b"connection", b"close") in message["headers"]))

    async def ask():
        places = TenantPlaces(app, settings=settings, store=None)
        places._shares = Shares(clock=lambda: 0.0)  # on which no debt runs out, however busy the machine is

        def request(tenant, key):
            state = {"caller": Caller(tenant, key, "tenant")}
            scope = {"type": "http", "path": "/v1/classify", "method": "POST", "headers": [], "state": state}
            return asyncio.ensure_future(places(scope, None, send))

        other = request("bob", "key-of-bob")
        await asyncio.sleep(0)
        places._shares.charge("ada", 1.0)  # it floods, with whatever key
        asked = [request("ada", f"key-{number}") for number in range(6)]
        await asyncio.wait(asked, timeout=0.2)
        assert begun == ["key-of-bob"]
        assert statuses == 2 * [(429, True)]
        assert sum(task.done() for task in asked) == 2
        over.set()
        await other
        for task in asked:
            task.cancel()

    asyncio.run(ask())
