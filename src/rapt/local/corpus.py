"""Files of private texts in, a privatized file out, streamed: memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, get_args

from rapt.errors import CorpusError, UsageError
from rapt.local.chunks import (
    CHUNK,
    CHUNK_OF_A_WORKER,
    Chunk,
    ChunkSetting,
    in_chunks,
    privatize_chunk,
    release_chunk,
)
from rapt.local.columnar_formats import read_dataset, read_parquet
from rapt.local.corpus_formats import READERS, FileFormat, LabelledText, Reading, read_lines
from rapt.local.kept_records import skip_kept, with_plain_tokens_of
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.ledger import Ledger
from rapt.local.ledger_file import refuse_ledger_files
from rapt.local.ledger_releases import privatize_through
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import RandomStream, worker_stream
from rapt.local.record_parts import PartColumns, SourceItem, zip_parts
from rapt.local.worker_processes import privatize_in_processes
from rapt.whole_files import check_target
from rapt.wire.manifest import LabelPrivacy, Manifest
from rapt.wire.privatized_file import iterate_privatized_lines
from rapt.wire.privatized_record import PrivatizedRecord, RecordLines
from rapt.wire.privatized_writer import partial_path, read_unfinished_manifest, write_privatized_file

_COLUMNAR: Final[
    Mapping[FileFormat, Callable[[Path, str, str | None, Reading], Generator[LabelledText, None, None]]]
] = {
    "parquet": read_parquet,
    "dataset": read_dataset,
}
# Labels leave in clear, so a column of texts or names taken for labels by mistake must not: labels that are collected
# from the file are few and short. Labels that the caller lists may be anything.
_MOST_LABELS: Final = 256
_LONGEST_LABEL: Final = 64
ONE_TEXT: Final = PartColumns()

__all__ = ["LabelledText", "Reading", "label_names", "privatize_corpus", "read_corpus"]


def read_corpus(
    path: Path,
    *,
    text_column: str = "text",
    label_column: str | None = "label",
    file_format: FileFormat | None = None,
    reading: Reading | None = None,
) -> Generator[LabelledText, None, None]:
    """The records of a file, one at a time. Blank lines are allowed at its end only.

    The file is open until the last record or an error; who stops before that closes the generator.

    Args:
        path: A regular file in UTF-8, with or without a byte order mark; a Parquet file; or a folder that the
            `datasets` library saved.
        text_column: Column, or JSON field, of the text.
        label_column: Column, or JSON field, of the label: a name or a whole number. None when there is none.
        file_format: Of the file; None goes by the suffix of its name, and takes another folder for a dataset.
        reading: Moved as the file is read, for whoever shows progress.

    Raises:
        CorpusError: The file cannot be read, is empty, is not UTF-8, lacks a column, or has a damaged line.
        UsageError: The format is unknown or needs an extra, or both columns are the same.
    """
    if text_column == label_column:
        raise UsageError(
            f"text and label must be different columns, got {text_column!r} for both; labels leave in clear"
        )
    kind = _format_of(path, file_format)
    moved = Reading() if reading is None else reading
    empty = True
    records: Iterator[LabelledText]
    # Closed here, not by the garbage collector: an error keeps what it came through alive, an open file too.
    with ExitStack() as opened:
        if kind in _COLUMNAR:
            records = opened.enter_context(closing(_COLUMNAR[kind](path, text_column, label_column, moved)))
        else:
            lines = opened.enter_context(closing(read_lines(path, moved)))
            records = READERS[kind](lines, text_column, label_column)
        for record in records:
            empty = False
            yield record
    if empty:
        raise CorpusError("a corpus must have at least one record, got records=0; check the file")


def label_names(records: Iterator[LabelledText]) -> tuple[str, ...]:
    """The different labels among the records, sorted.

    Raises:
        CorpusError: They are too many or too long to be classes.
    """
    names: set[str] = set()
    for position, record in enumerate(records):
        if record.label is None:
            continue
        names.add(record.label)
        if len(record.label) > _LONGEST_LABEL or len(names) > _MOST_LABELS:
            raise CorpusError(
                f"labels must be at most {_MOST_LABELS} names of at most {_LONGEST_LABEL} characters, "
                f"got more by record {position}; they leave in clear: choose the column of classes, or list the labels"
            )
    return tuple(sorted(names))


def privatize_corpus(
    source: Path,
    target: Path,
    *,
    privatizer: Privatizer,
    text_column: str = "text",
    label_column: str | None = "label",
    other_texts: PartColumns = ONE_TEXT,
    labels: tuple[str, ...] | None = None,
    label_privacy: LabelPrivacy | None = None,
    file_format: FileFormat | None = None,
    stream: RandomStream,
    ledger: Ledger | None = None,
    redraw: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    processes: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    reading: Reading | None = None,
) -> Manifest:
    """Write the privatized file of a corpus; returns its manifest.

    Nothing appears at `target` unless every record was privatized. A run that was killed leaves `NAME.partial`, which
    `resume` continues: its whole records are kept and compared with the source, a last one that was cut off is drawn
    anew, with fresh randomness, because it never left.

    Args:
        source: The private file: read twice when labels are to be collected, never changed.
        target: The privatized file.
        privatizer: The setting.
        text_column: Column, or JSON field, of the text.
        label_column: Column, or JSON field, of the label, which leaves in clear unless `label_privacy` is set; None
            sends no labels.
        other_texts: Columns of the second text of a pair, and of a text to be generated.
        labels: Names of the classes in order, for a file that must match another; None collects and sorts them.
        label_privacy: Randomizes the label of each record. The names of the classes leave in clear all the same; list
            them in `labels` where it is private which of them occur.
        file_format: Of the source; None goes by the suffix of its name.
        stream: Of labels, plain tokens and noise.
        ledger: Accounts for every release before it is written, and answers texts that were released before with
            their stored release.
        redraw: With a ledger, draw and pay anew for every text.
        resume: Continue the unfinished file of an earlier run with the same settings, if there is one, and keep the
            unfinished file after an error.
        overwrite: Replace a file at `target`, and, without `resume`, an unfinished one.
        processes: How many workers privatize, each with a stream and a copy of the table of its own. 1 works in this
            process and alone can use a ledger.
        on_progress: Called with the records and the text tokens written so far, about once a second.
        reading: Tells, meanwhile, how much of the source was read.

    Raises:
        CorpusError: As `read_corpus`; also a text without a token or with too many, a label that is not among
            `labels`, or an output that cannot be written.
        BudgetError: A text would exceed a cap of the ledger. Nothing appears at `target`; what was accounted for up to
            there stays so, and is released by the next run at no cost.
        LedgerError: The ledger is busy, damaged, or its disk is full.
        UsageError: `target` is `source`, a file of the ledger, or something that must not be replaced; labels without a
            column, fewer than two labels to randomize, no processes, or several with a ledger; or a kept record that
            the ledger does not know.
        WireError: The unfinished file was begun with other settings, or is damaged.
    """
    check_output(target, source=source, ledger=None if ledger is None else ledger.path, overwrite=overwrite)
    stream.check_process()
    if label_column is None and (labels is not None or label_privacy is not None):
        raise UsageError("labels must come with the column they stand in, got labels without label_column")
    if processes < 1 or (processes > 1 and ledger is not None):
        raise UsageError(f"processes must be at least 1, and 1 with a ledger, got processes={processes}")

    others = other_texts.by_part
    if len({text_column, *others.values()}) != 1 + len(others) or label_column in others.values():
        raise UsageError("the texts and the label of a record must stand in different columns; name each once")

    names = labels
    if labels is None and label_column is not None:
        with closing(
            read_corpus(source, text_column=text_column, label_column=label_column, file_format=file_format)
        ) as scanned:
            names = label_names(scanned)
    index = {name: i for i, name in enumerate(names or ())}
    if len(index) != len(names or ()):
        raise UsageError(f"labels must differ from each other, got {len(names or ())} of which {len(index)} differ")
    response = None
    if label_privacy is not None:
        response = RandomizedResponse(classes=len(index), epsilon=label_privacy.epsilon)
    begun = read_unfinished_manifest(target) if resume else None
    if begun is not None:
        privatizer = with_plain_tokens_of(begun, privatizer)
    manifest = privatizer.manifest(
        labels=names,
        randomness=stream.provenance,
        label_privacy=label_privacy,
        pairs=other_texts.second is not None,
        targets=other_texts.targets,
    )
    unfinished = write_privatized_file(target, manifest, resume=resume, overwrite=overwrite)
    with ExitStack() as opened, unfinished as writer:

        def read(text: str, label: str | None, reading: Reading | None) -> Iterator[LabelledText]:
            found = read_corpus(source, text_column=text, label_column=label, file_format=file_format, reading=reading)
            return opened.enter_context(closing(found))

        texts = _indexed(read(text_column, label_column, reading), None if names is None else index)
        if others:  # each column is read beside the first, so that no reader need know of more than one text
            beside = {part: (record.text for record in read(column, None, None)) for part, column in others.items()}
            texts = zip_parts(texts, beside)
        done, tokens = skip_kept(
            writer.kept(),
            texts,
            privatizer=privatizer,
            labels_in_clear=names is not None and response is None,
            stream=stream,
            ledger=ledger,
        )
        if done > 0:  # with a seed, the noise of the first records must not come again
            stream = worker_stream(stream.provenance, position=done)

        setting = ChunkSetting(privatizer, response, manifest)

        def privatized(chunk: Chunk) -> RecordLines:
            if ledger is None:
                return privatize_chunk(chunk, setting, stream=stream)

            def through(own: Privatizer, texts: list[str], labels: list[int] | None) -> list[PrivatizedRecord]:
                return privatize_through(
                    ledger,
                    own,
                    texts,
                    labels=labels,
                    response=None if labels is None else response,
                    stream=stream,
                    first_position=chunk.position,
                    redraw=redraw,
                )

            return release_chunk(chunk, setting, release=through)

        size = CHUNK if processes == 1 else CHUNK_OF_A_WORKER
        chunks = in_chunks(texts, first_position=done, labelled=names is not None, size=size)
        if processes > 1:
            results = privatize_in_processes(chunks, setting, processes=processes, first_stream=done)
        else:
            results = (privatized(chunk) for chunk in chunks)
        with closing(results):
            for result in results:
                writer.append(result)
                writer.flush()
                done += result.records
                tokens += result.tokens
                if on_progress is not None:
                    on_progress(done, tokens)
    with target.open("rb") as written:
        first = next(iterate_privatized_lines(written))
    assert isinstance(first, Manifest)
    return first


def _indexed(records: Iterator[LabelledText], index: Mapping[str, int] | None) -> Iterator[SourceItem]:
    """Each text with the index of its label; None where no labels are sent."""
    for position, record in enumerate(records):
        if index is None:
            yield SourceItem(record.text, None)
        elif record.label is None or record.label not in index:
            raise CorpusError(
                f"record {position} must have one of the {len(index)} labels that were named, got another; "
                "name it, or correct the record"
            )
        else:
            yield SourceItem(record.text, index[record.label])


def check_output(target: Path, *, source: Path, ledger: Path | None, overwrite: bool) -> None:
    """Refuse an output that would destroy the source, the ledger, or what is no regular file, before any work.

    Raises:
        UsageError: It would, or a file is there that must not be replaced.
    """
    check_target(target, overwrite=True)
    # The writer works in NAME.partial, so that name is taken as well.
    for path in (target, partial_path(target)):
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError("the output must be another file than the source; choose another name")
    if ledger is not None:
        refuse_ledger_files(target, source, ledger=ledger)
    check_target(target, overwrite=overwrite)


def _format_of(path: Path, file_format: FileFormat | None) -> FileFormat:
    suffix = path.suffix.lower().removeprefix(".") if file_format is None else file_format
    for known in get_args(FileFormat):
        if suffix == known:
            return known  # type: ignore[no-any-return]  # get_args is untyped
    if file_format is None and path.is_dir():
        return "dataset"
    raise UsageError(
        f"the format of a corpus must be one of {', '.join(get_args(FileFormat))}, got {suffix!r}; state it"
    )
