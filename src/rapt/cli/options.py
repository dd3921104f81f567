"""Options that several commands share, spelled once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Eta = Annotated[
    float,
    typer.Option(
        metavar="NUMBER",
        help="Slope of the guarantee in 1/embedding distance: smaller protects more. It has no default.",
    ),
]
VocabularyName = Annotated[
    str,
    typer.Option(
        help="Whose tokens and distances: a known or downloaded model, a model folder, a fetched bundle, or a file of "
        "word vectors (GloVe, word2vec, fastText)."
    ),
]
MechanismOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Option of the mechanism, as `rapt mechanisms` lists them; repeat."
    ),
]
AllowUnproved = Annotated[
    bool, typer.Option("--allow-unproved", help="Take a mechanism whose guarantee is not proved.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
ServiceUrl = Annotated[str, typer.Option(help="Address of the service, such as http://127.0.0.1:8420.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="RAPT_API_KEY", show_envvar=True, help="Key of the service, if it asks for one."),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        metavar="FILE",
        envvar="RAPT_CA_FILE",
        show_envvar=True,
        help="PEM certificates that vouch for the service, where this machine does not trust its certificate.",
    ),
]
Debug = Annotated[
    bool | None,
    typer.Option(
        "--debug/--no-debug",
        help="Print tracebacks with their messages on stderr, which may hold private text.  [default: --no-debug]",
        show_default=False,
    ),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Send the key over http:// to another machine, for everybody on the way to read."),
]
Blobs = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="RAPT_BLOBS",
        show_envvar=True,
        show_default=False,
        help="Object store of the service for files and adapters, as s3://bucket/prefix.  [default: the data "
        "directory]",
    ),
]


class Precision(StrEnum):
    """What a backbone computes in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class ChosenPrecision(StrEnum):
    """What a backbone computes in, or whichever is measured to be faster."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Drawn(StrEnum):
    """When the plain tokens are drawn: once for the file, or anew for each record."""

    FILE = "file"
    RECORD = "record"
