"""What every mechanism is: a public setting, an honest status, and one method that replaces tokens.

The options of a mechanism are a closed list with types and defaults, checked before any work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError, VocabularyError
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import MechanismSetting, Parameter


@dataclass(frozen=True, kw_only=True)
class Option:
    """A public parameter of a mechanism beside eta; its value is recorded in the setting.

    Attributes:
        default: Also fixes the type.
        help: One line for people.
    """

    default: Parameter
    help: str


def read_options(
    given: Mapping[str, Parameter], known: Mapping[str, Option], *, mechanism: str
) -> dict[str, Parameter]:
    """All options of a mechanism: the given ones, and the defaults of the others.

    Raises:
        MechanismError: An option is unknown, of another type, or not finite.
    """
    for name in given:
        if name not in known:
            choose = f"choose among {', '.join(known)}" if known else "it has none"
            raise MechanismError(f"mechanism={mechanism!r} has no option {name!r}; {choose}")
    return {
        name: _typed(given[name], option, name) if name in given else option.default for name, option in known.items()
    }


def _typed(value: Parameter, option: Option, name: str) -> Parameter:
    kind = type(option.default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise MechanismError(
            f"option {name!r} must be {_KINDS[kind]}, got {name}={value!r}; leave it out for {option.default!r}"
        )
    return value


_KINDS = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a word"}


GuaranteeStatus = Literal["proved", "conditional", "broken-as-published"]


class Mechanism(Protocol):
    """Replaces each token by a random eligible one.

    A mechanism is a value: its setting may be published, the tokens are arguments and are not kept.
    """

    @property
    def setting(self) -> MechanismSetting:
        """Name and public parameters, as a manifest states them."""
        ...

    @property
    def status(self) -> GuaranteeStatus:
        """Whether the guarantee in the docstring is proved, holds under conditions, or fails as published."""
        ...

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """d(x, x') of its guarantee, for pairs of rows, (n,); infinite where it has no bound."""
        ...

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, every one drawn independently.

        Args:
            token_ids: (n,), any rows of the table, [UNK] and special tokens included. Not changed.
            rng: Private: whoever can repeat its draws can undo them.

        Returns:
            Eligible ids, (n,), int64.
        """
        ...


class ClosedChannel(Mechanism, Protocol):
    """A mechanism whose probabilities can be written down."""

    def log_probabilities(self, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The log of P(y|x) for each x and every eligible y, in nats; -inf where y cannot follow from x.

        Args:
            token_ids: x, (n,), any rows of the table.

        Returns:
            (n, number of eligible tokens), in the order of the eligible ids.
        """
        ...


def closed_channel(mechanism: Mechanism) -> Callable[[NDArray[np.int64]], NDArray[np.float64]] | None:
    """The mechanism's `log_probabilities` (see `ClosedChannel`); None where it has none."""
    return getattr(mechanism, "log_probabilities", None)


def with_share_of_memory(mechanism: Mechanism, *, among: int) -> Mechanism:
    """The mechanism with the cache that one of several processes may have, so that together they keep to its bound.

    What is cached is the same in each and decides no draw, so a smaller cache costs time only.
    """
    budget = getattr(mechanism, "cache_bytes", None)
    if budget is None:
        return mechanism
    return replace(mechanism, cache_bytes=budget // among)  # type: ignore[type-var]  # the field says it is a dataclass


class MechanismKind(Protocol):
    """The class of a mechanism, as the dict of mechanisms holds it."""

    @property
    def name(self) -> str:
        """As manifests write it: append-only, a name keeps its meaning for ever."""
        ...

    @property
    def status(self) -> GuaranteeStatus:
        """Of its guarantee."""
        ...

    @property
    def caveat(self) -> str:
        """Why the status is not "proved", and what to use instead; empty where it is."""
        ...

    @property
    def options(self) -> Mapping[str, Option]:
        """Its parameters beside eta."""
        ...

    def make(self, *, vocabulary: Vocabulary, eta: float, options: Mapping[str, Parameter]) -> Mechanism:
        """The mechanism with this setting. Raises `MechanismError`."""
        ...


def check_token_ids(token_ids: NDArray[np.int64], *, size: int) -> None:
    """Refuse ids that have no row in a table of `size` rows; a negative one would silently count from the end.

    Raises:
        VocabularyError: Such an id, named by its position only.
    """
    if token_ids.ndim != 1 or not np.issubdtype(token_ids.dtype, np.integer):
        raise VocabularyError(
            f"token ids must be a flat array of whole numbers, got {token_ids.dtype} {token_ids.shape}; "
            "encode with the vocabulary"
        )
    outside = (token_ids < 0) | (token_ids >= size)
    if outside.any():
        raise VocabularyError(
            f"every token must have a row in the table, got none for token {int(outside.argmax())} of "
            f"{len(token_ids)}; encode with the vocabulary of that table"
        )
