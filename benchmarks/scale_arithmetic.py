"""A billion documents and a million tenants, by arithmetic from figures that were measured, and what breaks first.

    python benchmarks/scale_arithmetic.py --json docs/results/scale.json

Nothing is privatized or served here. `FIGURES` names each figure that is taken, with where it was measured; what was
only assumed is in `ASSUMED`. The one thing that is simulated is how often a replica holds the adapter that is asked
for: requests of tenants by Zipf's law over caches that forget what was used longest ago. Prints one JSON object.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import numpy as np
from results import digits, publish

FIGURES: Final = {
    "tokens_a_core_second": 21_910.0,  # laplace at eta = 75: docs/results/privatizing.md, noise and exact search
    "milliseconds_a_code": 5.6,  # encoding a sentence of SST-2 by MiniLM: docs/results/text_codes.md
    "tokens_of_that_sentence": 23.0,  # 20,199 tokens of 872 sentences: docs/results/attacks.md
    # 193,473,079 tokens in 115 s of the process that reads, checks and writes: docs/results/privatizing.md
    "tokens_a_second_of_the_one_that_writes": 193_473_079 / 115,
    "setting_bytes": 47e6 + 12e6,  # table and search of MiniLM: docs/results/privatizing.md
}
ASSUMED: Final = {
    "documents": 1e9,
    "tokens_a_document": 200.0,
    "bytes_a_token": 5.0,
    "bytes_an_id": 6.0,  # five digits and a comma
    "bytes_a_ledger_row_beside_its_tokens": 300.0,
    "tenants": 1e6,
    "predictions_a_tenant_and_day": 100.0,
    "peak_over_mean": 5.0,
    "adapter_bytes": 10 * 384 * 4 + 2 * 385 * 4 + 2_000.0,  # ten vectors, a head of two classes, the card
    "questions_a_request": 4.0,  # key, quotas, model's row, bucket of tokens: nothing is remembered on PostgreSQL
    "zipf": 1.1,
}
CACHE_BYTES: Final = 1024 * 2**20  # the default of RAPT_ADAPTER_MEMORY_BYTES


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=400_000)
    parser.add_argument("--json", type=Path, help="file for the result, beside printing it")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "figures": FIGURES,
        "assumed": ASSUMED,
        "documents": privatize_documents(),
        "tenants": serve_tenants(requests=arguments.requests),
    }
    publish(result, file=arguments.json)


def privatize_documents() -> dict[str, float]:
    """Cores, time, network and disk of a billion documents."""
    tokens = ASSUMED["documents"] * ASSUMED["tokens_a_document"]
    writer = tokens / FIGURES["tokens_a_second_of_the_one_that_writes"]
    drawing = tokens / FIGURES["tokens_a_core_second"]
    a_code = FIGURES["milliseconds_a_code"] / 1000 * ASSUMED["tokens_a_document"] / FIGURES["tokens_of_that_sentence"]
    cores = FIGURES["tokens_a_second_of_the_one_that_writes"] / FIGURES["tokens_a_core_second"]
    documents_a_second = ASSUMED["documents"] / writer
    row = ASSUMED["bytes_a_ledger_row_beside_its_tokens"]
    sent = ASSUMED["tokens_a_document"] * (ASSUMED["bytes_a_token"] + ASSUMED["bytes_an_id"])
    return {
        "tokens_core_hours": digits(drawing / 3600),
        "codes_core_hours": digits(a_code * ASSUMED["documents"] / 3600),
        "hours_of_the_one_that_writes": digits(writer / 3600),
        "cores_that_one_writer_keeps_busy_with_tokens": digits(cores),
        "cores_that_one_writer_keeps_busy_with_codes": digits(a_code * documents_a_second),
        "documents_a_second_then": digits(documents_a_second),
        "network_mb_a_second_then": digits(documents_a_second * sent / 1e6),
        "setting_mb_to_each_node_once": digits(FIGURES["setting_bytes"] / 1e6),
        "output_gb_of_tokens": digits(
            ASSUMED["documents"] * ASSUMED["tokens_a_document"] * ASSUMED["bytes_an_id"] / 1e9
        ),
        "order_of_records_gb_of_memory": digits(16 * ASSUMED["documents"] / 1e9),
        "ledger_gb_of_tokens": digits(
            ASSUMED["documents"] * (row + ASSUMED["tokens_a_document"] * ASSUMED["bytes_an_id"]) / 1e9
        ),
        "ledger_gb_of_codes": digits(ASSUMED["documents"] * (row + 20) / 1e9),
    }


def serve_tenants(*, requests: int) -> dict[str, Any]:
    """Cores, memory and questions to the database of a million tenants, and how often an adapter is at hand."""
    mean = ASSUMED["tenants"] * ASSUMED["predictions_a_tenant_and_day"] / 86_400
    peak = mean * ASSUMED["peak_over_mean"]
    cores = peak * FIGURES["milliseconds_a_code"] / 1000
    held = int(CACHE_BYTES / ASSUMED["adapter_bytes"])
    return {
        "predictions_a_second_at_the_peak": digits(peak),
        "cores_that_compute_at_the_peak": digits(cores),
        "adapters_gb_in_all": digits(ASSUMED["tenants"] * ASSUMED["adapter_bytes"] / 1e9),
        "adapters_that_a_replica_holds": held,
        "questions_to_the_database_a_second_at_the_peak": digits(peak * ASSUMED["questions_a_request"]),
        "at_hand_when_any_replica_is_asked": {
            str(replicas): digits(hit_rate(replicas, held=held, requests=requests, by_tenant=False))
            for replicas in (1, 8, 32)
        },
        "at_hand_when_a_tenant_finds_its_replica": {
            str(replicas): digits(hit_rate(replicas, held=held, requests=requests, by_tenant=True))
            for replicas in (1, 8, 32)
        },
    }


def hit_rate(replicas: int, *, held: int, requests: int, by_tenant: bool) -> float:
    """Share of the later half of the requests whose adapter is in the memory of the replica that is asked."""
    rng = np.random.default_rng(0)
    weights = np.arange(1, int(ASSUMED["tenants"]) + 1) ** -ASSUMED["zipf"]
    tenants = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(requests)).tolist()
    chosen = rng.integers(replicas, size=requests).tolist()
    caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(replicas)]
    hits = 0
    for place, (tenant, replica) in enumerate(zip(tenants, chosen, strict=True)):
        cache = caches[tenant % replicas if by_tenant else replica]
        if tenant in cache:
            cache.move_to_end(tenant)
            hits += place >= requests // 2
        else:
            cache[tenant] = None
            if len(cache) > held:
                cache.popitem(last=False)
    return hits / (requests - requests // 2)


if __name__ == "__main__":
    main()
