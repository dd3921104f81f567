"""Corpora in columns: Parquet files, or the folder that the `datasets` library saves. Read with pyarrow, an extra.

Both are read a few hundred rows at a time. A row that is null or of another type is named by its position, from 1,
never by what it holds. Of a folder of `datasets` the Arrow files are read as they are, so that library is not needed;
labels that it keeps as numbers of a `ClassLabel` are read as its names.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Generator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from rapt.errors import CorpusError, UsageError, name_record
from rapt.local.corpus_formats import Columns, Findings, ReadingProgress, Row, is_empty
from rapt.local.separated_formats import explain_missing_column

_BATCH_ROWS: Final = 512
_PARQUET: Final = ".parquet"
# Shards as the `datasets` library and the hub name them: train-00000-of-00005.parquet, perhaps with a hash behind.
_SHARD: Final = re.compile(r"(?P<split>.+)-(?P<number>\d{1,8})-of-(?P<count>\d{1,8})(-[0-9a-f]+)?\.parquet")
_DAMAGED_PARQUET: Final = "a parquet corpus must be a whole parquet file; it is damaged or cut off"
_DAMAGED_DATASET: Final = "a dataset folder must hold whole arrow files; save the dataset again"


def read_parquet(path: Path, columns: Columns, found: Findings) -> Generator[Row | None, None, None]:
    """The records of a Parquet file, or of a folder of its shards in the order of their names; None for a fault.

    Raises:
        CorpusError: Reasons of `read_corpus`; also for shards of several splits, or of which one is missing.
        UsageError: There is no pyarrow.
    """
    arrow = _import_pyarrow()
    parquet = import_module("pyarrow.parquet")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise CorpusError("a parquet corpus must be a regular file, or a folder of them; write it to one first")
    shards = find_shards(path) if path.is_dir() else [path]
    try:
        found.reading.total = sum(parquet.read_metadata(shard).num_rows for shard in shards)
        names, position = None, 0
        for shard in shards:
            with parquet.ParquetFile(shard) as file:
                _check_columns(arrow, file.schema_arrow, columns)
                found.class_names = _read_class_names(file.schema_arrow, columns, described=None)
                if position and found.class_names != names:
                    raise CorpusError("the shards of a parquet corpus must declare the same classes; write them anew")
                names = found.class_names
                cells = file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns.wanted))
                yield from _iterate_rows(_iterate_counted(cells, found.reading), columns, found, first=position)
                position += file.metadata.num_rows
    except OSError as error:
        raise _make_unreadable_error(error, damaged=_DAMAGED_PARQUET) from None
    except arrow.ArrowException:
        raise CorpusError(_DAMAGED_PARQUET) from None


def find_shards(folder: Path) -> list[Path]:
    """The Parquet files of a folder in the order of their names, all of one split; raises `CorpusError`."""
    shards = sorted(path for path in folder.glob(f"*{_PARQUET}") if not path.name.startswith((".", "_")))
    if not shards:
        raise CorpusError("a folder of parquet files must hold some, got none; give the right folder")
    numbered = [match for match in (_SHARD.fullmatch(path.name) for path in shards) if match]
    splits = {match["split"] for match in numbered}
    if (numbered and len(numbered) < len(shards)) or len(splits) > 1:
        raise CorpusError(
            f"a folder of parquet files must hold those of one split, got {len(shards)} files of {len(splits)}; give "
            "one file, or a folder for each split"
        )
    if numbered:
        count = int(numbered[0]["count"])  # a name says it, so nothing as large is made of it
        if len(numbered) != count or any(int(match["number"]) != place for place, match in enumerate(numbered)):
            raise CorpusError(
                f"a folder of parquet files must have all of its shards, got {len(shards)} of {count}; fetch the rest"
            )
    return shards


def read_dataset(folder: Path, columns: Columns, found: Findings) -> Generator[Row | None, None, None]:
    """The records of one split, as `datasets.Dataset.save_to_disk` writes it; raises as `read_parquet`."""
    arrow = _import_pyarrow()
    ipc = import_module("pyarrow.ipc")
    position, before = 0, 0
    names = _list_arrow_files(folder)
    described = _read_description(folder)
    found.reading.total = sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
    for name in names:
        try:
            with arrow.memory_map(str(folder / name)) as source, ipc.open_stream(source) as batches:
                _check_columns(arrow, batches.schema, columns)
                found.class_names = _read_class_names(batches.schema, columns, described=described)
                for batch in batches:
                    found.reading.done = before + source.tell()
                    slices = (batch.slice(start, _BATCH_ROWS) for start in range(0, batch.num_rows, _BATCH_ROWS))
                    yield from _iterate_rows(slices, columns, found, first=position)
                    position += batch.num_rows
                before += source.size()
        except OSError as error:
            raise _make_unreadable_error(error, damaged=_DAMAGED_DATASET) from None
        except arrow.ArrowException:
            raise CorpusError(_DAMAGED_DATASET) from None


def _import_pyarrow() -> Any:
    try:
        return import_module("pyarrow")
    except ImportError:
        raise UsageError(
            "a corpus in columns must be read with pyarrow; run in the checkout: pip install -e '.[parquet]'"
        ) from None


def _make_unreadable_error(error: OSError, *, damaged: str) -> CorpusError:
    """Return the system's own words; pyarrow raises the same kind, without a number, for damaged pages."""
    if error.errno is None:
        return CorpusError(damaged)
    return CorpusError(f"a corpus must be readable, got {os.strerror(error.errno)}; check the path")


def _check_columns(arrow: Any, schema: Any, columns: Columns) -> None:
    """Refuse a column that is not there once, or of a type that can be no text or no label."""
    types = arrow.types
    for column in columns.wanted:
        places = schema.get_all_field_indices(column)
        if len(places) != 1:
            raise explain_missing_column(schema.names, column)
        kind = schema.field(places[0]).type
        if types.is_nested(kind):
            raise CorpusError(f"column {column!r} must not be nested; write it as a plain column of text")
        if types.is_dictionary(kind):
            kind = kind.value_type
        text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        if not text and column not in columns.kept and (column != columns.label or not types.is_integer(kind)):
            what = "text or whole numbers" if column == columns.label else "text"
            raise CorpusError(f"column {column!r} must hold {what}, got another type; name the right column")


def _read_class_names(schema: Any, columns: Columns, *, described: Any) -> tuple[str, ...] | None:
    """The names that the `datasets` library keeps of a `ClassLabel`: in the schema, or in a file beside it."""
    if columns.label is None:
        return None
    try:
        kept = json.loads((schema.metadata or {}).get(b"huggingface", b"null"))
        features = described["features"] if kept is None else kept["info"]["features"]
        feature = features[columns.label]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() == name != "" for name in names):
        return None
    return tuple(names) if len(set(names)) == len(names) else None


def _read_description(folder: Path) -> Any:
    try:
        return json.loads((folder / "dataset_info.json").read_bytes())
    except (OSError, ValueError):
        return None


def _iterate_rows(batches: Iterator[Any], columns: Columns, found: Findings, *, first: int) -> Iterator[Row | None]:
    position = first
    for batch in batches:
        try:
            values = [batch.column(column).to_pylist() for column in columns.wanted]
        except UnicodeDecodeError:
            # The decoder's own message quotes the bytes: it is dropped on purpose.
            raise CorpusError(
                f"one of {batch.num_rows} records from {name_record(position)} on must be utf-8; write the file again"
            ) from None
        for cells in zip(*values, strict=True):
            if columns.skip_empty and any(map(is_empty, cells[: len(columns.texts)])):
                found.skipped += 1
                position += 1
                continue
            yield _make_row(name_record(position), cells, columns, found)
            position += 1


def _make_row(place: str, cells: tuple[Any, ...], columns: Columns, found: Findings) -> Row | None:
    texts = cells[: len(columns.texts)]
    for text, column in zip(texts, columns.texts, strict=True):
        if text is None:
            found.fault(place, f"have a text in {column!r}, got null; remove it")
            return None
    if columns.label is None:
        return Row(place, texts, None, tuple(map(_make_plain, cells[len(columns.texts) :])))
    label = cells[-1]
    if label is None:
        found.fault(place, f"have a label in {columns.label!r}, got null; label it or remove it")
        return None
    if found.class_names is not None and isinstance(label, int):
        if not 0 <= label < len(found.class_names):
            found.fault(place, f"have one of the {len(found.class_names)} classes as its label; label it or remove it")
            return None
        return Row(place, texts, found.class_names[label])
    name = found.label(place, str(label))
    return None if name is None else Row(place, texts, name)


def _make_plain(value: Any) -> Any:
    """A value that JSON can have: what it has not, such as a date, as its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _iterate_counted(batches: Iterator[Any], reading: ReadingProgress) -> Iterator[Any]:
    for batch in batches:
        reading.done += batch.num_rows
        yield batch


def _list_arrow_files(folder: Path) -> list[str]:
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
