"""The mechanisms, one a module, in one closed dict: easy to swap among proved parts, hard to extend by accident."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from rapt.arguments import check_arguments
from rapt.errors import MechanismError
from rapt.local.mechanisms.custext import CUSTEXT
from rapt.local.mechanisms.exponential import EXPONENTIAL, SANTEXT, TEM
from rapt.local.mechanisms.interface import ClosedChannel, Mechanism, MechanismKind, Promise
from rapt.local.mechanisms.laplace import LAPLACE, UNIT_LAPLACE
from rapt.local.mechanisms.mahalanobis import MAHALANOBIS
from rapt.local.mechanisms.near_tokens import RANK_FIX, VICKREY
from rapt.local.mechanisms.word_classes import PCT2T, SOFT_POS
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting, Parameter, check_eta

# Nats between two usual tokens, beyond which no token is changed by any mechanism: e^-50,000 is 0 in every arithmetic.
_MOST_NATS: Final = 50_000.0
# Length of the rows beside that of the noise, d / eta: below it float64 keeps nothing of a row to which noise is added.
_LEAST_SHARE: Final = 1e-13
_TOKENS_TRIED: Final = 256
MECHANISMS: Final[Mapping[str, MechanismKind]] = {
    kind.name: kind
    for kind in (
        LAPLACE,
        EXPONENTIAL,
        SOFT_POS,
        MAHALANOBIS,
        UNIT_LAPLACE,
        VICKREY,
        RANK_FIX,
        TEM,
        SANTEXT,
        CUSTEXT,
        PCT2T,
    )
}

__all__ = [
    "MECHANISMS",
    "ClosedChannel",
    "Mechanism",
    "MechanismKind",
    "check_useful_eta",
    "find_promise",
    "find_space",
    "make_mechanism",
    "remake_mechanism",
]


@check_arguments
def make_mechanism(
    name: str,
    *,
    vocabulary: Vocabulary,
    eta: float,
    options: Mapping[str, Parameter] = {},
    allow_unproved: bool = False,
) -> Mechanism:
    """The mechanism of that name on a vocabulary.

    Args:
        name: A key of `MECHANISMS`.
        vocabulary: Vocabulary whose table and eligible ids it uses.
        eta: Slope of its guarantee in its metric: log P(y|x) - log P(y|x') <= eta * d(x, x'). There is no default.
        options: Further public parameters, as its entry lists them; those left out have their defaults.
        allow_unproved: Whether a mechanism may be made whose guarantee is not proved for all pairs of tokens.

    Raises:
        MechanismError: The name or an option is unknown, eta is not a finite number above 0, or the guarantee is not
            proved and that was not allowed.
    """
    if name not in MECHANISMS:
        raise MechanismError(f"unknown mechanism={name!r}; choose one of {', '.join(MECHANISMS)}")
    kind = MECHANISMS[name]
    _check_least_eta(eta, vocabulary=find_space(name, vocabulary))
    if kind.known.status != "proved" and not allow_unproved:
        raise MechanismError(
            f"the guarantee of mechanism={name!r} is {kind.known.status}: {kind.known.caveat}; "
            "or allow it with `allow_unproved=True`"
        )
    return kind.make(vocabulary=vocabulary, eta=eta, options=options)


def find_promise(name: str) -> Promise | None:
    """Return what a privacy statement computes of the mechanism; None for one that is unknown or not proved."""
    return MECHANISMS[name].promise if name in MECHANISMS else None


def find_space(name: str, vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary in whose table the distances of a mechanism are: this one, unless it changes the metric."""
    promise = find_promise(name)
    return vocabulary if promise is None or promise.space is None else promise.space(vocabulary)


def check_useful_eta(eta: float, *, vocabulary: Vocabulary) -> None:
    """Refuse an eta that changes nothing, or nothing but noise, in any mechanism on this vocabulary.

    Raises:
        MechanismError: Two usual tokens are told apart by more than `_MOST_NATS`, or the noise drowns the table.
    """
    spread = _check_least_eta(eta, vocabulary=vocabulary)
    if eta * spread > _MOST_NATS:
        raise MechanismError(
            f"eta must be at most {_MOST_NATS / spread:.3g} on this vocabulary, where larger ones change no token, got "
            f"eta={eta!r}; see `rapt calibrate` for what a value means"
        )


def _check_least_eta(eta: float, *, vocabulary: Vocabulary) -> float:
    """The median distance of a token from the middle of the table, if noise of this eta leaves anything of it."""
    check_eta(eta)
    ids = vocabulary.eligible[:: max(1, len(vocabulary.eligible) // _TOKENS_TRIED)]
    rows = vocabulary.embeddings[ids].astype(np.float64)
    spread = float(np.median(np.linalg.norm(rows - rows.mean(axis=0), axis=1)))
    if spread > 0 and eta * spread < vocabulary.dimension * _LEAST_SHARE:
        raise MechanismError(
            f"eta must be at least {vocabulary.dimension * _LEAST_SHARE / spread:.3g} on this "
            f"vocabulary, below which its noise is too long to compute with, got eta={eta!r}; take a larger one, see "
            "`rapt calibrate`"
        )
    return spread


def remake_mechanism(
    setting: MechanismSetting,
    *,
    vocabulary: Vocabulary,
    files: Mapping[str, str] = {},
    allow_unproved: bool = False,
) -> Mechanism:
    """The mechanism that a manifest states, made again from its parameters.

    Args:
        setting: Name and parameters.
        vocabulary: The one named by the manifest's hash.
        files: Paths of the public files that options were read from, by option: a manifest holds their hashes only.
        allow_unproved: Whether the guarantee may be unproved, as in `make_mechanism`.

    Raises:
        MechanismError: Reasons of `make_mechanism`; also when a file is missing, or what was made has another setting.
    """
    if setting.name not in MECHANISMS:
        raise MechanismError(f"unknown mechanism={setting.name!r}; choose one of {', '.join(MECHANISMS)}")
    stated = {name: setting.parameters[name] for name in MECHANISMS[setting.name].options if name in setting.parameters}
    for name, value in stated.items():
        if isinstance(value, str) and value.startswith("sha256:") and name not in files:
            raise MechanismError(
                f"the setting was made with a public file for option {name!r}, of which it holds the hash only; "
                "give the file"
            )
    made = make_mechanism(
        setting.name,
        vocabulary=vocabulary,
        eta=setting.eta,
        options={**stated, **files},
        allow_unproved=allow_unproved,
    )
    if made.setting != setting:
        raise MechanismError(
            f"mechanism={setting.name!r} must have the parameters that its file states, got others; "
            "give the same public files, or upgrade rapt"
        )
    return made
