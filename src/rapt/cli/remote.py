"""`rapt tune`, `rapt predict` and `rapt export`: what a service does with privatized texts, and what it hands out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rapt.cli import output
from rapt.cli.options import AsJson, PolicyFile, read_policy, take_standard_input
from rapt.cli.output import format_json, meter, say, show, show_json
from rapt.cli.profiles import ServiceAccess, asks_a_service
from rapt.errors import CorpusError, ServiceError, UnavailableError, UsageError
from rapt.narration import write_count
from rapt.service.adapter.methods import LINEAR_PROBING, METHODS

if TYPE_CHECKING:
    from rapt.local.client import ServiceClient

_OF_STEPS: Final = ("n_epochs", "batch_size", "learning_rate", "patience")


@asks_a_service
def tune(
    access: ServiceAccess,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", callback=take_standard_input, help="Privatized file with labels; - is standard input."
        ),
    ] = None,
    file_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="File that the service has, such as one of a pool, instead of FILE."),
    ] = None,
    follow: Annotated[
        str | None, typer.Option(metavar="JOB", help="Follow a job that was started before, instead of FILE.")
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the id of the job and leave it to the service; see --follow.")
    ] = False,
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Other privatized texts of the same setting, by whose loss the best epoch is chosen."
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Epochs without a lower loss on --validation after which it ends."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Base model; default: the one that FILE was privatized for."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help=f"How a frozen model is adapted: auto, {', '.join(METHODS)}."),
    ] = "auto",
    task: Annotated[str | None, typer.Option(help="Task to learn: classification, label_words or generation.")] = None,
    label_word: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="A public word for each class in turn; for label_words.")
    ] = None,
    prompt_length: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Vectors of the soft prompt, or positions of the prefix.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Start of the prompt or prefix: vocabulary, random, text or labels.")
    ] = None,
    init_text: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help="Text for --init text; it is sent in clear, so give public words only."),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Network that makes the prompt during tuning: mlp or lstm; for a prefix mlp or none."),
    ] = None,
    rank: Annotated[int | None, typer.Option(metavar="N", min=1, help="Rank r of LoRA.")] = None,
    alpha: Annotated[float | None, typer.Option(metavar="NUMBER", help="LoRA's change is scaled by alpha / r.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A linear layer that LoRA changes, such as query.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Passes over the file.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of records in each step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Learning rate of the method at its peak.")
    ] = None,
    reconstruction_weight: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="λ in L = L_task + λ L_rec; needs plain tokens in FILE."),
    ] = None,
    reconstruction_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Width between the two layers of the reconstruction head.")
    ] = None,
    reconstruction_schedule: Annotated[
        str | None, typer.Option(help="Course of λ over the run: constant, rise or fall.")
    ] = None,
    no_reconstruction: Annotated[
        bool, typer.Option("--no-reconstruction", help="Leave the plain tokens out: tune without RAPT.")
    ] = False,
    suffix: Annotated[str | None, typer.Option(help="Part of the tuned model's name.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Seed that repeats a run of the tuning.")] = None,
    priority: Annotated[
        int, typer.Option(metavar="N", min=-100, max=100, help="Priority among your own jobs; the highest runs first.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Tune a model of a service on a privatized file.

    Prints the name of the tuned model, for `rapt predict`; with --no-wait the id of the job at once. What is not set
    here is left to the service. A file that the service has already is not sent again. A lost connection is retried for
    minutes; after that the job goes on without this command, and --follow finds it again. Interrupting cancels the job,
    unless it is only followed.

    \b
    Example:
      rapt tune reviews.rapt.jsonl --service http://127.0.0.1:8420 --suffix reviews
      rapt tune reviews.rapt.jsonl --service http://127.0.0.1:8420 --method lora --rank 4
      rapt tune reviews.rapt.jsonl --service http://127.0.0.1:8420 --validation others.rapt.jsonl --no-wait
      rapt tune --follow ftjob-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    from rapt.local.client import follow_job

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
        "patience": patience,
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
        raise UsageError(
            "--no-reconstruction must be given without settings of the reconstruction; leave one of them out"
        )
    if no_reconstruction:
        hyperparameters["reconstruction"] = None
    elif rapt:
        hyperparameters["reconstruction"] = rapt
    if sum(item is not None for item in (file, file_id, follow)) != 1:
        raise UsageError(
            "one job must be named: give FILE or --file-id for a new one, or --follow JOB, and not several"
        )
    if file_id is not None and model is None:
        raise UsageError("--file-id must come with --model, the base model that the file was privatized for")
    settings = hyperparameters or model or suffix or seed is not None or priority or method != "auto" or validation
    if follow is not None and (settings or no_wait):
        raise UsageError(
            "--follow takes a job with its settings; leave out --model, --method, --no-wait and the settings of the "
            "tuning"
        )
    if patience is not None and validation is None:
        raise UsageError("--patience must come with --validation, by whose loss a run ends; give both")
    with access.open() as client:
        if follow is not None:
            job = client.job(follow)
        else:
            sent, base = (str(file_id), str(model)) if file is None else send_file(client, file, model=model)
            job = client.create_job(
                file_id=sent,
                model=base,
                validation_file=None if validation is None else send_file(client, validation, model=base)[0],
                method={"type": method, method: {"hyperparameters": hyperparameters}},
                suffix=suffix,
                seed=seed,
                priority=priority,
            )
        # A head over codes is solved at once.
        solved = job.method.get("type") == LINEAR_PROBING and client.model(job.model).unit == "text"
        say(f"job {job.id}: {describe(job.method, solved=solved)} on {job.model}")
        made = {"job": job.id, "file": job.training_file, "method": dict(job.method), "seed": job.seed}
        if no_wait:
            if as_json:
                show_json(made)
            else:
                show(job.id)
            return
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
            say(f"the job goes on by itself; follow it with: rapt tune --follow {job.id} --service {access.url}")
            raise
    tuned = str(job.fine_tuned_model)
    try:
        if as_json:
            show_json({"model": tuned} | made | {"trained_tokens": job.trained_tokens})
        else:
            show(tuned)
    except CorpusError:  # hours of work must not be lost with one line
        say(f"the tuned model is {tuned}")
        raise


def send_file(client: ServiceClient, file: Path, *, model: str | None) -> tuple[str, str]:
    """Upload a privatized file, and return its id and the base model of a job on it."""
    from rapt.wire.privatized_file import read_manifest

    manifest = read_manifest(file)
    base = client.base_model(manifest, asked=model)
    if base != manifest.model and model is None:
        say(f"the service has the vocabulary of the file under another name: tuning {base}")
    name = "standard input" if str(file).startswith("/proc/self/fd/") else file.name
    say(f"sending {name}: {write_count(manifest.records, 'privatized text')}, no plain text")
    return client.upload(file).id, base


def describe(method: Mapping[str, Any], *, solved: bool = False) -> str:
    """Describe a job's method on one line; of one that is solved without steps, nothing about steps."""
    kind = str(method.get("type"))
    values = dict(method.get(kind, {}).get("hyperparameters", {}))
    if solved:
        values = {name: value for name, value in values.items() if name not in _OF_STEPS}
    reconstruction = values.pop("reconstruction", None)
    # A method has settings that most runs leave alone; they are not worth a word when they say nothing.
    parts = [f"{name}={value}" for name, value in values.items() if value not in (None, [], 0, "none")]
    if solved:
        parts.append("solved without steps")
    else:
        parts.append("no reconstruction" if reconstruction is None else f"reconstruction λ={reconstruction['weight']}")
    return f"{kind}, {', '.join(parts)}"


@asks_a_service
def predict(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            callback=take_standard_input,
            help="Privatized file, whose labels are not sent, or - for standard input; with --local a file of texts in "
            "clear.",
        ),
    ],
    model: Annotated[str, typer.Option(help="Name of a tuned model, as `rapt tune` prints it.")],
    access: ServiceAccess,
    local: Annotated[
        bool, typer.Option("--local", help="Fetch the tuned model and answer here: nothing of FILE leaves.")
    ] = False,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="Column that holds the text; with --local. Default: text. With --original, the column by which "
            "--skip-empty passed over records."
        ),
    ] = None,
    text_column_2: Annotated[
        str | None, typer.Option("--text-column-2", metavar="NAME", help="Column of the second text; with --local.")
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of true labels, compared with the answers; with --local."),
    ] = None,
    policy: PolicyFile = None,
    own_texts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Labelled texts of your own, whose words are counted here as well; with --local."
        ),
    ] = None,
    own_label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the label in --own-texts. Default: label.")
    ] = None,
    truncate: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Tokens to keep of a longer text; with --local, of models on tokens."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Encoder, backbone or reader on this machine, a name or folder; with --local. Default: its name.",
        ),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of ids, which stand before the answers; it is not sent.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another column to stand before the answers; repeat.")
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(metavar="SOURCE", help="File of texts that FILE was made from, for --id-column and --keep."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write .jsonl or .csv here instead of JSONL to stdout.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Predict the labels of texts, privatized by the service or in clear at home.

    Privatize the queries as the training file was: same vocabulary, same eta or epsilon, same number of plain tokens.
    If FILE has labels, they stay here and are compared with the answers. With --out, a run that was cut off leaves
    OUT.partial, and the same command asks for the rest.

    With --local the tuned model is fetched and asked here about texts in clear: nothing of them leaves, no budget is
    spent, and the answers are better, because a query without noise is. A model on codes needs its public encoder on
    this machine; a model on tokens needs its backbone and the extra `service`. With --own-texts the answers are fused
    with counts of your own words, as far as those help on your texts.

    \b
    Example:
      rapt predict queries.rapt.jsonl --model ft:minilm:reviews:a1b2 --service http://127.0.0.1:8420
      rapt predict queries.rapt.jsonl --model ft:minilm:reviews:a1b2 --original queries.csv --id-column id --out a.csv
      rapt predict queries.csv --local --model ft:minilm:reviews:a1b2 --service http://127.0.0.1:8420
    """
    from rapt.local.predictions import check_output, predict_file

    def show_rows(rows: Sequence[Mapping[str, Any]]) -> None:
        if not as_json:
            show("\n".join(map(format_json, rows)))

    columns = {"--text-column": text_column, "--text-column-2": text_column_2, "--label-column": label_column}
    only = {**columns, "--truncate": truncate, "--backbone": backbone, "--own-texts": own_texts, "--policy": policy}
    given = [
        name for name, value in only.items() if value is not None and (original is None or name != "--text-column")
    ]
    if given and not local:
        raise UsageError(f"{', '.join(given)} must come with --local; a privatized file says the rest by itself")
    if local and original is not None:
        raise UsageError("--original must come without --local, where FILE is the source itself; leave it out")
    kept = [*([] if id_column is None else [id_column]), *(keep or ())]
    if bool(kept) != (original is not None) and not (local and kept):
        raise UsageError("--original must come with --id-column or --keep, and these with it or with --local")
    beside = None
    if kept:
        from rapt.local.corpus import read_columns

        beside = read_columns(original or file, kept, text_column=None if local else text_column)
    with access.open() as client:
        if local:
            if out is not None and own_texts is not None:
                check_output(out, queries=own_texts, overwrite=overwrite)
            from rapt.at_home import HomeModel, fetch_home_model
            from rapt.home_files import fuse_with_own_texts, predict_at_home

            rules = read_policy(policy)
            asked: HomeModel = fetch_home_model(client, model, backbone=backbone, truncate_to=truncate)
            if own_texts is not None:
                asked = fuse_with_own_texts(
                    asked,
                    own_texts,
                    text_column=text_column or "text",
                    second_column=text_column_2,
                    label_column=own_label_column or "label",
                    policy=rules,
                )
            found = predict_at_home(
                file,
                asked,
                text_column=text_column or "text",
                second_column=text_column_2,
                label_column=label_column,
                out=out,
                overwrite=overwrite,
                beside=beside,
                on_rows=show_rows,
                narrator=output,
                policy=rules,
            )
            say("answered here: nothing of the texts left, and no budget was spent")
        else:
            found = predict_file(
                file,
                client,
                model=model,
                out=out,
                overwrite=overwrite,
                beside=beside,
                on_rows=show_rows,
                narrator=output,
            )
    records, right = len(found.rows), found.right
    if right is not None:
        say(f"right: {right:,} of {records:,}, {right / records:.1%}")
    if as_json:
        summary = {"model": model, "labels": list(found.labels), "records": records, "right": right}
        show_json(summary | ({"predictions": found.rows} if out is None else {"file": str(out)}))
    elif out is not None:
        show(str(out))


@asks_a_service
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a tuned model, as `rapt tune` prints it.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder for its files.")],
    access: ServiceAccess,
    form: Annotated[
        str,
        typer.Option(help="hub: for plain PEFT, vLLM and the hub, with a README. rapt: as another service imports it."),
    ] = "hub",
) -> None:
    """Write the files of a tuned model into a folder.

    The README says what the model was tuned on, how that was privatized, and what it does not promise. It states no
    license: name one before you publish the folder.

    \b
    Example:
      rapt export ft:minilm:reviews:a1b2 reviews-lora --service http://127.0.0.1:8420
      hf upload me/reviews-lora reviews-lora
    """
    from rapt.whole_files import check_folder, write_folder

    if form not in ("hub", "rapt"):
        raise UsageError("--form must be hub or rapt, got another; choose one")
    try:
        check_folder(folder)
        with access.open() as client:
            files = client.adapter(model, form="hub" if form == "hub" else "rapt")
        write_folder(folder, files)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CorpusError(f"the folder must be writable, got {reason}; choose another") from None
    show(str(folder))
