"""Files of private texts in, a privatized file out, streamed: memory does not grow with the file.

*Going on after a kill.* The records that were already written are compared with the source and skipped. Nothing about
the texts was written down to compare with. But a record has as many tokens as its text, and its label where labels
leave in clear; and a ledger, where there is one, knows each text by a keyed hash. So a source that was changed, cut, or
is another one shows, unless it agrees in all of these.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from rapt.arguments import check_arguments
from rapt.cluster import Cluster
from rapt.errors import BudgetError, CorpusError, UsageError, WireError, name_record
from rapt.local.corpus_check import CorpusCheck, check_corpus, join_rows, joins_pairs, read_rows
from rapt.local.corpus_formats import Columns, FileFormat, Findings, LabelledText, ReadingProgress, Row, find_source
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.ledger import Ledger
from rapt.local.ledger_place import refuse_ledger_files
from rapt.local.ledger_releases import ReleasePlan, plan_releases, privatize_chunks, settle_releases
from rapt.local.policy.policy import Policy
from rapt.local.policy.policy_privatizer import PolicyPrivatizer, keep_policy
from rapt.local.privatizer import TextPrivatizer
from rapt.local.randomness import RandomStream, choose_cluster_randomness, worker_stream
from rapt.local.records import (
    CHUNK,
    CHUNK_OF_A_WORKER,
    Chunk,
    ChunkSetting,
    Part,
    PartColumns,
    SourceItem,
    cut_into_chunks,
    draw_order,
)
from rapt.local.vocabulary import is_unicode
from rapt.local.workers import privatize_in_processes, privatize_on_cluster
from rapt.whole_files import check_target
from rapt.wire.manifest import LabelPrivacy, Manifest
from rapt.wire.privatized_file import (
    PrivatizedRecord,
    iterate_privatized_lines,
    list_privatized_texts,
    write_record_lines,
)
from rapt.wire.privatized_writer import name_partial, read_unfinished_manifest, write_privatized_file

ONE_TEXT: Final = PartColumns()

__all__ = ["CorpusCheck", "LabelledText", "ReadingProgress", "privatize_corpus", "read_corpus"]


@check_arguments
def read_corpus(
    path: Path | str,
    *,
    text_column: str = "text",
    label_column: str | None = "label",
    file_format: FileFormat | None = None,
    delimiter: str | None = None,
    header: bool = True,
    skip_empty: bool = False,
    reading: ReadingProgress | None = None,
    policy: Policy | None = None,
) -> Generator[LabelledText, None, None]:
    """The records of a file, one at a time. Blank lines are allowed at its end only.

    The file is open until the last record or an error; who stops before that closes the generator.

    Args:
        path: A regular file in UTF-8, with or without a byte order mark, or in UTF-16 with one, plain or compressed by
            gzip or zstd; a Parquet file, or a folder of its shards; or a folder that the `datasets` library saved.
        text_column: Column, or JSON field, of the text; of CSV and TSV also its number, from 1. `messages` takes each
            message of a chat for a record, whose role is the label if that is named `role`; `messages.user` takes the
            one message of that role.
        label_column: Column, or JSON field, of the label: a name or a whole number, without the spaces around it. None
            when there is none.
        file_format: Format of the file; None goes by the suffix of its name, and takes a folder for a dataset, or for
            shards where Parquet files are in it. JSON may be an object a line or one array.
        delimiter: Separator of the fields of CSV and TSV; None recognizes it by the columns that are asked for.
        header: Whether the first line of CSV and TSV names the columns; else they have numbers only.
        skip_empty: Whether records with an empty text, and blank lines, are passed over; a file that rapt privatized
            has none.
        reading: Position in the file, moved as it is read, to show progress.
        policy: Policy that each text is rewritten by; None gives texts as they are.

    Raises:
        CorpusError: The file cannot be read, is empty, is not UTF-8, lacks a column, or has a damaged line. Messages
            count lines and records from 1.
        UsageError: The format is unknown or needs an extra, or both columns are the same.
    """
    source, kind = find_source(path, file_format, delimiter=delimiter, header=header)
    if text_column == label_column:
        raise UsageError(
            f"text and label must be different columns, got {text_column!r} for both; labels leave in clear"
        )
    columns = Columns(texts=(text_column,), label=label_column, header=header, skip_empty=skip_empty)
    found = Findings(reading=ReadingProgress() if reading is None else reading, separator=delimiter)
    # Closed here, not by the garbage collector: an error keeps what it came through alive, an open file too.
    with closing(read_rows(source, columns, file_format=kind, found=found)) as rows:
        for row in rows:
            assert row is not None  # a fault is raised where faults are not collected
            text = row.texts[0] if policy is None else policy.apply(row.texts[0]).text
            yield LabelledText(text=text, label=row.label)


def read_columns(path: Path, names: Sequence[str], *, text_column: str | None = None) -> list[dict[str, Any]]:
    """The values of some columns of a file, for each record in order, as they stand there.

    Args:
        path: A file of records, as for `read_corpus`.
        names: Columns, or JSON fields.
        text_column: Column of texts; records in which it is empty are passed over. None passes over none.

    Raises:
        CorpusError: The reasons of `read_corpus`.
        UsageError: The format is unknown or needs an extra, or a column is named twice.
    """
    if len(set(names)) != len(names):
        raise UsageError("a column must be kept once, got one twice; name it once")
    source, kind = find_source(path, None, delimiter=None, header=True)
    if text_column in names:
        raise UsageError("a column that is kept must be another than that of the text by which records are passed over")
    texts = () if text_column is None else (text_column,)
    columns = Columns(texts=texts, label=None, kept=tuple(names), skip_empty=text_column is not None)
    with closing(read_rows(source, columns, file_format=kind, found=Findings())) as rows:
        return [dict(zip(names, row.kept, strict=True)) for row in rows if row is not None]


@check_arguments
def privatize_corpus(
    source: Path | str,
    target: Path | str,
    *,
    privatizer: TextPrivatizer,
    text_column: str = "text",
    label_column: str | None = "label",
    other_texts: PartColumns = ONE_TEXT,
    labels: Sequence[str] | None = None,
    public_labels: bool = False,
    label_privacy: LabelPrivacy | None = None,
    file_format: FileFormat | None = None,
    delimiter: str | None = None,
    header: bool = True,
    skip_empty: bool = False,
    stream: RandomStream,
    ledger: Ledger | Callable[[], AbstractContextManager[Ledger]] | None = None,
    redraw: bool = False,
    order_key: bytes | None = None,
    resume: bool = False,
    overwrite: bool = False,
    processes: int = 1,
    cluster: Cluster | None = None,
    on_checked: Callable[[CorpusCheck], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    reading: ReadingProgress | None = None,
) -> Manifest:
    """Write the privatized file of a corpus; returns its manifest.

    The whole source is checked before the first draw, and all its faults are named at once. Nothing appears at `target`
    unless every record was privatized. A run that was killed leaves `NAME.partial`, which `resume` continues: its whole
    records are kept and compared with the source, a last one that was cut off is drawn anew, with fresh randomness,
    because it never left.

    Args:
        source: The private file: read twice, never changed.
        target: The privatized file.
        privatizer: Setting of the texts.
        text_column: Column, or JSON field, of the text.
        label_column: Column, or JSON field, of the label, which leaves in clear unless `label_privacy` is set; None
            sends no labels.
        other_texts: Columns of the second text of a pair, and of a text to be generated.
        labels: Names of the classes in order, for a file that must match another; None takes those that a saved
            dataset declares, or collects and sorts them, as numbers where all are numbers.
        public_labels: Whether the labels are known to be public: they may then be many, long, or different in nearly
            every record.
        label_privacy: Randomizes the label of each record. The names of the classes leave in clear all the same, so
            they must be listed in `labels`: which of them occur is private, too.
        file_format: Format of the source; None goes by the suffix of its name.
        delimiter: Separator of fields, as in `read_corpus`.
        header: Whether the first line names the columns, as in `read_corpus`.
        skip_empty: Whether records with an empty text, and blank lines, are passed over instead of refused.
        stream: Source of labels, plain tokens and noise.
        ledger: Accounts for every release before it is written, and answers texts that were released before with
            their stored release. One that is to be opened is opened when the source was checked.
        redraw: Whether every text is drawn and paid for anew, with a ledger.
        order_key: Key of the order in which the records stand in the file; see `make_order_key`. None keeps that of the
            source.
        resume: Continue the unfinished file of an earlier run with the same settings, if there is one, and keep the
            unfinished file after an error.
        overwrite: Replace a file at `target`, and, without `resume`, an unfinished one.
        processes: Number of workers that privatize, each with a stream and a copy of the table of its own. 1 works in
            this process.
        cluster: Ray cluster whose tasks privatize instead, each with a stream of its own; every node of it must be as
            trusted as this machine, which the manifest's statement says. None works on this machine.
        on_checked: Called once, when the source was checked, before anything is drawn.
        on_progress: Called with the records and the text tokens written so far, about once a second.
        reading: Position in the source, moved as it is read, to show progress.

    Raises:
        CorpusError: Reasons of `read_corpus`; also a text without a token or with too many, a label that is not among
            `labels`, labels that are no classes, or an output that cannot be written.
        ClusterError: The cluster was lost, or is full; what was written stays with `resume`.
        BudgetError: A text would exceed a cap of the ledger. Nothing appears at `target`; what was accounted for up to
            there, which the message says, stays so, and is released by the next run at no cost.
        LedgerError: The ledger is busy, damaged, or its disk is full.
        UsageError: `target` is `source`, a file of the ledger, or something that must not be replaced; labels without a
            column, labels to randomize that are fewer than two or not listed, no processes, a ledger for noise from a
            seed, or a kept record that the ledger does not know.
        WireError: The unfinished file was begun with other settings, or is damaged.
    """
    source, kind = find_source(source, file_format, delimiter=delimiter, header=header)
    target = Path(target)
    check_output(target, source=source, overwrite=overwrite)
    if isinstance(ledger, Ledger):
        refuse_ledger_files(target, source, ledger=ledger.path, key=ledger.key_place)
    stream.check_process()
    if label_column is None and (labels is not None or label_privacy is not None):
        raise UsageError("labels must come with the column they stand in, got labels without label_column")
    if label_privacy is not None and labels is None:
        raise UsageError(
            "labels that are randomized must be listed, because which of them occur in the file is private too; list "
            "every class that there can be (`labels`)"
        )
    if processes < 1:
        raise UsageError(f"processes must be at least 1, got processes={processes}")
    joined = joins_pairs(privatizer, second=other_texts.second is not None)
    provenance = stream.provenance
    if cluster is not None and provenance.insecure_seed is None:
        provenance = choose_cluster_randomness()
    others = other_texts.by_part
    if len({text_column, *others.values()}) != 1 + len(others) or label_column in (text_column, *others.values()):
        raise UsageError("the texts and the label of a record must stand in different columns; name each once")
    columns = Columns(
        texts=(text_column, *others.values()),
        label=label_column,
        skip_empty=skip_empty,
        header=header,
        privatized=True,
    )
    parts = tuple(others)[1:] if joined else tuple(others)
    check = check_corpus(
        source,
        columns,
        file_format=kind,
        parts=parts,
        privatizer=privatizer,
        labels=check_class_names(labels),
        public_labels=public_labels,
        delimiter=delimiter,
    )
    if isinstance(privatizer, PolicyPrivatizer):
        privatizer.policy.save()
    if on_checked is not None:
        on_checked(check)
    names = check.labels
    index = {name: i for i, name in enumerate(names or ())}
    response = None
    if label_privacy is not None:
        response = RandomizedResponse(classes=len(index), epsilon=label_privacy.epsilon)
    begun = read_unfinished_manifest(target) if resume else None
    if begun is not None:
        privatizer = take_plain_tokens(begun, privatizer)
    manifest = privatizer.manifest(
        labels=names,
        randomness=provenance,
        label_privacy=label_privacy,
        pairs=other_texts.second is not None and not joined,
        targets=other_texts.targets,
    )
    arrangement = replace(
        manifest.arrangement, replayed=ledger is not None and not redraw, shuffled=order_key is not None
    )
    manifest = replace(manifest, arrangement=arrangement)
    order = None if order_key is None else (lambda count: draw_order(count, key=order_key).tolist())
    unfinished = write_privatized_file(target, manifest, resume=resume, overwrite=overwrite, order=order)
    under = keep_policy(name_partial(target), privatizer, begun=begun is not None)
    with under, ExitStack() as opened, unfinished as writer:
        account = opened.enter_context(ledger()) if callable(ledger) else ledger
        found = replace(
            check.found, reading=ReadingProgress() if reading is None else reading, collects=False, skipped=0
        )
        rows = opened.enter_context(closing(read_rows(source, columns, file_format=kind, found=found)))
        read = join_rows(rows) if joined else rows
        texts = _index_labels(read, None if names is None else index, parts=parts)
        setting = ChunkSetting(privatizer, response, manifest)
        done, tokens = skip_kept(writer.kept(), texts, setting=setting, ledger=account)
        if done > 0:  # with a seed, the noise of the first records must not come again
            stream = worker_stream(stream.provenance, position=done)
        apart = processes > 1 or cluster is not None
        size = CHUNK_OF_A_WORKER if apart and cluster is None else CHUNK
        chunks = cut_into_chunks(texts, first_position=done, labelled=names is not None, size=size)
        if apart:
            draw = (
                partial(privatize_in_processes, setting=setting, processes=processes, first_stream=done)
                if cluster is None
                else partial(privatize_on_cluster, setting=setting, cluster=cluster)
            )
            results = _privatize_apart(chunks, setting, draw=draw, ledger=account, redraw=redraw)
        else:
            results = privatize_chunks(chunks, setting, stream=stream, ledger=account, redraw=redraw)
        with closing(results):
            try:
                for records in results:
                    lines = write_record_lines(records, manifest, first_position=done)
                    writer.append(lines)
                    writer.flush()
                    done += lines.records
                    tokens += lines.tokens
                    if on_progress is not None:
                        on_progress(done, tokens)
            except BudgetError as error:
                raise BudgetError(
                    f"{error}; the {done} records before it, {tokens} tokens, are paid for and come at no cost again"
                ) from None
    with target.open("rb") as written:
        first = next(iterate_privatized_lines(written))
    assert isinstance(first, Manifest)
    return first


def _privatize_apart(
    chunks: Iterator[Chunk],
    setting: ChunkSetting,
    *,
    draw: Callable[[Iterator[Chunk]], Generator[list[PrivatizedRecord], None, None]],
    ledger: Ledger | None,
    redraw: bool,
) -> Generator[Sequence[PrivatizedRecord], None, None]:
    """The records of each chunk, in order, drawn in other processes; looked up and accounted for in this one."""
    plans: deque[ReleasePlan] = deque()

    def planned() -> Iterator[Chunk]:
        for chunk in chunks:
            if ledger is not None:
                plans.append(plan_releases(ledger, chunk, setting, redraw=redraw))
                chunk = plans[-1].chunk
            yield chunk

    with closing(draw(planned())) as results:
        for records in results:
            if ledger is not None:
                records = settle_releases(ledger, plans.popleft(), records, setting, redraw=redraw)
            yield records


def _index_labels(
    rows: Iterator[Row | None], index: Mapping[str, int] | None, *, parts: Sequence[Part]
) -> Iterator[SourceItem]:
    """Each text with the others of its record and the index of its label; None where no labels are sent."""
    for row in rows:
        assert row is not None  # a fault is raised where faults are not collected
        label = None if index is None else index.get(row.label or "")
        if index is not None and label is None:
            raise CorpusError(
                f"{row.place} must have the label that it had before; leave the source as it is meanwhile"
            )
        yield SourceItem(row.texts[0], label, dict(zip(parts, row.texts[1:], strict=True)))


def check_class_names(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names that the caller gives, each a label that a source can have."""
    if labels is None:
        return None
    if isinstance(labels, str) or not all(isinstance(name, str) for name in labels):
        raise UsageError("labels must be a list of names; put each name into it as a string")
    names = tuple(labels)
    if len(set(names)) != len(names):
        raise UsageError(f"labels must differ from each other, got {len(names)} of which {len(set(names))} differ")
    if not all(name.strip() == name != "" and is_unicode(name) for name in names):
        raise UsageError("labels must be names of valid unicode without spaces around them; strip them")
    return names


def check_output(target: Path, *, source: Path, overwrite: bool) -> None:
    """Refuse an output that would destroy the source, or what is no regular file, before any work.

    Raises:
        UsageError: The output would destroy the source, or a file is there that must not be replaced.
        CorpusError: The folder of the output is missing.
    """
    check_target(target, overwrite=True)
    if not target.absolute().parent.is_dir():
        raise CorpusError("the output must be writable, got a folder that is missing; make it, or choose another")
    # The writer works in NAME.partial, so that name is taken as well.
    for path in (target, name_partial(target)):
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError("the output must be another file than the source; choose another name")
    check_target(target, overwrite=overwrite)


_CHUNK: Final = 512


def take_plain_tokens(unfinished: Manifest, privatizer: TextPrivatizer) -> TextPrivatizer:
    """The setting with the plain tokens that the unfinished file was begun with: they were drawn then.

    Raises:
        WireError: It was begun with another number, pool, or way to draw them.
    """
    begun, planned = unfinished.plain_tokens, privatizer.plain_tokens
    if (begun.count, begun.pool, begun.fixed is None) != (planned.count, planned.pool, planned.fixed is None):
        raise WireError(
            f"an unfinished output must be continued with its plain tokens, got count={planned.count} for "
            f"{begun.count} or another pool; repeat the settings, or remove its .partial file to begin again"
        )
    return privatizer.with_plain_tokens(begun)


def skip_kept(
    kept: Iterator[PrivatizedRecord], source: Iterator[SourceItem], *, setting: ChunkSetting, ledger: Ledger | None
) -> tuple[int, int]:
    """Take as many texts from the source as there are kept records; returns how many records and tokens those are.

    Args:
        kept: The records of the unfinished file, all of which are taken.
        source: Texts and true labels from the first on; stands at the first that is not written yet afterwards.
        setting: Setting that they were privatized with.
        ledger: Every text of a kept record must be accounted for in it.

    Raises:
        CorpusError: The source is not the one of the unfinished file.
        UsageError: A kept record is not in the ledger.
        WireError: The unfinished file is damaged.
    """
    records = tokens = 0
    labelled = setting.manifest.labels is not None
    while found := list(islice(kept, _CHUNK)):
        items = list(islice(source, len(found)))
        if len(items) < len(found):
            raise _make_source_error(records + len(items))
        if labelled and setting.response is None:
            for position, (record, item) in enumerate(zip(found, items, strict=True), records):
                if record.label != item.label:
                    raise _make_source_error(position)
        (chunk,) = cut_into_chunks(iter(items), first_position=records, labelled=False, size=len(items))
        texts = chunk.privatized_texts
        if (public := chunk.others.get("public_target")) is not None:
            _check_lengths(public, [record.target_ids or () for record in found], setting.privatizer, first=records)
        written = [list_privatized_texts(record, setting.manifest) for record in found]
        for own, ids in zip(texts.values(), zip(*written, strict=True), strict=True):
            tokens += _check_lengths(own, ids, setting.privatizer, first=records)
        if ledger is not None:
            plan = plan_releases(ledger, chunk, replace(setting, response=None))
            for part, ids in zip(texts, zip(*written, strict=True), strict=True):
                _check_accounted([text.stored for text in plan.texts[part]], ids, first_position=records)
        records += len(found)
    return records, tokens


def _check_lengths(
    texts: Sequence[str], written: Sequence[tuple[int, ...]], privatizer: TextPrivatizer, *, first: int
) -> int:
    """Refuse another source than that of the written texts (`CorpusError`); returns how many tokens those have."""
    counts = privatizer.token_counts(texts, first_position=first)
    for position, (own, count) in enumerate(zip(written, counts, strict=True), first):
        if len(own) != count:
            raise _make_source_error(position)
    return sum(counts)


def _check_accounted(
    stored: Sequence[tuple[int, ...] | None], written: Sequence[tuple[int, ...]], *, first_position: int
) -> None:
    for position, (ids, own) in enumerate(zip(stored, written, strict=True), first_position):
        if ids is None or ids != own:
            raise UsageError(
                f"{name_record(position)} of the unfinished output must be accounted for in the ledger; "
                "name the ledger it was begun with, or remove its .partial file to begin again"
            )


def _make_source_error(position: int) -> CorpusError:
    return CorpusError(
        f"the source must be the one that the unfinished output was begun with, got another text as "
        f"{name_record(position)}; name that source, or remove the .partial file to begin again"
    )
