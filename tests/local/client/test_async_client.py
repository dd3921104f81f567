"""The client that is awaited is the other one, method by method, and holds no event loop up."""

import asyncio
import inspect
from threading import Event

import pytest

import strange_service
from rapt.errors import RaptError
from rapt.local.client import AsyncServiceClient, ServiceClient, steps
from rapt.local.client.steps import Pause, Work, take_steps, take_steps_async


def methods_of(kind):
    return {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}


def test_both_clients_have_the_same_methods_with_the_same_arguments_and_words():
    waiting, awaiting = methods_of(ServiceClient), methods_of(AsyncServiceClient)
    assert waiting.keys() == awaiting.keys()
    assert len(waiting) > 30
    for name, method in waiting.items():
        other = awaiting[name]
        assert inspect.signature(method).parameters == inspect.signature(other).parameters, name
        assert method.__doc__ == other.__doc__
        assert "service:" not in (method.__doc__ or "none")
        assert inspect.iscoroutinefunction(other) or inspect.isasyncgenfunction(other), name


def test_many_questions_are_in_flight_at_once_and_the_loop_goes_on():
    """None is answered before all have come, so questions one after another would wait for ever."""
    count, come, together = 20, [], Event()

    def answer(path, body):
        come.append(path)
        if len(come) == count:
            together.set()
        assert together.wait(60)
        return 200, {}, b'{"object": "list", "data": []}'

    async def ask(url):
        async with AsyncServiceClient(url) as client:
            return await asyncio.gather(*(client.models() for _ in range(count)))

    with strange_service.answering(answer) as url:
        assert asyncio.run(ask(url)) == [[]] * count


def test_work_on_this_machine_is_done_in_a_thread():
    """The work waits for the loop, which could not turn if it were done in it."""
    turned = Event()

    async def both():
        waiting = asyncio.ensure_future(take_steps_async(steps.work(lambda: turned.wait(60)), None))
        await asyncio.sleep(0)
        turned.set()
        return await waiting

    assert asyncio.run(both()) is True


@pytest.mark.parametrize("take", [take_steps, lambda *of: asyncio.run(take_steps_async(*of))])
def test_an_error_of_a_step_is_thrown_where_the_step_was_yielded_and_what_is_open_is_closed(take):
    told = []

    def fail():
        raise RaptError("a rule")

    def some_steps():
        try:
            try:
                yield Work(fail)
            except RaptError as error:
                told.append(str(error))
            yield Pause(0)
            yield Work(fail)
        finally:
            told.append("closed")

    with pytest.raises(RaptError, match="a rule"):
        take(some_steps(), None)
    assert told == ["a rule", "closed"]


def test_a_task_that_is_cancelled_closes_what_its_method_had_opened(tmp_path):
    asked = Event()

    def answer(path, body):
        asked.set()
        return 200, {}, endless()

    def endless():
        while True:
            yield b" "

    async def cancel_in_the_middle(url):
        async with AsyncServiceClient(url) as client:
            task = asyncio.ensure_future(client.vocabulary("bert-tiny", tmp_path / "mine"))
            await asyncio.to_thread(asked.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with strange_service.answering(answer) as url:
        asyncio.run(cancel_in_the_middle(url))
    assert list(tmp_path.iterdir()) == []
