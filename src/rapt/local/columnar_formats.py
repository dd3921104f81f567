"""Corpora in columns: a Parquet file, or the folder that the `datasets` library saves. Read with pyarrow, an extra.

Both are read a few hundred rows at a time. A row that is null or of another type is named by its position, from 0,
never by what it holds. Of a folder of `datasets` the Arrow files are read as they are, so that library is not needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from rapt.errors import CorpusError, UsageError
from rapt.local.corpus_formats import LabelledText, Reading, missing_column

_BATCH_ROWS: Final = 512
_DAMAGED_PARQUET: Final = "a parquet corpus must be a whole parquet file; it is damaged or cut off"
_DAMAGED_DATASET: Final = "a dataset folder must hold whole arrow files; save the dataset again"


def read_parquet(
    path: Path, text_column: str, label_column: str | None, reading: Reading
) -> Generator[LabelledText, None, None]:
    """The records of a Parquet file; raises as `read_corpus`, and `UsageError` without pyarrow."""
    arrow = _pyarrow()
    parquet = import_module("pyarrow.parquet")
    if path.exists() and not path.is_file():
        raise CorpusError("a parquet corpus must be a regular file; give its parts one at a time")
    try:
        with parquet.ParquetFile(path) as file:
            columns = _checked_columns(arrow, file.schema_arrow, text_column, label_column)
            batches = _counted(file.iter_batches(batch_size=_BATCH_ROWS, columns=columns), reading)
            reading.total = file.metadata.num_rows
            yield from _records(batches, text_column, label_column, first=0)
    except OSError as error:
        raise _unreadable(error, damaged=_DAMAGED_PARQUET) from None
    except arrow.ArrowException:
        raise CorpusError(_DAMAGED_PARQUET) from None


def read_dataset(
    folder: Path, text_column: str, label_column: str | None, reading: Reading
) -> Generator[LabelledText, None, None]:
    """The records of one split, as `datasets.Dataset.save_to_disk` writes it; raises as `read_parquet`."""
    arrow = _pyarrow()
    ipc = import_module("pyarrow.ipc")
    position, before = 0, 0
    names = _arrow_files(folder)
    reading.total = sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
    for name in names:
        try:
            with arrow.memory_map(str(folder / name)) as source, ipc.open_stream(source) as batches:
                _checked_columns(arrow, batches.schema, text_column, label_column)
                for batch in batches:
                    reading.done = before + source.tell()
                    slices = (batch.slice(start, _BATCH_ROWS) for start in range(0, batch.num_rows, _BATCH_ROWS))
                    yield from _records(slices, text_column, label_column, first=position)
                    position += batch.num_rows
                before += source.size()
        except OSError as error:
            raise _unreadable(error, damaged=_DAMAGED_DATASET) from None
        except arrow.ArrowException:
            raise CorpusError(_DAMAGED_DATASET) from None


def _pyarrow() -> Any:
    try:
        return import_module("pyarrow")
    except ImportError:
        raise UsageError("a corpus in columns must be read with pyarrow; run: pip install 'rapt[parquet]'") from None


def _unreadable(error: OSError, *, damaged: str) -> CorpusError:
    """What the system says in its own words; pyarrow raises the same kind, without a number, for damaged pages."""
    if error.errno is None:
        return CorpusError(damaged)
    return CorpusError(f"a corpus must be readable, got {os.strerror(error.errno)}; check the path")


def _checked_columns(arrow: Any, schema: Any, text_column: str, label_column: str | None) -> list[str]:
    """The columns to read, each there once and of a type that can be a text or a label."""
    types = arrow.types
    wanted = [text_column] if label_column is None else [text_column, label_column]
    for column in wanted:
        found = schema.get_all_field_indices(column)
        if len(found) != 1:
            raise missing_column(schema.names, column)
        kind = schema.field(found[0]).type
        if types.is_nested(kind):
            raise CorpusError(f"column {column!r} must not be nested; write it as a plain column of text")
        if types.is_dictionary(kind):
            kind = kind.value_type
        text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        if not text and (column == text_column or not types.is_integer(kind)):
            what = "text" if column == text_column else "text or whole numbers"
            raise CorpusError(f"column {column!r} must hold {what}, got another type; name the right column")
    return wanted


def _records(
    batches: Iterator[Any], text_column: str, label_column: str | None, *, first: int
) -> Iterator[LabelledText]:
    position = first
    for batch in batches:
        try:
            texts = batch.column(text_column).to_pylist()
            labels = [None] * len(texts) if label_column is None else batch.column(label_column).to_pylist()
        except UnicodeDecodeError:
            # The decoder's own message quotes the bytes: it is dropped on purpose.
            raise CorpusError(
                f"records {position} to {position + batch.num_rows - 1} must be utf-8; write the file again"
            ) from None
        for text, label in zip(texts, labels, strict=True):
            if text is None:
                raise CorpusError(f"record {position} must have a text in {text_column!r}, got null; remove it")
            if label_column is not None and label in (None, ""):
                raise CorpusError(f"record {position} must have a label in {label_column!r}; label it or remove it")
            yield LabelledText(text=text, label=None if label is None else str(label))
            position += 1


def _counted(batches: Iterator[Any], reading: Reading) -> Iterator[Any]:
    for batch in batches:
        reading.done += batch.num_rows
        yield batch


def _arrow_files(folder: Path) -> list[str]:
    """The names of the folder's data files in order, from the state that `datasets` saves beside them."""
    if (folder / "dataset_dict.json").is_file():
        raise CorpusError("a dataset folder must be one split; give the folder of train, or of another split")
    try:
        state = json.loads((folder / "state.json").read_bytes())
        names = [item["filename"] for item in state["_data_files"]]
        plain = all(type(name) is str and Path(name).name == name and name not in ("", "..") for name in names)
        if plain and names and not state.get("_indices_files"):
            return names
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise CorpusError(
        "a corpus that is a folder must be a dataset as save_to_disk of the datasets library writes it; save it again"
    )
