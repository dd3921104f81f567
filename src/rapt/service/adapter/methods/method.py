"""Entry of a method: how it is made, what may be asked of it, where it starts, and the form of its parts in files.

A soft prompt or a prefix starts at public words, or at random. Lester et al. (2021, Sec. 3.2) found words better than
random vectors, and the names of the classes best: a prompt then starts where the backbone has been. Whatever the words
are, they are public: drawn from the vocabulary, named as labels, or given knowingly as `init_text`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from rapt.errors import TuningError
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import Tuned
from rapt.wire.adapter_files import MOST_PROMPT_POSITIONS, AdapterCard
from rapt.wire.strict_json import is_text

Shape = tuple[int, ...]

TASKS: Final = ("classification", "label_words", "generation")
INITIALIZATIONS: Final = ("vocabulary", "random", "text", "labels")
MOST_HIDDEN: Final = 8192


def _keep_card_value(value: str) -> str:
    if not is_text(value):
        raise ValueError("must have no control character and no lone surrogate")
    return value


# Strings that are kept and shown again, or looked up in the database.
Text = Annotated[str, AfterValidator(_keep_card_value)]
Word = Annotated[Text, Field(min_length=1, max_length=64)]


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Settings of all methods; each reads the settings that its options name. `TuningConfig` checks them.

    Attributes:
        prompt_length: P, the length of the soft prompt or of the prefix.
        initialization: Start of prompt or prefix: at tokens of the `vocabulary`, at `random` vectors, at the words
            of `init_text`, or at the names of the `labels`.
        init_text: Public words chosen by the provider or the user; only for initialization `text`. Sent in clear.
        reparametrization: The network that makes the prompt or prefix in training and is gone from the adapter:
            `none`, `mlp`, or `lstm`.
        reparametrization_size: The hidden width of that network; 0 takes the backbone's.
        lora_rank: Rank r of LoRA's matrices.
        lora_alpha: The change is scaled by alpha / r.
        lora_targets: Last part of the names of the changed linear layers; empty takes the query and value projections,
            or what stands in their place.
    """

    prompt_length: int = 10
    initialization: str = "vocabulary"
    init_text: str | None = None
    reparametrization: str = "none"
    reparametrization_size: int = 0
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Option:
    """One setting as a request names it.

    Attributes:
        name: The name that PEFT or OpenAI have for it, where they have one.
        setting: The field of the run.
        accepts: The words to choose from, or the type with its bounds.
        default: `auto` leaves the setting to the service; None leaves it out.
    """

    name: str
    setting: str
    accepts: Any
    default: str | None = "auto"


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the parts of an adapter are kept in files, with the names that PEFT gives to its tensors.

    Attributes:
        shapes: The shapes of the tensors that a card asks for on a backbone, given the shapes that were found. Raises
            `WireError` where there can be none.
        to_tensors: The tensors of what was tuned.
        from_tensors: The inverse, for tensors of those shapes.
        peft: PEFT's configuration of an adapter, without what is common to all; None where PEFT has no such adapter.
    """

    shapes: Callable[[AdapterCard, Backbone, Mapping[str, Shape]], dict[str, Shape]]
    to_tensors: Callable[[Tuned], dict[str, Tensor]]
    from_tensors: Callable[[Mapping[str, Tensor], AdapterCard, Backbone], Tuned]
    peft: Callable[[AdapterCard, Tuned], dict[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to adapt a frozen backbone.

    What `make` returns is a module whose call, without arguments, gives the `Tuned` that stands in for it: the parts
    that are put into a forward pass, differentiable in its parameters. An adapter keeps that value alone, so whatever
    a method needs only while it trains is gone from the adapter.

    Attributes:
        title: Name of the method for people.
        make: The module at its initial values, from a backbone, the settings, the names of the classes (none where
            there are none) and the generator of all that is random in it. Raises `TuningError` where the settings do
            not fit the backbone.
        parameters: Function that counts the numbers it trains on a backbone.
        form: Form in which its parts are kept in files.
        learning_rate: Peak rate where nothing else is said.
        options: Settings of a request for it besides those of every run.
        tasks: The tasks that it can learn.
        reconstructs: Whether reconstruction can teach it anything.
        prompt: Place of the P vectors of its prompt: in the sequence, where they take positions, or before the keys
            and values of each attention layer; None without a prompt.
        reparametrizations: The networks that can make its prompt, the default first.
    """

    title: str
    make: Callable[[Backbone, MethodSettings, tuple[str, ...], torch.Generator], nn.Module]
    parameters: Callable[[Backbone, MethodSettings], int]
    form: Form
    learning_rate: float
    options: tuple[Option, ...] = ()
    tasks: tuple[str, ...] = TASKS
    reconstructs: bool = True
    prompt: Literal["sequence", "attention"] | None = None
    reparametrizations: tuple[str, ...] = ("none",)


PROMPT_OPTIONS: Final = (
    Option(
        name="num_virtual_tokens",
        setting="prompt_length",
        accepts=Annotated[int, Field(ge=1, le=MOST_PROMPT_POSITIONS)],
    ),
    Option(name="initialization", setting="initialization", accepts=INITIALIZATIONS),
    Option(
        name="init_text",
        setting="init_text",
        accepts=Annotated[
            Annotated[Text, Field(min_length=1, max_length=4096)] | None,
            Field(description="public words for initialization text; they are sent and kept in clear"),
        ],
        default=None,
    ),
)


def list_network_options(*networks: str) -> tuple[Option, ...]:
    """The options of a network that makes a prompt in training."""
    size = Annotated[int, Field(ge=1, le=MOST_HIDDEN)]
    return (
        Option(name="encoder", setting="reparametrization", accepts=networks),
        Option(name="encoder_hidden_size", setting="reparametrization_size", accepts=size),
    )


def make_initial_vectors(
    backbone: Backbone, settings: MethodSettings, labels: tuple[str, ...], generator: torch.Generator
) -> Tensor:
    """P vectors at the place of word embeddings, (P, e), float32."""
    token_ids = choose_initial_tokens(backbone, settings, labels, generator)
    if token_ids is not None:
        return backbone.word_embeddings[token_ids.to(backbone.device)].clone()
    spread = float(backbone.word_embeddings.std())
    return spread * torch.randn(settings.prompt_length, backbone.embedding_size, generator=generator)


def choose_initial_tokens(
    backbone: Backbone, settings: MethodSettings, labels: tuple[str, ...], generator: torch.Generator
) -> Tensor | None:
    """The P tokens to start at, (P,), int64; None for initialization `random`.

    Fewer words than P are repeated from the first, more are cut off.

    Raises:
        TuningError: There are no words to start at.
    """
    if settings.initialization == "random":
        return None
    if settings.initialization == "vocabulary":
        eligible = torch.from_numpy(backbone.vocabulary.eligible.copy())
        return eligible[torch.randperm(len(eligible), generator=generator)[: settings.prompt_length]]
    words = (settings.init_text,) if settings.initialization == "text" else labels
    token_ids = [token for word in words for token in backbone.tokenize(word or "")]
    if not token_ids:
        raise TuningError(
            f"initialization {settings.initialization!r} must have words to start at, got tokens=0; "
            "choose initialization vocabulary"
        )
    repeats = -(-settings.prompt_length // len(token_ids))
    return torch.tensor((token_ids * repeats)[: settings.prompt_length])


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer at torch's usual uniform values, drawn from our generator and not from the global one."""
    layer = nn.Linear(inputs, outputs)
    uniform_(layer, bound=inputs**-0.5, generator=generator)
    return layer


def uniform_(module: nn.Module, *, bound: float, generator: torch.Generator) -> None:
    """Draw every parameter of a module from [-bound, bound], in the order of their names."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
