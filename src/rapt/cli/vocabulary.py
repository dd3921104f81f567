"""`rapt vocabulary`: get the tokens and distances that a text is privatized with, as a folder."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rapt.cli.options import (
    ApiKey,
    AsJson,
    CaFile,
    Eta,
    Insecure,
    MechanismOptions,
    ServiceUrl,
    TrustVocabulary,
    read_options,
)
from rapt.cli.output import say, show, show_json
from rapt.errors import UsageError, VocabularyError


class Case(StrEnum):
    """How the case of texts is treated before their words are looked up."""

    AUTO = "auto"
    LOWER = "lower"
    KEEP = "keep"


vocabulary = typer.Typer(help="Get the vocabulary that a text is privatized with.")


@vocabulary.callback()
def group() -> None:
    """Get the vocabulary that a text is privatized with."""


@vocabulary.command()
def fetch(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")],
    service: ServiceUrl,
    model: Annotated[str, typer.Option(help="Base model of the service, such as minilm.")] = "minilm",
    api_key: ApiKey = None,
    ca_file: CaFile = None,
    insecure: Insecure = False,
    trust_vocabulary: TrustVocabulary = False,
    as_json: AsJson = False,
) -> None:
    """Download a model's vocabulary and check it.

    That is its tokenizer and its embedding table. Its hash must be that of its files, and of the known model of that
    name. Row by row it is compared with this machine's copy, if there is one; those of a model that nobody knows must
    follow one law, for a service could move some words so far out that noise does not hide them. The folder is what
    `--vocabulary` of the other commands takes.

    \b
    Example:
      rapt vocabulary fetch minilm-vocabulary --service http://127.0.0.1:8420
    """
    import shutil

    from rapt.local.client import ServiceClient
    from rapt.local.vocabulary import Vocabulary
    from rapt.local.vocabulary_check import check_vocabulary, count_different_rows, find_local_copy

    check_new(target)
    with ServiceClient(service, api_key=api_key, ca_file=ca_file, insecure=insecure, on_retry=say) as client:
        bundle = client.vocabulary(model, target)
    copy = find_local_copy(model)
    different = None if copy is None else count_different_rows(bundle, copy.bundle)
    if different is not None:
        rows = f"{different:,} of {len(bundle.embeddings):,} rows" if different else "no row"
        say(f"rapt: {rows} of this vocabulary differ{'' if different else 's'} from this machine's copy of {model}")
    try:
        check_vocabulary(Vocabulary(bundle), trusted=trust_vocabulary, asked=model)
        if different and not trust_vocabulary:
            raise VocabularyError(
                f"a vocabulary must be the one of its name on this machine, got {different:,} other rows; "
                "use that one, or add --trust-vocabulary"
            )
    except VocabularyError:
        shutil.rmtree(target)  # nobody is to privatize with it by mistake
        raise
    if as_json:
        show_json(
            {"folder": str(target), "model": bundle.model, "hash": bundle.hash, "rows_different_from_local": different}
        )
        return
    show(str(target))
    say(f"{bundle.model}: {len(bundle.embeddings):,} tokens, {bundle.hash}")


@vocabulary.command()
def vectors(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="Word vectors: a word and its numbers on each line, or word2vec's binary."),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")],
    case: Annotated[
        Case, typer.Option(help="Case of texts: lowered, kept, or (auto) lowered if no word of IN has a capital.")
    ] = Case.AUTO,
    as_json: AsJson = False,
) -> None:
    """Make a vocabulary of the word vectors of GloVe, word2vec or fastText, compressed with gzip or not.

    The folder loads faster than IN, and its hash says which vectors a file was privatized with. A word outside becomes
    the unknown token, whose vector is the mean of all, and is privatized like any other.

    \b
    Example:
      rapt vocabulary vectors glove.6B.100d.txt glove-vocabulary
    """
    from rapt.local.word_vectors import read_word_vectors
    from rapt.wire.vocabulary_bundle import write_bundle

    check_new(target)
    lowercase = None if case is Case.AUTO else case is Case.LOWER
    bundle = read_word_vectors(source, lowercase=lowercase, remark=lambda line: say(f"rapt: {line}"))
    write_bundle(bundle, target)
    if as_json:
        show_json({"folder": str(target), "model": bundle.model, "hash": bundle.hash})
        return
    show(str(target))
    say(f"{bundle.model}: {len(bundle.embeddings):,} words, {bundle.hash}")


def check_new(target: Path) -> None:
    """Refuse a folder whose name is taken, be it by a link that leads nowhere (`UsageError`)."""
    if os.path.lexists(target):
        raise UsageError(f"the output must not exist yet, got {str(target)!r}; choose another folder")


@vocabulary.command()
def certify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Vocabulary as `fetch` and `vectors` write it.")],
    eta: Eta,
    mechanism: Annotated[str, typer.Option(help="exponential or soft-pos.")] = "exponential",
    settings: MechanismOptions = None,
    as_json: AsJson = False,
) -> None:
    """Compute the exact largest slope of a mechanism on this vocabulary, and save the certificate beside it.

    With --set calibrated=true the other commands then use the largest beta whose slope, over all pairs of tokens and
    all outputs, is at most eta. The search takes minutes, once for a vocabulary, mechanism and eta. The copy in FOLDER
    is for readers; commands take theirs from the user's cache folder, because FOLDER may come from a service.

    \b
    Example:
      rapt vocabulary certify minilm-vocabulary --eta 14
    """
    from dataclasses import asdict

    from rapt.local.mechanisms import MECHANISMS, make_mechanism
    from rapt.local.mechanisms.certificate import save_beside
    from rapt.local.mechanisms.exponential import ScoredMechanism
    from rapt.local.vocabulary import load_vocabulary

    names = [name for name, kind in MECHANISMS.items() if "calibrated" in kind.options]
    if mechanism not in names:
        raise UsageError(f"a certificate must be for {' or '.join(names)}, got mechanism={mechanism!r}; choose one")
    if not (folder / "vocabulary.json").is_file():
        raise UsageError("a certificate must be for a vocabulary folder; make one with fetch or vectors")
    loaded = load_vocabulary(str(folder))
    options = read_options(mechanism, settings) | {"calibrated": True}
    say("computing the largest slope: minutes for 30,000 tokens, unless it was done before")
    made = make_mechanism(mechanism, vocabulary=loaded, eta=eta, options=options)
    assert isinstance(made, ScoredMechanism)
    certificate = made.certificate
    assert certificate is not None
    path = save_beside(certificate, folder)
    if as_json:
        show_json({"file": str(path)} | asdict(certificate))
        return
    show(str(path))
    say(
        f"beta = {certificate.beta:.6g}, its largest slope {certificate.slope:.6g} is at most eta = {eta:g}; without a "
        f"certificate beta is {eta / 2:g}"
    )
