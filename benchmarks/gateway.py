"""What the gateway adds beside privatization, and whether hundreds of requests at once are answered.

    OMP_NUM_THREADS=1 python benchmarks/gateway.py --rounds 200 --at-once 200 --json docs/results/gateway.json

`rapt serve` and `rapt gateway` run in processes of their own. The arms of a round take turns, so that a busy machine
slows them alike; all ask the same tuned model about a text of the same words:

- `direct`: the service alone, by ids that were privatized and sealed beforehand.
- `stored`: the gateway, by a text that was released before.
- `fresh`: the gateway, by a text that was not.
- `draw` and `look up`: the privatization alone, through a ledger in this process, of such texts.

What the gateway adds is a whole request less `direct`, less the privatization: in wall time, which a busy machine
stretches, and in processor time of all threads of the gateway, less that of the privatization. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from results import digits, machine, publish

from rapt.local.ledger import open_ledger
from rapt.local.ledger_releases import privatize_through
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import USUAL_POOL, Privatizer, plan_plain_tokens
from rapt.local.randomness import secure_stream
from rapt.local.records import Chunk, ChunkSetting
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.privatized_file import PrivatizedFile, dump_query

WORDS = "the waiter brought cold soup and warm bread while my mother laughed at the long bill of this evening".split()


def make_text(number: int) -> str:
    """A text of 18 words that no other number has."""
    return " ".join([*WORDS[number % 9 :], *WORDS[: number % 9][:-1], f"{number}"])


@contextmanager
def started(folder: Path, *command: str) -> Iterator[dict[str, Any]]:
    """What a command of rapt says on its first line, while it runs."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rapt", *command], cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline()) | {"pid": process.pid}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def tune(client: httpx2.Client, model: str) -> str:
    """A tuned model of a file of plain texts, as a program would ask for it."""
    rows = [{"text": make_text(number), "label": ("no", "yes")[number % 2]} for number in range(16)]
    content = "\n".join(map(json.dumps, rows)).encode()
    answer = client.post("/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", content)})
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
    job = client.post(
        "/fine_tuning/jobs", json={"model": model, "training_file": answer.json()["id"], "method": method}
    ).json()["id"]
    while (found := client.get(f"/fine_tuning/jobs/{job}").json())["status"] in ("queued", "running"):
        time.sleep(0.5)
    return str(found["fine_tuned_model"])


def spent_by(pid: int) -> float:
    """Processor time of all threads of a process, ms."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def measure(asked: list[tuple[str, Any]], pids: dict[str, int], times: dict[str, list[tuple[float, float]]]) -> None:
    """Do each and note how long it took, ms: wall time, and processor time of the process that is looked at."""
    for name, ask in asked:
        before, start = spent_by(pids[name]), time.perf_counter()
        ask()
        wall = 1000 * (time.perf_counter() - start)
        times[name].append((wall, spent_by(pids[name]) - before))


async def ask_at_once(url: str, key: str, model: str, *, count: int) -> dict[str, Any]:
    """Send so many requests at once, each with a text of its own."""
    async with httpx2.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {key}"},
        timeout=300,
        limits=httpx2.Limits(max_connections=count),
    ) as client:
        start = time.perf_counter()
        bodies = [{"model": model, "prompt": make_text(10**6 + number)} for number in range(count)]
        answers = await asyncio.gather(*(client.post("/completions", json=body) for body in bodies))
        seconds = time.perf_counter() - start
    errors = sum(answer.status_code != 200 for answer in answers)
    return {"requests": count, "errors": errors, "seconds": digits(seconds)}


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--eta", type=float, default=75.0)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    vocabulary = load_vocabulary(given.model)
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=given.eta)
    stream = secure_stream()
    plan = plan_plain_tokens(vocabulary, count=20, pool_size=USUAL_POOL, drawn="record", rng=stream.generator)
    privatizer = Privatizer(vocabulary=vocabulary, mechanism=mechanism, plain_tokens=plan)
    setting = ChunkSetting(privatizer, None, privatizer.manifest(labels=None, randomness=stream.provenance))
    before = os.getloadavg()[0]
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        for name in ("service", "gateway"):
            (folder / name).mkdir()
        service = opened.enter_context(started(folder / "service", "serve", "--model", given.model, "--port", "0"))
        options = ("--eta", str(given.eta), "--vocabulary", given.model, "--labels", "no,yes", "--port", "0")
        gateway = opened.enter_context(started(folder / "gateway", "gateway", "--service", service["url"], *options))
        key = Path(gateway["key_file"]).read_text().strip()
        through = opened.enter_context(
            httpx2.Client(base_url=gateway["base_url"], headers={"authorization": f"Bearer {key}"}, timeout=300)
        )
        direct = opened.enter_context(httpx2.Client(base_url=f"{service['url']}/v1", timeout=300))
        ledger = opened.enter_context(open_ledger(folder / "ledger.sqlite"))
        model = tune(through, given.model)

        def draw(number: int) -> Any:
            return privatize_through(ledger, Chunk(0, [make_text(number)], None), setting, stream=stream)

        def post(client: httpx2.Client, body: dict[str, Any]) -> None:
            answer = client.post("/completions", json=body)
            assert answer.status_code == 200, answer.text

        query = dump_query(PrivatizedFile(manifest=setting.manifest, records=tuple(draw(0))))
        prompts = [record.pop("token_ids") for record in query["records"]]
        sealed = {"model": model, "prompt": prompts, "rapt": query}
        here = os.getpid()
        pids = {"direct": here, "stored": gateway["pid"], "fresh": gateway["pid"], "draw": here, "look up": here}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in pids}
        for number in range(1, given.rounds + 11):
            asked = [
                ("direct", lambda: post(direct, sealed)),
                ("stored", lambda: post(through, {"model": model, "prompt": make_text(0)})),
                ("fresh", lambda number=number: post(through, {"model": model, "prompt": make_text(100 + number)})),
                ("draw", lambda number=number: draw(number)),
                ("look up", lambda: draw(0)),
            ]
            turn = number % len(asked)
            measure(asked[turn:] + asked[:turn], pids, times)
        wall = {name: [one for one, _ in values[10:]] for name, values in times.items()}
        cpu = {name: [one for _, one in values[10:]] for name, values in times.items()}
        pairs = {"fresh": "draw", "stored": "look up"}
        added = {
            name: [f - d - p for f, d, p in zip(wall[name], wall["direct"], wall[own], strict=True)]
            for name, own in pairs.items()
        }
        added_cpu = {name: [f - p for f, p in zip(cpu[name], cpu[own], strict=True)] for name, own in pairs.items()}
        at_once = asyncio.run(ask_at_once(gateway["base_url"], key, model, count=given.at_once))
    publish(
        {
            "model": given.model,
            "eta": given.eta,
            "rounds": given.rounds,
            "load_before": before,
            "ms": {name: quartiles(values) for name, values in wall.items()},
            "added_ms": {name: quartiles(values) for name, values in added.items()},
            "added_cpu_ms": {name: quartiles(values) for name, values in added_cpu.items()},
            "at_once": at_once,
            "machine": machine(),
        },
        file=given.json,
    )


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": digits(middle), "lower_quartile": digits(low), "upper_quartile": digits(high)}


if __name__ == "__main__":
    main()
