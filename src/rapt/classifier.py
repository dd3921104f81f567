"""A classifier after scikit-learn's conventions that is tuned on privatized text, here or by a service.

Whatever tunes it sees what `privatize` returns and no text. By default it is asked at home: the tuned part is small and
what it stands on is public, so both are fetched, and a query leaves nothing and costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from rapt.at_home import HomeModel, answer_in_parts, fetch_home_model, load_code_model, load_token_model
from rapt.errors import UsageError
from rapt.lazy_names import is_installed
from rapt.local.client import ServiceClient, follow_job
from rapt.local.codes.code_privatizer import read_code
from rapt.local.contributions import contribute_file
from rapt.local.in_memory import (
    PROJECT,
    DefaultLedger,
    Privatized,
    list_column,
    list_texts,
    name_labels,
    privatize,
)
from rapt.local.ledger import Ledger
from rapt.local.policy.policy import Policy

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError:
    raise ImportError(
        "RaptClassifier needs scikit-learn; install it, or the extra `sklearn` from the checkout: "
        "pip install -e '.[sklearn]'"
    ) from None

HERE: Final = "here"


class RaptClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # its bases have no types
    """A text classifier that is tuned on whole texts under one ε, or on tokens at η.

    Attributes:
        classes_: Classes, sorted, as they were given.
        privatized_: Value that the tuning saw; its `statement()` says what it protects.
        model_: Name of the tuned model at the service; None where it was tuned here.
    """

    classes_: NDArray[Any]
    privatized_: Privatized
    model_: str | None

    def __init__(
        self,
        *,
        epsilon: float | None = None,
        eta: float | None = None,
        service: str | ServiceClient = HERE,
        ask: Literal["home", "privately"] = "home",
        text_column: str = "text",
        text_column_2: str | None = None,
        label_epsilon: float | None = None,
        classes: Sequence[Any] | None = None,
        vocabulary: str | Path = "minilm",
        code: str | Path = "minilm-codes",
        encoder: str | Path | None = None,
        ledger: Ledger | Path | str | DefaultLedger | None = PROJECT,
        policy: Policy | Path | str | None = None,
        pool: str | None = None,
        contributions: str | Path = "contributions",
    ) -> None:
        """Keep the settings; nothing is read or sent yet.

        Args:
            epsilon: ε of each whole text.
            eta: η of each token; one of both is named.
            service: Place of the tuning: `here` is this process, which needs the extra `service`; else the URL of a
                service, whose key is taken from `RAPT_API_KEY`, or a `ServiceClient`.
            ask: Way to ask it: at `home`, where nothing of a query leaves; or `privately`, by a service, where each is
                privatized as the training text was and counted in the ledger.
            text_column: Column of the texts, where X is a table.
            text_column_2: Column of the second texts, where X is a table of pairs; `code` must then be one of pairs.
            label_epsilon: ε of randomized response for each label; needs `classes`.
            classes: All classes that there can be; None takes those of y.
            vocabulary: Name or folder of the backbone, for `eta`.
            code: Name or folder of the public code, for `epsilon`.
            encoder: Name or folder of the code's encoder; None goes by the name in the code.
            ledger: Ledger of what a service gets. Tuning here counts nothing unless a ledger is named: nothing leaves.
            policy: What becomes of names, numbers and addresses before a text is privatized, and before a query is
                answered at home; a policy, or its TOML file.
            pool: Id of a pool of the service, which `partial_fit` contributes to.
            contributions: Folder of what was contributed, with the receipts that take it back; no text is in it.
        """
        self.epsilon = epsilon
        self.eta = eta
        self.service = service
        self.ask = ask
        self.text_column = text_column
        self.text_column_2 = text_column_2
        self.label_epsilon = label_epsilon
        self.classes = classes
        self.vocabulary = vocabulary
        self.code = code
        self.encoder = encoder
        self.ledger = ledger
        self.policy = policy
        self.pool = pool
        self.contributions = contributions

    def fit(self, X: Any, y: Any) -> Self:
        """Privatize labelled texts and tune on what comes out.

        Args:
            X: Texts: a list, an array, a Series; or a table with the column of texts.
            y: Label of each text, of any kind with a name.

        Raises:
            UsageError: The settings contradict each other.
            ImportError: The extra `service` is not installed, and the tuning is to be here.
            Others: The reasons of `privatize`, of the service, and of tuning.
        """
        here = isinstance(self.service, str) and self.service == HERE
        if self.ask not in ("home", "privately"):
            raise UsageError("ask must be 'home' or 'privately'; choose one")
        if here and self.ask == "privately":
            raise UsageError("a model that is tuned here must be asked at home, where nothing leaves; name a service")
        if here and not is_installed("torch"):
            raise ImportError(
                "tuning here needs torch; install the extra `service` from the checkout, or name a service: "
                "pip install -e '.[service]'"
            )
        texts, seconds = self._list_texts(X)
        names = name_labels(y, count=len(texts))
        # By their names, so that labels of any kind are compared as what leaves.
        by_name = dict(zip(names, _make_list(y), strict=True))
        listed = None if self.classes is None else name_labels(self.classes, count=len(self.classes))
        if listed is not None:
            by_name = dict(zip(listed, self.classes or (), strict=True)) | by_name
        if len(by_name) < 2:
            raise UsageError("a classifier must have two classes at least, got labels of one; add texts of another")
        if self.label_epsilon is None:
            _check_classes(listed, {name.strip() for name in names})  # before anything is paid for
        self.privatized_ = self._privatize(
            texts, seconds, labels=names, ledger=None if here and self.ledger is PROJECT else self.ledger, listed=listed
        )
        sent = self.privatized_.manifest.labels or ()
        # Once more: labels that were randomized may leave another class without texts.
        _check_classes(sent, set(self.privatized_.labels or ()))
        values = np.array([by_name[name] for name in sent])
        order = np.argsort(values, kind="stable")
        self.classes_, self._order = values[order], order
        self.model_ = None
        self._home: HomeModel | None = None
        if here:
            self._home = self._tune_here()
        else:
            self._tune_there()
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Contribute labelled texts to the pool of a service; its owner closes the pool and tunes on it.

        Args:
            X: Texts, as of `fit`.
            y: Label of each text, one of the pool's.
            classes: Ignored: the pool says which classes there are.

        Raises:
            UsageError: No pool or no service is named, or the pool asks for another setting.
            Others: The reasons of `privatize` and of the service. Calling again gives new draws of other texts only.
        """
        if self.pool is None or self.service == HERE:
            raise UsageError("partial_fit contributes to a pool of a service; name both, or call fit")
        texts, seconds = self._list_texts(X)
        names = name_labels(y, count=len(texts))
        with self._open_client() as client:
            asked = client.pool(self.pool).manifest.labels
            found = self._privatize(texts, seconds, labels=names, ledger=self.ledger, listed=list(asked or ()) or None)
            folder = Path(self.contributions)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / f"{found.manifest.records_sha256[:16]}.rapt.jsonl"
            if not path.exists():  # the same releases again are the same contributions
                found.save(path, shuffle=False)
            contribute_file(path, client, pool=self.pool)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class of `classes_` for each text, (n, C).

        Raises:
            CorpusError: A text is empty, too long or no text; named by its position.
        """
        check_is_fitted(self)
        texts, seconds = self._list_texts(X)
        if self._home is not None:
            if (policy := self._read_policy()) is not None:
                texts = [policy.apply(text).text for text in texts]
                seconds = None if seconds is None else [policy.apply(text).text for text in seconds]
            odds = np.concatenate(list(answer_in_parts(self._home, texts, seconds)))
            return np.asarray(odds[:, self._order])
        queries = self._privatize(texts, seconds, labels=None, ledger=self.ledger, listed=None)
        with self._open_client() as client:
            assert self.model_ is not None
            found = client.classify(self.model_, queries.file)
        return np.array([prediction.probabilities for prediction in found])[:, self._order]

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most likely class for each text, (n,); raises as `predict_proba`."""
        found = self.predict_proba(X)
        return np.asarray(self.classes_[found.argmax(axis=1)])

    def __repr__(self, N_CHAR_MAX: int = 150) -> str:
        """Say the settings that are not the usual ones, on one line."""
        return " ".join(str(super().__repr__(N_CHAR_MAX=N_CHAR_MAX)).split())

    def __sklearn_tags__(self) -> Any:
        """Say to scikit-learn that X is a list of strings, and that noise makes each fit another."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.non_deterministic = True
        return tags

    def _list_texts(self, X: Any) -> tuple[list[str], list[str] | None]:
        second = self.text_column_2
        return list_texts(X, column=self.text_column), None if second is None else list_column(X, second)

    def _privatize(
        self,
        texts: list[str],
        seconds: list[str] | None = None,
        *,
        labels: list[str] | None,
        ledger: Ledger | Path | str | DefaultLedger | None,
        listed: list[str] | None,
    ) -> Privatized:
        return privatize(
            texts,
            second_texts=seconds,
            epsilon=self.epsilon,
            eta=self.eta,
            labels=labels,
            classes=listed,
            label_epsilon=self.label_epsilon if labels is not None else None,
            vocabulary=self.vocabulary,
            code=self.code,
            encoder=self.encoder,
            ledger=ledger,
            policy=self._read_policy(),
        )

    def _read_policy(self) -> Policy | None:
        policy = self.policy
        return policy if policy is None or isinstance(policy, Policy) else Policy.read(policy)

    def _tune_here(self) -> HomeModel:
        """Tune in this process, on the privatized file alone; the model that answers clear text."""
        from rapt.service.adapter.adapter import adapter_to_files
        from rapt.service.backbone.opening import load_backbone
        from rapt.service.tuning.tuner import PROMPT_TUNING, tune
        from rapt.service.tuning.tuning_config import make_default_config

        of_texts = self.epsilon is not None
        stands_on = str(self.code if of_texts else self.vocabulary)
        config = make_default_config("linear_probing" if of_texts else PROMPT_TUNING)
        files = adapter_to_files(tune(load_backbone(stands_on), self.privatized_.file, config=config))
        if not of_texts:
            return load_token_model(files, backbone=stands_on)
        return load_code_model(files, code=read_code(stands_on), encoder=self.encoder)

    def _tune_there(self) -> None:
        """Tune by the service, on the privatized file alone, and fetch what is asked at home."""
        with self._open_client() as client, TemporaryDirectory() as folder:
            path = Path(folder) / "training.rapt.jsonl"
            manifest = self.privatized_.save(path)
            method: dict[str, Any] = {"type": "auto", "auto": {"hyperparameters": {}}}
            job = client.create_job(file_id=client.upload(path).id, model=client.base_model(manifest), method=method)
            self.model_ = follow_job(client, job.id, on_step=lambda *_: None).fine_tuned_model
            assert self.model_ is not None
            if self.ask == "home":
                local = self.encoder if self.epsilon is not None else self.vocabulary
                self._home = fetch_home_model(client, self.model_, backbone=None if local is None else str(local))

    def _open_client(self) -> AbstractContextManager[ServiceClient]:
        if isinstance(self.service, ServiceClient):
            return nullcontext(self.service)  # who opened it closes it
        return ServiceClient(self.service, api_key=os.environ.get("RAPT_API_KEY"))


def _check_classes(listed: Sequence[str] | None, names: Set[str]) -> None:
    """Refuse classes that no text has (`UsageError`): nothing can be learned of them."""
    if missing := len(set(listed or ()) - names):
        raise UsageError(
            f"every class must occur among the labels that leave, got {missing} that do not; leave them out of "
            "classes, or add texts of theirs"
        )


def _make_list(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)
