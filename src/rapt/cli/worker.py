"""`rapt worker`: one more process that runs the jobs of a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rapt.cli.options import Blobs, Debug
from rapt.cli.output import say


def worker(
    data: Annotated[
        Path | None, typer.Option(help="Data directory of the service.  [default: rapt-data]", show_default=False)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Base model to run jobs of, a known name or a folder; repeat for more.  [default: minilm]"),
    ] = None,
    blobs: Blobs = None,
    debug: Debug = None,
) -> None:
    """Run jobs of a service in a process of their own; start as many as there are cores to spare.

    Settings are those of `rapt serve`. A service that shall leave all jobs to such processes is started with
    RAPT_WORKER_IN_SERVICE=false. It stops at SIGINT or SIGTERM: the job that it ran goes on elsewhere, or later.

    \b
    Example:
      rapt worker --data rapt-data --model minilm
    """
    from rapt.service.http.settings import load_settings

    settings = load_settings(
        {"data_directory": data, "models": tuple(model) if model else None, "blobs": blobs, "debug": debug}
    )
    from rapt.service.http.worker_process import work

    work(settings, on_ready=lambda: say("waiting for jobs"))
