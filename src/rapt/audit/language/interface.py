"""What a language model is to an attack: the probability of a token after those before it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class LanguageModel(Protocol):
    """A distribution over the next token, given the last few tokens of its text.

    Tokens are rows of the table; `boundary` stands before the first token of a text and after its last.
    """

    @property
    def order(self) -> int:
        """Tokens in its longest n-gram: 1 ignores context, 2 looks one token back."""
        ...

    @property
    def boundary(self) -> int:
        """Id of the end and of the beginning of a text: the number of rows of the table."""
        ...

    @property
    def anything(self) -> int:
        """Id of a token of which nothing is known: it has probability 1, and the tokens after it forget it."""
        ...

    def log_probability(self, *tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log P(last | those before), in nats.

        Args:
            tokens: Ids, from 1 to `order` arrays that broadcast against each other: the oldest first, the token asked
                about last.

        Returns:
            In the broadcast shape; finite for every token that the attacker holds possible.
        """
        ...
