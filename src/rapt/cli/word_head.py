"""`rapt word-head`: teaches a backbone that expects noise to say which words it has read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rapt.cli.options import AsJson
from rapt.cli.output import meter, say, show, show_json, table


def word_head(
    public: Annotated[list[Path], typer.Argument(metavar="PUBLIC...", help="Files of public text; never a user's.")],
    out: Annotated[Path, typer.Option(help="New folder for the backbone with its head.")],
    model: Annotated[str, typer.Option(metavar="FOLDER", help="Backbone that `rapt denoise` made; it stays as it is.")],
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    epochs: Annotated[float, typer.Option(help="Passes over the text; may be a fraction.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Texts a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="At its peak.")] = 2e-3,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; default: its own.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of first weights, order and noise.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Teach a backbone that expects noise to say which word stood where another arrived, from public text.

    The head is trained for the mechanism and every η of the backbone's card. The weights stay as they are, and the new
    folder is served as the old one was. `rapt compare --denoised FOLDER` measures what tuning gains by such reading.

    \b
    Example:
      rapt word-head public.csv --model minilm-denoised --out minilm-reads
    """
    import copy

    import torch

    from rapt.denoise.model_folder import check_denoised, check_target, save_with_word_head
    from rapt.denoise.plan import WordHeadPlan
    from rapt.denoise.public_text import read_public_texts
    from rapt.denoise.read_words import expected_mechanisms, new_word_head, train_word_head, words_read
    from rapt.local.vocabulary import load_vocabulary
    from rapt.service.model.backbone import load_backbone

    check_target(out)
    noise = check_denoised(model)
    plan = WordHeadPlan(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    if threads is not None:
        torch.set_num_threads(threads)
    vocabulary = load_vocabulary(model)
    texts = read_public_texts(public, vocabulary=vocabulary, text_column=text_column)
    mechanisms = expected_mechanisms(noise, vocabulary=vocabulary)
    backbone = load_backbone(model, precision="float32")
    head = new_word_head(backbone, texts.training, vocabulary=vocabulary, seed=seed)
    before = copy.deepcopy(head)
    with meter("learning to read", unit="steps") as progress:
        train_word_head(
            head,
            backbone,
            texts.training,
            mechanisms=mechanisms,
            plan=plan,
            on_step=lambda step, steps, nats: progress(step, total=steps, note=f"{nats:.2f} nats a token"),
        )
    reads = [
        words_read((before, head), backbone, texts.held_out, mechanism=mechanism, eta=eta, seed=seed)
        for mechanism, eta in zip(mechanisms, noise.etas, strict=True)
    ]
    tokens = sum(len(text) for text in texts.training)
    save_with_word_head(
        head,
        out,
        model=model,
        vocabulary_hash=vocabulary.hash,
        plan=plan,
        reads=reads,
        texts=len(texts.training),
        tokens=tokens,
    )
    say(f"backbone: {out}")
    if as_json:
        values = [asdict(item) for item in reads]
        show_json({"backbone": str(out), "texts": len(texts.training), "tokens": tokens, "reads": values})
        return
    rows = [
        [f"{item.eta:g}", *(f"{100 * share:.1f} %" for share in (item.unchanged, item.read))]
        + [f"{nats:.2f}" for nats in (item.nats_without_context, item.nats)]
        for item in reads
    ]
    show(f"{len(texts.training):,} public texts, {tokens:,} tokens; of the tokens of held-out text:\n")
    show(table(["η", "unchanged", "read right", "nats without context", "nats"], rows))
