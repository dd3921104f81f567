"""`rapt predict`: answers for privatized texts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapt.cli.options import ApiKey, AsJson, CaFile, ServiceUrl
from rapt.cli.output import meter, say, show, show_json, write_output
from rapt.errors import UsageError

if TYPE_CHECKING:
    from rapt.local.service_objects import Prediction


def predict(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Privatized file; labels in it are not sent.")],
    model: Annotated[str, typer.Option(help="Name of a tuned model, as `rapt tune` prints it.")],
    service: ServiceUrl,
    out: Annotated[Path | None, typer.Option(help="Write .jsonl or .csv here instead of JSONL to stdout.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    api_key: ApiKey = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Predict the labels of privatized texts.

    Privatize the queries as the training file was: same vocabulary, same eta, same number of plain tokens. If FILE has
    labels, they stay here and are compared with the answers.

    \b
    Example:
      rapt predict queries.rapt.jsonl --model ft:minilm:reviews:a1b2 --service http://127.0.0.1:8420
    """
    from rapt.local.client import ServiceClient
    from rapt.wire.privatized_file import read_privatized_file

    if out is not None and out.suffix not in FORMATS:
        raise UsageError(f"--out must end in {' or '.join(FORMATS)}, got {out.suffix!r}; rename it")
    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"the output must not exist yet, got {str(out)!r}; choose another name or add --overwrite")
    queries = read_privatized_file(file)
    with ServiceClient(service, api_key=api_key, ca_file=ca_file) as client:
        card = client.model(model).card
        if card is None:
            raise UsageError(f"the model must be a tuned one, got {model!r}; see `rapt tune`")
        truth = check_labels(queries.manifest.labels, card.labels)
        with meter("predicting", total=len(queries.records), unit="texts") as progress:
            predictions = client.classify(model, queries, on_progress=progress)
    right = None
    if truth is not None:
        pairs = zip(queries.records, predictions, strict=True)
        right = sum(truth[record.label or 0] == prediction.label for record, prediction in pairs)
        say(f"right: {right:,} of {len(predictions):,}, {right / len(predictions):.1%}")
    rows = [row_of(prediction, card.labels) for prediction in predictions]
    if out is not None:
        write_output(out, FORMATS[out.suffix](rows))
    if as_json:
        summary = {"model": model, "labels": list(card.labels), "records": len(rows), "right": right}
        show_json(summary | ({"predictions": rows} if out is None else {"file": str(out)}))
    elif out is None:
        show(jsonl(rows).rstrip("\n"))
    else:
        show(str(out))


def check_labels(of_file: tuple[str, ...] | None, of_model: tuple[str, ...]) -> tuple[str, ...] | None:
    """The labels of a file, each of which the model must know; None for a file without labels (`UsageError`)."""
    if of_file is not None and not set(of_file) <= set(of_model):
        unknown = len(set(of_file) - set(of_model))
        raise UsageError(
            f"labels of queries must be labels of the model ({', '.join(of_model)}), got {unknown} unknown; "
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
