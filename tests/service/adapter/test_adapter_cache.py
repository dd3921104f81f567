from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from rapt.errors import WireError
from rapt.service.adapter.adapter import Adapter
from rapt.service.adapter.adapter_cache import AdapterCache, bytes_of
from rapt.service.backbone.steering import Tuned

LONG = 60.0


def adapter(size=1000):
    return Adapter(
        tuned=Tuned(prompt=torch.zeros(size, 4)),
        head_weight=torch.zeros(2, 4),
        head_bias=torch.zeros(2),
        card=SimpleNamespace(),
    )


ONE = bytes_of(adapter())


def never():
    raise AssertionError("it is here already")


def test_an_adapter_counts_as_the_bytes_of_its_tensors():
    assert bytes_of(adapter(2000)) - bytes_of(adapter(1000)) == 1000 * 4 * 4


def test_the_least_recently_used_goes_first():
    cache = AdapterCache(2 * ONE)
    first, second = cache.get("a", adapter), cache.get("b", adapter)
    assert cache.get("a", never) is first
    cache.get("c", adapter)
    assert (len(cache), cache.bytes) == (2, 2 * ONE)
    assert cache.get("a", never) is first
    assert cache.get("b", adapter) is not second


def test_one_that_is_larger_than_the_budget_is_still_kept():
    cache = AdapterCache(1)
    kept = cache.get("a", adapter)
    assert cache.get("a", never) is kept
    cache.get("b", adapter)
    assert len(cache) == 1


def test_many_that_ask_at_once_load_once():
    cache, loading, go_on = AdapterCache(9 * ONE), Event(), Event()
    loads = []

    def load():
        loads.append(1)
        loading.set()
        assert go_on.wait(LONG)
        return adapter()

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(cache.get, "a", load) for _ in range(8)]
        assert loading.wait(LONG)
        assert len(cache) == 0
        assert cache.get("b", adapter) is not None  # a slow disk holds up nobody else
        go_on.set()
        assert len({id(future.result(LONG)) for future in futures}) == 1
    assert loads == [1]


def test_what_is_deleted_while_it_loads_is_not_kept():
    cache, loading, go_on = AdapterCache(9 * ONE), Event(), Event()

    def load():
        loading.set()
        assert go_on.wait(LONG)
        return adapter()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(cache.get, "a", load)
        assert loading.wait(LONG)
        cache.drop("a")
        go_on.set()
        future.result(LONG)
    assert (len(cache), cache.bytes) == (0, 0)


def test_a_load_that_fails_is_tried_again():
    cache = AdapterCache(ONE)

    def broken():
        raise WireError("an adapter must be whole")

    with pytest.raises(WireError):
        cache.get("a", broken)
    assert cache.get("a", adapter) is not None
    cache.drop("a")
    cache.drop("a")
    assert (len(cache), cache.bytes) == (0, 0)
