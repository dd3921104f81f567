"""`rapt privatize`: a file of texts becomes a file of random codes, or random tokens, that may leave the machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rapt.cli.ledger import (
    LedgerKey,
    Of,
    check_receipt,
    choose_ledger,
    read_key_place,
    refuse_key,
    say_what_was_counted,
)
from rapt.cli.options import (
    AllowLargeEpsilon,
    AllowUnproved,
    AllowWeak,
    AsJson,
    Cap,
    ChosenEngine,
    CodeEncoder,
    CodeName,
    Drawn,
    Engine,
    LabelCap,
    MechanismName,
    MechanismOptions,
    PolicyFile,
    RayAddress,
    TextEpsilon,
    TokenEta,
    Truncate,
    TrustVocabulary,
    VocabularyName,
    choose_mechanism,
    load_checked_vocabulary,
    open_engine,
    read_policy,
    refuse_options,
    take_standard_input,
)
from rapt.cli.output import meter, say, show, show_file, show_json
from rapt.errors import UsageError
from rapt.narration import write_count

if TYPE_CHECKING:
    from rapt.local.codes.code_privatizer import CodePrivatizer
    from rapt.local.privatizer import TextPrivatizer

# Options that say something of tokens, and of codes, by the names of the arguments.
_OF_TOKENS: Final = {
    "mechanism": "--mechanism",
    "settings": "--set",
    "allow_unproved": "--allow-unproved",
    "allow_weak": "--allow-weak",
    "vocabulary": "--vocabulary",
    "trust_vocabulary": "--trust-vocabulary",
    "unknown_words": "--unknown-words",
    "target_column": "--target-column",
    "public_target": "--public-target",
    "plain_tokens": "--plain-tokens",
    "plain_token_pool": "--plain-token-pool",
    "plain_tokens_drawn": "--plain-tokens-drawn",
    "truncate": "--truncate",
    "length_bucket": "--length-bucket",
}
_OF_CODES: Final = {"codes": "--codes", "encoder": "--encoder", "allow_large_epsilon": "--allow-large-epsilon"}


class Format(StrEnum):
    """Formats of a file of texts."""

    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    PARQUET = "parquet"
    DATASET = "dataset"


class UnknownWords(StrEnum):
    """Treatment of a word that the vocabulary does not know."""

    UNK = "unk"
    REFUSE = "refuse"


def privatize(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            callback=take_standard_input,
            help="CSV, TSV, JSON (an object a line, or one array) or Parquet with one text a row; a folder of Parquet "
            "shards, or a saved dataset. CSV, TSV and JSON also compressed as .gz or .zst. - is standard input, with "
            "--format; it is kept in memory alone.",
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Privatized file to write: JSONL of token ids. - is standard output."),
    ],
    epsilon: TextEpsilon = None,
    codes: CodeName = "minilm-codes",
    encoder: CodeEncoder = None,
    allow_large_epsilon: AllowLargeEpsilon = False,
    eta: TokenEta = None,
    mechanism: MechanismName = "laplace",
    settings: MechanismOptions = None,
    allow_unproved: AllowUnproved = False,
    allow_weak: AllowWeak = False,
    vocabulary: VocabularyName = "minilm",
    trust_vocabulary: TrustVocabulary = False,
    unknown_words: Annotated[
        UnknownWords,
        typer.Option(help="A word outside the vocabulary becomes the unknown token and is privatized, or is refused."),
    ] = UnknownWords.UNK,
    policy: PolicyFile = None,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    text_column_2: Annotated[
        str | None,
        typer.Option("--text-column-2", metavar="NAME", help="Column of the second text of a pair; privatized too."),
    ] = None,
    target_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of a text to be generated; privatized too.")
    ] = None,
    public_target: Annotated[
        bool, typer.Option("--public-target", help="The targets are public: send them as they are.")
    ] = False,
    label_column: Annotated[str, typer.Option(help="Column that holds the label; it is sent in clear.")] = "label",
    delimiter: Annotated[
        str | None,
        typer.Option(
            metavar="CHARACTER",
            help="Separator of the fields of CSV and TSV; default: the one that gives the named columns.",
        ),
    ] = None,
    no_header: Annotated[
        bool, typer.Option("--no-header", help="The first line is a record; give columns as numbers from 1.")
    ] = False,
    no_label: Annotated[bool, typer.Option("--no-label", help="Leave the labels out of the file.")] = False,
    labels: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Names of all classes in order; default: those found, sorted.")
    ] = None,
    public_labels: Annotated[
        bool,
        typer.Option("--public-labels", help="The labels are public: send them even if they are many, long or unique."),
    ] = False,
    label_epsilon: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Send each label by randomized response with this ε instead of in clear; 1 keeps 73 % of two classes. "
            "Needs --labels: which classes occur is private too.",
        ),
    ] = None,
    plain_tokens: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Number of public plain tokens before each text, for reconstruction; 0 for none."
        ),
    ] = 20,
    plain_token_pool: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of words that plain tokens are drawn from.")
    ] = 500,
    plain_tokens_drawn: Annotated[
        Drawn, typer.Option(help="One sequence for the whole file, or a fresh one for each record.")
    ] = Drawn.RECORD,
    truncate: Truncate = None,
    insecure_seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Use repeatable noise, for tests only: it protects nothing, and OUT says so."
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ledger that counts every release; a text that was released before is sent as it was then. Default: "
            ".rapt/ledger.sqlite in the folder of OUT or above, begun beside OUT where there is none.",
        ),
    ] = None,
    no_ledger: Annotated[
        bool, typer.Option("--no-ledger", help="Count nothing, and draw every text anew, whatever was released before.")
    ] = False,
    ledger_key: LedgerKey = None,
    cap: Cap = None,
    label_cap: LabelCap = None,
    redraw: Annotated[
        bool, typer.Option("--redraw", help="Draw anew and pay again for texts and labels released before.")
    ] = False,
    length_bucket: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Multiple that the number of tokens of each text is rounded up to, with public words that are "
            "privatized too; default: none.",
        ),
    ] = None,
    shuffle: Annotated[
        bool | None,
        typer.Option(
            "--shuffle/--keep-order",
            help="Order of the records in OUT: drawn at random, or that of IN.  [default: --shuffle for texts with "
            "labels or targets, --keep-order for queries]",
            show_default=False,
        ),
    ] = None,
    receipt: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File for the receipt of the run; it stays here.  [default: a file beside the ledger, or none]",
        ),
    ] = None,
    skip_empty: Annotated[
        bool,
        typer.Option("--skip-empty", help="Pass over records with an empty text, and blank lines, and say how many."),
    ] = False,
    file_format: Annotated[
        Format | None, typer.Option("--format", help="Format of IN; default: by the suffix of its name.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue where an earlier run with the same settings was killed."),
    ] = False,
    processes: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Worker processes, each with noise and a table of its own; or cores of a Ray that is started here.",
        ),
    ] = 1,
    engine: ChosenEngine = Engine.LOCAL,
    ray_address: RayAddress = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT, or an unfinished OUT.partial.")] = False,
    as_json: AsJson = False,
) -> None:
    """Replace every text by a random code of the whole text, or every token by a random one.

    With --epsilon a text becomes the id of a codeword near it, or of another: no two texts, of any length, can be told
    apart at better odds than e^ε : 1. With --eta each token is replaced, stop words, numbers and punctuation too: that
    is metric differential privacy, a token at a time, and the number of tokens stays as it is. Labels and the order of
    the texts stay as they are; see `rapt statement`. OUT appears only when it is whole. With --resume a run that fails
    leaves OUT.partial, and the same command goes on from there.

    A ledger counts what was released of each text, begun in the folder of OUT unless one is found there or above. A
    text whose tokens were released before with the same setting is sent as it was then, and costs nothing: whoever sees
    both files, or both records, sees that it is the same text. Two texts of one record are never sent as one release.

    With --policy names, numbers and addresses are masked before that, or get pseudonyms, or an eta of their own.

    \b
    Examples:
      rapt privatize reviews.csv reviews.codes.jsonl --epsilon 4
      rapt privatize reviews.csv reviews.rapt.jsonl --eta 75 --text-column review --label-column stars
      rapt privatize reviews.csv reviews.rapt.jsonl --eta 75 --cap 150
      rapt privatize pairs.csv pairs.rapt.jsonl --eta 75 --text-column sentence1 --text-column-2 sentence2
      rapt privatize large.parquet large.rapt.jsonl --eta 75 --resume --processes 2
      rapt privatize chats.jsonl out --eta 75 --no-label --text-column messages.user --target-column messages.assistant
      rapt privatize huge.parquet huge.codes.jsonl --epsilon 4 --resume --engine ray --ray-address 10.0.0.5:6379
      zcat logs.csv.gz | rapt privatize - - --format csv --eta 75 | rapt tune -
    """
    from rapt.local.corpus import CorpusCheck, ReadingProgress, check_output, privatize_corpus
    from rapt.local.kept_share import KeptShares, check_kept_shares
    from rapt.local.ledger_place import describe_run, name_receipt, refuse_ledger_files, write_receipt
    from rapt.local.policy.policy_privatizer import PolicyPrivatizer
    from rapt.local.privatizer import Privatizer, plan_plain_tokens
    from rapt.local.randomness import insecure_stream, secure_stream
    from rapt.local.records import PartColumns, make_order_key
    from rapt.narration import Pace
    from rapt.wire.manifest import LabelPrivacy
    from rapt.wire.mechanism_setting import check_eta

    to_stdout = str(target) == "-"
    if to_stdout and (as_json or resume or overwrite):
        raise UsageError(
            "an output on standard output must be all that stands there, in one run; leave out --json, --resume and "
            "--overwrite, or name a file"
        )
    if (eta is None) == (epsilon is None):
        raise UsageError(
            "one guarantee must be named: give --epsilon for whole texts, or --eta for tokens, and not both"
        )
    refuse_other_unit(context, epsilon=epsilon)
    if eta is not None:
        check_eta(eta)
    label_privacy = None if label_epsilon is None else LabelPrivacy(epsilon=label_epsilon)
    if no_label and label_privacy is not None:
        raise UsageError("--label-epsilon and --no-label exclude each other; give one of them")
    if public_target and target_column is None:
        raise UsageError("--public-target must come with --target-column; name the column")
    project = target  # its folder is where the ledger is looked for: for `-` the one that we are in
    if to_stdout:
        waiting = TemporaryDirectory()  # of what may leave: nothing goes out before all of it is there
        context.call_on_close(waiting.cleanup)
        target = Path(waiting.name) / "privatized.jsonl"
    check_output(target, source=source, overwrite=overwrite)
    rules = read_policy(policy)
    if policy is not None and rules is not None:
        of_policy = (policy, *(() if rules.names is None else rules.names.files))
        for path in (target, *(() if receipt is None else (receipt,))):
            if path.resolve() in [file.resolve() for file in of_policy]:
                raise UsageError(
                    "the output must be another file than the policy, its map and their key; choose another name"
                )
    key = read_key_place(ledger_key)
    if receipt is not None:
        check_receipt(receipt, used=(source, target, key if isinstance(key, Path) else None), overwrite=overwrite)
    account = choose_ledger(
        project,
        ledger=ledger,
        no_ledger=no_ledger,
        key=key,
        cap=cap,
        label_cap=label_cap,
        redraw=redraw,
        seeded=insecure_seed is not None,
        of=Of.METRIC if epsilon is None else Of.TEXT,
    )
    if account is not None:
        refuse_ledger_files(target, source, ledger=account.path, key=account.key)
        if receipt is not None:
            refuse_ledger_files(receipt, source, ledger=account.path, key=account.key)
    refuse_key(target)
    replaced = overwrite and target.exists()
    stream = secure_stream() if insecure_seed is None else insecure_stream(insecure_seed)
    if insecure_seed is not None:
        say("rapt: warning: anybody who knows --insecure-seed can undo this file; use it for tests only")
    privatizer: TextPrivatizer
    if epsilon is not None:
        privatizer = load_codes(codes, epsilon=epsilon, encoder=encoder, allow_large=allow_large_epsilon)
    else:
        assert eta is not None
        table = load_checked_vocabulary(vocabulary, trusted=trust_vocabulary, unknown=unknown_words.value)
        made = choose_mechanism(mechanism, vocabulary=table, eta=eta, settings=settings, allow_unproved=allow_unproved)
        privatizer = Privatizer(
            vocabulary=table,
            mechanism=made,
            plain_tokens=plan_plain_tokens(
                table,
                count=plain_tokens,
                pool_size=plain_token_pool,
                drawn=plain_tokens_drawn.value,
                rng=stream.generator,
            ),
            truncate_to=truncate,
            length_bucket=length_bucket,
        )
    if rules is not None:
        privatizer = PolicyPrivatizer(privatizer, rules)
    # Queries keep their order, because their predictions are joined to them by it.
    if shuffle is None:
        shuffle = not no_label or target_column is not None
    order_key = make_order_key(stream.provenance) if shuffle else None
    reading, pace = ReadingProgress(), Pace()
    unknown_tokens = 0
    kept: KeptShares | None = None

    def checked(check: CorpusCheck) -> None:
        nonlocal unknown_tokens, kept
        unknown_tokens = check.unknown_tokens
        for remark in check.remarks:
            say(f"rapt: {remark}")
        # Draws that are thrown away, from a stream of their own, which a seed repeats.
        own_stream = secure_stream() if insecure_seed is None else insecure_stream(insecure_seed)
        kept = check_kept_shares(
            privatizer, check.counts, rng=own_stream.generator, insist=None if allow_weak else "--allow-weak"
        )
        if kept is not None and kept.is_much:
            say(f"rapt: {kept.sentence}")

    with (
        open_engine(engine, address=ray_address, cores=processes) as cluster,
        meter("privatizing", unit="texts") as progress,
    ):
        manifest = privatize_corpus(
            source,
            target,
            privatizer=privatizer,
            text_column=text_column,
            label_column=None if no_label else label_column,
            other_texts=PartColumns(second=text_column_2, target=target_column, public_target=public_target),
            labels=None if labels is None else split_names(labels),
            public_labels=public_labels,
            label_privacy=label_privacy,
            file_format=None if file_format is None else file_format.value,
            delimiter={"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter),
            header=not no_header,
            skip_empty=skip_empty,
            stream=stream,
            ledger=None if account is None else account.open,
            redraw=redraw,
            order_key=order_key,
            resume=resume,
            overwrite=overwrite,
            processes=processes,
            cluster=cluster,
            on_checked=checked,
            on_progress=lambda records, tokens: progress(records, note=pace(tokens, share=reading.share)),
            reading=reading,
        )
    done = None if account is None else account.done
    unchanged = None if kept is None else kept.to_json()
    facts = describe_run(manifest, order_key=order_key, unchanged=unchanged, counted=done)
    if account is not None:
        write_receipt(name_receipt(account.path, manifest.records_sha256), facts)
    if receipt is not None:
        write_receipt(receipt, facts)
    if as_json:
        from rapt.wire.manifest import dump_manifest

        own = {"unknown_tokens": unknown_tokens, "unchanged": unchanged, "ledger": done}
        show_json({"file": str(target)} | own | dump_manifest(manifest))
        return
    if to_stdout:
        show_file(target)
    else:
        show(str(target))
    how = "sent in clear" if label_privacy is None else f"randomized, ε = {label_privacy.epsilon:g} for each"
    sent = "none" if manifest.labels is None else f"{len(manifest.labels)} classes ({how})"
    released = f"{manifest.tokens:,} tokens" if epsilon is None else f"ε = {epsilon:g} for each"
    say(f"{write_count(manifest.records, 'text')}, {released}; labels: {sent}")
    if manifest.targets == "public":
        say("rapt: warning: the targets are sent as they are, because --public-target says that they are public")
    if order_key is not None and account is None and receipt is None and insecure_seed is None:
        say("the records are shuffled, and no receipt says how: an audit of OUT needs one (--receipt, or --keep-order)")
    if kept is not None and not kept.is_much:
        say(kept.sentence)
    say_what_was_counted(account, replaced=replaced, insecure=insecure_seed is not None)
    say("to see what this protects and what it does not, run: rapt statement OUT")


def refuse_other_unit(context: typer.Context, *, epsilon: float | None) -> None:
    """Refuse options of the other unit of protection (`UsageError`)."""
    of_other, beside = (_OF_CODES, "--eta") if epsilon is None else (_OF_TOKENS, "--epsilon")
    refuse_options(context, of_other, beside=beside, because="whose unit is another")


def load_codes(codes: str, *, epsilon: float, encoder: str | None, allow_large: bool) -> CodePrivatizer:
    """Load what turns whole texts into codes.

    Raises:
        MechanismError: epsilon is outside its domain, or large without that being allowed.
        VocabularyError: The reasons of `load_code_privatizer`.
    """
    from rapt.local.codes.code_privatizer import load_code_privatizer, refuse_large_epsilon
    from rapt.local.codes.text_statement import bound_guess
    from rapt.wire.mechanism_setting import USUAL_EPSILON

    if not allow_large:
        refuse_large_epsilon(epsilon, insist="--allow-large-epsilon")
    found = load_code_privatizer(codes, epsilon=epsilon, encoder=encoder)
    if languages := found.mechanism.bundle.languages:
        say(
            f"rapt: the encoder of this code was trained on {', '.join(languages)}; a text in another language is "
            "protected as well, and its code is worth little"
        )
    if epsilon > USUAL_EPSILON:
        named = bound_guess(epsilon, among=1000)
        say(f"rapt: warning: a text may be named among 1,000 others in {100 * named:.2f} % of cases at this epsilon")
    return found


def split_names(names: str) -> tuple[str, ...]:
    """Split the class names in `a,b,c` (`UsageError` for an empty one or one that is named twice)."""
    found = tuple(name.strip() for name in names.split(","))
    if not all(found) or len(set(found)) != len(found):
        raise UsageError(
            "--labels must be different names with commas between them, such as --labels negative,positive"
        )
    return found
