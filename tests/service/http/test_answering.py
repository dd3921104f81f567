"""Whoever leaves is not computed for, also between what was begun in a thread and the first look at it."""

import asyncio
from threading import Event

import pytest
from starlette.concurrency import run_in_threadpool

from rapt.errors import BusyError
from rapt.service.http.routes.answering import begin_or_undo


def test_what_was_begun_is_handed_over_and_not_undone():
    undone = []
    assert asyncio.run(_begin(lambda: "ticket", undone)) == "ticket"
    assert undone == []


def test_what_a_thread_begins_for_somebody_who_left_is_undone():
    entered, may_go_on, undone = Event(), Event(), []

    def work():
        entered.set()
        may_go_on.wait(60)
        return "ticket"

    async def leave():
        task = asyncio.ensure_future(_begin(work, undone))
        await asyncio.to_thread(entered.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert undone == []  # it is still on its way
        may_go_on.set()
        while not undone:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(leave(), 60))
    assert undone == ["ticket"]


def test_what_could_not_be_begun_says_why_and_has_nothing_to_undo():
    undone = []

    def refuse():
        raise BusyError("too much waits", retry_after=1.0)

    with pytest.raises(BusyError):
        asyncio.run(_begin(refuse, undone))
    assert undone == []


async def _begin(work, undone):
    return await begin_or_undo(run_in_threadpool(work), undo=undone.append)
