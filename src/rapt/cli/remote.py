"""`rapt tune` and `rapt predict`: what a service is asked to do with privatized texts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapt.cli.options import ApiKey, AsJson, CaFile, Insecure, ServiceUrl
from rapt.cli.output import json_line, meter, say, show, show_json, write_output
from rapt.errors import ServiceError, UnavailableError, UsageError
from rapt.narration import Meter
from rapt.whole_files import check_target

if TYPE_CHECKING:
    from rapt.local.client import ServiceClient
    from rapt.local.kept_predictions import KeptPredictions
    from rapt.local.service_objects import Prediction
    from rapt.wire.adapter_files import AdapterCard
    from rapt.wire.privatized_file import PrivatizedFile


def tune(
    service: ServiceUrl,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Privatized file with labels.")] = None,
    follow: Annotated[
        str | None, typer.Option(metavar="JOB", help="Instead of FILE, follow a job that was begun before.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Base model; default: the one that FILE was privatized for."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="How a frozen model is adapted: auto, prompt_tuning, p_tuning, prefix_tuning, lora or linear_probing."
        ),
    ] = "auto",
    task: Annotated[
        str | None, typer.Option(help="What is learned: classification, label_words or generation.")
    ] = None,
    label_word: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="A public word for each class in turn; for label_words.")
    ] = None,
    prompt_length: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Vectors of the soft prompt, or positions of the prefix.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Where the prompt or prefix starts: vocabulary, random, text or labels.")
    ] = None,
    init_text: Annotated[
        str | None, typer.Option(metavar="WORDS", help="For --init text. Sent in clear: public words only.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Network that makes the prompt in training: mlp or lstm; for a prefix mlp or none."),
    ] = None,
    rank: Annotated[int | None, typer.Option(metavar="N", min=1, help="r of LoRA.")] = None,
    alpha: Annotated[float | None, typer.Option(metavar="NUMBER", help="LoRA's change is scaled by alpha / r.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A linear layer that LoRA changes, such as query.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Passes over the file.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", min=1, help="Records a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(metavar="NUMBER", help="Of the method, at its peak.")] = None,
    reconstruction_weight: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="λ in L = L_task + λ L_rec; needs plain tokens in FILE."),
    ] = None,
    reconstruction_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Width between the two layers of the reconstruction head.")
    ] = None,
    reconstruction_schedule: Annotated[str | None, typer.Option(help="λ over the run: constant, rise or fall.")] = None,
    no_reconstruction: Annotated[
        bool, typer.Option("--no-reconstruction", help="Leave the plain tokens out: tuning without RAPT.")
    ] = False,
    suffix: Annotated[str | None, typer.Option(help="A part of the tuned model's name.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Repeat a run of the tuning.")] = None,
    priority: Annotated[
        int, typer.Option(metavar="N", min=-100, max=100, help="Among your own jobs; the highest is first.")
    ] = 0,
    api_key: ApiKey = None,
    ca_file: CaFile = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Tune a model of a service on a privatized file.

    Prints the name of the tuned model, for `rapt predict`. What is not set here is left to the service. A file that the
    service has already is not sent again. A lost connection is made again for minutes; after that the job goes on
    without this command, and --follow finds it again. Interrupting cancels the job, unless it is only followed.

    \b
    Example:
      rapt tune reviews.rapt.jsonl --service http://127.0.0.1:8420 --suffix reviews
      rapt tune reviews.rapt.jsonl --service http://127.0.0.1:8420 --method lora --rank 4
      rapt tune --follow ftjob-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    from rapt.local.client import ServiceClient, follow_job

    asked: dict[str, Any] = {
        "task": task,
        "label_words": label_word or None,
        "num_virtual_tokens": prompt_length,
        "initialization": init,
        "init_text": init_text,
        "encoder": encoder,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": target or None,
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    hyperparameters = {name: value for name, value in asked.items() if value is not None}
    rapt = {
        "weight": reconstruction_weight,
        "hidden_size": reconstruction_size,
        "schedule": reconstruction_schedule,
    }
    rapt = {name: value for name, value in rapt.items() if value is not None}
    if no_reconstruction and rapt:
        raise UsageError("--no-reconstruction and settings of the reconstruction exclude each other; give one of them")
    if no_reconstruction:
        hyperparameters["reconstruction"] = None
    elif rapt:
        hyperparameters["reconstruction"] = rapt
    if (file is None) == (follow is None):
        raise UsageError("a tuning is a new one or one to be followed: give FILE, or --follow JOB, and not both")
    if follow is not None and (hyperparameters or model or suffix or seed is not None or priority or method != "auto"):
        raise UsageError("--follow is about a job that has its settings already; leave the others out")
    with ServiceClient(service, api_key=api_key, ca_file=ca_file, insecure=insecure, on_retry=say) as client:
        if file is None:
            job = client.job(str(follow))
        else:
            job = client.create_job(
                **send_file(client, file, model=model),
                method={"type": method, method: {"hyperparameters": hyperparameters}},
                suffix=suffix,
                seed=seed,
                priority=priority,
            )
        say(f"job {job.id}: {describe(job.method)} on {job.model}")
        if job.status == "paused":
            say("the job is paused; waiting until somebody resumes it")
        try:
            with meter("tuning", unit="steps") as progress:
                job = follow_job(
                    client,
                    job.id,
                    on_step=lambda done, total, losses: progress(done, total=total, note=losses),
                    on_warning=say,
                )
        except KeyboardInterrupt:
            if follow is None:
                with suppress(ServiceError):
                    client.cancel_job(job.id)
                    say(f"job {job.id} cancelled")
            raise
        except UnavailableError:
            say(f"the job goes on by itself; follow it with: rapt tune --follow {job.id} --service {service}")
            raise
    tuned = str(job.fine_tuned_model)
    if as_json:
        show_json(
            {"model": tuned, "job": job.id, "file": job.training_file, "method": dict(job.method), "seed": job.seed}
            | {"trained_tokens": job.trained_tokens}
        )
    else:
        show(tuned)


def send_file(client: ServiceClient, file: Path, *, model: str | None) -> dict[str, str]:
    """The arguments `file_id` and `model` of a job on a privatized file, which the service has afterwards."""
    from rapt.cli.mechanisms import read_manifest

    manifest = read_manifest(file)
    base = client.base_model(manifest, asked=model)
    if base != manifest.model and model is None:
        say(f"the service has the vocabulary of the file under another name: tuning {base}")
    say(f"sending {file.name}: {manifest.records:,} privatized texts, no plain text")
    return {"file_id": client.upload(file).id, "model": base}


def describe(method: Mapping[str, Any]) -> str:
    """A job's method on one line."""
    kind = str(method.get("type"))
    values = dict(method.get(kind, {}).get("hyperparameters", {}))
    reconstruction = values.pop("reconstruction", None)
    # A method has settings that most runs leave alone; they are not worth a word when they say nothing.
    parts = [f"{name}={value}" for name, value in values.items() if value not in (None, [], 0, "none")]
    parts.append("no reconstruction" if reconstruction is None else f"reconstruction λ={reconstruction['weight']}")
    return f"{kind}, {', '.join(parts)}"


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
