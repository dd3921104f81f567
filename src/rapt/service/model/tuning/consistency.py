"""Consistency: how far apart the answers to two versions of the same records are, as something that is trained down.

R-Drop (Liang et al. 2021, arXiv 2106.14448) draws the versions by dropout. A frozen backbone has none, so ours are two
files: what a record may have been, drawn twice from what is known of it.
"""

from __future__ import annotations

from torch import Tensor, nn

from rapt.errors import TuningError
from rapt.wire.privatized_file import PrivatizedFile


def consistency_loss(first: Tensor, second: Tensor) -> Tensor:
    """Mean of KL(p||q) and KL(q||p), over the records, in nats a record (R-Drop, L_KL).

    It is 0 where the answers are equal, and only there; a gradient reaches both.

    Args:
        first: Logits of p, (B, C).
        second: Logits of q, (B, C).
    """
    log_p, log_q = nn.functional.log_softmax(first, dim=1), nn.functional.log_softmax(second, dim=1)
    # KL(p||q) + KL(q||p) = sum of (p - q) log(p / q), no term of which is below 0.
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1).mean()


def check_twin(training: PrivatizedFile, twin: PrivatizedFile | None, *, weight: float) -> None:
    """Refuse a second version that is not one of the same records, and a weight without one.

    Args:
        training: The file that is tuned on.
        twin: Its second version.
        weight: Of the consistency loss.

    Raises:
        TuningError: There is no second version, or it has other records or settings.
    """
    if twin is None:
        if weight > 0:
            raise TuningError(
                f"consistency needs a second version of the training file, got consistency={weight} and none; "
                "give it as twin, or leave consistency at 0"
            )
        return
    if len(twin.records) != len(training.records):
        raise TuningError(
            f"a twin must have the training file's records, got {len(twin.records)} for {len(training.records)}; "
            "make both of one file"
        )
    for name in ("vocabulary_hash", "mechanism", "labels", "label_privacy", "plain_tokens", "pairs"):
        if getattr(training.manifest, name) != getattr(twin.manifest, name):
            raise TuningError(f"a twin must be made as the training file, got another {name}; make both of one file")
    for position, (one, other) in enumerate(zip(training.records, twin.records, strict=True)):
        if (one.label, one.target_ids, one.plain_tokens) != (other.label, other.target_ids, other.plain_tokens):
            raise TuningError(
                f"record {position} of a twin must differ from the training file's in its texts alone, got another "
                "label, target or plain tokens; make both of one file"
            )
