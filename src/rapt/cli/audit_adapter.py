"""`rapt audit-adapter`: what does an adapter that you were handed give away about the texts that you sent?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rapt.cli.artefact_findings import hand_over
from rapt.cli.options import AsJson
from rapt.cli.output import meter


def audit_adapter(
    adapter: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The adapter's files, as a service hands them out, unpacked.")
    ],
    members: Annotated[
        Path, typer.Option(metavar="FILE", help="Labelled texts in clear that it was tuned on; they stay here.")
    ],
    others: Annotated[
        Path, typer.Option(metavar="FILE", help="Labelled texts of the same kind that it was not tuned on.")
    ],
    sent: Annotated[
        Path | None,
        typer.Option(metavar="PRIVATIZED", help="The file that was sent; needed where it has plain tokens."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column that holds the text, in both files.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column that holds the label, in both files.")] = "label",
    model: Annotated[
        str | None, typer.Option(help="Backbone: a known model or a model folder; default: the adapter's.")
    ] = None,
    records: Annotated[
        int, typer.Option(metavar="N", min=2, help="Take at most so many texts of each file, drawn at random.")
    ] = 400,
    shadows: Annotated[
        int, typer.Option(metavar="N", min=3, help="Models to tune for comparison, each on a part of both files.")
    ] = 8,
    queries: Annotated[
        int, typer.Option(metavar="N", min=1, help="Fresh privatizations of a text to ask about, averaged.")
    ] = 4,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of everything that the audit draws.")] = 0,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Of the processor.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html and report.json, which hold no text.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Attack an adapter that you have: does it show which texts it was tuned on?

    Membership inference (LiRA, RMIA, a hierarchical ratio) against models that are tuned here as the adapter's card
    says, through the same mechanism; nothing is sent. The same attacks on those models check that the two files are of
    one kind.

    \b
    Example:
      rapt audit-adapter adapter --members reviews.csv --others held-back.csv --out audit-adapter
    """
    import numpy as np
    import torch

    from rapt.audit.artefact.given import OwnersTexts, read_card, workshop_of
    from rapt.audit.artefact.models import Workshop
    from rapt.audit.artefact.run import audit_adapter as run_audit
    from rapt.audit.artefact.texts import read_texts
    from rapt.local.mechanisms import mechanism_of_setting
    from rapt.local.vocabulary import load_vocabulary
    from rapt.service.model.adapter import load_adapter
    from rapt.service.model.backbone import load_backbone
    from rapt.service.model.tuning_config import default_config
    from rapt.wire.manifest import NO_PLAIN_TOKENS
    from rapt.wire.privatized_file import read_privatized_file

    card = read_card(adapter)
    vocabulary = load_vocabulary(model or card.model)
    backbone = load_backbone(model or card.model, precision="float32")
    given = load_adapter(adapter, backbone=backbone)
    workshop = workshop_of(
        Workshop(
            backbone=backbone,
            vocabulary=vocabulary,
            mechanism=mechanism_of_setting(card.mechanism, vocabulary=vocabulary, allow_unproved=True),
            config=default_config(card.method),
            plain_tokens=NO_PLAIN_TOKENS if sent is None else read_privatized_file(sent).manifest.plain_tokens,
        ),
        card,
    )
    taken = vocabulary.bundle.special_tokens + workshop.config.prompt_positions + card.plain_tokens
    halves = [
        read_texts(
            path,
            vocabulary,
            text_column=text_column,
            label_column=label_column,
            longest=vocabulary.bundle.max_tokens - taken,
            names=card.labels,
        )
        for path in (members, others)
    ]
    rng = np.random.default_rng([seed, 23])
    own, strange = (texts.at(np.sort(rng.permutation(len(texts))[:records])) for texts in halves)
    torch.set_num_threads(threads)
    with meter("attacking", unit="models") as progress:
        found = run_audit(
            workshop,
            given,
            OwnersTexts(texts=own.and_also(strange), sent=np.arange(len(own) + len(strange)) < len(own)),
            shadows=shadows,
            queries=queries,
            seed=seed,
            on_progress=lambda done: progress(done, total=shadows),
        )
    words: list[object] = ["rapt", "audit-adapter", adapter.name, "--members", members.name, "--others", others.name]
    words += [] if sent is None else ["--sent", sent.name]
    words += ["--text-column", text_column, "--label-column", label_column]
    words += [] if model is None else ["--model", Path(model).name]
    words += ["--records", records, "--shadows", shadows, "--queries", queries, "--seed", seed]
    hand_over(found, title=f"Adapter in {adapter.name}", command=words, out=out, as_json=as_json)
