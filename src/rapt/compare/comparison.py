"""A comparison from beginning to end, and a comparison read from a file: `rapt compare` prints what it finds."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

from rapt.cluster import Cluster
from rapt.command_line import rebuild_command
from rapt.compare.bench import run_comparison
from rapt.compare.plan import ARMS, LONGER, ComparisonPlan
from rapt.compare.report import write_comparison
from rapt.compare.summary import Summary, summarize
from rapt.compare.texts import Split, cut_texts, read_split
from rapt.errors import RaptError, UsageError
from rapt.local.vocabulary import load_vocabulary
from rapt.narration import SILENT, Narrator
from rapt.service.adapter.methods import LORA

T = TypeVar("T")

RESULTS: Final = "results.jsonl"
# Everything in a comparison's file is at most a few lines; more is another file.
_LONGEST_FILE: Final = 100_000


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """The labelled texts that a comparison trains and judges on.

    Attributes:
        training: Labelled texts to train on.
        evaluation: Labelled texts to judge on; None keeps a fifth of `training` for it.
        public: Public texts, for the arms whose plain tokens are sentences; None for none.
        cross_validate: Whether seeds take turns to judge on each fifth of `training`.
        text_column: Column that holds the text.
        text_column_2: Column that holds the second text of a pair; None for single texts.
        label_column: Column that holds the label.
        min_words: Words that a training text has at least.
        records: Texts to train on at most; None takes all.
        evaluation_records: Texts to judge on at most; None takes all.
        truncate: Tokens of the backbone after which a text is cut, for every arm; None refuses what is too long.
    """

    training: Path
    evaluation: Path | None = None
    public: Path | None = None
    cross_validate: bool = False
    text_column: str = "text"
    text_column_2: str | None = None
    label_column: str = "label"
    min_words: int = 1
    records: int | None = None
    evaluation_records: int | None = None
    truncate: int | None = None

    def read(self) -> Split:
        """The texts, split. Raises as `read_split`."""
        return read_split(
            self.training,
            evaluation=self.evaluation,
            public=self.public,
            training_records=self.records,
            evaluation_records=self.evaluation_records,
            text_column=self.text_column,
            label_column=self.label_column,
            text_column_2=self.text_column_2,
            min_words=self.min_words,
            cross_validate=self.cross_validate,
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Description of a comparison: its arms, its texts, and the folder of its results.

    Attributes:
        plan: Arms, settings and seeds.
        texts: Files of labelled texts.
        out: Folder for results and report; a comparison that was cut off goes on there.
        processes: Models that are trained at once, a thread each.
    """

    plan: ComparisonPlan
    texts: TextFiles
    out: Path
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """Findings of a comparison, and the path of its page."""

    page: Path
    summary: Summary


def list_possible_arms(
    *,
    denoised: bool,
    public: bool,
    method: str,
    etas: bool = True,
    codes: bool = False,
    epsilons: bool = False,
    policy: bool = False,
) -> tuple[str, ...]:
    """The arms that can be run; those on codes and at home only where a code is given.

    Args:
        denoised: Whether there is a backbone that expects noise.
        public: Whether there are public texts.
        method: Tuning method; LoRA has no prompt that could be longer.
        etas: Whether there is an η.
        codes: Whether there is a code of whole texts.
        epsilons: Whether there is an ε.
        policy: Whether there is an entity policy.
    """
    able = {"token": etas or not codes, "home": codes, "text": codes and epsilons}
    return tuple(
        name
        for name, arm in ARMS.items()
        if (denoised or not arm.denoised)
        and (public or not arm.sentences)
        and (policy or not arm.policy)
        and (method != LORA or name != LONGER)
        and (able[arm.unit] or arm.clean)
    )


def compare_files(
    comparison: Comparison, *, narrator: Narrator = SILENT, cluster: Cluster | None = None
) -> ComparisonReport:
    """Train every model of a comparison that is not trained yet, and write the report.

    Args:
        comparison: Description of the comparison.
        narrator: Takes the progress.
        cluster: Ray cluster whose tasks train the models; None trains them here.

    Raises:
        ClusterError: The cluster was lost; models that were trained are kept.
        UsageError: The folder cannot be written, or holds results of other texts or another plan.
        CorpusError: The texts cannot be read or compared.
        RaptError: A model cannot be trained; those that were are kept.
    """
    plan, texts, out = comparison.plan, comparison.texts, comparison.out
    split = texts.read()
    if texts.truncate is not None:
        split = cut_texts(split, vocabulary=load_vocabulary(plan.model), most=texts.truncate, narrator=narrator)
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"`out` must be a folder, got {error.strerror}; choose another") from None
    try:
        with narrator.meter("comparing", unit="results") as meter:
            rows = run_comparison(
                plan,
                split,
                results=out / RESULTS,
                processes=comparison.processes,
                cluster=cluster,
                on_row=lambda done, total: meter(done, total=total),
            )
    except RaptError:
        if made:
            _remove_if_empty(out)
        raise
    named = [turn.most_frequent_label_is_right for turn in split.turns]
    summary = summarize(rows, most_frequent_label=named, turns=len(split.turns))
    page = write_comparison(
        plan,
        split,
        summary,
        out,
        title=f"Comparison on {texts.training.name}",
        created=datetime.now(UTC).date().isoformat(),
        command=rebuild_comparison(plan, texts, split),
    )
    narrator.say(f"report: {page}")
    return ComparisonReport(page=page, summary=summary)


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but a file for results without a line."""
    with suppress(OSError):
        if (folder / RESULTS).stat().st_size == 0:
            (folder / RESULTS).unlink()
    with suppress(OSError):
        folder.rmdir()


def rebuild_comparison(plan: ComparisonPlan, texts: TextFiles, split: Split) -> str:
    """The line that makes the numbers again; of as many texts as were there."""
    return rebuild_command(
        "compare",
        texts.training,
        out="comparison",
        model=Path(plan.model),
        eta=plan.etas,
        evaluation=texts.evaluation,
        cross_validate=bool(split.further),
        public=texts.public,
        denoised=None if plan.denoised is None else Path(plan.denoised),
        policy=None if plan.policy is None else Path(plan.policy),
        epsilon=plan.epsilons,
        codes=None if plan.codes is None else Path(plan.codes),
        encoder=None if plan.encoder is None else Path(plan.encoder),
        crowd=None if plan.crowds == (0,) else plan.crowds,
        own_texts=plan.own_texts if plan.codes is not None else None,
        text_column=texts.text_column,
        text_column_2=texts.text_column_2,
        label_column=texts.label_column,
        mechanism=plan.mechanism,
        set=plan.options,
        min_words=texts.min_words,
        truncate=texts.truncate,
        records=max(len(turn.training) for turn in split.turns),
        evaluation_records=len(split.evaluation),
        arms=",".join(plan.arms),
        seeds=len(plan.seeds),
        privatizations=plan.privatizations,
        plain_tokens=plan.plain_tokens,
        plain_pool=plan.plain_pool,
        weight=plan.weight,
        plain_tokens_drawn=plan.plain_drawn,
        allow_unproved=plan.allow_unproved,
        precision=plan.precision,
        method=plan.method,
        epochs=plan.epochs,
        prompt_length=plan.prompt_length,
        learning_rate=plan.learning_rate,
        attacks=",".join(plan.attacks) or None,
        attack_tokens=plan.attack_tokens if plan.attacks else None,
    )


def read_comparison(path: Path, *, out: Path, processes: int = 1) -> Comparison:
    """The comparison that a TOML file describes: fields of `ComparisonPlan`, and of `TextFiles` in a table `texts`.

    Files and folders are named relative to the file. `seeds` may be a number: so many, from 0 on. `arms` may be left
    out: all that can be run.

    Args:
        path: TOML file with the plan.
        out: Folder for results and report.
        processes: Processes, as in `Comparison`.

    Raises:
        UsageError: The file cannot be read, or a field is unknown, missing or of another type.
    """
    try:
        content = path.read_bytes()
        if len(content) > _LONGEST_FILE:
            raise UsageError(f"a comparison's file must have at most {_LONGEST_FILE:,} bytes, got {len(content):,}")
        values = tomllib.loads(content.decode())
    except OSError as error:
        raise UsageError(f"a comparison's file must be readable, got {error.strerror}; name another") from None
    except ValueError:
        raise UsageError("a comparison's file must be TOML in UTF-8; see docs/tuning.md for one") from None
    named = values.pop("texts", None)
    if not isinstance(named, dict):
        raise UsageError("a comparison's file must have a table [texts] with a file `training`; add it")
    texts = _fill(TextFiles, named, folder=path.parent, where="[texts]")
    if isinstance(values.get("seeds"), int) and not isinstance(values["seeds"], bool):
        values["seeds"] = list(range(values["seeds"]))
    for name in ("model", "denoised", "codes", "encoder"):  # names of known models stay what they are
        if isinstance(values.get(name), str) and (path.parent / values[name]).is_dir():
            values[name] = str(path.parent / values[name])
    if isinstance(values.get("policy"), str):
        values["policy"] = str(path.parent / values["policy"])
    if "arms" not in values:
        method = values.get("method", ComparisonPlan.method)
        values["arms"] = list(
            list_possible_arms(
                denoised="denoised" in values,
                public=texts.public is not None,
                method=str(method),
                etas=bool(values.get("etas")),
                codes="codes" in values,
                epsilons=bool(values.get("epsilons")),
                policy="policy" in values,
            )
        )
    plan = _fill(ComparisonPlan, values, folder=path.parent, where="the file")
    return Comparison(plan=plan, texts=texts, out=out, processes=processes)


def _fill(kind: type[T], values: Mapping[str, Any], *, folder: Path, where: str) -> T:
    """A dataclass with these values, each of the type of its field."""
    hints = get_type_hints(kind)
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]  # both are dataclasses
    if unknown := sorted(set(values) - names):
        raise UsageError(f"{len(unknown)} fields of {where} are unknown; choose among {', '.join(sorted(names))}")
    found = {name: _read_field(value, hints[name], name=name, folder=folder) for name, value in values.items()}
    try:
        return kind(**found)
    except TypeError:
        raise UsageError(f"{where} must have every field without a default; see docs/tuning.md") from None


def _read_field(value: Any, kind: Any, *, name: str, folder: Path) -> Any:
    if isinstance(kind, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if kind is Path and isinstance(value, str):
        return folder / value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    origin = get_origin(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_read_field(one, get_args(kind)[0], name=name, folder=folder) for one in value)
    if origin is Mapping and isinstance(value, dict):
        return value
    if value in get_args(kind) or (isinstance(kind, type) and type(value) is kind):
        return value
    raise UsageError(f"the field {name} must be of another type, got {type(value).__name__}; see docs/tuning.md")
