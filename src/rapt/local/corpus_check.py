"""The first pass over a source: whether every record can be privatized, before anything is drawn or paid for.

All faults of a file are named in one run. What the pass found out beside them is for people: words outside of the
vocabulary, labels with spaces, a separator that was recognized, words that stand in many records.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Final

from rapt.errors import CorpusError, UsageError, VocabularyError
from rapt.local.codes.code_privatizer import join_pair
from rapt.local.columnar_formats import read_dataset, read_parquet
from rapt.local.corpus_formats import Columns, FileFormat, Findings, Reader, Row
from rapt.local.privatizer import TextPrivatizer
from rapt.local.records import Part, explain_long_pair
from rapt.local.repeated_runs import RepeatedRuns, RunCounter
from rapt.local.separated_formats import LINE_READERS, SEPARATOR_NAMES
from rapt.wire.manifest import NO_PLAIN_TOKENS

READERS: Final[dict[FileFormat, Reader]] = {
    **LINE_READERS,
    "parquet": read_parquet,
    "dataset": read_dataset,
}
_CHUNK: Final = 512
# Labels leave in clear, so a column of texts or names taken for labels by mistake must not: labels that are collected
# from the file are few, short, and come more than once. Labels that the caller lists or calls public may be anything.
_MOST_LABELS: Final = 256
_LONGEST_LABEL: Final = 64
_FEW_LABELS: Final = 3  # as many may each stand in one record of a small file
_NUMBER: Final = re.compile(r"[+-]?\d{1,40}(\.\d{1,40})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class CorpusCheck:
    """Findings of a whole pass over a source, every record of which can be privatized.

    Attributes:
        records: Number of records.
        tokens: Tokens of their texts that will be privatized.
        unknown_tokens: Number of tokens that stand for a word, or a letter, that the vocabulary does not know.
        cut_texts: Number of texts that are longer than the setting keeps, and are cut.
        labels: Names of the classes in order; None where there are none.
        found: Format in which the source is written.
        repeated: Runs of tokens that stand in many records.
        counts: Number of times that each token comes in what will be privatized; private.
    """

    records: int
    tokens: int
    unknown_tokens: int
    cut_texts: int
    labels: tuple[str, ...] | None
    found: Findings
    repeated: RepeatedRuns
    counts: Counter[int] = field(repr=False)

    @property
    def remarks(self) -> list[str]:
        """Remarks for the source's owner about how it was read."""
        said = []
        found = self.found
        if found.guessed and found.separator is not None:
            name = SEPARATOR_NAMES.get(found.separator, "another character")
            said.append(f"fields are taken to have a {name} between them; `delimiter` says otherwise")
        if found.quoted is not None:
            how = (
                "enclose fields, as all of them fit"
                if found.quoted
                else "be letters, because not all of them enclose fields"
            )
            said.append(f"quotes are taken to {how}")
        if found.utf16:
            said.append("the file is UTF-16, as its byte order mark says, and is read as that")
        if found.skipped:
            said.append(f"{found.skipped:,} records are skipped, because a text of theirs is empty")
        if found.spaced_labels:
            said.append(f"{found.spaced_labels:,} labels had spaces around them, which are left out")
        if self.cut_texts:
            said.append(f"{self.cut_texts:,} texts are longer than what is read of a text, and are cut there")
        if self.unknown_tokens:
            said.append(
                f"{self.unknown_tokens:,} of {self.tokens:,} tokens are words that the vocabulary does not know: "
                "they become one unknown token"
            )
        if self.repeated.remark:
            said.append(self.repeated.remark)
        return said


def read_rows(
    path: Path, columns: Columns, *, file_format: FileFormat, found: Findings
) -> Generator[Row | None, None, None]:
    """The records of a file; None for each that is a fault. Raises as `read_corpus`."""
    empty = True
    for row in READERS[file_format](path, columns, found):
        empty = False
        yield row
    if empty:
        raise CorpusError("a corpus must have at least one record, got records=0; check the file")


def check_corpus(
    path: Path,
    columns: Columns,
    *,
    file_format: FileFormat,
    parts: Sequence[Part],
    privatizer: TextPrivatizer,
    labels: tuple[str, ...] | None,
    public_labels: bool,
    delimiter: str | None,
) -> CorpusCheck:
    """Read the whole source, and look at each record as privatizing will.

    Args:
        path: File of the corpus.
        columns: Columns to read: the text, one column for each of `parts`, the label. One more text is the second of a
            pair that leaves as one.
        file_format: Format in which it is written.
        parts: Parts of a record that the texts beside the first one become.
        privatizer: The setting; nothing is drawn with it.
        labels: Names of the classes; None collects them.
        public_labels: Whether labels that are collected may be many, long, or different in every record.
        delimiter: Separator of fields; None recognizes it.

    Raises:
        CorpusError: The first ten faults, and how many there are.
        UsageError: The reasons of `read_corpus`.
        VocabularyError: The reasons of `Vocabulary.encode`.
    """
    found = Findings(collects=True, separator=delimiter)
    reader = read_rows(path, columns, file_format=file_format, found=found)
    return check_rows(
        reader if len(columns.texts) == 1 + len(parts) else join_rows(reader),
        found=found,
        labelled=columns.label is not None,
        parts=parts,
        privatizer=privatizer,
        labels=labels,
        public_labels=public_labels,
    )


def joins_pairs(privatizer: TextPrivatizer, *, second: bool) -> bool:
    """Whether both texts of a record leave as one: they do with a code of pairs, and tokens leave text by text.

    Args:
        privatizer: The setting.
        second: Whether records have a second text.

    Raises:
        UsageError: A code of pairs meets single texts, or a code of single texts meets pairs.
    """
    setting = privatizer.mechanism.setting
    of_pairs = setting.texts > 1
    if of_pairs and not second:
        raise UsageError(
            "a code of pairs must have two texts in each record, got one; name the column of the second "
            "(`second_column`), or take a code of single texts"
        )
    if second and not of_pairs and setting.unit == "text":
        raise UsageError(
            "pairs must have a code of pairs, whose ε is for both texts together, got a code of single texts; make one "
            "with `rapt codebook --text-column-2`, or leave out the second text"
        )
    return of_pairs


def join_rows(rows: Generator[Row | None, None, None]) -> Generator[Row | None, None, None]:
    """Give the records with their first two texts as one; the readers close at the end."""
    with closing(rows):
        for row in rows:
            yield row if row is None else replace(row, texts=(join_pair(*row.texts[:2]), *row.texts[2:]))


def check_rows(
    rows: Generator[Row | None, None, None],
    *,
    found: Findings,
    labelled: bool,
    parts: Sequence[Part],
    privatizer: TextPrivatizer,
    labels: tuple[str, ...] | None,
    public_labels: bool | None,
) -> CorpusCheck:
    """Look at each record of a source as privatizing will; see `check_corpus`.

    Args:
        rows: The records, with None for each that is a fault; closed at the end.
        found: Findings of whoever reads the records; faults are noted in it.
        labelled: Whether the records have labels.
        parts: Parts of a record that the texts beside the first one become.
        privatizer: The setting; nothing is drawn with it.
        labels: Names of the classes; None collects them.
        public_labels: Whether labels that are collected may be many, long, or different in every record; None where
            the user cannot say so.

    Raises:
        CorpusError: The reasons of `check_corpus`.
        VocabularyError: The reasons of `Vocabulary.encode`.
    """
    named = None if labels is None else frozenset(labels)
    counts: dict[str, int] = {}
    records = tokens = unknown = cut = 0
    runs, all_tokens = RunCounter(), Counter[int]()
    try:
        while chunk := list(islice(rows, _CHUNK)):
            present = [row for row in chunk if row is not None]
            for row in present:
                if row.label is None:
                    continue
                if named is not None and row.label not in named:
                    rule = f"have one of the {len(named)} labels that were named, got another"
                    found.fault(row.place, f"{rule}; name it, or correct the record")
                counts[row.label] = counts.get(row.label, 0) + 1
                large = len(row.label) > _LONGEST_LABEL or len(counts) > _MOST_LABELS
                if large and labels is None and not public_labels:
                    raise _make_too_large_error(row.place, public_labels)
            new, new_unknown = _check_texts(present, parts, privatizer, found, runs, all_tokens)
            records, tokens, unknown = records + len(chunk), tokens + new, unknown + new_unknown
            if not found.faults:
                cut += privatizer.count_cut([text for row in present for text in row.texts])
    except CorpusError as error:
        found.refuse(error)
    finally:
        rows.close()
    if found.faults:
        found.refuse()
    if labels is None and labelled:
        if not public_labels and max(_FEW_LABELS, records / 2) < len(counts):
            raise CorpusError(
                f"labels must be classes of several records, got {len(counts)} different ones in {records} records; "
                f"their names leave in clear: {_name_ways_out(public_labels)}"
            )
        labels = found.class_names or sort_names(counts)
        if not public_labels and (len(labels) > _MOST_LABELS or max(map(len, labels)) > _LONGEST_LABEL):
            raise _make_too_large_error("the declaration of the dataset", public_labels)
    return CorpusCheck(
        records=records,
        tokens=tokens,
        unknown_tokens=unknown,
        cut_texts=cut,
        labels=labels,
        found=found,
        repeated=runs.count(),
        counts=all_tokens,
    )


def sort_names(names: Iterator[str] | dict[str, int]) -> tuple[str, ...]:
    """The names in order: of their numbers where all of them are numbers, else of their letters."""
    found = list(names)
    if all(_NUMBER.fullmatch(name) for name in found):
        return tuple(sorted(found, key=lambda name: (Decimal(name), name)))
    return tuple(sorted(found))


def _make_too_large_error(where: str, public_labels: bool | None) -> CorpusError:
    return CorpusError(
        f"labels must be at most {_MOST_LABELS} names of at most {_LONGEST_LABEL} characters, got more by {where}; "
        f"they leave in clear: {_name_ways_out(public_labels)}"
    )


def _name_ways_out(public_labels: bool | None) -> str:
    if public_labels is None:
        return "choose the column of classes, or list the labels"
    return "choose the column of classes, list the labels, or insist that they are public (`public_labels=True`)"


def _check_texts(
    rows: Sequence[Row],
    parts: Sequence[Part],
    privatizer: TextPrivatizer,
    found: Findings,
    runs: RunCounter,
    counts: Counter[int],
) -> tuple[int, int]:
    """Note texts that cannot be privatized, count runs and tokens; returns how many tokens, and unknown ones."""
    bare = privatizer.with_plain_tokens(NO_PLAIN_TOKENS)
    # Plain tokens stand before the first text only.
    columns = [
        _tokenize_contents(rows, place, privatizer if place == 0 else bare, found) for place in range(1 + len(parts))
    ]
    privatized = [
        columns[0],
        *(column for part, column in zip(parts, columns[1:], strict=True) if part != "public_target"),
    ]
    if privatizer.mechanism.setting.unit == "token":  # of a text that leaves as a whole no word is released
        runs.add(list(zip(*privatized, strict=True)))
        counts.update(token for column in privatized for content in column for token in content)
    unknown = privatizer.vocabulary.unknown_id
    tokens = sum(len(content) for column in privatized for content in column)
    if "second" in parts:
        second = columns[1 + parts.index("second")]
        for row, left, right in zip(rows, columns[0], second, strict=True):
            rule = explain_long_pair(privatizer, len(left) + len(right))
            if rule is not None:
                found.fault(row.place, rule)
    return tokens, 0 if unknown is None else sum(content.count(unknown) for column in privatized for content in column)


def _tokenize_contents(rows: Sequence[Row], place: int, privatizer: TextPrivatizer, found: Findings) -> list[list[int]]:
    """The content tokens of one text of each row; none where that is a fault."""
    texts = [row.texts[place] for row in rows]
    try:
        return privatizer.contents(texts)
    except CorpusError:
        pass  # one of them is at fault: which ones, and why, is found one by one
    except VocabularyError:
        if len(rows) > 1:
            return [_tokenize_contents([row], place, privatizer, found)[0] for row in rows]
        raise
    contents: list[list[int]] = []
    for row, text in zip(rows, texts, strict=True):
        try:
            contents += privatizer.contents([text])
        except CorpusError as error:
            found.fault(row.place, str(error).partition(" must ")[2])
            contents.append([])
    return contents
