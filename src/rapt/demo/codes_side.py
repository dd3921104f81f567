"""The demo's other unit: each tweet as one code under one ε, tuned on by the service, asked here in clear and there.

Map and codebook come from tweets that are taken to be public. They lie with the service, which hands them to whoever
asks; the trusted side privatizes with them as any contributor would.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapt.at_home import load_code_model
from rapt.audit.code_audit import CodeAudit, audit_codes
from rapt.audit.codes.desk import Originals
from rapt.demo.data import CLASSES, pick_public_tweets, write_csv
from rapt.demo.plan import DemoPlan
from rapt.demo.trusted_side import TrustedSide
from rapt.local.client import ServiceClient
from rapt.local.codes.code_privatizer import CodePrivatizer
from rapt.local.codes.codebook import PublicStates, make_codebook
from rapt.local.codes.encoder import TextEncoder, read_encoder
from rapt.local.codes.subset import make_subset
from rapt.local.corpus import privatize_corpus
from rapt.local.randomness import secure_stream
from rapt.narration import Narrator
from rapt.wire.code_bundle import CodeBundle, write_code_bundle
from rapt.wire.privatized_file import read_privatized_file

# The name that the codes are served under, and of their folder with the service.
MODEL: Final = "tweet-codes"
AT_HOME: Final = "codes, asked at home"
ASKED: Final = "codes, asked privately"


@dataclass(frozen=True, kw_only=True)
class PublicCode:
    """What everybody has: the encoder, and the code that was made of public tweets."""

    encoder: TextEncoder
    bundle: CodeBundle


@dataclass(frozen=True, kw_only=True)
class CodesFound:
    """What was found with codes.

    Attributes:
        answers: Labels of the queries, by how they were asked.
        audit: Audit of the codes of the training texts.
    """

    answers: dict[str, list[str]]
    audit: CodeAudit


def make_public_code(plan: DemoPlan, folder: Path, *, apart_from: TrustedSide, narrator: Narrator) -> PublicCode:
    """Make the code of public tweets, and write it into a new folder, from which a service takes it.

    Raises:
        CorpusError: The demo's texts are not installed.
        VocabularyError: The encoder's files are not installed.
    """
    private = [*apart_from.training.texts, *apart_from.queries.texts]
    texts = pick_public_tweets(apart_from=private, most=plan.code_texts)
    encoder = read_encoder(plan.model)
    with narrator.meter("encoding public tweets", total=len(texts), unit="texts") as show:
        states = PublicStates(texts=encoder.encode(texts))
        show(len(texts))
    bundle = make_codebook(encoder, states, dimensions=plan.code_dimensions, languages=("en",))
    write_code_bundle(bundle, folder)
    return PublicCode(encoder=encoder, bundle=bundle)


def tune_on_codes(
    plan: DemoPlan, side: TrustedSide, code: PublicCode, client: ServiceClient, *, narrator: Narrator
) -> CodesFound:
    """Privatize the same tweets as codes, have a head tuned on them, and ask it both ways.

    Args:
        plan: Sizes and settings.
        side: The trusted side.
        code: Code of whole texts, which everybody has.
        client: Connection to the service.
        narrator: Takes the progress.
    """
    folder = side.training_path.parent
    privatizer = CodePrivatizer(encoder=code.encoder, mechanism=make_subset(code.bundle, epsilon=plan.epsilon))
    paths = {}
    for name, tweets, labels in (("train", side.training, CLASSES), ("queries", side.queries, None)):
        write_csv(tweets, folder / f"{name}.csv")
        paths[name] = folder / f"{name}.codes.jsonl"
        with narrator.meter(f"privatizing {name}.csv as codes", total=len(tweets), unit="texts") as show:
            privatize_corpus(
                folder / f"{name}.csv",
                paths[name],
                privatizer=privatizer,
                label_column=None if labels is None else "label",
                labels=labels,
                stream=secure_stream(),
                on_progress=lambda records, tokens: show(records),
            )
    job = client.create_job(
        file_id=client.upload(paths["train"]).id,
        model=MODEL,
        method={"type": "auto", "auto": {"hyperparameters": {}}},
        suffix="demo",
        seed=plan.seed,
    )
    model = str(client.wait(job.id).fine_tuned_model)
    asked = client.classify(model, read_privatized_file(paths["queries"]))
    here = load_code_model(client.adapter(model), code=code.bundle, encoder=plan.model)
    odds = here.answer(side.queries.texts, None, first_position=0)
    found = audit_codes(
        read_privatized_file(paths["train"]),
        Originals(texts=side.training.texts),
        bundle=code.bundle,
        encoder=code.encoder,
        quick=True,
        seed=plan.seed,
    )
    return CodesFound(
        answers={
            AT_HOME: [here.card.labels[place] for place in odds.argmax(axis=1).tolist()],
            ASKED: [prediction.label for prediction in asked],
        },
        audit=found,
    )
