"""Models of a service: listed, chosen for a file, fetched, brought along and deleted; vocabularies and codebooks.

What a service hands out has a limit, which is known before a byte of it is read, and a folder appears whole or not at
all. A vocabulary's table can be gigabytes, so what came of one whose connection was lost is kept, and the rest is
fetched the next time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

from rapt.errors import UsageError, VocabularyError, WireError
from rapt.local.client.connection import Connection, quote_part
from rapt.local.client.objects import ModelInfo, clean_line, read_answer, read_answers, read_model_info
from rapt.local.client.steps import Steps, work
from rapt.this_machine import find_cache_folder
from rapt.whole_files import check_folder, open_whole_folder
from rapt.wire.adapter_files import CARD, CONFIGURATION, KNOWN_FILES, WEIGHTS, parse_card, unpack_adapter
from rapt.wire.code_bundle import HASH, CodeBundle, read_code_bundle
from rapt.wire.manifest import Manifest
from rapt.wire.strict_json import parse_document, parse_object
from rapt.wire.vocabulary_bundle import VocabularyBundle, read_bundle


def list_models(service: Connection) -> Steps[list[ModelInfo]]:
    """Base models and tuned ones, without their cards."""
    answer = yield from service.ask("GET", "/v1/models")
    return read_answers(read_model_info, answer)


def get_model(service: Connection, model: str) -> Steps[ModelInfo]:
    """A model; of a tuned one with the card that says how queries must be privatized. Raises `NotFoundError`."""
    answer = yield from service.ask("GET", f"/v1/models/{quote_part(model)}")
    return read_answer(read_model_info, answer)


def choose_base_model(service: Connection, manifest: Manifest, *, asked: str | None = None) -> Steps[str]:
    """The name of the base model that a file can tune: the one that is asked for, its own, or the only one left.

    Raises:
        NotFoundError: There is no model of the name that is asked for.
        UsageError: Several models have the vocabulary of the file, and none of them is named.
        VocabularyError: No model has it, or the one that is asked for has another.
    """
    if asked is not None:
        check_same_vocabulary((yield from get_model(service, asked)), manifest)
        return asked
    listed = yield from list_models(service)
    fitting = [
        model.id for model in listed if model.id == model.base and model.vocabulary_hash == manifest.vocabulary_hash
    ]
    if manifest.model in fitting:
        return manifest.model
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(
            f"a tuning must be of one model, got {len(fitting)} with the vocabulary of the file "
            f"({clean_line(', '.join(fitting))}); name one as `model`"
        )
    raise _make_vocabulary_error(manifest)


def import_adapter(service: Connection, files: Mapping[str, bytes], *, suffix: str | None = None) -> Steps[ModelInfo]:
    """Make a tuned model of weights that were tuned elsewhere, as `ServiceClient.adapter` fetches them.

    Args:
        service: Connection to the service.
        files: Content by name: the card `rapt.json`, the weights `adapter_model.safetensors`, and PEFT's
            `adapter_config.json` where there is one. The card names the base model, which the service must have.
        suffix: End of the model's name; None leaves it to the service.

    Raises:
        UsageError: The card or the weights are missing; nothing was sent.
        WireError: The card is none; nothing was sent.
        MechanismError: The card names no mechanism with a setting; nothing was sent.
        ServiceError: The service refused them, or gave no answer.
    """
    if not {CARD, WEIGHTS} <= files.keys():
        raise UsageError(f"an adapter must have the files {CARD} and {WEIGHTS}; fetch or export it again")
    parse_card(parse_document(files[CARD], what="the adapter card"))
    sent = {
        field: (name, BytesIO(files[name]), "application/octet-stream")
        for field, name in (("card", CARD), ("weights", WEIGHTS), ("config", CONFIGURATION))
        if name in files
    }
    answer = yield from service.ask("POST", "/v1/adapters", data={"suffix": suffix} if suffix else {}, files=sent)
    return read_answer(read_model_info, answer)


def delete_model(service: Connection, model: str) -> Steps[None]:
    """Delete a tuned model. Raises `NotFoundError`."""
    yield from service.ask("DELETE", f"/v1/models/{quote_part(model)}")


def check_same_vocabulary(model: ModelInfo, manifest: Manifest) -> None:
    """Refuse a model with another vocabulary than that of a file (`VocabularyError`)."""
    if model.vocabulary_hash != manifest.vocabulary_hash:
        raise _make_vocabulary_error(manifest)


def _make_vocabulary_error(manifest: Manifest) -> VocabularyError:
    if manifest.unit == "text":
        return VocabularyError(
            "the model must have the codebook that the file was privatized with; name the model of that codebook as "
            "`model`, or privatize the texts again with the code of a model of the service, as "
            "`ServiceClient.codebook` fetches it"
        )
    return VocabularyError(
        "the model must have the vocabulary that the file was privatized with; privatize the texts again with the "
        "vocabulary of a model of the service, as `rapt vocabulary fetch` gets it"
    )


with suppress(ImportError):  # Windows has none
    import fcntl

_BUNDLE_FILES: Final = ("vocabulary.json", "tokenizer.json", "embeddings.safetensors")
# Most bytes of the first two; those of the third follow from the shape that the first states, within a limit.
_MOST_OF_A_DESCRIPTION: Final = 16 * 2**20
_MOST_OF_A_TOKENIZER: Final = 128 * 2**20
_MOST_ENTRIES: Final = 2**32
_ROOM_FOR_A_HEADER: Final = 2**20
_CODE_FILES: Final = ("code.json", "code.safetensors")
# A codebook of 65,536 codewords in 256 dimensions, and an adapter of LoRA on a model of some billion weights.
_MOST_OF_A_CODEBOOK: Final = 128 * 2**20
_MOST_OF_AN_ADAPTER: Final = 512 * 2**20


def fetch_vocabulary(service: Connection, model: str, folder: Path | str) -> Steps[VocabularyBundle]:
    """The vocabulary of a model, fetched into a folder, its hash computed again from what came.

    The bundle that stands in the folder is kept if it is the same. What came of a table whose connection was lost
    waits in the cache folder, and the next time the rest is fetched.

    Args:
        service: Connection to the service.
        model: A base model, or a tuned one for that of its base.
        folder: Appears whole or not at all; another bundle that stands there already is replaced.

    Raises:
        VocabularyError: The bundle that came does not match its hash, or the folder cannot be written.
        UsageError: The folder holds something else, or is a link.
    """
    folder = Path(folder)
    with _open_fetched_folder(folder, _BUNDLE_FILES) as partial:
        description, tokenizer, table = (partial / name for name in _BUNDLE_FILES)
        path = f"/v1/vocabularies/{quote_part(model)}"
        yield from service.download(path, description, most=_MOST_OF_A_DESCRIPTION)
        most, digest = _read_description(description)

        def take_what_is_there() -> VocabularyBundle | None:
            with suppress(VocabularyError, WireError):
                if (have := read_bundle(folder)).hash == f"sha256:{digest}":
                    for name in _BUNDLE_FILES[1:]:
                        shutil.copyfile(folder / name, partial / name)
                    return have
            return None

        have = yield from work(take_what_is_there)
        if have is not None:
            return have
        yield from service.download(f"{path}/{tokenizer.name}", tokenizer, most=_MOST_OF_A_TOKENIZER)
        with _open_partial_file(digest, table) as part:
            yield from service.download(f"{path}/{table.name}", part, most=most, tag=f'"sha256:{digest}"')
        return (yield from work(lambda: read_bundle(partial)))


def fetch_codebook(service: Connection, model: str, folder: Path | str) -> Steps[CodeBundle]:
    """The codebook of a model, fetched into a folder as `vocabulary` is; the encoder of its codes does not come.

    Args:
        service: Connection to the service.
        model: A base model whose unit is the text, or a tuned one for that of its base.
        folder: Appears whole or not at all; a code bundle that stands there already is replaced.

    Raises:
        VocabularyError: The bundle that came does not match its hash, or the folder cannot be written.
        UsageError: The folder holds something else, or is a link.
        NotFoundError: The model has a vocabulary of tokens.
    """
    with _open_fetched_folder(Path(folder), _CODE_FILES) as partial:
        description, table = (partial / name for name in _CODE_FILES)
        path = f"/v1/codes/{quote_part(model)}"
        yield from service.download(path, description, most=_MOST_OF_A_DESCRIPTION)
        yield from service.download(f"{path}/{table.name}", table, most=_MOST_OF_A_CODEBOOK)
        return (yield from work(lambda: read_code_bundle(partial)))


def fetch_adapter(service: Connection, model: str, *, form: Literal["rapt", "hub"] = "rapt") -> Steps[dict[str, bytes]]:
    """The files of a tuned model by name: its card and weights, and PEFT's configuration where it has one.

    Args:
        service: Connection to the service.
        model: Name of a tuned model.
        form: `rapt`, as a service imports it, or `hub`, as plain PEFT, vLLM and the hub take it, with a README.

    Raises:
        NotFoundError: There is no such tuned model.
        WireError: The files that came are no adapter.
    """
    with TemporaryDirectory() as folder:
        archive = Path(folder) / "adapter.zip"
        path = f"/v1/models/{quote_part(model)}/adapter" + ("" if form == "rapt" else f"?form={form}")
        yield from service.download(path, archive, most=_MOST_OF_AN_ADAPTER)
        files = yield from work(lambda: unpack_adapter(archive.read_bytes()))
    if not files.keys() <= KNOWN_FILES:  # they become names on this machine
        raise WireError("an adapter's archive must have the files of an adapter alone, got others; upgrade rapt")
    return files


@contextmanager
def _open_fetched_folder(folder: Path, files: tuple[str, ...]) -> Iterator[Path]:
    """A folder beside the one that is asked for, in whose place it is put when the block ends without an error."""
    try:
        check_folder(folder, replaceable=files)  # before gigabytes are fetched
        with open_whole_folder(folder, replaceable=files) as partial:
            yield partial
    except OSError as error:
        raise VocabularyError(
            f"the folder of a vocabulary must be writable, got {error.strerror or type(error).__name__}; choose another"
        ) from None


@contextmanager
def _open_partial_file(digest: str, target: Path) -> Iterator[Path]:
    """A file in the cache folder, one for each content, that becomes `target` when the block ends without an error.

    While another process fetches the same content, or where files cannot be locked, it is the target itself.
    """
    part = find_cache_folder() / "parts" / digest
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, NameError):
            yield target
            return
        yield part
        shutil.move(part, target)


def _read_description(description: Path) -> tuple[int, str]:
    """Most bytes of an embedding table, and the digest that `vocabulary.json` states; `WireError` without either."""
    stated = parse_object(description.read_bytes(), what="vocabulary.json")
    shape, digest = stated.get("shape"), stated.get("hash")
    if not (type(digest) is str and HASH.fullmatch(digest)):
        raise WireError("vocabulary.json must state the hash of its vocabulary; fetch it again")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(item) is int and item > 0 for item in shape)):
        raise WireError("vocabulary.json must state the shape of its table as two whole numbers; fetch it again")
    entries = int(shape[0] * shape[1])
    if entries > _MOST_ENTRIES:
        raise WireError(f"vocabulary.json must state a table of at most {_MOST_ENTRIES:,} numbers; use another model")
    return 4 * entries + _ROOM_FOR_A_HEADER, digest.removeprefix("sha256:")
