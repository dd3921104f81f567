"""The attacks, one a module, in one closed dict, and what every attack is.

An attack is a function of the adversary's view and a seed. It has no other way in: the truth is not an argument.
To add one: a module with such a function, one line here, and the tests of `tests/audit/test_attacks.py`, which run over
all of them (succeeds at a huge eta, is at chance at a tiny one, does not depend on the truth).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from rapt.audit.attacks.bayes import context_free_bayes
from rapt.audit.attacks.embedding_inversion import embedding_inversion
from rapt.audit.channels import CHANNELS
from rapt.audit.guess import Guess
from rapt.audit.view import AdversaryView


class AttackFunction(Protocol):
    """Names the likeliest true token of every privatized one."""

    def __call__(self, view: AdversaryView, *, seed: int, on_progress: Callable[[float], None] | None = None) -> Guess:
        """Candidates for each token of the view. `seed` fixes all that is drawn; `on_progress` takes the share done."""
        ...


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack and what a report says about it.

    Attributes:
        run: The function.
        title: For people.
        uses: What the attacker does, in plain words, one sentence.
        source: Where it is published.
        mechanisms: Names of the mechanisms it works on; None for any.
    """

    run: AttackFunction
    title: str
    uses: str
    source: str
    mechanisms: frozenset[str] | None = None

    def reason_to_skip(self, view: AdversaryView) -> str | None:
        """Why it cannot run on this file, or None when it can."""
        name = view.manifest.mechanism.name
        if self.mechanisms is None or name in self.mechanisms:
            return None
        return f"the channel of mechanism={name!r} is not known here"


ATTACKS: Final[Mapping[str, Attack]] = MappingProxyType(
    {
        "embedding_inversion": Attack(
            run=embedding_inversion,
            title="Embedding inversion",
            uses="Takes each privatized token, and the tokens nearest to it, for the true one.",
            source="Song and Raghunathan 2020; the attack of the RAPT paper",
        ),
        "bayes": Attack(
            run=context_free_bayes,
            title="Context-free Bayes",
            uses="Weighs, for each privatized token, how frequent every word is and how often it would turn into it.",
            source="Tong et al. 2025",
            mechanisms=frozenset(CHANNELS),
        ),
    }
)
