"""A client that waits and one that is awaited, and strangers that answer them."""

import asyncio
from contextlib import contextmanager

import pytest

import strange_service
from rapt.local.client import AsyncServiceClient, ServiceClient

SECRET = "the patient said that it hurts"
METHOD = {
    "type": "prompt_tuning",
    "prompt_tuning": {"hyperparameters": {"num_virtual_tokens": 4, "n_epochs": 4, "batch_size": 16}},
}


class Awaited:
    """An `AsyncServiceClient` each answer of which is awaited in a loop of its own."""

    def __init__(self, *args, **options):
        self._loop = asyncio.Runner()
        self._client = AsyncServiceClient(*args, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()
        self._loop.close()

    def __getattr__(self, name):
        return lambda *args, **options: self._loop.run(getattr(self._client, name)(*args, **options))


BOTH = pytest.mark.parametrize("kind", [ServiceClient, Awaited])


@contextmanager
def answering(answer, *, kind=ServiceClient, patience=0.0, **options):
    """A client of a stranger; see `strange_service`."""
    with strange_service.answering(answer) as url, kind(url, patience=patience, **options) as connected:
        yield connected
