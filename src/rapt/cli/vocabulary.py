"""`rapt vocabulary`: get the tokens and distances that a text is privatized with, as a folder."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from rapt.cli.options import (
    AsJson,
    Eta,
    MechanismOptions,
    TrustVocabulary,
    read_options,
)
from rapt.cli.output import meter, say, show, show_json
from rapt.cli.profiles import ServiceAccess, asks_a_service
from rapt.errors import RaptError, UsageError, VocabularyError


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
@asks_a_service
def fetch(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")],
    access: ServiceAccess,
    model: Annotated[str, typer.Option(help="Base model of the service, such as minilm.")] = "minilm",
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

    from rapt.local.vocabulary import Vocabulary
    from rapt.local.vocabulary_check import check_vocabulary, count_different_rows, find_local_copy

    check_new(target)
    with access.open() as client:
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


@vocabulary.command("show")
def show_figures(
    model: Annotated[str, typer.Argument(metavar="DIR|NAME", help="Model or vocabulary: a known name, or a folder.")],
    table_only: Annotated[
        bool, typer.Option("--table-only", help="Look at tokenizer and table alone, and load no model.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether text can be privatized with a model or vocabulary, and whether the model can be served.

    η is that of the Laplace mechanism at which half of running public text stays. Serving is tried on this machine, by
    the laws that `rapt serve` holds a model to; what breaks one is named.

    \b
    Examples:
      rapt vocabulary show minilm
      rapt vocabulary show ~/models/Qwen3-0.6B --table-only
    """
    from dataclasses import asdict

    from rapt.local.calibration import measure_figures
    from rapt.local.randomness import secure_stream
    from rapt.local.vocabulary import load_vocabulary
    from rapt.local.vocabulary_check import check_vocabulary

    loaded = load_vocabulary(model)
    trusted, because = True, None
    try:
        check_vocabulary(loaded)
    except VocabularyError as error:
        trusted, because = False, str(error)
    with meter("measuring", unit="values of η tried") as progress:
        found = measure_figures(loaded, rng=secure_stream().generator, on_progress=lambda tried: progress(tried))
    served: dict[str, Any] = {"serves": None, "because": "not asked for"} if table_only else try_serving(model)
    if as_json:
        privatizes = {"privatizes": trusted, "because": because}
        show_json({"model": loaded.model, "hash": loaded.hash, **privatizes, **asdict(found), "serving": served})
        return
    half = "no η keeps half of it" if found.half_eta is None else f"η = {found.half_eta:.4g}"
    speed = "" if found.tokens_a_second is None else f", {found.tokens_a_second:,.0f} tokens a second there"
    show(f"{loaded.model}  {loaded.hash}")
    show(f"table       {found.tokens:,} tokens of {found.dimension:,} numbers, {found.table_bytes / 1e6:.1f} MB")
    show(f"privatizes  {f'{found.eligible:,} tokens may be put out' if trusted else f'no: {because}'}")
    show(f"half stays  {half}, over running public text{speed}")
    if served["serves"]:
        words = "label words" if served["label_words"] else "no label words"
        show(f"serves      {served['kind']}, {words}: {', '.join(served['methods'])}")
    else:
        show(f"serves      {'not known' if served['serves'] is None else 'no'}: {served['because']}")


def try_serving(model: str) -> dict[str, Any]:
    """Whether this machine can serve a model, and by what it can be tuned; else why not."""
    from rapt.lazy_names import is_installed

    if (Path(model) / "vocabulary.json").is_file():
        return {"serves": None, "because": "this folder holds a vocabulary and no model"}
    if not (is_installed("torch") and is_installed("transformers")):
        return {"serves": None, "because": "the extra [service] of this program is not installed here"}
    from rapt.service.adapter.adapter_check import list_methods
    from rapt.service.answers.decoding import check_cached_writing
    from rapt.service.backbone.opening import load_backbone

    try:
        backbone = load_backbone(model, precision="float32")
        if backbone.kind != "encoder":
            check_cached_writing(backbone)
    except RaptError as error:
        return {"serves": False, "because": str(error)}
    return {
        "serves": True,
        "kind": backbone.kind,
        "methods": list(list_methods(backbone)),
        "label_words": backbone.language_head is not None,
        "writes_text": backbone.kind != "encoder",
    }


@vocabulary.command()
def download(
    model: Annotated[
        str, typer.Argument(metavar="OWNER/NAME@COMMIT", help="Model of the hub, and its commit in full.")
    ],
    as_json: AsJson = False,
) -> None:
    """Download one commit of a model from the Hugging Face hub into its local cache.

    The other commands never do: they take the same name, and find what is in the cache. Files that can run code are not
    fetched. Needs the package huggingface_hub.

    \b
    Example:
      rapt vocabulary download someone/model@0123456789abcdef0123456789abcdef01234567
    """
    from rapt.public_models import download_model, find_model_folder, name_model
    from rapt.wire.vocabulary_bundle import read_model_bundle

    folder = download_model(model)
    bundle = read_model_bundle(find_model_folder(model), model=name_model(model))
    if as_json:
        show_json({"folder": str(folder), "model": bundle.model, "hash": bundle.hash})
        return
    show(str(folder))
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
    mechanism: Annotated[str, typer.Option(help="Mechanism of the table: exponential or soft-pos.")] = "exponential",
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
