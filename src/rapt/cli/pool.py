"""`rapt pool` and `rapt contribute`: many people give one text each, and one model is tuned on all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapt.cli import output
from rapt.cli.options import AsJson
from rapt.cli.output import say, show, show_json
from rapt.cli.profiles import ServiceAccess, asks_a_service

if TYPE_CHECKING:
    from rapt.local.client.objects import PoolInfo

PoolId = Annotated[str, typer.Argument(metavar="POOL", help="Id of the pool, as `rapt pool open` prints it.")]

pool = typer.Typer(help="Collect contributions of many people for one model.")


@pool.callback()
def group() -> None:
    """Collect contributions of many people for one model."""


@pool.command("open")
@asks_a_service
def open_pool(
    like: Annotated[
        Path, typer.Argument(metavar="FILE", help="Privatized file whose setting the contributions must have.")
    ],
    access: ServiceAccess,
    least: Annotated[
        int, typer.Option(metavar="N", min=2, help="Contributions below which the pool cannot be closed.")
    ] = 20,
    most: Annotated[int, typer.Option(metavar="N", min=2, help="Contributions that the pool takes.")] = 100_000,
    rounds: Annotated[
        int, typer.Option(min=1, max=2, help="2: the first contributors give the centre of the code alone.")
    ] = 1,
    first: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Contributions of the first round.  [default: a quarter of --least]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Open a pool and print its id.

    Of FILE the setting is taken alone: codebook or vocabulary, mechanism, epsilon or eta, labels. No record is sent.

    With --rounds 2, for texts whose kind the code was not made of: the first contributors give codes without labels,
    `rapt pool advance` turns these into the centre of the code, and the others privatize with `rapt pool code`.

    \b
    Examples:
      rapt pool open mine.rapt.jsonl --least 100 --service http://127.0.0.1:8420
      rapt pool open mine.rapt.jsonl --least 1000 --rounds 2 --first 250 --service http://127.0.0.1:8420
    """
    from rapt.errors import UsageError
    from rapt.wire.privatized_file import read_manifest

    if first is not None and rounds == 1:
        raise UsageError("--first must come with --rounds 2; leave it out")
    if rounds > 1 and first is None:
        first = max(2, least // 4)
    manifest = read_manifest(like)
    with access.open() as client:
        made = client.open_pool(manifest, least=least, most=most, first=first)
    _show(made, as_json=as_json)


@pool.command("show")
@asks_a_service
def show_pool(
    pool_id: PoolId,
    access: ServiceAccess,
    as_json: AsJson = False,
) -> None:
    """Show the setting of a pool and how many contributions it has.

    \b
    Example:
      rapt pool show pool-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _show(client.pool(pool_id), as_json=as_json)


@pool.command()
@asks_a_service
def keys(
    pool_id: PoolId,
    access: ServiceAccess,
    count: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Number of keys.")] = 1,
    contributions: Annotated[int, typer.Option(metavar="N", min=1, help="Contributions that each key may add.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Create keys for contributors and print them, one a line; nobody can show them again.

    A key adds to this pool, takes back, and does nothing else. It is not noted which contribution came with which key,
    only how many more it may add.

    \b
    Example:
      rapt pool keys pool-0123456789abcdef01234567 --count 100 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        made = client.make_pool_keys(pool_id, count=count, contributions=contributions)
    if as_json:
        show_json({"pool": pool_id, "keys": made})
    else:
        show("\n".join(made))


@pool.command()
@asks_a_service
def advance(
    pool_id: PoolId,
    access: ServiceAccess,
    as_json: AsJson = False,
) -> None:
    """End the first of two rounds: its codes become the centre of the code, and are deleted.

    Whoever gave has given: a key adds no more than it may in both rounds together. The others privatize with the code
    that `rapt pool code` writes. Where noise hides the centre, the pool stays in its first round.

    \b
    Example:
      rapt pool advance pool-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _show(client.advance_pool(pool_id), as_json=as_json)


@pool.command()
@asks_a_service
def code(
    pool_id: PoolId,
    out: Annotated[Path, typer.Option(help="New folder for the code.")],
    access: ServiceAccess,
    codes: Annotated[
        str, typer.Option(help="Code that the pool was opened with: its name or folder.")
    ] = "minilm-codes",
) -> None:
    """Write the code that texts for a pool are privatized with: in a second round, from the centre of the first.

    \b
    Example:
      rapt pool code pool-0123456789abcdef01234567 --out pool-code --service http://127.0.0.1:8420
    """
    from rapt.cli.vocabulary import check_new
    from rapt.errors import VocabularyError
    from rapt.local.codes.code_privatizer import read_code
    from rapt.wire.code_bundle import apply_center, write_code_bundle

    check_new(out)
    with access.open() as client:
        asked = client.pool(pool_id)
    found = read_code(codes)
    if asked.center is not None:
        found = apply_center(found, asked.center)
    if found.hash != asked.manifest.vocabulary_hash:
        raise VocabularyError("the pool must be of the code, got one of another; name its code with --codes")
    write_code_bundle(found, out)
    show(str(out))


@pool.command()
@asks_a_service
def close(
    pool_id: PoolId,
    access: ServiceAccess,
    as_json: AsJson = False,
) -> None:
    """Take nothing more into a pool and print the id of the file that it becomes.

    The file has the contributions in a random order, and is tuned on as any other: `rapt tune --file-id`.

    \b
    Example:
      rapt pool close pool-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        made = client.close_pool(pool_id)
    if as_json:
        show_json(_describe(made))
    else:
        show(str(made.file))
        say(f"{made.contributions:,} contributions")


@pool.command()
@asks_a_service
def delete(
    pool_id: PoolId,
    access: ServiceAccess,
) -> None:
    """Delete a pool with its contributions and keys; the file that it became stays.

    \b
    Example:
      rapt pool delete pool-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        client.delete_pool(pool_id)
    show(pool_id)
    say("the pool is deleted")


@asks_a_service
def contribute(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Privatized file whose records are given.")],
    pool_id: Annotated[str, typer.Option("--pool", metavar="POOL", help="Id of the pool.")],
    access: ServiceAccess,
    take_back: Annotated[
        bool, typer.Option("--take-back", help="Take back what was given of FILE, while the pool is open.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Give privatized texts to a pool.

    Each record goes with a receipt that is made up here and written to FILE.contributions.json first: a run that was
    cut off goes on with the same command, nothing is given twice, and --take-back needs nothing else. The service
    keeps the records alone, not who gave them, nor when.

    \b
    Example:
      rapt contribute mine.rapt.jsonl --pool pool-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    from rapt.local.contributions import contribute_file, take_file_back

    with access.open() as client:
        if take_back:
            number = take_file_back(file, client, pool=pool_id, narrator=output)
        else:
            number = contribute_file(file, client, pool=pool_id, narrator=output)
    if as_json:
        show_json({"pool": pool_id, "taken_back" if take_back else "contributed": number})
    else:
        show(pool_id)
        say(f"{number:,} {'taken back' if take_back else 'contributed'}")


def _show(found: PoolInfo, *, as_json: bool) -> None:
    if as_json:
        show_json(_describe(found))
        return
    show(found.id)
    setting = found.manifest.mechanism
    labels = "none" if found.manifest.labels is None else ", ".join(found.manifest.labels)
    if found.first is not None:
        needed = f", which needs {found.first:,} contributions without labels" if found.round == 1 else ""
        say(f"round {found.round} of 2{needed}")
    say(
        f"{found.status}, {found.contributions:,} contributions of {found.least:,} to {found.most:,}; "
        f"{setting.name} at {setting.describe_strength()}; labels: {labels}"
    )


def _describe(found: PoolInfo) -> dict[str, Any]:
    return {
        "pool": found.id,
        "status": found.status,
        "contributions": found.contributions,
        "least": found.least,
        "most": found.most,
        "setting": found.setting,
        "round": found.round,
        "first": found.first,
        "file": found.file,
    }
