"""`rapt predict`: answers for privatized texts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapt.cli.options import ApiKey, AsJson, CaFile, Insecure, ServiceUrl
from rapt.cli.output import json_line, meter, say, show, show_json, write_output
from rapt.errors import UsageError
from rapt.narration import Meter
from rapt.whole_files import check_target

if TYPE_CHECKING:
    from rapt.local.client import ServiceClient
    from rapt.local.kept_predictions import KeptPredictions
    from rapt.local.service_objects import Prediction
    from rapt.wire.adapter_card import AdapterCard
    from rapt.wire.privatized_file import PrivatizedFile


def predict(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Privatized file; labels in it are not sent.")],
    model: Annotated[str, typer.Option(help="Name of a tuned model, as `rapt tune` prints it.")],
    service: ServiceUrl,
    out: Annotated[Path | None, typer.Option(help="Write .jsonl or .csv here instead of JSONL to stdout.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    api_key: ApiKey = None,
    ca_file: CaFile = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Predict the labels of privatized texts.

    Privatize the queries as the training file was: same vocabulary, same eta, same number of plain tokens. If FILE has
    labels, they stay here and are compared with the answers. With --out, a run that was cut off leaves OUT.partial, and
    the same command asks for the rest.

    \b
    Example:
      rapt predict queries.rapt.jsonl --model ft:minilm:reviews:a1b2 --service http://127.0.0.1:8420
    """
    from rapt.local.client import ServiceClient
    from rapt.local.kept_predictions import keep_predictions
    from rapt.wire.privatized_file import read_privatized_file
    from rapt.wire.privatized_writer import partial_path

    if out is not None and out.suffix not in FORMATS:
        raise UsageError(f"--out must end in {' or '.join(FORMATS)}, got {out.suffix!r}; rename it")
    if out is not None:
        if out.exists() and file.exists() and out.samefile(file):
            raise UsageError("the output must be another file than the queries; choose another name")
        check_target(out, overwrite=overwrite)
    queries = read_privatized_file(file)
    with (
        ServiceClient(service, api_key=api_key, ca_file=ca_file, insecure=insecure, on_retry=say) as client,
        ExitStack() as opened,
    ):
        card = client.model(model).card
        if card is None:
            raise UsageError(f"the model must be a tuned one, got {model!r}; see `rapt tune`")
        truth = check_labels(queries.manifest.labels, card.labels)
        kept = None
        if out is not None:
            place, manifest = partial_path(out), queries.manifest
            kept = opened.enter_context(keep_predictions(place, model=model, manifest=manifest, overwrite=overwrite))
        with meter("predicting", total=len(queries.records), unit="texts") as progress:
            predictions = ask(client, card, model, queries, kept=kept, as_json=as_json, progress=progress)
        rows = [row_of(prediction, card.labels) for prediction in predictions]
        if out is not None:
            write_output(out, FORMATS[out.suffix](rows), overwrite=overwrite)
    right = None
    if truth is not None:
        pairs = zip(queries.records, predictions, strict=True)
        right = sum(truth[record.label or 0] == prediction.label for record, prediction in pairs)
        say(f"right: {right:,} of {len(predictions):,}, {right / len(predictions):.1%}")
    if as_json:
        summary = {"model": model, "labels": list(card.labels), "records": len(rows), "right": right}
        show_json(summary | ({"predictions": rows} if out is None else {"file": str(out)}))
    elif out is not None:
        show(str(out))


def ask(
    client: ServiceClient,
    card: AdapterCard,
    model: str,
    queries: PrivatizedFile,
    *,
    kept: KeptPredictions | None,
    as_json: bool,
    progress: Meter,
) -> list[Prediction]:
    """All predictions: those that are kept, and the others from the service, each kept or shown as soon as it comes."""
    from rapt.local.service_objects import not_understood

    found = [] if kept is None else list(kept.found[: len(queries.records)])
    if found:
        say(f"{len(found):,} predictions were kept by an earlier run; asking for the rest")
    try:
        for part in client.classify_in_parts(model, queries, first=len(found)):
            if any(len(item.probabilities) != len(card.labels) for item in part):
                raise not_understood()
            found += part
            if kept is not None:
                kept.add(part)
            elif not as_json:
                show("\n".join(json_line(row_of(item, card.labels)) for item in part))
            progress(len(found))
    finally:
        if kept is not None and 0 < len(found) < len(queries.records):
            say(f"{len(found):,} predictions are kept; the same command asks for the rest")
    return found


def check_labels(of_file: tuple[str, ...] | None, of_model: tuple[str, ...]) -> tuple[str, ...] | None:
    """The labels of a file, each of which the model must know; None for a file without labels (`UsageError`)."""
    if of_file is not None and not set(of_file) <= set(of_model):
        unknown = len(set(of_file) - set(of_model))
        raise UsageError(
            f"labels of queries must be among the {len(of_model)} labels of the model, got {unknown} others; "
            "privatize with --no-label, or with the same labels"
        )
    return of_file


def row_of(prediction: Prediction, labels: Sequence[str]) -> dict[str, object]:
    """One answer as it is written."""
    return {
        "label": prediction.label,
        "probabilities": dict(zip(labels, prediction.probabilities, strict=True)),
    }


def jsonl(rows: Sequence[dict[str, object]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def comma_separated(rows: Sequence[dict[str, object]]) -> str:
    """A column for the label and one for each probability."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    for position, row in enumerate(rows):
        probabilities = row["probabilities"]
        assert isinstance(probabilities, dict)
        if position == 0:
            writer.writerow(["label", *(f"p({name})" for name in probabilities)])
        writer.writerow([row["label"], *probabilities.values()])
    return stream.getvalue()


FORMATS = {".jsonl": jsonl, ".csv": comma_separated}
