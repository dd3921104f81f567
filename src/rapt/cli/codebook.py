"""`rapt codebook`, `rapt center`: the public code of whole texts, from public text, and from a crowd's first round."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from rapt.cli import output
from rapt.cli.options import AsJson, refuse_options
from rapt.cli.output import format_table, say, show, show_json
from rapt.cli.vocabulary import check_new

# Options of a code of single texts alone, by the names of the arguments.
_OF_SINGLE_TEXTS: Final = {
    "tasks": "--task",
    "label_names": "--label-name",
    "label_column": "--label-column",
    "dimensions": "--dimensions",
    "codes_per_text": "--codes-per-text",
}


def codebook(
    context: typer.Context,
    public: Annotated[list[Path], typer.Argument(metavar="PUBLIC...", help="Files of public text; never a user's.")],
    out: Annotated[Path, typer.Option(help="New folder for the code.")],
    model: Annotated[str, typer.Option(help="Public encoder: a known model or a model folder.")] = "minilm",
    tasks: Annotated[
        list[Path] | None,
        typer.Option("--task", metavar="FILE", help="Public texts with labels, whose kinds a code should tell apart."),
    ] = None,
    label_names: Annotated[
        list[str] | None,
        typer.Option(
            "--label-name",
            metavar="WORDS",
            help="Name of a label to be asked for, in words; repeat. Pays where PUBLIC is of another kind.",
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column that holds the text, in all files.")] = "text",
    text_column_2: Annotated[
        str | None,
        typer.Option(
            "--text-column-2", metavar="NAME", help="Column of the second text: makes a code of pairs, one for both."
        ),
    ] = None,
    label_column: Annotated[str, typer.Option(help="Column that holds the label, in the files of --task.")] = "label",
    dimensions: Annotated[int, typer.Option(min=2, help="Numbers in a code: few for queries, more for tuning.")] = 8,
    codewords: Annotated[
        int | None,
        typer.Option(
            min=2, help="Codewords to choose from; 4,096 lose nothing up to ε = 8.  [default: 4096; of pairs 8]"
        ),
    ] = None,
    codes_per_text: Annotated[
        int, typer.Option(min=1, help="Codewords that a text becomes, each at a part of its ε.")
    ] = 1,
    epsilon: Annotated[
        list[float] | None, typer.Option(metavar="NUMBER", help="ε to measure the code at; repeat for more.")
    ] = None,
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="Language that the encoder was trained on; repeat for more.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the code of whole texts from public text: encoder, directions and codewords.

    Run by whoever serves; no private text may come near it. Public text of the users' kind makes better codes. The
    folder is what `--codes` of `rapt privatize` takes. PUBLIC and --task take the formats that it takes. States of
    PUBLIC stand beside the code, where `rapt serve` teaches heads for answers at home on them;
    contributors do not need them.

    With --label-name the first directions tell the names of C labels apart, which need C - 1 dimensions. That is worth
    most where PUBLIC is of another kind than the users' texts, and may cost where it is of theirs.

    With --text-column-2 the code is of pairs: it says how alike the two texts of a record are, at one ε for both. Where
    most pairs of PUBLIC lie, from its tenth to its ninetieth percentile, is what it tells apart.

    \b
    Examples:
      rapt codebook public.csv --model minilm --task tweets.csv --out code
      rapt codebook glosses.csv --label-name sport --label-name space --label-name religion --dimensions 2 --out code
      rapt codebook pairs.csv --text-column question --text-column-2 other --out pair-code
    """
    from rapt.local.codes.codebook import (
        CODEWORDS,
        CODEWORDS_OF_PAIRS,
        check_sizes,
        make_codebook,
        make_pair_codebook,
        measure_attenuations,
        read_pair_states,
        read_public_states,
    )
    from rapt.local.codes.encoder import read_encoder
    from rapt.wire.code_bundle import write_code_bundle

    check_new(out)
    epsilons = tuple(epsilon or (1.0, 2.0, 4.0, 8.0))
    if text_column_2 is not None:
        refuse_options(context, _OF_SINGLE_TEXTS, beside="--text-column-2", because="whose code of pairs has none")
        size = codewords or CODEWORDS_OF_PAIRS
        check_sizes(codes=1, codewords=size, dimensions=2, epsilons=epsilons)
        encoder = read_encoder(model)
        states = read_pair_states(
            encoder, public, text_column=text_column, second_column=text_column_2, narrator=output
        )
        bundle = make_pair_codebook(encoder, states, codewords=size, languages=languages or [])
    else:
        size = codewords or CODEWORDS
        check_sizes(codes=codes_per_text, codewords=size, dimensions=dimensions, epsilons=epsilons)
        encoder = read_encoder(model)
        states = read_public_states(
            encoder,
            public,
            tasks=tasks or [],
            names=label_names or [],
            dimensions=dimensions,
            text_column=text_column,
            label_column=label_column,
            narrator=output,
        )
        bundle = make_codebook(
            encoder, states, dimensions=dimensions, codewords=size, codes=codes_per_text, languages=languages or []
        )
    measured = measure_attenuations(bundle, states, epsilons=epsilons)
    write_code_bundle(bundle, out, public_states=None if bundle.pairs else states.texts)
    if as_json:
        values = [{"epsilon": eps, "preferred": preferred, "attenuation": c} for eps, preferred, c in measured]
        show_json({"folder": str(out), "model": bundle.model, "hash": bundle.hash, "measured": values})
        return
    what = "pairs" if bundle.pairs else "texts"
    show(f"{len(states.texts):,} public {what}; mean inner product of a code and the codeword that leaves for it:\n")
    show(format_table(["ε", "preferred", "c"], [[f"{eps:g}", f"{m:,}", f"{c:.3f}"] for eps, m, c in measured]))
    say(f"{bundle.model}: {bundle.codes} x {bundle.size:,} codewords, {bundle.hash}")


def center(
    first: Annotated[Path, typer.Argument(metavar="FILE", help="Codes that a first round of contributors released.")],
    out: Annotated[Path, typer.Option(help="New folder for the centred code.")],
    codes: Annotated[
        str, typer.Option(help="Code that FILE was privatized with: its name or folder.")
    ] = "minilm-codes",
    as_json: AsJson = False,
) -> None:
    """Centre a code by what a first round of contributors released, for a crowd whose kind of text it was not made of.

    Let a fifth of the contributors give their codes first, labels left out; the others privatize with the code in
    --out. The centre is computed from released codes alone, so no text pays twice. Public text of the crowd's kind
    makes a better code (`rapt codebook`). Where noise hides the centre, the code is good as it is, and this says so.

    \b
    Example:
      rapt center first.rapt.jsonl --codes minilm-codes --out centred
    """
    import numpy as np

    from rapt.centering import center_codes, estimate_center
    from rapt.errors import UsageError, VocabularyError
    from rapt.local.codes.code_privatizer import read_code
    from rapt.local.codes.subset import remake_subset
    from rapt.public_models import find_model_folder
    from rapt.wire.code_bundle import write_code_bundle
    from rapt.wire.privatized_file import read_privatized_file
    from rapt.wire.public_states import read_public_states

    check_new(out)
    bundle, file = read_code(codes), read_privatized_file(first)
    manifest = file.manifest
    if manifest.vocabulary_hash != bundle.hash:
        raise VocabularyError("the first round must be of the code, got a file of another; name its code with --codes")
    if manifest.randomness.insecure_seed is not None or manifest.pairs:
        raise UsageError(
            "the first round must be of single texts and not come from --insecure-seed; privatize it again"
        )
    ids = np.array([record.token_ids for record in file.records], dtype=np.int64).reshape(-1, bundle.codes)
    remake_subset(manifest.mechanism, bundle=bundle)
    found = estimate_center(bundle, manifest.mechanism, ids)
    made = center_codes(bundle, found)
    beside = read_public_states(find_model_folder(codes), encoder_hash=bundle.encoder_hash, width=len(bundle.center))
    write_code_bundle(made, out, public_states=beside)
    if as_json:
        figures = {"texts": len(ids), "length": found.length, "error": found.error}
        show_json({"folder": str(out), "model": made.model, "hash": made.hash, **figures})
        return
    show(f"{len(ids):,} texts: the centre has length {found.length:.2f} of 1, known to {found.error:.2f}")
    say(f"{made.model}: {made.codes} x {made.size:,} codewords, {made.hash}")
