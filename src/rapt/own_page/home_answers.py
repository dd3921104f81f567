"""Answers at home for the page: a tuned model is fetched once, and asked about clear text in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any, Final

from rapt.at_home import HomeModel, fetch_home_model
from rapt.errors import UnavailableError
from rapt.local.client import ServiceClient
from rapt.local.policy.policy import Policy

# Each may hold a backbone in memory.
_MOST_MODELS: Final = 2


class HomeAnswers:
    """Tuned models that were fetched from the service, the last ones kept."""

    def __init__(
        self,
        open_client: Callable[[], AbstractContextManager[ServiceClient]],
        *,
        policy: Policy | None,
        encoder: str | None,
        truncate_to: int | None,
    ) -> None:
        """Take how the service is reached, and what is done to a text first; nothing is fetched yet.

        Args:
            open_client: Opens a client of the service.
            policy: Policy that texts are rewritten by, as those were that the model learned from.
            encoder: Name or folder of the encoder of codes; None goes by the name in the code.
            truncate_to: Tokens to keep of a longer text.
        """
        self._open, self._policy = open_client, policy
        self._encoder, self._truncate_to = encoder, truncate_to
        self._models: OrderedDict[str, HomeModel] = OrderedDict()
        self._lock = Lock()

    def answer(self, name: str, text: str) -> dict[str, Any]:
        """Return the classes and their probabilities for a text in clear, of which nothing leaves.

        Args:
            name: Name of a tuned model, as the service gave it.
            text: The text.

        Raises:
            UnavailableError: The model needs a package that is not installed.
            Others: The reasons of `fetch_home_model` and `HomeModel.answer`.
        """
        with self._lock:
            model, is_new = self._models.get(name), False
            if model is None:
                model, is_new = self._fetch(name), True
            self._models[name] = model
            self._models.move_to_end(name)
            while len(self._models) > _MOST_MODELS:
                self._models.popitem(last=False)
            read = text if self._policy is None else self._policy.rewrite([text])[0]
            odds = model.answer([read], None, first_position=0)[0]
        return {"labels": list(model.card.labels), "probabilities": odds.tolist(), "fetched": is_new}

    def _fetch(self, name: str) -> HomeModel:
        try:
            with self._open() as client:
                return fetch_home_model(client, name, backbone=self._encoder, truncate_to=self._truncate_to)
        except ImportError:
            raise UnavailableError(
                "a model on tokens needs the extra `service` to answer at home; install it, or ask privately"
            ) from None
