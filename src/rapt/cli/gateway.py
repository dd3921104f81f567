"""`rapt gateway`: a local endpoint with OpenAI's routes, which privatizes what programs send on to a service."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rapt.cli.ledger import LedgerKey, Of, choose_ledger, read_key_place, say_what_was_counted
from rapt.cli.options import (
    AllowLargeEpsilon,
    AllowUnproved,
    AllowWeak,
    Cap,
    CodeEncoder,
    CodeName,
    LabelCap,
    MechanismName,
    MechanismOptions,
    PolicyFile,
    TextEpsilon,
    TokenEta,
    Truncate,
    TrustVocabulary,
    VocabularyName,
    choose_mechanism,
    load_checked_vocabulary,
    read_policy,
    refuse_options,
)
from rapt.cli.output import say, show_json
from rapt.cli.privatize import load_codes, refuse_other_unit, split_names
from rapt.cli.profiles import ServiceAccess, asks_a_service
from rapt.errors import UsageError

# What says something of a service of rapt, by the names of the arguments.
_OF_SERVICES: Final = {
    "epsilon": "--epsilon",
    "codes": "--codes",
    "encoder": "--encoder",
    "labels": "--labels",
    "label_epsilon": "--label-epsilon",
    "plain_tokens": "--plain-tokens",
}
# docs/results/serving.md, "The gateway".
USE_OF_WORDS: Final = (
    "replaced words are worth less to a model that was not tuned for them: a small one told the mood of 87 % of 400 "
    "sentences in clear, of 73 % where 70 % of the words stayed and of 63 % where 47 % did"
)

if TYPE_CHECKING:
    from rapt.local.privatizer import TextPrivatizer


@asks_a_service
def gateway(
    context: typer.Context,
    access: ServiceAccess,
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
    policy: PolicyFile = None,
    words: Annotated[
        bool,
        typer.Option(
            "--words",
            help="Send words to any service with OpenAI's routes: rewritten by --policy, or each word replaced with "
            "--eta and word vectors as --vocabulary, or both.",
        ),
    ] = False,
    truncate: Truncate = None,
    plain_tokens: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Number of public plain tokens before each text of a training file."),
    ] = 20,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Classes whose names may leave: an answer in a training file that is one of them is a label.",
        ),
    ] = None,
    label_epsilon: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Send each label by randomized response with this ε; needs --labels."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ledger that counts every release, and answers texts that come again. Default: .rapt/ledger.sqlite "
            "here or above, begun here where there is none.",
        ),
    ] = None,
    ledger_key: LedgerKey = None,
    cap: Cap = None,
    label_cap: LabelCap = None,
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8421,
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the key of programs, made where there is none.  [default: gateway.key beside the ledger]",
        ),
    ] = None,
    page: Annotated[
        bool,
        typer.Option("--page/--no-page", help="Serve the page at /: what would leave of a text, files, the ledger."),
    ] = True,
) -> None:
    """Serve OpenAI's routes on this machine, and privatize what goes on to a service.

    A program changes its `base_url` to the address that is printed, and takes the key of the key file. Its texts leave
    as codes or random tokens with a manifest, each message once: what comes again, also after a restart, leaves as it
    did at first. Training files are privatized in memory. What the gateway does not understand is refused, by the name
    of the field. It listens on loopback alone, and stops at SIGINT or SIGTERM.

    With --policy names, numbers and addresses are masked before that, or get pseudonyms, which become names again in
    answers, streamed ones too. With --words the service may be any that has OpenAI's chats and completions.

    The page at / takes the same key: it shows what could leave of a text at any strength, makes privatized files,
    counts the ledger, and asks a model privately or at home. There is none with --words.

    \b
    Examples:
      rapt gateway --service http://127.0.0.1:8420 --epsilon 4 --labels negative,positive
      rapt gateway --service http://127.0.0.1:8420 --eta 75 --policy policy.toml
      rapt gateway --service http://127.0.0.1:8420/v1 --words --policy policy.toml
    """
    from rapt.gateway.door import make_program_key
    from rapt.gateway.releases import open_releases
    from rapt.gateway.server import create_gateway, create_word_gateway, listen, name_address, serve_on
    from rapt.gateway.training_files import TrainingSetting
    from rapt.gateway.upstream import Upstream
    from rapt.gateway.words import check_whole_words, rewrite_by_policy, rewrite_by_releases
    from rapt.local.kept_share import check_running_share
    from rapt.local.ledger_place import FOLDER, make_folder
    from rapt.local.policy.policy_privatizer import PolicyPrivatizer
    from rapt.local.privatizer import USUAL_POOL, Privatizer, plan_plain_tokens
    from rapt.local.randomness import secure_stream
    from rapt.own_page.routes import OPEN_PATHS, open_page
    from rapt.wire.manifest import NO_PLAIN_TOKENS, LabelPrivacy
    from rapt.wire.mechanism_setting import check_eta

    if words:
        refuse_options(context, _OF_SERVICES, beside="--words", because="whose service takes words alone")
    if (eta is None) == (epsilon is None) and not (words and policy is not None and eta is None):
        raise UsageError(
            "one guarantee must be named: give --epsilon for whole texts, or --eta for tokens, and not both"
            + ("; or --policy alone" if words else "")
        )
    if eta is not None or epsilon is not None:
        refuse_other_unit(context, epsilon=epsilon)
    if label_epsilon is not None and labels is None:
        raise UsageError("--label-epsilon must come with --labels, because which classes occur is private too")
    label_privacy = None if label_epsilon is None else LabelPrivacy(epsilon=label_epsilon)
    account = choose_ledger(
        Path.cwd() / "gateway",
        ledger=ledger,
        no_ledger=False,
        key=read_key_place(ledger_key),
        cap=cap,
        label_cap=label_cap,
        redraw=False,
        seeded=False,
        of=Of.METRIC if epsilon is None else Of.TEXT,
    )
    assert account is not None
    rules = read_policy(policy)
    stream = secure_stream()
    with listen(host, port) as listener, ExitStack() as opened:
        address = name_address(listener)
        url = access.url.rstrip("/").removesuffix("/v1") if words else access.url
        upstream = Upstream(url, api_key=access.api_key, ca_file=access.ca_file, insecure=access.insecure)
        asked: TextPrivatizer | None = None
        plan = NO_PLAIN_TOKENS
        if epsilon is not None:
            asked = load_codes(codes, epsilon=epsilon, encoder=encoder, allow_large=allow_large_epsilon)
        elif eta is not None:
            check_eta(eta)
            table = load_checked_vocabulary(vocabulary, trusted=trust_vocabulary)
            if words:
                check_whole_words(table)
            made = choose_mechanism(
                mechanism, vocabulary=table, eta=eta, settings=settings, allow_unproved=allow_unproved
            )
            asked = Privatizer(vocabulary=table, mechanism=made, plain_tokens=NO_PLAIN_TOKENS, truncate_to=truncate)
            if not words:
                plan = plan_plain_tokens(
                    table, count=plain_tokens, pool_size=USUAL_POOL, drawn="record", rng=stream.generator
                )
        if asked is not None and rules is not None:
            asked = PolicyPrivatizer(asked, rules)
        if asked is not None:
            shares = check_running_share(asked, insist=None if allow_weak else "--allow-weak")
            if shares is not None:
                say(shares)
        if account.path.parent.name == FOLDER:
            make_folder(account.path)
        key_file = key_file or account.path.with_name("gateway.key")
        key = make_program_key(key_file)
        said: dict[str, str] = {}
        if asked is None:
            assert rules is not None
            rules.rewrite([])  # refuses kinds that need tokens
            app = create_word_gateway(upstream, rewrite_by_policy(rules), policy=rules, key=key)
            say("rapt: warning: words that no rule of the policy takes leave in clear, and nothing counts them")
        else:
            releases = opened.enter_context(open_releases(asked, account.open, stream=stream))
            if words:
                app = create_word_gateway(upstream, rewrite_by_releases(releases), policy=rules, key=key)
                say(f"rapt: warning: {USE_OF_WORDS}")
            else:
                training = TrainingSetting(
                    privatizer=asked.with_plain_tokens(plan),
                    labels=None if labels is None else split_names(labels),
                    label_privacy=label_privacy,
                    allow_weak=allow_weak,
                )
                pages = (
                    [] if not page else open_page(upstream, releases, training, access.open, encoder=encoder).routes()
                )
                app = create_gateway(
                    upstream, releases, training, key=key, pages=pages, open_paths=OPEN_PATHS if page else ()
                )
                if page:
                    said["page"] = f"{address.removesuffix('/v1')}/"
                    say(f"the page is at {said['page']}; sign in with the same key")
        say(f"programs take {address} as base_url, and as API key what stands in {key_file}")
        serve_on(
            listener,
            app,
            on_ready=lambda server: show_json({"base_url": address, "key_file": str(key_file.resolve()), **said}),
        )
    if asked is not None:
        say_what_was_counted(account, replaced=False, insecure=False)
