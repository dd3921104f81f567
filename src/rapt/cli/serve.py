"""`rapt serve` and `rapt worker`: the other party, honest but curious, and further processes that run its jobs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rapt.cli.options import Blobs, Debug, Engine, RayAddress
from rapt.cli.output import say, show_json

Device = Annotated[
    str | None,
    typer.Option(help="Device of base models and jobs: cpu, cuda, cuda:N.  [default: auto]", show_default=False),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Devices of the layers of base models: auto, over all GPUs, or a file.",
        metavar="auto|FILE",
        show_default=False,
    ),
]


def serve(
    data: Annotated[
        Path | None, typer.Option(help="Folder that holds all state.  [default: rapt-data]", show_default=False)
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]", show_default=False)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=65535, help="Port to listen on; 0 takes a free one.  [default: 8420]"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Base model to serve, a known name or a folder; repeat for more.  [default: minilm]"),
    ] = None,
    blobs: Blobs = None,
    device: Device = None,
    device_map: DeviceMap = None,
    page: Annotated[
        bool | None,
        typer.Option("--page/--no-page", help="Serve the page at /.  [default: --page]", show_default=False),
    ] = None,
    debug: Debug = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="Certificate chain in PEM, to serve HTTPS; needs --tls-key.", show_default=False),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Private key of the certificate, in PEM.", show_default=False)
    ] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="What computes predictions and runs jobs: this machine, or a Ray cluster (extra [ray]).  "
            "[default: local]",
            show_default=False,
        ),
    ] = None,
    ray_address: RayAddress = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Replicas of the base models, with --engine ray.  [default: 1]", show_default=False
        ),
    ] = None,
    most_replicas: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Most replicas, where Ray Serve shall add some under load.  [default: as --replicas]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve tuning and prediction on privatized text.

    Without keys the service listens on this machine only, and serves local programs. To open it, create keys with
    `rapt admin`, and give --host and the files for TLS. Every setting is also an environment variable, such as
    RAPT_PORT. Once the service answers, one line of JSON with its address stands on stdout; it stops at SIGINT,
    SIGTERM or SIGHUP. With --engine ray it computes on a cluster, and SIGHUP replaces the replicas instead.

    \b
    Examples:
      rapt serve --data rapt-data --port 8420
      rapt serve --engine ray --ray-address 10.0.0.5:6379 --replicas 4 --most-replicas 16
    """
    from rapt.service.http.settings import load_settings

    settings = load_settings(
        {
            "data_directory": data,
            "host": host,
            "port": port,
            "models": tuple(model) if model else None,
            "blobs": blobs,
            "device": device,
            "device_map": device_map,
            "page": page,
            "debug": debug,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "engine": None if engine is None else engine.value,
            "ray_address": ray_address,
            "replicas": replicas,
            "most_replicas": most_replicas,
        }
    )
    from rapt.service.http.server import serve as run_service

    run_service(settings, on_ready=lambda url: show_json({"url": url}), forks=True)
    _leave()


def worker(
    data: Annotated[
        Path | None, typer.Option(help="Data directory of the service.  [default: rapt-data]", show_default=False)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Base model to run jobs of, a known name or a folder; repeat for more.  [default: minilm]"),
    ] = None,
    blobs: Blobs = None,
    device: Device = None,
    device_map: DeviceMap = None,
    debug: Debug = None,
) -> None:
    """Run jobs of a service in a process of their own; start as many as there are cores to spare.

    Settings are those of `rapt serve`. To leave all jobs to such processes, start the service with
    RAPT_WORKER_IN_SERVICE=false. A worker stops at SIGINT or SIGTERM, and its job goes on elsewhere, or later.

    \b
    Example:
      rapt worker --data rapt-data --model minilm
    """
    from rapt.service.http.settings import load_settings

    settings = load_settings(
        {
            "data_directory": data,
            "models": tuple(model) if model else None,
            "blobs": blobs,
            "device": device,
            "device_map": device_map,
            "debug": debug,
        }
    )
    from rapt.service.http.server import work

    work(settings, on_ready=lambda: say("waiting for jobs"), forks=True)
    _leave()


def _leave() -> None:
    """End the process now: all is stored and closed.

    The interpreter would take seconds to free the models, one by one, and wait for threads that compute for nobody.
    """
    sys.stdout.flush()
    os._exit(0)
