"""A plan of replicas for tests."""

from rapt.service.replicas.calls import ReplicaPlan


def make_plan(**changes) -> ReplicaPlan:
    """One replica of `bert-tiny` with little room, but for the changes."""
    given = {
        "service": "tests",
        "models": {"bert-tiny": "bert-tiny"},
        "vocabularies": {"bert-tiny": ""},
        "precision": "float32",
        "device": "cpu",
        "weights": "whole",
        "device_map": "",
        "torch_threads": None,
        "waiting_cost": 1000,
        "adapter_bytes": 2**20,
        "least": 1,
        "most": 1,
        "requests": 8.0,
        "up_after": 30.0,
        "down_after": 600.0,
        "cores": 1.0,
        "gpus": 0.0,
    }
    return ReplicaPlan(**given | changes)
