"""`rapt statement`: what a setting promises, in numbers and words, and what it does not protect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapt.cli.chosen_mechanism import choose_mechanism, mechanism_of_file
from rapt.cli.options import AllowUnproved, AsJson, MechanismOptions
from rapt.cli.output import show, show_json
from rapt.errors import UsageError

if TYPE_CHECKING:
    from rapt.wire.manifest import Manifest


def statement(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Privatized file whose setting is meant.")
    ] = None,
    eta: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Slope in 1/embedding distance, when there is no FILE yet.")
    ] = None,
    mechanism: Annotated[str, typer.Option(help="What replaces a token; only with --eta.")] = "laplace",
    settings: MechanismOptions = None,
    allow_unproved: AllowUnproved = False,
    vocabulary: Annotated[
        str | None, typer.Option(help="Known model, model folder or fetched bundle; default: FILE's model, or minilm.")
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD,WORD", help="Show how well these two words are kept apart; repeat."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a setting protects, and what it does not.

    The setting is that of a privatized FILE, or the one given by --eta before there is a file.

    \b
    Examples:
      rapt statement reviews.rapt.jsonl
      rapt statement --eta 75 --pair london,paris --pair london,cancer
    """
    from rapt.local.deniability import plausible_deniability
    from rapt.local.guarantee import privacy_statement
    from rapt.local.randomness import secure_stream
    from rapt.local.unchanged import measure_unchanged
    from rapt.local.vocabulary import load_vocabulary
    from rapt.wire.manifest import NO_PLAIN_TOKENS
    from rapt.wire.vocabulary_bundle import check_hash

    pairs = tuple(split_pair(text) for text in pair or ())
    if (file is None) == (eta is None):
        raise UsageError("a statement is about one setting: give a privatized FILE, or --eta, and not both")
    if file is not None:
        manifest = read_manifest(file)
        table = load_vocabulary(vocabulary or manifest.model)
        check_hash(table.bundle, expected=manifest.vocabulary_hash)
        made = mechanism_of_file(manifest.mechanism, vocabulary=table, settings=settings)
        setting, plain_tokens, randomness = manifest.mechanism, manifest.plain_tokens, manifest.randomness
        labels_sent, label_privacy = manifest.labels is not None, manifest.label_privacy
        two_texts, targets = manifest.pairs, manifest.targets
    else:
        assert eta is not None
        table = load_vocabulary(vocabulary or "minilm")
        made = choose_mechanism(mechanism, vocabulary=table, eta=eta, settings=settings, allow_unproved=allow_unproved)
        setting, plain_tokens, randomness = made.setting, NO_PLAIN_TOKENS, None
        labels_sent, label_privacy = True, None
        two_texts, targets = False, None
    rng = secure_stream().generator
    found = privacy_statement(
        table,
        setting,
        plain_tokens=plain_tokens,
        labels_sent=labels_sent,
        label_privacy=label_privacy,
        two_texts=two_texts,
        targets=targets,
        word_pairs=pairs,
        randomness=randomness,
        unchanged=measure_unchanged(made, table, rng=rng),
        deniability=plausible_deniability(made, table, rng=rng),
    )
    if as_json:
        show_json(found.to_json())
    else:
        show(found.to_text())


def read_manifest(path: Path) -> Manifest:
    """The manifest of a privatized file; the records behind it are not read.

    Raises:
        CorpusError: The file cannot be opened.
        WireError: It does not begin with a manifest.
    """
    from rapt.errors import CorpusError
    from rapt.wire.manifest import Manifest
    from rapt.wire.privatized_file import iterate_privatized_lines

    try:
        with path.open("rb") as stream:
            manifest = next(iterate_privatized_lines(stream))
    except OSError as error:
        raise CorpusError(
            f"a privatized file must be readable, got {error.strerror or type(error).__name__}; check the path"
        ) from None
    assert isinstance(manifest, Manifest)
    return manifest


def split_pair(pair: str) -> tuple[str, str]:
    """The two words in `word,word` (`UsageError`)."""
    first, comma, second = (part.strip() for part in pair.partition(","))
    if not (first and comma and second) or "," in second:
        raise UsageError("--pair must be two words with a comma between them, such as --pair london,paris")
    return first, second
