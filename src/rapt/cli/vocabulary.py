"""`rapt vocabulary`: get the tokens and distances of a service's model, which a text is privatized with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rapt.cli.options import ApiKey, AsJson, ServiceUrl
from rapt.cli.output import say, show, show_json
from rapt.errors import UsageError

vocabulary = typer.Typer(help="Get the vocabulary that a service's model reads.")


@vocabulary.callback()
def group() -> None:
    """Get the vocabulary that a service's model reads."""


@vocabulary.command()
def fetch(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")],
    service: ServiceUrl,
    model: Annotated[str, typer.Option(help="Base model of the service, such as minilm.")] = "minilm",
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Download a model's vocabulary and check its hash.

    That is its tokenizer and its embedding table. The folder is what `--vocabulary` of the other commands takes.

    \b
    Example:
      rapt vocabulary fetch minilm-vocabulary --service http://127.0.0.1:8420
    """
    from rapt.local.client import ServiceClient

    if target.exists():
        raise UsageError(f"the output must not exist yet, got {str(target)!r}; choose another folder")
    with ServiceClient(service, api_key=api_key) as client:
        bundle = client.vocabulary(model, target)
    if as_json:
        show_json({"folder": str(target), "model": bundle.model, "hash": bundle.hash})
        return
    show(str(target))
    say(f"{bundle.model}: {len(bundle.embeddings):,} tokens, {bundle.hash}")
