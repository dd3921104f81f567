"""Forward correction of the task loss for labels that were privatized by a known matrix.

Labels in a file may come from randomized response (`LabelPrivacy` in the manifest). Training on them as they are
fits the noise: the head learns p(noisy label | text), which is flatter than p(label | text). The two are tied by the
known matrix, p_noisy = Tᵀ p with T[x, y] = P(y|x), so the cross-entropy of the noisy labels is taken at Tᵀ p. Its
minimum over p is then at the true p (Patrini et al., "Making Deep Neural Networks Robust to Label Noise", CVPR 2017,
Theorem 2). This is post-processing: it costs no privacy, and an attacker can do the same.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rapt.wire.manifest import LabelPrivacy


def transition_matrix(*, classes: int, epsilon: float) -> NDArray[np.float64]:
    """T of K-ary randomized response, (K, K): T[x, y] = P(y|x), e^ε / (e^ε + K - 1) on the diagonal."""
    ratio = math.exp(-epsilon)  # e^-ε does not overflow
    matrix = np.full((classes, classes), ratio)
    np.fill_diagonal(matrix, 1.0)
    return matrix / (1 + (classes - 1) * ratio)


def task_loss(logits: Tensor, labels: Tensor, *, label_privacy: LabelPrivacy | None) -> Tensor:
    """Mean negative log-likelihood of the labels in the file: -log (Tᵀ p)[y], with p = softmax(logits).

    Args:
        logits: Of the true label, (B, K).
        labels: As they stand in the file, (B,), int64.
        label_privacy: What privatized them; None for true labels, which gives plain cross-entropy.

    Returns:
        Scalar, nats per record.
    """
    if label_privacy is None:
        return nn.functional.cross_entropy(logits, labels)
    matrix = transition_matrix(classes=logits.shape[1], epsilon=label_privacy.epsilon)
    log_matrix = torch.as_tensor(np.log(np.maximum(matrix, 1e-300)), dtype=logits.dtype, device=logits.device)
    # log (Tᵀ p)[y] = logsumexp over x of log p[x] + log T[x, y]: no probability is ever rounded to 0.
    log_likelihood = torch.logsumexp(nn.functional.log_softmax(logits, dim=1) + log_matrix.T[labels], dim=1)
    return -log_likelihood.mean()
