"""Training records as people have them, privatized in memory: no text of an upload reaches a disk or the service.

Records are OpenAI's (`messages`, or `prompt` with `completion`) or those of `rapt privatize` (`text` with `label`), as
JSONL or CSV. An answer that is one of the classes that were named at the start leaves as a label; without classes it is
a target, which is privatized as the text is. Nothing is drawn before all records were looked at.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rapt.errors import CorpusError, UsageError, WireError, name_record
from rapt.gateway.asking import read_messages
from rapt.gateway.releases import Releases
from rapt.local.corpus_check import CorpusCheck, check_rows
from rapt.local.corpus_formats import Findings, Row
from rapt.local.kept_share import KeptShares, check_kept_shares
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.ledger_place import describe_run, name_receipt, write_receipt
from rapt.local.privatizer import TextPrivatizer
from rapt.local.randomness import secure_stream
from rapt.local.records import ChunkSetting, Part, SourceItem, cut_into_chunks, draw_order, make_order_key
from rapt.wire.manifest import LabelPrivacy, dump_manifest
from rapt.wire.privatized_file import PrivatizedRecord, seal_manifest, write_record_lines
from rapt.wire.strict_json import dump_line, parse_document

MOST_UPLOAD: Final = 64 * 2**20
MOST_RECORDS: Final = 100_000
# Few at a time: messages of chats are drawn in between.
_CHUNK: Final = 64
_FORMS: Final = (("text", "label"), ("prompt", "completion"))
# Name of the fields of a record of CSV for which the first line has no column.
SURPLUS: Final = "fields without a column"


@dataclass(frozen=True)
class TrainingRecord:
    """A text and the answer that a model should give to it, in clear, or none to a query; nothing of it shows."""

    text: str = field(repr=False)
    answer: str | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class TrainingSetting:
    """Setting of the files that are made of uploads.

    Attributes:
        privatizer: Setting of the texts, with the plain tokens of training.
        labels: Classes that leave as labels; None privatizes answers as targets.
        collects_labels: Whether answers are labels, collected from the records, where no classes are named.
        label_privacy: Randomized response of the labels; None sends them in clear.
        allow_weak: Whether a setting is accepted at which nine of ten tokens of the texts or more stay.
    """

    privatizer: TextPrivatizer
    labels: tuple[str, ...] | None = None
    collects_labels: bool = False
    label_privacy: LabelPrivacy | None = None
    allow_weak: bool = False


def read_training_records(content: bytes, *, is_csv: bool) -> list[TrainingRecord]:
    """Read the records of an upload.

    Raises:
        CorpusError: A record is not of a form that is known; named by its number, never by what stands in it.
    """
    records: list[TrainingRecord] = []
    instructions: str | None = None
    for place, value in enumerate(read_rows(content, is_csv=is_csv)):
        try:
            record, own = _read_record(value)
        except UsageError as error:
            raise CorpusError(f"{name_record(place)}: {error}") from None
        if own != instructions and place:
            raise CorpusError(f"{name_record(place)} must have the same system message as the first one: it stays here")
        records.append(record)
        instructions = own
    return records


def read_rows(content: bytes, *, is_csv: bool) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of CSV or JSONL by their columns, one at least and `MOST_RECORDS` at most.

    Raises:
        CorpusError: A record cannot be read, named by its number; or there are too many, or none.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CorpusError("a training file must be UTF-8; write it again") from None
    place = -1
    for place, value in enumerate(_read_csv(text) if is_csv else _read_lines(text)):
        if place == MOST_RECORDS:
            raise CorpusError(f"a training file must have at most {MOST_RECORDS:,} records; upload several")
        yield value
    if place < 0:
        raise CorpusError("a training file must have at least one record, got none")


def _read_lines(text: str) -> Iterator[dict[str, Any]]:
    for place, line in enumerate(line for line in text.split("\n") if line.strip()):
        try:
            yield parse_document(line, what=name_record(place))
        except WireError as error:
            raise CorpusError(str(error)) from None


def _read_csv(text: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=SURPLUS, strict=True)
    try:
        named = [name for name in reader.fieldnames or () if name]
        if len(set(named)) < len(named):
            raise CorpusError("the first line of a CSV file must name each column once; rename one")
        yield from reader
    except csv.Error:
        raise CorpusError(
            "a CSV file must have quotes around fields with commas and line ends; write it again"
        ) from None


def _read_record(value: dict[str, Any]) -> tuple[TrainingRecord, str | None]:
    """Read one record, and the instructions of its system."""
    for names in _FORMS:
        if set(value) == set(names):
            text, answer = (value[name] for name in names)
            if isinstance(answer, int):
                answer = str(answer)
            if not isinstance(text, str) or not isinstance(answer, str):
                raise UsageError(f"{names[0]} and {names[1]} must be texts")
            return TrainingRecord(text, answer), None
    if set(value) != {"messages"}:
        raise UsageError("a record must have messages alone, or prompt and completion, or text and label")
    messages = read_messages(value["messages"])
    texts = ["\n".join(text for _, text in message.parts) for message in messages]
    roles = [message.role for message in messages]
    instructions = None
    if roles[0] in ("system", "developer"):
        instructions, roles, texts = texts[0], roles[1:], texts[1:]
    if roles != ["user", "assistant"]:
        raise UsageError("messages must be one of the user and one of the assistant, behind one of the system or none")
    return TrainingRecord(*texts), instructions


async def privatize_training(
    records: Sequence[TrainingRecord], setting: TrainingSetting, releases: Releases
) -> tuple[bytes, KeptShares | None]:
    """Return a privatized file of records, and how much of their tokens stays as it is.

    Records with an answer, which all have or none, are in an order drawn at random; queries keep theirs. A receipt is
    written beside the ledger.

    Raises:
        CorpusError: A text or an answer cannot be privatized; nothing was drawn.
        UsageError: Answers of codes are no classes.
        MechanismError: Nearly all tokens would stay.
        BudgetError: A cap of the ledger would be exceeded.
        LedgerError: The ledger is busy or damaged, or the receipt cannot be written.
    """
    answered = records[0].answer is not None
    labelled = answered and (setting.labels is not None or setting.collects_labels)
    if answered and not labelled and setting.privatizer.mechanism.setting.unit == "text":
        raise UsageError("answers to codes of whole texts must be classes; start the gateway with --labels")
    check = await asyncio.to_thread(_check, records, setting, labelled=labelled)
    labels, privacy = check.labels, setting.label_privacy if labelled else None
    kept = await asyncio.to_thread(
        check_kept_shares,
        setting.privatizer,
        check.counts,
        rng=secure_stream().generator,
        insist=None if setting.allow_weak else "--allow-weak",
    )
    manifest = setting.privatizer.manifest(
        labels=labels,
        randomness=releases.provenance,
        label_privacy=privacy,
        targets="privatized" if answered and labels is None else None,
    )
    manifest = replace(manifest, arrangement=replace(manifest.arrangement, replayed=True, shuffled=answered))
    response = None
    if privacy is not None:
        response = RandomizedResponse(classes=len(labels or ()), epsilon=privacy.epsilon)
    items = (
        SourceItem(record.text, None)
        if record.answer is None
        else SourceItem(record.text, None, {"target": record.answer})
        if labels is None
        else SourceItem(record.text, labels.index(record.answer.strip()))
        for record in records
    )
    drawn: list[PrivatizedRecord] = []
    of_chunks = ChunkSetting(setting.privatizer, response, manifest)
    for chunk in cut_into_chunks(items, first_position=0, labelled=labels is not None, size=_CHUNK):
        drawn += await releases.release(chunk, of_chunks)
    path, (rows, head) = await releases.ask(lambda ledger: (ledger.path, ledger.head()))

    def write() -> bytes:
        key = make_order_key(releases.provenance) if answered else None
        order = range(len(drawn)) if key is None else draw_order(len(drawn), key=key).tolist()
        ordered = [drawn[place] for place in order]
        whole = seal_manifest(manifest, ordered)
        unchanged = None if kept is None else kept.to_json()
        facts = describe_run(whole, order_key=key, unchanged=unchanged, counted={"head": head, "rows": rows})
        write_receipt(name_receipt(path, whole.records_sha256), facts)
        lines = write_record_lines(ordered, manifest, first_position=0).lines
        return dump_line(dump_manifest(whole)).encode("ascii") + b"\n" + lines

    return await asyncio.to_thread(write), kept


def _check(records: Sequence[TrainingRecord], setting: TrainingSetting, *, labelled: bool) -> CorpusCheck:
    has_targets = not labelled and records[0].answer is not None
    parts: tuple[Part, ...] = ("target",) if has_targets else ()

    def rows() -> Generator[Row | None, None, None]:
        for place, record in enumerate(records):
            answer = record.answer or ""
            texts = (record.text, answer) if has_targets else (record.text,)
            yield Row(name_record(place), texts, answer.strip() if labelled else None)

    return check_rows(
        rows(),
        found=Findings(collects=True),
        labelled=labelled,
        parts=parts,
        privatizer=setting.privatizer,
        labels=setting.labels if labelled else None,
        public_labels=None,
    )
