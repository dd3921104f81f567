"""Options of a tuning job: methods and their hyper-parameters. `auto` leaves one to the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from rapt.service.adapter.methods import METHODS, PROMPT_TUNING
from rapt.service.adapter.methods.method import MOST_HIDDEN, Method, Word
from rapt.wire.manifest import MOST_LABELS
from rapt.wire.openai_options import is_one_of

Auto = Literal["auto"]
# What OpenAI calls tuning on given answers; here the service chooses the method, as with `auto`.
SUPERVISED: Final = "supervised"
# What a request calls the settings that every run has.
_EVERY: Final[Mapping[str, str]] = {
    "task": "task",
    "label_words": "label_words",
    "n_epochs": "epochs",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "patience": "patience",
}


class Request(BaseModel):
    """Base of what comes in: exact fields, exact types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class OpenAIRequest(Request):
    """Base of OpenAI's shapes: an option that asks for nothing is taken, though this service does not offer it."""

    # Options that are not offered, and the values beside null with which they ask for nothing.
    harmless: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_changes_nothing(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        kept = {}
        for name, item in value.items():
            field = cls.model_fields.get(name)
            if field is None and name in cls.harmless:
                if item is None or is_one_of(item, cls.harmless[name]):
                    continue
            elif item is None and field is not None and not field.is_required() and name != "reconstruction":
                continue  # null is the default, but for reconstruction, which it leaves out
            kept[name] = item
        return kept


class ReconstructionOptions(Request):
    """Privatized token reconstruction: its share of the loss, and the width of its head."""

    weight: Annotated[float, Field(ge=0, le=10_000)] | Auto = "auto"
    hidden_size: Annotated[int, Field(ge=1, le=MOST_HIDDEN)] | Auto = "auto"
    schedule: Annotated[
        Literal["constant", "rise", "fall"] | Auto, Field(description="change of the weight over the run")
    ] = "auto"


class HyperparameterOptions(Request):
    """Options of every run; `reconstruction` null trains without, auto with if the file has plain tokens."""

    task: Literal["classification", "label_words", "generation"] | Auto = "auto"
    label_words: Annotated[
        Annotated[list[Word], Field(max_length=MOST_LABELS, fail_fast=True)] | Auto,
        Field(description="public: a word for each class, for task label_words"),
    ] = "auto"
    n_epochs: Annotated[int, Field(ge=1, le=1000)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Auto = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=100)] | Auto = "auto"
    patience: Annotated[
        Annotated[int, Field(ge=0, le=1000)] | Auto,
        Field(description="epochs without a lower validation loss after which a run stops; 0 never"),
    ] = "auto"
    reconstruction: ReconstructionOptions | Auto | None = "auto"


class AskedMethod(Request):
    """How to adapt the backbone; the options of the method that `type` names are read.

    `auto` is prompt tuning, on a backbone that expects the file's noise where one is served; `supervised`, as OpenAI's
    clients ask, is the same.
    """

    type: str

    @property
    def is_left_to_the_service(self) -> bool:
        """Whether the service chooses the method."""
        return self.type in ("auto", SUPERVISED)

    @property
    def hyperparameters(self) -> HyperparameterOptions:
        """Return the options of the method that `type` names."""
        found: HyperparameterOptions = getattr(self, self.type).hyperparameters
        return found


def _find_options(name: str, method: Method) -> Any:
    """The field of a request that has one method's options."""
    title = "".join(part.capitalize() for part in name.split("_"))
    own: dict[str, Any] = {}
    for option in method.options:
        accepts = option.accepts
        if isinstance(accepts, tuple):
            accepts = Literal.__getitem__(accepts)
        own[option.name] = (accepts if option.default is None else accepts | Auto, option.default)
    of_method = create_model(
        f"{title}Hyperparameters", __base__=HyperparameterOptions, __doc__=f"Settings of {name}.", **own
    )
    options = create_model(
        f"{title}Options",
        __base__=Request,
        __doc__=f"Options of {name}.",
        hyperparameters=(of_method, Field(default_factory=of_method)),
    )
    return options, Field(default_factory=options)


if TYPE_CHECKING:
    MethodOptions = AskedMethod
    SupervisedHyperparameters = HyperparameterOptions
else:  # every method of `METHODS` is a field
    _OWN: Final = {name: _find_options(name, method) for name, method in METHODS.items()}
    SupervisedHyperparameters = create_model(
        "SupervisedHyperparameters",
        __base__=(OpenAIRequest, _OWN[PROMPT_TUNING][0].model_fields["hyperparameters"].annotation),
        __doc__="Settings of `auto`, and OpenAI's factor on the learning rate of the method.",
        learning_rate_multiplier=(Annotated[float, Field(gt=0, le=100)] | Auto, "auto"),
    )
    SupervisedOptions = create_model(
        "SupervisedOptions",
        __base__=OpenAIRequest,
        __doc__="Options of OpenAI's `supervised`.",
        hyperparameters=(SupervisedHyperparameters, Field(default_factory=SupervisedHyperparameters)),
    )
    MethodOptions = create_model(
        "MethodOptions",
        __base__=(OpenAIRequest, AskedMethod),
        __doc__=AskedMethod.__doc__,
        type=(Literal.__getitem__(("auto", SUPERVISED, *METHODS)), ...),
        supervised=(SupervisedOptions, Field(default_factory=SupervisedOptions)),
        auto=_OWN[PROMPT_TUNING],
        **_OWN,
    )

# What a request calls each setting of a run, by method.
SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {
    name: {**_EVERY, **{option.name: option.setting for option in method.options}} for name, method in METHODS.items()
}
