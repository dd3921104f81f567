"""Models of a service: listed, chosen for a file, deleted; `downloads` has what is fetched of them."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

from rapt.errors import UsageError, VocabularyError
from rapt.local.client.connection import Connection, quote_part
from rapt.local.client.objects import ModelInfo, clean_line, read_answer, read_answers, read_model_info
from rapt.local.client.steps import Steps
from rapt.wire.adapter_files import CARD, CONFIGURATION, WEIGHTS, parse_card
from rapt.wire.manifest import Manifest
from rapt.wire.strict_json import parse_document


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
    raise _other_vocabulary(manifest)


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
        raise _other_vocabulary(manifest)


def _other_vocabulary(manifest: Manifest) -> VocabularyError:
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
