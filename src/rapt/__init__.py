"""Tune and use a language-model service on private text without the text leaving the machine.

`rapt` implements RAPT (Li, Tan, Liu: Privacy-Preserving Prompt Tuning for Large Language Model Services,
arXiv 2305.06212). The rooms are the threat model: `rapt.local` is trusted and sees plain text, `rapt.service` sees what
`rapt.wire` carries, `rapt.audit` plays the adversary. Importing this package imports no torch.

The names below are the public API, and they are the trusted half: what a program needs to privatize, to know what that
promises, and to talk to a service. They are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rapt.lazy_names import is_installed, load_lazily
from rapt.version import __version__

if TYPE_CHECKING:
    from rapt.classifier import RaptClassifier
    from rapt.errors import (
        AuditError,
        BudgetError,
        CorpusError,
        LedgerError,
        MechanismError,
        NotFoundError,
        RaptError,
        ServiceError,
        TuningError,
        UnavailableError,
        UsageError,
        VocabularyError,
        WireError,
    )
    from rapt.local.calibration import calibrate_epsilon, calibrate_unchanged
    from rapt.local.client import AsyncServiceClient, ServiceClient, follow_job
    from rapt.local.codes.code_privatizer import CodePrivatizer, load_code_privatizer
    from rapt.local.codes.text_statement import TextStatement, state_text_privacy
    from rapt.local.corpus import LabelledText, privatize_corpus, read_corpus
    from rapt.local.deniability import measure_deniability
    from rapt.local.guarantee import PrivacyStatement, state_privacy
    from rapt.local.in_memory import Privatized, privatize
    from rapt.local.ledger import open_ledger
    from rapt.local.mechanisms import MECHANISMS, Mechanism, make_mechanism
    from rapt.local.policy.policy import Policy
    from rapt.local.privatizer import Privatizer, plan_plain_tokens
    from rapt.local.randomness import RandomStream, insecure_stream, secure_stream
    from rapt.local.vocabulary import Vocabulary, load_vocabulary
    from rapt.local.weighting import weigh_common_words, weigh_running_text
    from rapt.wire.manifest import NO_PLAIN_TOKENS, LabelPrivacy, Manifest, PlainTokens
    from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, read_privatized_file
    from rapt.wire.privatized_writer import write_privatized_file

__all__ = [
    "MECHANISMS",
    "NO_PLAIN_TOKENS",
    "AsyncServiceClient",
    "AuditError",
    "BudgetError",
    "CodePrivatizer",
    "CorpusError",
    "LabelPrivacy",
    "LabelledText",
    "LedgerError",
    "Manifest",
    "Mechanism",
    "MechanismError",
    "NotFoundError",
    "PlainTokens",
    "Policy",
    "PrivacyStatement",
    "Privatized",
    "PrivatizedFile",
    "PrivatizedRecord",
    "Privatizer",
    "RandomStream",
    "RaptClassifier",
    "RaptError",
    "ServiceClient",
    "ServiceError",
    "TextStatement",
    "TuningError",
    "UnavailableError",
    "UsageError",
    "Vocabulary",
    "VocabularyError",
    "WireError",
    "__version__",
    "calibrate_epsilon",
    "calibrate_unchanged",
    "follow_job",
    "insecure_stream",
    "load_code_privatizer",
    "load_vocabulary",
    "make_mechanism",
    "measure_deniability",
    "open_ledger",
    "plan_plain_tokens",
    "privatize",
    "privatize_corpus",
    "read_corpus",
    "read_privatized_file",
    "secure_stream",
    "state_privacy",
    "state_text_privacy",
    "weigh_common_words",
    "weigh_running_text",
    "write_privatized_file",
]

_MODULES: Final = {
    "rapt.classifier": ("RaptClassifier",),
    "rapt.errors": (
        "AuditError",
        "BudgetError",
        "CorpusError",
        "LedgerError",
        "MechanismError",
        "NotFoundError",
        "RaptError",
        "ServiceError",
        "TuningError",
        "UnavailableError",
        "UsageError",
        "VocabularyError",
        "WireError",
    ),
    "rapt.local.calibration": ("calibrate_epsilon", "calibrate_unchanged"),
    "rapt.local.client": ("AsyncServiceClient", "ServiceClient", "follow_job"),
    "rapt.local.codes.code_privatizer": ("CodePrivatizer", "load_code_privatizer"),
    "rapt.local.codes.text_statement": ("TextStatement", "state_text_privacy"),
    "rapt.local.corpus": ("LabelledText", "privatize_corpus", "read_corpus"),
    "rapt.local.deniability": ("measure_deniability",),
    "rapt.local.guarantee": ("PrivacyStatement", "state_privacy"),
    "rapt.local.in_memory": ("Privatized", "privatize"),
    "rapt.local.ledger": ("open_ledger",),
    "rapt.local.mechanisms": ("MECHANISMS", "Mechanism", "make_mechanism"),
    "rapt.local.policy.policy": ("Policy",),
    "rapt.local.privatizer": ("Privatizer", "plan_plain_tokens"),
    "rapt.local.randomness": ("RandomStream", "insecure_stream", "secure_stream"),
    "rapt.local.vocabulary": ("Vocabulary", "load_vocabulary"),
    "rapt.local.weighting": ("weigh_common_words", "weigh_running_text"),
    "rapt.wire.manifest": ("NO_PLAIN_TOKENS", "LabelPrivacy", "Manifest", "PlainTokens"),
    "rapt.wire.privatized_file": ("PrivatizedFile", "PrivatizedRecord", "read_privatized_file"),
    "rapt.wire.privatized_writer": ("write_privatized_file",),
}
_HOMES: Final = {name: module for module, names in _MODULES.items() for name in names}
# Whoever takes all names, as a star import and `help` do, shall not need what is not installed.
_WITHOUT: Final = () if is_installed("sklearn") else ("RaptClassifier",)
__all__ = [name for name in __all__ if name not in _WITHOUT]
__getattr__, _ = load_lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    """Names that the package offers."""
    return list(__all__)
