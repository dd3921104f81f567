"""What Ray costs and gains where texts are privatized, and where predictions are served: from one core to two.

    OMP_NUM_THREADS=1 python benchmarks/ray_scaling.py privatizing --rounds 5
    OMP_NUM_THREADS=1 python benchmarks/ray_scaling.py serving --rounds 5
    OMP_NUM_THREADS=1 python benchmarks/ray_scaling.py cores --rounds 5

*Privatizing*: texts of 5 to 40 random words of MiniLM's vocabulary, `laplace` at eta = 75, no labels, no ledger, by one
process, by two without Ray, by Ray with one core and by Ray with two. Each cluster is started anew and has drawn a few
texts before it is timed. *Serving*: requests of 32 texts for 64 tuned models of MiniLM in turn, over 16 connections of
a process beside it, to a service without Ray, to one with one replica and to one with two; each computes on one thread
and has answered as many requests as it has models before it is timed. *Cores*: the same texts through the same model,
without a service, by one process and by two at once: `efficiency` is what these cores can give replicas at most.

The ways take turns within each round, and ratios are of one round. `overhead` is the time of Ray with one core over
that without Ray; `efficiency` is the time with one core over twice that with two; `two_processes` is the same of two
processes without Ray, less what both need for a few texts: what these two cores can give. `processor` is processor time
by whose it is: `work` of tasks or replicas, `ours` of the processes that ask, hand out and write, `ray` of Ray's own.
`share_of_work` is that of `work` with two: where both cores are full, nearly the efficiency that can be reached. Where
other work runs, it alone says anything; `load` says whether it does. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import torch
from results import digits, machine, publish, spread
from serving_http import body_for, register, run_load, service_on
from serving_model import made_adapter, made_texts

from rapt.cluster import Cluster, join_cluster
from rapt.local.corpus import privatize_corpus
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, find_whole_words
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.opening import load_backbone
from rapt.wire.manifest import NO_PLAIN_TOKENS

MODEL: Final = "minilm"
TEXTS: Final = 32  # of a request
CLIENTS: Final = 16
# What a way took: wall time of its start and of its work, s, and processor time of the work by whose it is.
Way = dict[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("privatizing", "serving", "cores"))
    parser.add_argument("--texts", type=int, default=24_000, help="texts that are privatized")
    parser.add_argument("--requests", type=int, default=192, help="requests that are served")
    parser.add_argument("--models", type=int, default=64, help="tuned models that they ask in turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the result, beside printing it")
    arguments = parser.parse_args()
    if arguments.what == "cores":
        publish({**compare_cores(arguments), "machine": machine()}, file=arguments.json)
        return
    with tempfile.TemporaryDirectory() as name:
        prepare = prepare_texts if arguments.what == "privatizing" else prepare_service
        one_round = prepare(Path(name), arguments)
        rounds = [one_round() for _ in range(arguments.rounds)]
    result: dict[str, Any] = {
        "start": {way: [digits(each[way]["start"]) for each in rounds] for way in rounds[0]},
        "seconds": {way: [digits(each[way]["seconds"]) for each in rounds] for way in rounds[0]},
        "processor": {
            way: {part: [digits(each[way]["processor"].get(part, 0.0)) for each in rounds] for part in PARTS}
            for way in rounds[0]
        },
        "overhead": spread([each["ray_1"]["seconds"] / each["one_process"]["seconds"] for each in rounds]),
        "efficiency": spread([each["ray_1"]["seconds"] / (2 * each["ray_2"]["seconds"]) for each in rounds]),
        "share_of_work": spread([share_of_work(each["ray_2"]["processor"]) for each in rounds]),
    }
    if arguments.what == "privatizing":
        one, two = ([each[way] for each in rounds] for way in ("one_process", "two_processes"))
        ratios = [less_start(a) / (2 * less_start(b)) for a, b in zip(one, two, strict=True)]
        result |= {"texts": arguments.texts, "two_processes": spread(ratios)}
    else:
        rates = {
            way: [digits(arguments.requests * TEXTS / each[way]["seconds"]) for each in rounds] for way in rounds[0]
        }
        result |= {"requests": arguments.requests, "models": arguments.models, "predictions_a_second": rates}
    publish(result | {"machine": machine()}, file=arguments.json)


def prepare_texts(folder: Path, arguments: argparse.Namespace) -> Callable[[], dict[str, Way]]:
    """Write texts; returns what privatizes them each way."""
    vocabulary = load_vocabulary(MODEL)
    privatizer = Privatizer(vocabulary, make_mechanism("laplace", vocabulary=vocabulary, eta=75.0), NO_PLAIN_TOKENS)
    words = vocabulary.tokens(find_whole_words(vocabulary, at_most=5_000))
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, size=rng.integers(5, 41))) for _ in range(arguments.texts)]
    (folder / "few.csv").write_text("text\n" + "\n".join(lines[:1200]) + "\n")
    (folder / "all.csv").write_text("text\n" + "\n".join(lines) + "\n")

    def privatize(name: str, *, cluster: Cluster | None = None, processes: int = 1) -> float:
        begun = time.perf_counter()
        privatize_corpus(
            folder / f"{name}.csv",
            folder / f"{name}.out",
            privatizer=privatizer,
            label_column=None,
            stream=secure_stream(),
            cluster=cluster,
            processes=processes,
            overwrite=True,
        )
        return time.perf_counter() - begun

    def one_round() -> dict[str, Way]:
        found: dict[str, Way] = {}
        for processes, way in ((1, "one_process"), (2, "two_processes")):
            start = privatize("few", processes=processes)
            found[way] = {"start": start} | timed(partial(privatize, "all", processes=processes))
        for cores in (1, 2):
            begun = time.perf_counter()
            with join_cluster(cores=cores) as cluster:
                start = time.perf_counter() - begun
                privatize("few", cluster=cluster)
                found[f"ray_{cores}"] = {"start": start} | timed(partial(privatize, "all", cluster=cluster))
        return found

    return one_round


def prepare_service(folder: Path, arguments: argparse.Namespace) -> Callable[[], dict[str, Way]]:
    """Register models and write requests; returns what serves them each way."""
    backbone = load_backbone(MODEL, precision="float32", device="cpu")
    models = register(folder / "data", backbone, count=arguments.models, apart=True)
    query = body_for(backbone, made_texts(backbone, torch.Generator().manual_seed(0), count=TEXTS, low=12, high=36))
    bodies = folder / "bodies.json"
    bodies.write_text(json.dumps([json.dumps({"model": model, **query}) for model in models]))
    common = {"RAPT_WORKER_IN_SERVICE": "false", "RAPT_PRECISION": "float32"}
    ways = {"one_process": common}
    for replicas in (1, 2):
        ways[f"ray_{replicas}"] = common | {"RAPT_ENGINE": "ray", "RAPT_REPLICAS": str(replicas)}

    def one_round() -> dict[str, Way]:
        found: dict[str, Way] = {}
        for way, settings in ways.items():
            begun = time.perf_counter()
            with service_on(folder / "data", model=MODEL, settings=settings) as (url, _):
                start = time.perf_counter() - begun
                run_load(url, bodies, clients=CLIENTS, requests=arguments.models)
                load = partial(run_load, url, bodies, clients=CLIENTS, requests=arguments.requests)
                found[way] = {"start": start} | timed(load)
        return found

    return one_round


def compare_cores(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time of the texts of so many requests in one process, and in each of two at once, in turns."""
    found: dict[str, list[float]] = {"one": [], "each_of_two": []}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        list(processes.map(compute, [8, 8]))  # both have loaded the model
        for _ in range(arguments.rounds):
            found["one"].append(processes.submit(compute, arguments.requests).result())
            found["each_of_two"].append(max(processes.map(compute, [arguments.requests] * 2)))
    ratios = [one / two for one, two in zip(found["one"], found["each_of_two"], strict=True)]
    return {name: [digits(value) for value in values] for name, values in found.items()} | {
        "efficiency": spread(ratios),
        "requests": arguments.requests,
    }


def compute(requests: int) -> float:
    """Seconds for the texts of so many requests in this process."""
    torch.set_num_threads(1)
    backbone = hold_backbone()
    texts = made_texts(backbone, torch.Generator().manual_seed(0), count=TEXTS, low=12, high=36)
    adapter = made_adapter(backbone, torch.Generator().manual_seed(0))
    rows = [ClassificationRow(adapter=adapter, token_ids=text) for text in texts]
    begun = time.perf_counter()
    for _ in range(requests):
        classify(backbone, rows)
    return time.perf_counter() - begun


@cache
def hold_backbone() -> Backbone:
    """The model, loaded once in a process."""
    return load_backbone(MODEL, precision="float32", device="cpu")


PARTS: Final = ("work", "ours", "ray")
WORKERS: Final = ("ray::IDLE", "ray::compute", "ray::SERVE_REPLICA", "ray::ServeReplica")
RAYS_OWN: Final = ("raylet", "gcs_server")


def timed(work: Callable[[], object]) -> Way:
    """Wall time of some work, s, and what processes of each part took meanwhile."""
    before, begun = used(), time.perf_counter()
    work()
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "processor": used() - before}


def used() -> Counter[str]:
    """Time of processors that this process and those below it have taken, s, by part."""
    here = psutil.Process()
    found = Counter({"ours": sum(here.cpu_times()[:4])})  # with that of processes that have ended
    for process in here.children(recursive=True):
        try:
            name, words, spent = process.name(), process.cmdline(), sum(process.cpu_times()[:2])
        except psutil.Error:  # it has ended
            continue
        title = words[0] if words else name  # Ray writes into it what a worker does
        if title.startswith(WORKERS):
            found["work"] += spent
        elif title.startswith("ray::") or name in RAYS_OWN or any("/ray/" in word for word in words[1:]):
            found["ray"] += spent
        else:
            found["ours"] += spent
    return found


def share_of_work(processor: Counter[str]) -> float:
    """Share of the work in all that was computed."""
    return processor["work"] / processor.total()


def less_start(way: Way) -> float:
    """Time of all texts less that of a few."""
    return float(way["seconds"] - way["start"])


if __name__ == "__main__":
    main()
