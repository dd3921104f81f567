"""What every result says beside its figures, and where it goes."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np


def machine() -> dict[str, Any]:
    """What the figures depend on; the load tells how many others ran."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "processor": processor(),
        "cores": os.cpu_count(),
        "blas_core_type": os.environ.get("OPENBLAS_CORETYPE", "detected"),
        "load": os.getloadavg()[0],
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def publish(result: dict[str, Any], *, file: Path | None) -> None:
    """Print the result with its command as one JSON object, and write it to the file if there is one."""
    arguments = sys.argv[1:]
    if file is not None:  # where it was written changes no figure
        place = arguments.index("--json")
        arguments = arguments[:place] + arguments[place + 2 :]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])
    text = json.dumps({"command": command, **result}, indent=2)
    print(text)
    if file is not None:
        file.write_text(text + "\n", encoding="utf-8")


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest, to four digits."""
    return {
        "median": digits(statistics.median(values)),
        "lowest": digits(min(values)),
        "highest": digits(max(values)),
    }


def digits(value: float) -> float:
    """Four digits of it."""
    return float(f"{value:.4g}")
