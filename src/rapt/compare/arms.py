"""What is compared: one change each to the same tuning on the same privatized files, in one closed dict.

The controls say what a difference is due to. `no loss` has the plain tokens and trains nothing on them; `shuffled
targets` trains on the plain tokens of another record, so there is nothing to be learned from them but their
frequencies; `longer prompt` spends the same positions on more prompt vectors. Public
sentences as plain tokens have a context to be reconstructed from, which random words lack. The oracle is told which
tokens the mechanism left alone and drops the others, which takes the truth: no service can, but it says what is to be
had from knowing whom to trust.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from rapt.service.model.tuning_config import LEARNING_RATES, LINEAR_PROBING, ReconstructionConfig, TuningConfig
from rapt.wire.privatized_file import PrivatizedFile

CLEAN: Final = "clean"
PROMPT: Final = "without reconstruction"
RAPT: Final = "RAPT"
NO_LOSS: Final = "no loss"
SHUFFLED: Final = "shuffled targets"
LONGER: Final = "longer prompt"
ORACLE: Final = "oracle"
SENTENCES: Final = "RAPT on sentences"
SENTENCES_NO_LOSS: Final = "sentences without loss"
DENOISED: Final = "denoised"
DENOISED_RAPT: Final = "denoised RAPT"
PROBING: Final = "linear probing"
DENOISED_PROBING: Final = "denoised linear probing"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the things compared.

    Attributes:
        says: What is different, in one line.
        clean: Trained and judged on text in clear.
        plain_tokens: Whether the plain tokens stand in the sequence.
        unchanged_only: Whether tokens that the mechanism changed are dropped, in training and in judging.
        sentences: Whether its plain tokens are public sentences, which the comparison must be given.
        denoised: Whether it stands on the plan's denoised backbone.
        configure: From the common run, λ and m, this arm's run.
        change_file: What it does to the training file; most do nothing.
    """

    says: str
    clean: bool = False
    plain_tokens: bool = False
    unchanged_only: bool = False
    sentences: bool = False
    denoised: bool = False
    configure: Callable[[TuningConfig, float, int], TuningConfig]
    change_file: Callable[[PrivatizedFile, int], PrivatizedFile] = lambda file, seed: file


def shuffle_targets(file: PrivatizedFile, seed: int) -> PrivatizedFile:
    """The file with each record's plain tokens taken from another; their privatized forms stay where they are."""
    order = np.random.default_rng(seed).permutation(len(file.records))
    following = np.empty_like(order)
    following[order] = np.roll(order, -1)  # one cycle through all records: nobody keeps his own
    records = tuple(
        replace(record, plain_tokens=file.records[other].plain_tokens)
        for record, other in zip(file.records, following, strict=True)
    )
    return replace(file, records=records)


def _plain(config: TuningConfig, weight: float, m: int) -> TuningConfig:
    return config


def _reconstruct(config: TuningConfig, weight: float, m: int) -> TuningConfig:
    return replace(config, reconstruction=ReconstructionConfig(weight=weight))


def _no_loss(config: TuningConfig, weight: float, m: int) -> TuningConfig:
    return replace(config, reconstruction=ReconstructionConfig(weight=0.0))


def _longer(config: TuningConfig, weight: float, m: int) -> TuningConfig:
    return replace(config, prompt_length=config.prompt_length + m)


def _probing(config: TuningConfig, weight: float, m: int) -> TuningConfig:
    return replace(
        config, method=LINEAR_PROBING, learning_rate=LEARNING_RATES[LINEAR_PROBING], reparametrization="none"
    )


ARMS: Final[Mapping[str, Arm]] = {
    CLEAN: Arm(says="no privacy: trained and judged on clear text", clean=True, configure=_plain),
    PROMPT: Arm(says="the same tuning on privatized text", configure=_plain),
    RAPT: Arm(
        says="with privatized token reconstruction, L = L_task + λ L_rec", plain_tokens=True, configure=_reconstruct
    ),
    NO_LOSS: Arm(says="RAPT's sequence with λ = 0", plain_tokens=True, configure=_no_loss),
    SHUFFLED: Arm(
        says="RAPT with the plain tokens of another record as targets",
        plain_tokens=True,
        configure=_reconstruct,
        change_file=shuffle_targets,
    ),
    SENTENCES: Arm(
        says="RAPT with public sentences as plain tokens", plain_tokens=True, sentences=True, configure=_reconstruct
    ),
    SENTENCES_NO_LOSS: Arm(says="their sequence with λ = 0", plain_tokens=True, sentences=True, configure=_no_loss),
    LONGER: Arm(says="m more prompt vectors in place of m plain tokens", configure=_longer),
    ORACLE: Arm(
        says="the tokens that privatization left unchanged, which nobody but the user can know",
        unchanged_only=True,
        configure=_plain,
    ),
    DENOISED: Arm(
        says="the same tuning on a backbone that expects noise, as `rapt denoise` makes it from public text",
        denoised=True,
        configure=_plain,
    ),
    DENOISED_RAPT: Arm(says="RAPT on that backbone", denoised=True, plain_tokens=True, configure=_reconstruct),
    PROBING: Arm(says="the task head alone, and nothing before the text", configure=_probing),
    DENOISED_PROBING: Arm(
        says="the task head alone, on the backbone that expects noise", denoised=True, configure=_probing
    ),
}

# What a comparison runs that is given texts and nothing else.
USUAL: Final = tuple(name for name, arm in ARMS.items() if not (arm.denoised or arm.sentences))

# Pairs whose difference the report states, where both were run.
DIFFERENCES: Final = (
    (RAPT, PROMPT),
    (RAPT, NO_LOSS),
    (RAPT, SHUFFLED),
    (RAPT, LONGER),
    (SENTENCES, PROMPT),
    (SENTENCES, SENTENCES_NO_LOSS),
    (SENTENCES, RAPT),
    (DENOISED, PROMPT),
    (DENOISED, RAPT),
    (DENOISED, ORACLE),
    (DENOISED_RAPT, DENOISED),
    (DENOISED_RAPT, RAPT),
    (PROBING, PROMPT),
    (DENOISED_PROBING, PROMPT),
    (DENOISED_PROBING, RAPT),
    (DENOISED_PROBING, DENOISED),
    (DENOISED_PROBING, ORACLE),
    (ORACLE, PROMPT),
    (PROMPT, CLEAN),
    (RAPT, CLEAN),
)
