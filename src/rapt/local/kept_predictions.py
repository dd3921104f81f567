"""Predictions that are kept on the disk as they come, so that a run that was cut off asks for the rest alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Final

from rapt.errors import CorpusError, UsageError, WireError
from rapt.local.service_objects import Prediction, prediction
from rapt.whole_files import open_alone
from rapt.wire.manifest import Manifest
from rapt.wire.strict_json import parse_document

SCHEMA: Final = "rapt.predictions/1"
_LONGEST_LINE: Final = 64 * 2**20


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
                "them with their command, or begin anew with --overwrite"
            )
        if first != head:
            self._stream.seek(0)
            self._stream.truncate()
            self._stream.write(head)
            return
        end = len(head)
        for line in iter(lambda: stream.readline(_LONGEST_LINE), b""):
            try:
                self.found.append(prediction(parse_document(line, what="a prediction")))
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
                    path.unlink(missing_ok=True)
    except OSError as error:
        raise CorpusError(
            f"the output must be writable, got {error.strerror or type(error).__name__}; choose another folder"
        ) from None
