"""An adapter as files: the card that says what it is, and the archive in which a service keeps and hands out the files.

The card lies beside the weights as `rapt.json`. A loader checks it before it reads a weight, and refuses a schema that
it does not know. It holds counts, hashes and settings: nothing of any text.

The archive is a ZIP file that needs no program of ours. The same files give the same archive: they are sorted by name,
not compressed (weights are noise to a compressor), and have a fixed date.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rapt.errors import WireError
from rapt.wire.manifest import MOST_PLAIN_TOKENS, read_labels
from rapt.wire.mechanism_setting import MechanismSetting, dump_mechanism, parse_mechanism
from rapt.wire.strict_json import check_fields, check_json, read_count, read_field, read_name

SCHEMA: Final = "rapt.adapter/1"
CARD: Final = "rapt.json"
WEIGHTS: Final = "adapter_model.safetensors"
CONFIGURATION: Final = "adapter_config.json"
# In the folder for the hub: what people read, and the task head.
README: Final = "README.md"
HEAD: Final = "task_head.safetensors"
# Names that an archive of a service may have; a client writes no others.
KNOWN_FILES: Final = frozenset({WEIGHTS, CONFIGURATION, CARD, README, HEAD})
# Soft prompt vectors or prefix positions: what a job may ask for as well.
MOST_PROMPT_POSITIONS: Final = 256
_MOST_SETTINGS: Final = 64  # of a run: there are about 25
_LONGEST_SETTING: Final = 65_536  # letters: a word for each of a thousand classes


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """Description and origin of an adapter.

    Attributes:
        model: Name of the backbone.
        vocabulary_hash: The vocabulary that training and queries are privatized with.
        kind: Kind of the backbone: `encoder`, `encoder-decoder` or `decoder`.
        method: Tuning method of the adapter, such as `prompt_tuning`.
        task: Task that it answers: `classification`, `label_words` or `generation`.
        pairs: Whether every record is of two texts.
        labels: Names of the classes in the order of the head's rows; empty for generation.
        mechanism: Mechanism that privatized the training text; queries must be privatized the same way.
        plain_tokens: m, how many privatized plain tokens stand before each text; 0 for tuning without reconstruction.
        prompt_length: P, number of soft prompt vectors or prefix positions; 0 for the other methods.
        training: Settings of the run, by the names of `TuningConfig`.
        metrics: Final figures of the run on its own training data: never a promise about other data.
        weights_sha256: Hex digest of the weights file.
        created_by: Program and version.
        reader: Hash of the reader that puts vectors in the place of codes; None without one.
    """

    model: str
    vocabulary_hash: str
    kind: str
    method: str
    task: str
    pairs: bool
    labels: tuple[str, ...]
    mechanism: MechanismSetting
    plain_tokens: int
    prompt_length: int
    training: Mapping[str, float | int | str | bool | None]
    metrics: Mapping[str, float | int]
    weights_sha256: str
    created_by: str
    reader: str | None = None


def dump_card(card: AdapterCard) -> dict[str, Any]:
    """Return the card as plain JSON values, in a fixed order of keys."""
    return {
        "schema": SCHEMA,
        "model": card.model,
        "vocabulary_hash": card.vocabulary_hash,
        "kind": card.kind,
        "method": card.method,
        "task": card.task,
        "pairs": card.pairs,
        "labels": list(card.labels),
        "mechanism": dump_mechanism(card.mechanism),
        "plain_tokens": card.plain_tokens,
        "prompt_length": card.prompt_length,
        "training": dict(card.training),
        "metrics": dict(card.metrics),
        "weights_sha256": card.weights_sha256,
        "created_by": card.created_by,
        **({} if card.reader is None else {"reader": card.reader}),
    }


def parse_card(value: Mapping[str, Any]) -> AdapterCard:
    """Return the card in a JSON object.

    Raises:
        WireError: Unknown schema, a missing, unknown or mistyped field, or a value beyond the limits of this format.
        MechanismError: eta is not a finite number above 0.
    """
    what = "the adapter card"
    check_json(value, what=what)
    if value.get("schema") != SCHEMA:
        raise WireError(f"{what} must be of schema {SCHEMA!r}; upgrade rapt or tune again")
    fields = set(AdapterCard.__dataclass_fields__) - {"reader"}
    check_fields(value, required={"schema", *fields}, optional={"reader"}, what=what)
    labels = read_labels(value, what=what)
    if bool(labels) == (value["task"] == "generation"):
        raise WireError(f"{what} must name its labels, unless it generates text; tune again")
    return AdapterCard(
        model=read_name(value, "model", what=what),
        vocabulary_hash=read_name(value, "vocabulary_hash", what=what),
        kind=read_name(value, "kind", what=what),
        method=read_name(value, "method", what=what),
        task=read_name(value, "task", what=what),
        pairs=read_field(value, "pairs", bool, what=what),
        labels=labels,
        mechanism=parse_mechanism(read_field(value, "mechanism", dict, what=what)),
        plain_tokens=read_count(value, "plain_tokens", what=what, most=MOST_PLAIN_TOKENS),
        prompt_length=read_count(value, "prompt_length", what=what, most=MOST_PROMPT_POSITIONS),
        training=_parse_figures(value, "training", kinds=(float, int, bool, str, type(None)), what=what),
        metrics=_parse_figures(value, "metrics", kinds=(float, int), what=what),
        weights_sha256=read_name(value, "weights_sha256", what=what),
        created_by=read_name(value, "created_by", what=what),
        reader=read_name(value, "reader", what=what) if "reader" in value else None,
    )


def _parse_figures(value: Mapping[str, Any], name: str, *, kinds: tuple[type, ...], what: str) -> dict[str, Any]:
    """Return the field `name`: settings or figures by their names."""
    found = read_field(value, name, dict, what=what)
    if len(found) > _MOST_SETTINGS or not all(key.isidentifier() and len(key) <= 64 for key in found):
        raise WireError(f"{what} must have at most {_MOST_SETTINGS} names in {name}, each a word of a program")
    if not all(
        type(item) in kinds and (type(item) is not str or len(item) <= _LONGEST_SETTING) for item in found.values()
    ):
        raise WireError(f"{what} must have plain values in {name}, none of them long; tune again")
    return found


_MOST_FILES: Final = 8
# All that `zipfile` makes of other bytes.
_DAMAGED: Final = (
    zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, NotImplementedError, struct.error, OverflowError
)  # fmt: skip


def pack_adapter(files: Mapping[str, bytes]) -> bytes:
    """Pack files, given by name, into one archive."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name])
    return packed.getvalue()


def unpack_adapter(archive: bytes) -> dict[str, bytes]:
    """Read the files of an archive of `pack_adapter` into memory: no name in it is ever a path.

    What comes out is no larger than the archive: nothing is compressed, no two files share bytes, no name comes twice.

    Raises:
        WireError: The archive is damaged, compressed, or larger than its files.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            entries = opened.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise WireError("an adapter's archive must not be compressed; export it again")
            if len(entries) > _MOST_FILES or len({entry.filename for entry in entries}) != len(entries):
                raise WireError(
                    f"an adapter's archive must have at most {_MOST_FILES} files, each once; export it again"
                )
            if sum(max(entry.file_size, entry.compress_size) for entry in entries) > len(archive):
                raise WireError("an adapter's archive must be as large as its files; export it again")
            return {entry.filename: opened.read(entry) for entry in entries}
    except _DAMAGED:
        raise WireError("an adapter's archive must be a whole ZIP file; export it again") from None
