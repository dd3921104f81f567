"""Interface of every mechanism: a public setting, an honest status, and one method that replaces tokens.

The options of a mechanism are a closed list with types and defaults, checked before any work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError, VocabularyError
from rapt.local.privacy_loss import PrivacyLoss
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import KNOWN_MECHANISMS, KnownMechanism, MechanismSetting, Parameter, check_eta


@dataclass(frozen=True, kw_only=True)
class MechanismOption:
    """A public parameter of a mechanism beside eta; its value is recorded in the setting.

    Attributes:
        default: Value where none is given; it also fixes the type.
        help: One line for people.
        read: Makes what the mechanism is built with from a word, such as the name of a file; None takes the value.
    """

    default: Parameter
    help: str
    read: Callable[[str, Vocabulary], object] | None = None


def read_options(
    given: Mapping[str, Parameter], known: Mapping[str, MechanismOption], *, mechanism: str
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
        name: _read_typed(given[name], option, name) if name in given else option.default
        for name, option in known.items()
    }


def _read_typed(value: Parameter, option: MechanismOption, name: str) -> Parameter:
    kind = type(option.default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise MechanismError(
            f"option {name!r} must be {_KINDS[kind]}, got {name}={value!r}; leave it out for {option.default!r}"
        )
    return value


_KINDS = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a word"}


class Mechanism(Protocol):
    """Replaces each token by a random eligible one.

    A mechanism is a value: its setting may be published, the tokens are arguments and are not kept.
    """

    @property
    def setting(self) -> MechanismSetting:
        """Name and public parameters, as a manifest states them."""
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


def find_closed_channel(mechanism: Mechanism) -> Callable[[NDArray[np.int64]], NDArray[np.float64]] | None:
    """The mechanism's `log_probabilities` (see `ClosedChannel`); None where it has none."""
    return getattr(mechanism, "log_probabilities", None)


def share_memory(mechanism: Mechanism, *, among: int) -> Mechanism:
    """The mechanism with the cache that one of several processes may have, so that together they keep to its bound.

    What is cached is the same in each and decides no draw, so a smaller cache costs time only.
    """
    budget = getattr(mechanism, "cache_bytes", None)
    if budget is None:
        return mechanism
    return replace(mechanism, cache_bytes=budget // among)  # type: ignore[type-var]  # the field says it is a dataclass


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Size of the noise vector, in distances of the table.

    Attributes:
        mean_length: Mean length E‖z‖ of the noise.
        deviation_along_a_line: Standard deviation of the noise along a line through two tokens.
    """

    mean_length: float
    deviation_along_a_line: float


class TokenLoss(Protocol):
    """The privacy loss of one token against another at a distance; `step` as in `laplace_loss`."""

    def __call__(
        self, setting: MechanismSetting, *, distance: float, dimension: int, step: float | None
    ) -> PrivacyLoss:
        """The loss, never understated."""
        ...


@dataclass(frozen=True, kw_only=True)
class Promise:
    """Figures that a privacy statement computes of a mechanism that is proved for all pairs of tokens.

    Attributes:
        loss: Privacy loss of one token.
        noise: Size of its noise in d dimensions; None where there is none, or where it depends on the direction.
        pure_only: Whether `loss` knows no more than the pure bound.
        remark: Remark about its metric for a reader.
        space: Makes the vocabulary in whose table its distances are; None for the table as it is.
    """

    loss: TokenLoss
    noise: Callable[[MechanismSetting, int], Noise] | None = None
    pure_only: bool = False
    remark: Callable[[MechanismSetting], str] | None = None
    space: Callable[[Vocabulary], Vocabulary] | None = None


@dataclass(frozen=True, kw_only=True)
class MechanismKind:
    """One mechanism, as the dict of mechanisms holds it: how it is made, and what it promises.

    Attributes:
        name: Name in manifests, which keeps its meaning for ever; `rapt.wire.mechanism_setting` has an entry for it.
        build: Makes the mechanism from a vocabulary, eta and one argument for each option. Its docstring states and
            proves the guarantee.
        promise: Figures that a privacy statement computes; None where the guarantee is not proved.
        options: Parameters beside eta.
    """

    name: str
    build: Callable[..., Mechanism]
    promise: Promise | None
    options: Mapping[str, MechanismOption] = field(default_factory=dict)

    @property
    def known(self) -> KnownMechanism:
        """Public knowledge of it: its parameters, and the status of its guarantee."""
        return KNOWN_MECHANISMS[self.name]

    @property
    def guarantee(self) -> str:
        """Guarantee in words, with the proof and what is not covered."""
        return self.build.__doc__ or ""

    def make(self, *, vocabulary: Vocabulary, eta: float, options: Mapping[str, Parameter]) -> Mechanism:
        """The mechanism with this setting. Raises `MechanismError`."""
        chosen = read_options(options, self.options, mechanism=self.name)
        return self.build(
            vocabulary=vocabulary,
            eta=check_eta(eta),
            **{name: _read_chosen(value, self.options[name], vocabulary) for name, value in chosen.items()},
        )


def _read_chosen(value: Parameter, option: MechanismOption, vocabulary: Vocabulary) -> Any:
    return value if option.read is None else option.read(str(value), vocabulary)


def read_number(setting: MechanismSetting, name: str, *, at_most: float) -> float:
    """A parameter of a setting that came with a file, from 0 to a bound; raises `MechanismError`."""
    value = setting.parameters[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= at_most:
        raise MechanismError(f"{name} must be a number from 0 to {at_most:g}, got {name}={value!r}; privatize again")
    return float(value)


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
