"""Laplace noise on rows that were scaled to one length: no word stays the oftener for having a long row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.local.mechanisms.interface import MechanismKind, Promise
from rapt.local.mechanisms.laplace import LAPLACE_PROMISE, LaplaceMechanism
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting, check_eta

METRIC: Final = "unit-rows"


@dataclass(frozen=True)
class UnitLaplaceMechanism:
    """y = nearest eligible token to U(x) + z, with U(x) = E(x) / ||E(x)|| and z of density prop. to exp(-eta * ||z||).

    Guarantee (eta * d_1-privacy for one token), with d_1(x, x') = ||U(x) - U(x')||, the chord of the angle between the
    two rows: for every x, x' and y,

        log P(y|x) - log P(y|x') <= eta * d_1(x, x').

    No two tokens are farther apart than 2. The metric is *not* the Euclidean one of the table, and eta has the unit
    1/chord: compare by what stays, or by the success of attacks, never by eta.

    Proof.
        1. U is a public table: a row of it is computed from that row of E alone, and E is public.
        2. d_1 is the Euclidean distance of rows of U, hence a metric, up to tokens whose rows have one direction.
        3. The mechanism is `laplace` on U: its steps 1 to 8 use nothing of a table but its rows. ∎
        A row of length 0 has no direction and stays 0. U is rounded to float32 once, and the guarantee, its distances
        and the search are all about the rounded table.

    Not covered: number and order of tokens, labels, repeated releases. See `laplace` about float64.

    Source: `laplace`, on another public table. Status: proved.
    """

    vocabulary: Vocabulary
    eta: float

    def __post_init__(self) -> None:
        """Refuse an eta that is not a finite number above 0 (`MechanismError`)."""
        check_eta(self.eta)

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta and the metric."""
        return MechanismSetting(name="unit-laplace", parameters={"eta": float(self.eta), "metric": METRIC})

    @cached_property
    def _on_units(self) -> LaplaceMechanism:
        return LaplaceMechanism(scale_rows(self.vocabulary), self.eta)

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """d_1 of pairs of rows, (n,)."""
        return self._on_units.distances(left, right)

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        return self._on_units.privatize(token_ids, rng=rng)


@lru_cache(maxsize=2)
def scale_rows(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with every row scaled to length 1, and a hash that says so; rows of length 0 are left."""
    rows = vocabulary.embeddings.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    table = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0).astype(np.float32)
    table.setflags(write=False)
    digest = hashlib.sha256(f"{METRIC} {vocabulary.hash}".encode("ascii")).hexdigest()
    return replace(vocabulary, bundle=replace(vocabulary.bundle, embeddings=table, hash=f"sha256:{digest}"))


def _remark(setting: MechanismSetting) -> str:
    return (
        "metric: every row of the table is scaled to length 1 first. Distances here are chords of the angle between "
        "two rows, none above 2, and η is per chord: it says nothing beside an η of another metric."
    )


UNIT_LAPLACE: Final = MechanismKind(
    name="unit-laplace",
    build=UnitLaplaceMechanism,
    promise=Promise(loss=LAPLACE_PROMISE.loss, noise=LAPLACE_PROMISE.noise, remark=_remark, space=scale_rows),
)
