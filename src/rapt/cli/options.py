"""Options that several commands share, spelled once, and the mechanism that they name together.

A command line names a mechanism by its name, η, and `--set NAME=VALUE` for the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rapt.cli.output import say
from rapt.errors import CorpusError, UsageError
from rapt.this_machine import measure_half_of_memory

if TYPE_CHECKING:
    from rapt.cluster import Cluster
    from rapt.local.mechanisms import Mechanism
    from rapt.local.policy.policy import Policy
    from rapt.local.vocabulary import Unknown, Vocabulary
    from rapt.wire.mechanism_setting import MechanismSetting, Parameter

_CHUNK_BYTES: Final = 1024 * 1024

Eta = Annotated[
    float,
    typer.Option(
        metavar="NUMBER",
        help="Slope of the guarantee in 1/embedding distance: smaller protects more. It has no default.",
    ),
]
# What guards a text, in a file as in a message.
TextEpsilon = Annotated[
    float | None,
    typer.Option(metavar="NUMBER", help="Protect each whole text at this ε, as a code; 1 to 8 are usual."),
]
CodeName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Public code of whole texts; or the folder of one, as `rapt codebook` makes it. With --epsilon.",
    ),
]
CodeEncoder = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Encoder of the code, a name or a folder; with --epsilon. Default: the code's name for it.",
    ),
]
AllowLargeEpsilon = Annotated[
    bool, typer.Option("--allow-large-epsilon", help="Accept an ε above 16, up to 64: texts can then be named.")
]
TokenEta = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        help="Protect each token instead, at this slope in 1/embedding distance: smaller protects more.",
    ),
]
MechanismName = Annotated[str, typer.Option(help="Mechanism that replaces tokens; see `rapt mechanisms`.")]
AllowWeak = Annotated[
    bool, typer.Option("--allow-weak", help="Accept an η at which nine of ten tokens or more stay as they are.")
]
Truncate = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Keep the first tokens of a longer text instead of refusing it."),
]
Cap = Annotated[
    float | None,
    typer.Option(metavar="NUMBER", help="Largest sum of η, or ε, over all releases of one text; the ledger keeps it."),
]
LabelCap = Annotated[
    float | None,
    typer.Option(metavar="NUMBER", help="Largest sum of ε over all releases of one label; the ledger keeps it."),
]
VocabularyName = Annotated[
    str,
    typer.Option(
        help="Source of tokens and distances: a known or downloaded model, a model folder, a fetched bundle, or a "
        "file of word vectors (GloVe, word2vec, fastText)."
    ),
]
MechanismOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Option of the mechanism, listed by `rapt mechanisms`; repeat for more."
    ),
]
AllowUnproved = Annotated[
    bool, typer.Option("--allow-unproved", help="Accept a mechanism whose guarantee is not proved.")
]
TrustVocabulary = Annotated[
    bool,
    typer.Option(
        "--trust-vocabulary",
        help="Take a vocabulary that is not the known one of its name, or that has rows which stand out from the rest.",
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="TOML",
        help="Entity policy: what becomes of names, numbers and addresses before a text is privatized.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Debug = Annotated[
    bool | None,
    typer.Option(
        "--debug/--no-debug",
        help="Print full tracebacks on stderr; they may hold private text.  [default: --no-debug]",
        show_default=False,
    ),
]
AuditSeed = Annotated[int, typer.Option(metavar="N", min=0, help="Seed of everything that the audit draws.")]
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


class Engine(StrEnum):
    """What spreads the work: this machine, or a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


ChosenEngine = Annotated[
    Engine, typer.Option("--engine", help="What does the work: this machine, or a Ray cluster (extra [ray]).")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="Head node of the Ray cluster, all of which must be trusted as this machine is; with --engine ray. "
        "Default: one that is started on this machine.",
    ),
]


class Precision(StrEnum):
    """Number formats that a backbone can compute in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class ChosenPrecision(StrEnum):
    """Number formats that a backbone can compute in; `auto` takes the faster one."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Drawn(StrEnum):
    """When plain tokens are drawn: once for the file, or anew for each record."""

    FILE = "file"
    RECORD = "record"


@contextmanager
def open_engine(engine: Engine, *, address: str | None, cores: int) -> Iterator[Cluster | None]:
    """Join the cluster that the options name, for the block; None where this machine does the work.

    Raises:
        UsageError: Options contradict each other, or the reasons of `join_cluster`.
        ClusterError: The reasons of `join_cluster`.
    """
    if engine is Engine.LOCAL:
        if address is not None:
            raise UsageError("--ray-address must come with --engine ray; add that, or leave the address out")
        yield None
        return
    if address is not None and cores > 1:
        raise UsageError("--processes must not stand beside --ray-address: the cluster has its cores; leave it out")
    from rapt.cluster import join_cluster

    with join_cluster(address, cores=cores) as cluster:
        yield cluster


def list_given(context: typer.Context) -> list[str]:
    """List what the command line itself gives, neither the environment nor a default, by the names of the arguments."""
    return [
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]


def refuse_options(context: typer.Context, options: Mapping[str, str], *, beside: str, because: str) -> None:
    """Refuse options, written behind the names of their arguments, that the command line gives (`UsageError`)."""
    named = set(list_given(context))
    given = [option for name, option in options.items() if name in named]
    if given:
        raise UsageError(f"{', '.join(given)} must not stand beside {beside}, {because}; leave it out")


def take_standard_input(context: typer.Context, path: Path | None) -> Path | None:
    """Return a path that can be read several times: for `-` one of memory alone, with what standard input held.

    Raises:
        UsageError: This system has no such files.
        CorpusError: There is more than a quarter of this machine's memory, or nothing can be read.
    """
    if path is None or str(path) != "-" or context.resilient_parsing:
        return path
    if not hasattr(os, "memfd_create"):
        raise UsageError(
            "standard input must be kept in memory, which Linux alone can do; write it to a file, and name that"
        )
    place = os.memfd_create("rapt")
    context.call_on_close(partial(os.close, place))
    most, size = measure_half_of_memory() // 2, 0
    try:
        while chunk := sys.stdin.buffer.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > most:
                raise CorpusError(f"standard input must be at most {most:,} bytes; write it to a file, and name that")
            with open(place, "ab", closefd=False) as kept:
                kept.write(chunk)
    except OSError as error:
        raise CorpusError(
            f"standard input must be readable, got {error.strerror or type(error).__name__}; name a file"
        ) from None
    return Path(f"/proc/self/fd/{place}")


def load_checked_vocabulary(name: str, *, trusted: bool, unknown: Unknown = "unk") -> Vocabulary:
    """Load a vocabulary, say what was left out of word vectors, and refuse one that may have been tampered with.

    Raises:
        VocabularyError: The reasons of `load_vocabulary` and `check_vocabulary`.
        WireError: The reasons of `load_vocabulary`.
    """
    from rapt.local.vocabulary import load_vocabulary
    from rapt.local.vocabulary_check import check_vocabulary

    loaded = load_vocabulary(name, unknown=unknown, remark=lambda line: say(f"rapt: {line}"))
    check_vocabulary(loaded, trusted=trusted)
    return loaded


def read_policy(path: Path | None) -> Policy | None:
    """Read the policy that is named, if one is. Raises as `Policy.read`."""
    from rapt.local.policy.policy import Policy

    return None if path is None else Policy.read(path)


def choose_mechanism(
    name: str, *, vocabulary: Vocabulary, eta: float, settings: Sequence[str] | None, allow_unproved: bool
) -> Mechanism:
    """Make the mechanism with the options written as NAME=VALUE. Raises `UsageError` and `MechanismError`."""
    from rapt.local.mechanisms import check_useful_eta, make_mechanism

    options = read_options(name, settings)
    warn_of_calibration(options)
    check_useful_eta(eta, vocabulary=vocabulary)
    return make_mechanism(name, vocabulary=vocabulary, eta=eta, options=options, allow_unproved=allow_unproved)


def warn_of_calibration(options: Mapping[str, Parameter]) -> None:
    """Warn if a mechanism with these options takes minutes to make."""
    if options.get("calibrated") is True:
        say("rapt: calibrated: computing the largest slope, minutes for 30,000 tokens, unless it was done before")


def read_options(name: str, settings: Sequence[str] | None) -> dict[str, Parameter]:
    """Read the options of a mechanism that are written as NAME=VALUE. Raises `UsageError`."""
    from rapt.local.mechanisms import MECHANISMS

    known = MECHANISMS[name].options if name in MECHANISMS else {}
    options: dict[str, Parameter] = {}
    for setting in settings or ():
        option, equals, value = (part.strip() for part in setting.partition("="))
        if not (option and equals and value) or option in options:
            raise UsageError("--set must be NAME=VALUE, each name once, such as --set tuning=0.5")
        text = option in known and isinstance(known[option].default, str)
        options[option] = value if text else _parse_value(value)
    return options


def remake_file_mechanism(
    setting: MechanismSetting, *, vocabulary: Vocabulary, settings: Sequence[str] | None
) -> Mechanism:
    """Make the mechanism of a privatized file; NAME=VALUE gives the public files that the setting knows by hash only.

    Raises:
        UsageError: Something other than a file is given.
        MechanismError: The reasons of `remake_mechanism`.
    """
    from rapt.local.mechanisms import remake_mechanism

    files = {}
    for text in settings or ():
        option, equals, value = (part.strip() for part in text.partition("="))
        stated = setting.parameters.get(option)
        if not equals or not isinstance(stated, str) or not stated.startswith("sha256:"):
            raise UsageError(
                "with a FILE, --set must name a public file of its setting, such as --set prior=counts.json"
            )
        files[option] = value
    # The file exists already and names its mechanism: a refusal here would protect nobody.
    return remake_mechanism(setting, vocabulary=vocabulary, files=files, allow_unproved=True)


def _parse_value(value: str) -> Parameter:
    """Parse a number, true, false, or a word."""
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
