"""Texts that a program holds, privatized without a file: a list, a column of a table, and the value that may leave.

`privatize` is the front door of Python. It does what `rapt privatize` does, with the same checks and the same ledger,
and writes no text to disk. What it returns holds no text either: only what may be sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final, overload

import numpy as np

from rapt.arguments import check_arguments
from rapt.errors import CorpusError, UsageError, name_record
from rapt.local.codes.code_privatizer import join_pair, load_code_privatizer, refuse_large_epsilon
from rapt.local.codes.text_statement import TextStatement, state_text_privacy
from rapt.local.corpus import check_class_names
from rapt.local.corpus_check import check_rows, joins_pairs
from rapt.local.corpus_formats import Findings, Row
from rapt.local.guarantee import PrivacyStatement, state_privacy
from rapt.local.kept_share import KeptShares, check_kept_shares
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.ledger import Ledger, open_ledger
from rapt.local.ledger_place import FOLDER, describe_run, find_ledger, make_folder, name_receipt, write_receipt
from rapt.local.ledger_releases import privatize_chunks
from rapt.local.mechanisms import make_mechanism
from rapt.local.policy.policy import Policy
from rapt.local.policy.policy_privatizer import PolicyPrivatizer
from rapt.local.privatizer import USUAL_POOL, Privatizer, TextPrivatizer, plan_plain_tokens
from rapt.local.randomness import RandomStream, secure_stream
from rapt.local.records import ChunkSetting, Part, SourceItem, cut_into_chunks, draw_order, make_order_key
from rapt.local.vocabulary import Vocabulary, check_texts, load_vocabulary
from rapt.narration import write_count
from rapt.wire.manifest import LabelPrivacy, Manifest
from rapt.wire.mechanism_setting import check_eta
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest, write_record_lines
from rapt.wire.privatized_writer import write_privatized_file

_PLAIN_TOKENS: Final = 20
_LINES_AT_ONCE: Final = 512


class DefaultLedger(Enum):
    """The ledger of a project: the nearest `.rapt/ledger.sqlite` in the working folder or above, made where none is."""

    PROJECT = "project"


PROJECT: Final = DefaultLedger.PROJECT


@dataclass(frozen=True, eq=False, repr=False)
class Privatized(Sequence[PrivatizedRecord]):
    """Privatized texts in the order of the texts, which it does not hold.

    Attributes:
        file: Manifest and records: all that leaves.
        kept: Shares of tokens that stay as they are, measured on the texts, which stays here; None of whole texts.
    """

    file: PrivatizedFile
    kept: KeptShares | None
    _vocabulary: Vocabulary = field(repr=False)
    _ledger: Path | None = field(repr=False)
    _counted: dict[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        """Counts and the setting."""
        mechanism = self.manifest.mechanism
        of = f"epsilon={mechanism.epsilon:g}" if mechanism.unit == "text" else f"eta={mechanism.eta:g}"
        return f"Privatized({write_count(len(self), 'text')}, mechanism={mechanism.name!r}, {of})"

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.file.records)

    @overload
    def __getitem__(self, place: int) -> PrivatizedRecord: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[PrivatizedRecord]: ...
    def __getitem__(self, place: int | slice) -> PrivatizedRecord | Sequence[PrivatizedRecord]:
        """The record of a text, or those of several."""
        return self.file.records[place]

    @property
    def manifest(self) -> Manifest:
        """Setting, counts and digest."""
        return self.file.manifest

    @property
    def ids(self) -> list[tuple[int, ...]]:
        """Token ids of each text, or the ids of its codewords."""
        return [record.token_ids for record in self.file.records]

    @property
    def labels(self) -> list[str] | None:
        """Label that leaves with each text; None where none does."""
        names = self.manifest.labels
        return None if names is None else [names[record.label or 0] for record in self.file.records]

    @property
    def texts(self) -> list[str]:
        """The words that leave in place of each text.

        Raises:
            UsageError: The texts left as codes, which have no words.
        """
        if self.manifest.mechanism.unit == "text":
            raise UsageError("a code of a whole text must be read by its id, because it has no words; take .ids")
        return [self._vocabulary.decode(record.token_ids) for record in self.file.records]

    def statement(self) -> PrivacyStatement | TextStatement:
        """What this protects and what it leaves open, for these records; print its `to_text()`."""
        return state_manifest(self.manifest, self._vocabulary)

    @check_arguments
    def save(self, path: Path | str, *, shuffle: bool | None = None, overwrite: bool = False) -> Manifest:
        """Write the privatized file, whole or not at all; returns its manifest.

        A receipt is written beside the ledger, where there is one: it says in which order the records stand.

        Args:
            path: Name of the file.
            shuffle: Whether the records stand in an order drawn at random; None shuffles records with labels, because
                the order of a source tells what belongs together, and keeps that of queries.
            overwrite: Whether a file of that name is replaced.

        Raises:
            CorpusError: It cannot be written.
            UsageError: A file is there that must not be replaced.
            LedgerError: The receipt cannot be written.
        """
        if shuffle is None:
            shuffle = self.manifest.labels is not None
        key = make_order_key(self.manifest.randomness) if shuffle else None
        manifest = replace(self.manifest, arrangement=replace(self.manifest.arrangement, shuffled=shuffle))
        records = list(self.file.records)
        if key is not None:
            records = [records[place] for place in draw_order(len(records), key=key).tolist()]
        with write_privatized_file(path, manifest, overwrite=overwrite) as writer:
            for start in range(0, len(records), _LINES_AT_ONCE):
                part = records[start : start + _LINES_AT_ONCE]
                writer.append(write_record_lines(part, manifest, first_position=start))
        whole = seal_manifest(manifest, records)
        if self._ledger is not None:
            unchanged = None if self.kept is None else self.kept.to_json()
            facts = describe_run(whole, order_key=key, unchanged=unchanged, counted=self._counted)
            write_receipt(name_receipt(self._ledger, whole.records_sha256), facts)
        return whole


def state_manifest(manifest: Manifest, vocabulary: Vocabulary) -> PrivacyStatement | TextStatement:
    """State what the setting of a manifest protects and what it leaves open; `vocabulary` is that of its tokens."""
    if manifest.mechanism.unit == "text":
        return state_text_privacy(manifest.mechanism.epsilon, manifest=manifest)
    return state_privacy(
        vocabulary,
        manifest.mechanism,
        plain_tokens=manifest.plain_tokens,
        labels_sent=manifest.labels is not None,
        randomness=manifest.randomness,
        label_privacy=manifest.label_privacy,
        two_texts=manifest.pairs,
        targets=manifest.targets,
        arrangement=manifest.arrangement,
        policy=manifest.policy,
    )


@check_arguments
def privatize(
    texts: Any,
    *,
    epsilon: float | None = None,
    eta: float | None = None,
    privatizer: TextPrivatizer | None = None,
    policy: Policy | Path | str | None = None,
    labels: Any = None,
    second_texts: Any = None,
    text_column: str = "text",
    text_column_2: str | None = None,
    label_column: str | None = None,
    classes: Sequence[Any] | None = None,
    label_epsilon: float | None = None,
    vocabulary: str | Path = "minilm",
    mechanism: str = "laplace",
    plain_tokens: int = _PLAIN_TOKENS,
    truncate_to: int | None = None,
    code: str | Path = "minilm-codes",
    encoder: str | Path | None = None,
    allow_large_epsilon: bool = False,
    allow_weak: bool = False,
    ledger: Ledger | Path | str | DefaultLedger | None = PROJECT,
    redraw: bool = False,
    stream: RandomStream | None = None,
) -> Privatized:
    """Privatize texts that are in memory: whole texts under `epsilon`, or each token at `eta`. No text reaches a disk.

    All texts are checked before anything is drawn or paid for.

    Args:
        texts: A list, an array or a Series of texts; or a table with `text_column`: a DataFrame, an Arrow table, a
            dataset of the `datasets` library. They are not kept.
        epsilon: ε of each whole text; 1 to 8 are usual.
        eta: η of each token, in 1/embedding distance; see `calibrate_unchanged`.
        privatizer: A setting that is ready, in place of both; saves the time of loading for each call.
        policy: What becomes of names, numbers and addresses before that; a policy, or its TOML file.
        labels: Labels of the texts, of any kind with a name: they leave in clear unless `label_epsilon` is set.
        second_texts: Second text of each pair, as `texts` are given; a code must then be one of pairs.
        text_column: Column of the texts of a table.
        text_column_2: Column of the second text of each pair, in the place of `second_texts`.
        label_column: Column of the labels of a table; None sends none.
        classes: Classes in order, of the kinds that labels may have; None collects and sorts them.
        label_epsilon: ε of randomized response for each label; needs `classes`.
        vocabulary: Name or folder of the vocabulary, for `eta`.
        mechanism: Name of the mechanism, for `eta`.
        plain_tokens: Number of public plain tokens before each text, for `eta`; queries have as many as the training.
        truncate_to: Content tokens to keep of a longer text, for `eta`; None refuses texts that are too long.
        code: Name or folder of the public code, for `epsilon`.
        encoder: Name or folder of its encoder; None goes by the name in the code.
        allow_large_epsilon: Whether an ε above 16 is accepted: texts can then be named.
        allow_weak: Whether an η is accepted at which nine of ten tokens or more stay as they are.
        ledger: Ledger that counts every release and answers texts that come again: an open one, a path, or that of the
            project. None counts nothing.
        redraw: Whether every text is drawn and paid for anew.
        stream: Source of randomness; None is keyed by the operating system. One from a seed protects nothing, and must
            come with `ledger=None`.

    Raises:
        UsageError: The arguments contradict each other, or `texts` is one string, or has no such column.
        CorpusError: A text is empty, too long or no text; or a label is missing. Named by its position.
        MechanismError: ε or η lies outside its domain, or nearly all tokens would stay as they are.
        BudgetError: A cap of the ledger would be exceeded; nothing is released.
        LedgerError: The ledger is busy, damaged, or cannot be written.
    """
    given = list_texts(texts, column=text_column)
    if text_column_2 is not None:
        if second_texts is not None:
            raise UsageError("second texts must be given once, got two of them; leave out second_texts or the column")
        second_texts = list_column(texts, text_column_2)
    seconds = None if second_texts is None else list_texts(second_texts, column=text_column)
    if seconds is not None and len(seconds) != len(given):
        raise UsageError(f"each text must have one second text, got {len(seconds)} for {len(given)} texts")
    if label_column is not None:
        if labels is not None:
            raise UsageError("labels must be given once, got labels and label_column; leave one of them out")
        labels = _find_column(texts, label_column)
    names = None if labels is None else name_labels(labels, count=len(given))
    if (label_epsilon is not None or classes is not None) and names is None:
        raise UsageError("classes and label_epsilon must come with labels; leave them out")
    if label_epsilon is not None and classes is None:
        raise UsageError(
            "labels that are randomized must be listed, because which of them occur is private too; give classes"
        )
    stream = secure_stream() if stream is None else stream
    stream.check_process()
    if privatizer is None:
        privatizer = _choose_privatizer(
            epsilon,
            eta,
            vocabulary=vocabulary,
            mechanism=mechanism,
            plain_tokens=plain_tokens,
            truncate_to=truncate_to,
            code=code,
            encoder=encoder,
            allow_large_epsilon=allow_large_epsilon,
            stream=stream,
        )
    elif epsilon is not None or eta is not None:
        raise UsageError("one guarantee must be named; give epsilon, eta or a privatizer, and not two of them")
    if policy is not None:
        privatizer = PolicyPrivatizer(privatizer, policy if isinstance(policy, Policy) else Policy.read(policy))
    if joins_pairs(privatizer, second=seconds is not None) and seconds is not None:
        given, seconds = [join_pair(*pair) for pair in zip(given, seconds, strict=True)], None
    parts: tuple[Part, ...] = () if seconds is None else ("second",)
    check = check_rows(
        _make_rows(given, names, seconds),
        found=Findings(collects=True),
        labelled=names is not None,
        parts=parts,
        privatizer=privatizer,
        labels=check_class_names(None if classes is None else name_labels(classes, count=len(classes))),
        public_labels=None,
    )
    if isinstance(privatizer, PolicyPrivatizer):
        privatizer.policy.save()
    kept = check_kept_shares(
        privatizer, check.counts, rng=secure_stream().generator, insist=None if allow_weak else "allow_weak=True"
    )
    privacy = None if label_epsilon is None else LabelPrivacy(epsilon=label_epsilon)
    response = None if privacy is None else RandomizedResponse(classes=len(check.labels or ()), epsilon=privacy.epsilon)
    manifest = privatizer.manifest(
        labels=check.labels, randomness=stream.provenance, label_privacy=privacy, pairs=seconds is not None
    )
    replayed = replace(manifest.arrangement, replayed=ledger is not None and not redraw)
    manifest = replace(manifest, arrangement=replayed)
    index = {name: place for place, name in enumerate(check.labels or ())}
    items = (
        SourceItem(
            text,
            None if names is None else index[names[place].strip()],
            {} if seconds is None else {"second": seconds[place]},
        )
        for place, text in enumerate(given)
    )
    chunks = cut_into_chunks(items, first_position=0, labelled=names is not None)
    counted: dict[str, Any] = {}
    with ExitStack() as opened:
        account = _open_account(ledger, opened)
        records = [
            record
            for part in privatize_chunks(
                chunks, ChunkSetting(privatizer, response, manifest), stream=stream, ledger=account, redraw=redraw
            )
            for record in part
        ]
        if account is not None:
            rows, head = account.head()
            counted = {"head": head, "rows": rows}
    file = PrivatizedFile(manifest=seal_manifest(manifest, records), records=tuple(records))
    return Privatized(file, kept, privatizer.vocabulary, None if account is None else account.path, counted)


def _choose_privatizer(
    epsilon: float | None,
    eta: float | None,
    *,
    vocabulary: str | Path,
    mechanism: str,
    plain_tokens: int,
    truncate_to: int | None,
    code: str | Path,
    encoder: str | Path | None,
    allow_large_epsilon: bool,
    stream: RandomStream,
) -> TextPrivatizer:
    if (epsilon is None) == (eta is None):
        raise UsageError("one guarantee must be named; give epsilon for whole texts, or eta for tokens, and not both")
    if epsilon is not None:
        if not allow_large_epsilon:
            refuse_large_epsilon(epsilon, insist="allow_large_epsilon=True")
        return load_code_privatizer(code, epsilon=epsilon, encoder=encoder)
    assert eta is not None
    check_eta(eta)
    table = load_vocabulary(vocabulary)
    plan = plan_plain_tokens(table, count=plain_tokens, pool_size=USUAL_POOL, drawn="record", rng=stream.generator)
    return Privatizer(
        vocabulary=table,
        mechanism=make_mechanism(mechanism, vocabulary=table, eta=eta),
        plain_tokens=plan,
        truncate_to=truncate_to,
    )


def _open_account(ledger: Ledger | Path | str | DefaultLedger | None, opened: ExitStack) -> Ledger | None:
    """Open the ledger that is asked for, until the stack closes; one that is open already stays so."""
    if ledger is None or isinstance(ledger, Ledger):
        return ledger
    path = find_ledger(Path.cwd() / FOLDER) if isinstance(ledger, DefaultLedger) else Path(ledger)
    if isinstance(ledger, DefaultLedger):
        make_folder(path)
    return opened.enter_context(open_ledger(path))


def list_texts(texts: Any, *, column: str) -> list[str]:
    """The texts of a list, an array, a column or a table, each of them a string."""
    found = check_texts(_list_values(_find_column(texts, column) if _is_table(texts) else texts), first_position=0)
    if not found:
        raise CorpusError("there must be at least one text, got 0")
    return found


def list_column(table: Any, name: str) -> list[str]:
    """The texts in a column of a table (`UsageError` for what is no table, or has no such column)."""
    return list_texts(_find_column(table, name), column=name)


def _is_table(value: Any) -> bool:
    """Whether a value has columns with names: pandas, polars, Arrow and `datasets` say so in one of two ways."""
    return hasattr(value, "column_names") or hasattr(value, "columns")


def _find_column(table: Any, name: str) -> Any:
    """The column of a table, raising `UsageError` for what is none or has none of this name."""
    if not _is_table(table):
        raise UsageError("a column must be of a table, got something else; give labels as a list")
    names = getattr(table, "column_names", None)
    if name not in list(table.columns if names is None else names):
        raise UsageError(f"the table must have the column {name!r}; name the one that holds it")
    return table[name]


def _list_values(column: Any) -> Any:
    """A column as a list of plain values; a string is left for `check_texts`, which refuses it."""
    if isinstance(column, str | bytes):
        return column
    for way in ("to_pylist", "to_list", "tolist"):  # Arrow; pandas and polars; NumPy
        if hasattr(column, way):
            return getattr(column, way)()
    # A mapping would give its names for texts, and a set has no order for labels to follow.
    if not isinstance(column, Iterable) or isinstance(column, Mapping | Set):
        raise UsageError(f"texts and labels must be lists, got {type(column).__name__}; put them into one")
    return list(column)


def name_labels(labels: Any, *, count: int) -> list[str]:
    """The name of each label: strings as they are, numbers and booleans as they print."""
    values = _list_values(labels)
    if isinstance(values, str | bytes):
        raise UsageError("labels must be a list with one label for each text, got a single string")
    if len(values) != count:
        raise UsageError(
            f"there must be one label for each text, got {write_count(len(values), 'label')} for "
            f"{write_count(count, 'text')}"
        )
    names = []
    for place, value in enumerate(values):
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise CorpusError(f"{name_record(place)} must have a label, got none; label it or leave it out")
        if not isinstance(value, str | int | float):
            raise UsageError(
                f"the label of {name_record(place)} must be a name or a number, got {type(value).__name__}"
            )
        if isinstance(value, float) and value.is_integer():  # what a table with gaps makes of whole numbers
            value = int(value)
        names.append(str(value))
    return names


def _make_rows(
    texts: Sequence[str], names: Sequence[str] | None, seconds: Sequence[str] | None
) -> Generator[Row | None, None, None]:
    """The records, as a file's reader gives them; a label is checked as one of a file."""
    check: Callable[[str, str], str | None] = Findings().label
    for place, text in enumerate(texts):
        label = None if names is None else check(name_record(place), names[place])
        yield Row(name_record(place), (text,) if seconds is None else (text, seconds[place]), label)
