"""Predictions for a privatized file: asked for in parts, kept on the disk as they come, written when all are there.

A run that was cut off leaves what it has at `OUT.partial`, and the next one asks for the rest alone.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

from rapt.arguments import check_arguments
from rapt.errors import CorpusError, UsageError, WireError
from rapt.local.client import ServiceClient
from rapt.local.client.objects import Prediction, make_answer_error, read_prediction
from rapt.narration import SILENT, Narrator
from rapt.whole_files import check_target, free_name, open_alone, write_whole
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import read_privatized_file
from rapt.wire.privatized_writer import name_partial
from rapt.wire.strict_json import parse_document

SCHEMA: Final = "rapt.predictions/1"
_LONGEST_LINE: Final = 64 * 2**20
_OF_A_PREDICTION: Final = ("label", "probabilities")

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, repr=False)
class FilePredictions:
    """Predictions of a tuned model for the records of a file.

    Attributes:
        labels: Names of the model's classes.
        rows: The predicted label and the probability of each class by its name, for each record in order.
        right: Number of records whose label in the file is the predicted one; None for a file without labels.
    """

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    right: int | None


@check_arguments
def predict_file(
    file: Path,
    client: ServiceClient,
    *,
    model: str,
    out: Path | None = None,
    overwrite: bool = False,
    beside: Sequence[Mapping[str, Any]] | None = None,
    on_rows: Callable[[Sequence[Row]], None] = lambda rows: None,
    narrator: Narrator = SILENT,
) -> FilePredictions:
    """Predictions of a tuned model for a privatized file; labels in the file are not sent, but compared with them here.

    Args:
        file: File of privatized queries.
        client: Connection to the service.
        model: Name of the tuned model.
        out: Output, `.jsonl` or `.csv`; predictions are kept beside it until it is whole. None writes no file.
        overwrite: Replace the output, and predictions of another run that are kept beside it.
        beside: Values that stand before each prediction, such as ids of the texts; they are not sent.
        on_rows: Called with the rows of each answer, unless they are kept for the output.
        narrator: Receiver of remarks and progress.

    Raises:
        CorpusError: The file cannot be read, or the output cannot be written.
        UsageError: The output is of an unknown form or must not be replaced, the model is not tuned, or does not know a
            label of the file.
        WireError: The file is malformed.
        ServiceError: The service refused, or could not be reached; what came is kept.
    """
    if out is not None:
        check_output(out, queries=file, overwrite=overwrite)
    queries = read_privatized_file(file)
    check_beside(beside, records=len(queries.records))
    if queries.manifest.arrangement.shuffled and beside is not None:
        raise UsageError(
            "queries must be in the order of their source where its columns are kept, got a shuffled file; privatize "
            "them with `order_key=None`"
        )
    if queries.manifest.arrangement.shuffled:
        narrator.say(
            "the records of this file were shuffled: predictions are in its order, not in that of their source"
        )
    card = client.model(model).card
    if card is None:
        raise UsageError(f"the model must be a tuned one, got {model!r}; see `rapt tune`")
    names = queries.manifest.labels
    if names is not None and (unknown := set(names) - set(card.labels)):
        raise UsageError(
            f"labels of queries must be among the {len(card.labels)} labels of the model, got {len(unknown)} others; "
            "privatize with `label_column=None`, or with the same labels"
        )
    place = None if out is None else name_partial(out)
    keeping = (
        nullcontext()
        if place is None
        else keep_predictions(place, model=model, manifest=queries.manifest, overwrite=overwrite)
    )
    with keeping as kept, narrator.meter("predicting", total=len(queries.records), unit="texts") as show_progress:
        found = [] if kept is None else list(kept.found[: len(queries.records)])
        if found:
            narrator.say(f"{len(found):,} predictions were kept by an earlier run; asking for the rest")
        try:
            for part in client.classify_in_parts(model, queries, first=len(found)):
                if any(len(item.probabilities) != len(card.labels) for item in part):
                    raise make_answer_error()
                found += part
                if kept is None:
                    on_rows(make_rows(part, card.labels, beside, first=len(found) - len(part)))
                else:
                    kept.add(part)
                show_progress(len(found))
        finally:
            if kept is not None and 0 < len(found) < len(queries.records):
                narrator.say(f"{len(found):,} predictions are kept; the same command asks for the rest")
        rows = tuple(make_rows(found, card.labels, beside, first=0))
        if out is not None:
            write_rows(out, rows, overwrite=overwrite)
    right = None
    if names is not None:
        pairs = zip(queries.records, found, strict=True)
        right = sum(names[record.label or 0] == item.label for record, item in pairs)
    return FilePredictions(labels=card.labels, rows=rows, right=right)


def check_output(out: Path, *, queries: Path, overwrite: bool) -> None:
    """Refuse an output of an unknown form, the queries themselves, or what must not be replaced (`UsageError`)."""
    if out.suffix not in FORMATS:
        raise UsageError(f"`out` must end in {' or '.join(FORMATS)}, got {out.suffix!r}; rename it")
    if out.exists() and queries.exists() and out.samefile(queries):
        raise UsageError("the output must be another file than the queries; choose another name")
    check_target(out, overwrite=overwrite)


def check_beside(beside: Sequence[Mapping[str, Any]] | None, *, records: int) -> None:
    """Refuse values beside predictions that are not one for each record, or have the name of another (`UsageError`)."""
    if beside is None:
        return
    if len(beside) != records:
        raise UsageError(
            f"the columns that are kept must be of the source of the queries, got {len(beside):,} records for "
            f"{records:,} queries; name the source that they were made from, and its "
            "text column if empty texts were skipped"
        )
    if any(name in row for row in beside[:1] for name in _OF_A_PREDICTION):
        raise UsageError("a column that is kept must not have the name of an answer, label or probabilities; rename it")


def make_rows(
    part: Sequence[Prediction], labels: Sequence[str], beside: Sequence[Mapping[str, Any]] | None, *, first: int
) -> list[Row]:
    """Return predictions as they are shown and written, each behind what stands beside it; `first` is a position."""
    return [
        {
            **({} if beside is None else beside[position]),
            "label": item.label,
            "probabilities": dict(zip(labels, item.probabilities, strict=True)),
        }
        for position, item in enumerate(part, first)
    ]


def _to_jsonl(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _to_csv(rows: Sequence[Row]) -> str:
    """A column for what is kept, one for the label and one for each probability."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    for row in rows:
        kept = [name for name in row if name not in _OF_A_PREDICTION]
        if not stream.tell():
            writer.writerow([*kept, "label", *(f"p({name})" for name in row["probabilities"])])
        writer.writerow([*(row[name] for name in kept), row["label"], *row["probabilities"].values()])
    return stream.getvalue()


# Writers of the output by the suffix of its name.
FORMATS: Final[Mapping[str, Callable[[Sequence[Row]], str]]] = {".jsonl": _to_jsonl, ".csv": _to_csv}


def write_rows(out: Path, rows: Sequence[Row], *, overwrite: bool) -> None:
    """Write rows whole, in the form that the suffix of the output names. Raises `CorpusError` or `UsageError`."""
    write_whole(out, FORMATS[out.suffix](rows), overwrite=overwrite)


class KeptPredictions:
    """The predictions of one model for one file, open for appending by this process alone."""

    def __init__(self, stream: IO[bytes], path: Path, *, asked: dict[str, object], overwrite: bool) -> None:
        """Read what an earlier run kept; a last line that a kill cut short is dropped."""
        self.found: list[Prediction] = []
        self._stream = stream
        head = json.dumps(asked).encode() + b"\n"
        first = stream.readline(_LONGEST_LINE)
        beginning = head[: head.index(b",")]
        if not (first.startswith(beginning) or beginning.startswith(first)):
            raise UsageError(
                f"the name {str(path)!r} must be free for the work, got a file that rapt did not begin; move it away, "
                "or choose another output"
            )
        if first.endswith(b"\n") and first != head and not overwrite:
            raise UsageError(
                f"unfinished predictions must not be lost, got those of another model or file at {str(path)!r}; finish "
                "them with their command, or begin anew with `overwrite=True`"
            )
        if first != head:
            self._stream.seek(0)
            self._stream.truncate()
            self._stream.write(head)
            return
        end = len(head)
        for line in iter(lambda: stream.readline(_LONGEST_LINE), b""):
            try:
                self.found.append(read_prediction(parse_document(line, what="a prediction")))
            except WireError:
                break
            end += len(line)
        self._stream.seek(end)
        self._stream.truncate()

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Append predictions, in the hands of the operating system before this returns."""
        self._stream.write(b"".join(json.dumps(asdict(item)).encode() + b"\n" for item in predictions))
        self._stream.flush()
        self.found += predictions


@contextmanager
def keep_predictions(path: Path, *, model: str, manifest: Manifest, overwrite: bool) -> Iterator[KeptPredictions]:
    """The predictions that are kept at `path` until the block ends without an error, and after that no more.

    Args:
        path: Name of the file, beside the output.
        model: Name of the tuned model.
        manifest: Manifest of the queries.
        overwrite: Begin anew where predictions of another model, or for another file, are kept.

    Raises:
        CorpusError: The file cannot be written, or another process has it.
        UsageError: Something else is there.
    """
    asked: dict[str, object] = {"schema": SCHEMA, "model": model, "records_sha256": manifest.records_sha256}
    try:
        with open_alone(path) as stream:
            kept = KeptPredictions(stream, path, asked=asked, overwrite=overwrite)
            done = False
            try:
                yield kept
                done = True
            finally:
                if done or not kept.found:
                    free_name(stream)
                    path.unlink(missing_ok=True)
    except OSError as error:
        raise CorpusError(
            f"the output must be writable, got {error.strerror or type(error).__name__}; choose another folder"
        ) from None
