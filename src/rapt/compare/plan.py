"""Arms of a comparison: one change each to the same tuning on the same privatized files, in one closed dict.

The controls say what a difference is due to. `no loss` has the plain tokens and trains nothing on them; `shuffled
targets` trains on the plain tokens of another record, so there is nothing to be learned from them but their
frequencies; `longer prompt` spends the same positions on more prompt vectors. Public
sentences as plain tokens have a context to be reconstructed from, which random words lack. The oracle is told which
tokens the mechanism left alone and drops the others, which takes the truth: no service can, but it says what is to be
had from knowing whom to trust.

Arms on whole texts as codes stand beside them, and arms at home, which send nothing: where those are as good, nobody
needs a service. `crowd` runs both. Two ways at different promises, η of a word and ε of a text, are set against what
the strongest attack reads, and never against each other's budget.

What a comparison runs: arms × η or ε × crowds × seeds, and everything that they have in common.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rapt.compare.texts import Split
from rapt.errors import UsageError
from rapt.local.codes.code_privatizer import read_code
from rapt.local.own_model import LEAST_TEXTS
from rapt.service.adapter.methods import LINEAR_PROBING, LORA, METHODS, PROMPT_TUNING
from rapt.service.backbone.noise_expected import SOFT_EMBEDDINGS
from rapt.service.tuning.tuning_config import ReconstructionConfig, TuningConfig, make_default_config
from rapt.wire.mechanism_setting import Parameter, check_epsilon
from rapt.wire.privatized_file import PrivatizedFile

CLEAN: Final = "clean"
PROMPT: Final = "without reconstruction"
TOKENS_AT_HOME: Final = "tokens asked at home"
RAPT: Final = "RAPT"
NO_LOSS: Final = "no loss"
SHUFFLED: Final = "shuffled targets"
LONGER: Final = "longer prompt"
ORACLE: Final = "oracle"
SENTENCES: Final = "RAPT on sentences"
SENTENCES_NO_LOSS: Final = "sentences without loss"
POLICY: Final = "policy"
DENOISED: Final = "denoised"
DENOISED_RAPT: Final = "denoised RAPT"
PROBING: Final = "linear probing"
DENOISED_PROBING: Final = "denoised linear probing"
WORDS_AT_HOME: Final = "words at home"
HEAD_AT_HOME: Final = "encoder and head at home"
CODES_PRIVATELY: Final = "codes asked privately"
CODES_AT_HOME: Final = "codes asked at home"
FUSED: Final = "fused"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the things compared.

    Attributes:
        says: Difference from the common run, in one line.
        unit: Unit that is privatized: `token`, whole texts as codes (`text`), or nothing that leaves (`home`).
        code: Whether it needs the plan's code: the codewords, or the encoder alone.
        clean: Trained and judged on text in clear.
        plain_tokens: Whether the plain tokens stand in the sequence.
        unchanged_only: Whether tokens that the mechanism changed are dropped, in training and in judging.
        sentences: Whether its plain tokens are public sentences, which the comparison must be given.
        denoised: Whether it stands on the plan's denoised backbone.
        policy: Whether the plan's entity policy rewrites the texts first, in training and in judging.
        asked_at_home: Whether the texts to judge stay at home, in clear; tuned as the arm `without reconstruction`.
        configure: Function from the common run, λ and m to this arm's run.
        change_file: Change of the training file; most do nothing.
    """

    says: str
    unit: Literal["token", "text", "home"] = "token"
    code: bool = False
    clean: bool = False
    plain_tokens: bool = False
    unchanged_only: bool = False
    sentences: bool = False
    denoised: bool = False
    policy: bool = False
    asked_at_home: bool = False
    configure: Callable[[TuningConfig, float, int], TuningConfig] = lambda config, weight, m: config
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


def _make_plain(config: TuningConfig, weight: float, m: int) -> TuningConfig:
    return config


def _reconstruct(config: TuningConfig, weight: float, m: int) -> TuningConfig:
    return replace(config, reconstruction=ReconstructionConfig(weight=weight))


def _remove_loss(config: TuningConfig, weight: float, m: int) -> TuningConfig:
    return replace(config, reconstruction=ReconstructionConfig(weight=0.0))


def _lengthen(config: TuningConfig, weight: float, m: int) -> TuningConfig:
    return replace(config, prompt_length=config.prompt_length + m)


def _make_probing(config: TuningConfig, weight: float, m: int) -> TuningConfig:
    return replace(
        config, method=LINEAR_PROBING, learning_rate=METHODS[LINEAR_PROBING].learning_rate, reparametrization="none"
    )


ARMS: Final[Mapping[str, Arm]] = {
    CLEAN: Arm(says="no privacy: trained and judged on clear text", clean=True, configure=_make_plain),
    PROMPT: Arm(says="the same tuning on privatized text", configure=_make_plain),
    TOKENS_AT_HOME: Arm(
        says="the same model; queries stay at home, in clear", asked_at_home=True, configure=_make_plain
    ),
    RAPT: Arm(
        says="with privatized token reconstruction, L = L_task + λ L_rec", plain_tokens=True, configure=_reconstruct
    ),
    NO_LOSS: Arm(says="RAPT's sequence with λ = 0", plain_tokens=True, configure=_remove_loss),
    SHUFFLED: Arm(
        says="RAPT with the plain tokens of another record as targets",
        plain_tokens=True,
        configure=_reconstruct,
        change_file=shuffle_targets,
    ),
    SENTENCES: Arm(
        says="RAPT with public sentences as plain tokens", plain_tokens=True, sentences=True, configure=_reconstruct
    ),
    SENTENCES_NO_LOSS: Arm(says="their sequence with λ = 0", plain_tokens=True, sentences=True, configure=_remove_loss),
    LONGER: Arm(says="m more prompt vectors in place of m plain tokens", configure=_lengthen),
    ORACLE: Arm(
        says="the tokens that privatization left unchanged, which nobody but the user can know",
        unchanged_only=True,
        configure=_make_plain,
    ),
    POLICY: Arm(
        says="the same tuning on texts that an entity policy rewrote before they were privatized",
        policy=True,
        configure=_make_plain,
    ),
    DENOISED: Arm(
        says="the same tuning on a backbone that expects noise, as `rapt denoise` makes it from public text",
        denoised=True,
        configure=_make_plain,
    ),
    DENOISED_RAPT: Arm(says="RAPT on that backbone", denoised=True, plain_tokens=True, configure=_reconstruct),
    PROBING: Arm(says="the task head alone, and nothing before the text", configure=_make_probing),
    DENOISED_PROBING: Arm(
        says="the task head alone, on the backbone that expects noise", denoised=True, configure=_make_probing
    ),
    WORDS_AT_HOME: Arm(
        says="nothing leaves: naive Bayes over the words of one contributor's own texts, the mean over contributors",
        unit="home",
    ),
    HEAD_AT_HOME: Arm(
        says="nothing leaves: a head on the code's public encoder, of one contributor's own texts, the mean over them",
        unit="home",
        code=True,
    ),
    CODES_PRIVATELY: Arm(
        says="one text of each contributor as a code at ε; queries leave as codes at the same ε", unit="text", code=True
    ),
    CODES_AT_HOME: Arm(
        says="one text of each contributor as a code at ε; queries stay at home, in clear", unit="text", code=True
    ),
    FUSED: Arm(
        says="the same, and the words of some labelled texts of the asker's own, which are in no crowd",
        unit="text",
        code=True,
    ),
}

# What a comparison runs that is given texts and nothing else.
USUAL: Final = tuple(
    name for name, arm in ARMS.items() if not (arm.denoised or arm.sentences or arm.policy) and arm.unit == "token"
)

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
    (POLICY, PROMPT),
    (TOKENS_AT_HOME, PROMPT),
    (TOKENS_AT_HOME, HEAD_AT_HOME),
    (PROMPT, CLEAN),
    (RAPT, CLEAN),
    (HEAD_AT_HOME, RAPT),
    (HEAD_AT_HOME, DENOISED),
    (WORDS_AT_HOME, RAPT),
    (WORDS_AT_HOME, DENOISED),
    (CODES_AT_HOME, HEAD_AT_HOME),
    (CODES_AT_HOME, WORDS_AT_HOME),
    (CODES_PRIVATELY, HEAD_AT_HOME),
    (CODES_PRIVATELY, CODES_AT_HOME),
    (FUSED, CODES_AT_HOME),
    (FUSED, HEAD_AT_HOME),
)


_CROWDS: Final = 7  # keeps this order apart from others of a seed
# Bootstrap over fewer seeds says little; the report says so below this number.
SEEDS_FOR_AN_INTERVAL: Final = 5


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model to train: an arm at an η or an ε, for a crowd, with a seed.

    Attributes:
        arm: Name of the arm.
        eta: 1/distance; None on clear text and on codes.
        seed: Seed of everything that is drawn.
        epsilon: ε of a whole text; None on tokens and at home.
        crowd: Number of training texts; 0 for all.
    """

    arm: str
    eta: float | None
    seed: int
    epsilon: float | None = None
    crowd: int = 0


@dataclass(frozen=True, kw_only=True)
class AttackCell:
    """One setting to attack: with these attacks, on about so many tokens; under the entity policy, or without."""

    eta: float | None
    attacks: tuple[str, ...]
    tokens: int
    epsilon: float | None = None
    policy: bool = False


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """All of a comparison but its texts.

    Attributes:
        model: Backbone, a name in `PUBLIC_MODELS` or a folder.
        mechanism: Name in `MECHANISMS`.
        options: Options of the mechanism; not η.
        etas: Settings of η, 1/distance; for arms on tokens.
        epsilons: Settings of ε of a whole text; for arms on codes.
        codes: Code of whole texts, a name in `PUBLIC_CODES` or a folder; None where no arm needs one.
        encoder: Encoder of that code, a name or folder; None goes by its name.
        crowds: Numbers of training texts, 0 for all: contributors of one text each, or at home the texts of one.
        own_texts: Labelled texts of the asker's own, for the arm `fused`; at most half of the training texts.
        seeds: One model each for every arm and η. A seed fixes the privatization of the training text, those of the
            evaluation text, initialization and order, so arms with one seed meet identical files.
        arms: Names in `ARMS`; without `denoised` those that need it must be left out.
        denoised: Folder that `rapt denoise` made from the model; None where there is none.
        policy: TOML file of the entity policy; None where no arm needs one.
        privatizations: Releases of the evaluation text for each model; every model of one seed answers the same ones.
        plain_tokens: m, before each text.
        plain_pool: Number of tokens that they are drawn from, |T|.
        plain_drawn: Whether each record has plain tokens of its own, or a file has one list, as in the paper.
        weight: λ of the arms that reconstruct.
        method: A tuning method.
        epochs: Passes over the training text.
        prompt_length: Number P of prompt vectors.
        batch_size: Records a step.
        learning_rate: Learning rate of what the method trains; None takes the method's own.
        attacks: Names in the audit's dict, run once at each η; empty for none.
        attack_tokens: About how many tokens they are run on.
        allow_unproved: Takes a mechanism without a proved guarantee.
        precision: The backbones compute in; fixed, so that two machines that differ in speed measure the same.
    """

    model: str
    mechanism: str = "laplace"
    options: Mapping[str, Parameter] = field(default_factory=dict)
    etas: tuple[float, ...] = ()
    epsilons: tuple[float, ...] = ()
    codes: str | None = None
    encoder: str | None = None
    crowds: tuple[int, ...] = (0,)
    own_texts: int = 100
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    arms: tuple[str, ...] = USUAL
    denoised: str | None = None
    policy: str | None = None
    privatizations: int = 3
    plain_tokens: int = 20
    plain_pool: int = 500
    plain_drawn: Literal["record", "file"] = "record"
    weight: float = 0.1
    method: str = PROMPT_TUNING
    epochs: int = 3
    prompt_length: int = 10
    batch_size: int = 32
    learning_rate: float | None = None
    attacks: tuple[str, ...] = ()
    attack_tokens: int = 5_000
    allow_unproved: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Refuse a plan that cannot be run."""
        if unknown := [name for name in self.arms if name not in ARMS]:
            raise UsageError(f"unknown arm={unknown[0]!r}; choose among {', '.join(ARMS)}")
        for name in ("arms", "seeds", "crowds"):
            if not getattr(self, name) or len(set(getattr(self, name))) != len(getattr(self, name)):
                raise UsageError(f"{name} must be named once each and at least one, got {len(getattr(self, name))}")
        if self.denoised is None and (needy := [name for name in self.arms if ARMS[name].denoised]):
            raise UsageError(f"the arm {needy[0]!r} needs a backbone that expects noise; give `denoised`")
        if self.policy is None and (needy := [name for name in self.arms if ARMS[name].policy]):
            raise UsageError(f"the arm {needy[0]!r} needs an entity policy; give `policy`")
        if self.method == LINEAR_PROBING:
            raise UsageError(
                f"linear probing has arms of its own, got method={LINEAR_PROBING!r}; "
                f"name the arms {PROBING!r} and {DENOISED_PROBING!r}, and another method for the others"
            )
        if LONGER in self.arms and self.method == LORA:
            raise UsageError(f"the arm {LONGER!r} needs a method with a prompt, got method={LORA!r}; leave it out")
        if self.codes is None and (needy := [name for name in self.arms if ARMS[name].code]):
            raise UsageError(f"the arm {needy[0]!r} needs a code of whole texts; give `codes`")
        if any(not (math.isfinite(eta) and eta > 0) for eta in self.etas) or len(set(self.etas)) != len(self.etas):
            raise UsageError("every eta must be finite, above 0 and named once; leave the others out")
        units = {ARMS[name].unit for name in self.arms if not ARMS[name].clean}
        if not self.etas and "token" in units:
            raise UsageError("a comparison on privatized text must have an eta; give `etas`")
        if not self.epsilons and "text" in units:
            raise UsageError("a comparison on codes must have an epsilon; give `epsilons`")
        if len(set(self.epsilons)) != len(self.epsilons):
            raise UsageError("every epsilon must be named once; leave the others out")
        for epsilon in self.epsilons:
            check_epsilon(epsilon)
        if any(crowd < 0 for crowd in self.crowds) or self.own_texts < LEAST_TEXTS:
            raise UsageError(f"crowds must be at least 0, and own texts {LEAST_TEXTS}; raise them")
        for name in ("privatizations", "attack_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {name}={getattr(self, name)}; raise it")
        if any(seed < 0 for seed in self.seeds):
            raise UsageError("every seed must be at least 0; leave the others out")
        if self.plain_tokens < 1 and any(ARMS[name].plain_tokens for name in self.arms):
            raise UsageError(f"arms with plain tokens need some, got plain_tokens={self.plain_tokens}; raise it")
        self.make_config(seed=0)

    def list_cells(self) -> Iterator[Cell]:
        """Every model of the plan, seed after seed: cut short, it is still a comparison."""
        for seed, crowd in product(self.seeds, self.crowds):
            for name in self.arms:
                if ARMS[name].clean or ARMS[name].unit == "home":
                    yield Cell(arm=name, eta=None, seed=seed, crowd=crowd)
            for eta in self.etas:
                for name in self.arms:
                    if not ARMS[name].clean and ARMS[name].unit == "token":
                        yield Cell(arm=name, eta=eta, seed=seed, crowd=crowd)
            for epsilon in self.epsilons:
                for name in self.arms:
                    if ARMS[name].unit == "text":
                        yield Cell(arm=name, eta=None, epsilon=epsilon, seed=seed, crowd=crowd)

    def list_attacks(self) -> Iterator[AttackCell]:
        """Every setting that is attacked: of tokens where attacks were named, of codes always."""
        under = [False, True] if any(ARMS[name].policy for name in self.arms) else [False]
        for eta, policy in product(self.etas if self.attacks else (), under):
            yield AttackCell(eta=eta, attacks=self.attacks, tokens=self.attack_tokens, policy=policy)
        if any(ARMS[name].unit == "text" for name in self.arms):
            for epsilon in self.epsilons:
                yield AttackCell(eta=None, epsilon=epsilon, attacks=(), tokens=0)

    def make_config(self, *, seed: int) -> TuningConfig:
        """The run that all arms start from.

        Raises:
            TuningError: A field cannot be trained with.
        """
        start = make_default_config(self.method)
        return TuningConfig(
            method=self.method,
            reparametrization=start.reparametrization,
            learning_rate=start.learning_rate if self.learning_rate is None else self.learning_rate,
            prompt_length=self.prompt_length,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=seed,
        )

    def digest_setting(self, split: Split, *, denoised: bool = True, codes: bool = False, policy: bool = False) -> str:
        """A digest of all that changes a number, and of the texts; results with another one are not mixed.

        What tells one cell from another is left out: further η, seeds, arms and attacks may be added later.

        Args:
            split: Texts of training and evaluation.
            denoised: Whether it is of results that need the backbone that expects noise. Without, they are those of any
                such backbone, and of none.
            codes: Whether it is of results that need the code; without, they are those of any, and of none.
            policy: Whether it is of results that need the policy; without, they are those of any, and of none.

        Raises:
            VocabularyError: The code is not on this machine.
        """
        common: dict[str, Any] = asdict(self)
        for name in (
            *("etas", "epsilons", "codes", "encoder", "crowds", "own_texts", "policy"),
            *("seeds", "arms", "attacks", "attack_tokens", "allow_unproved"),
        ):
            del common[name]
        if codes and self.codes is not None:
            common |= {"codes": read_code(self.codes).hash, "own_texts": self.own_texts}
        if policy and self.policy is not None:
            common["policy"] = digest_policy(self.policy)
        if self.plain_drawn == "record":  # results from before there was a choice stay what they are
            del common["plain_drawn"]
        if self.precision == "float32":  # likewise
            del common["precision"]
        common["options"] = dict(self.options)
        if self.denoised is None or not denoised:
            del common["denoised"]
        else:  # what it is matters, and not where it lies
            common["denoised"] = digest_weights(self.denoised)
        common["texts"] = split.digest
        if split.training.pairs:  # the first comparisons of pairs had heads on the mean of both texts
            common["pairs"] = "compared"
        return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:16]


def order_texts(count: int, *, seed: int) -> NDArray[np.int64]:
    """The order in which a seed's crowds take the training texts, (n,): a larger crowd holds the smaller ones."""
    return np.random.default_rng([_CROWDS, seed]).permutation(count)


def digest_policy(path: str) -> str:
    """SHA-256 of a policy's file. Raises `UsageError` where there is none."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        raise UsageError("`policy` must be a readable TOML file; name one") from None


def digest_weights(folder: str) -> str:
    """SHA-256 of the weights in a folder, soft embeddings included.

    Raises:
        UsageError: There are none.
    """
    try:
        with (Path(folder) / "model.safetensors").open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256")
        soft_embeddings = Path(folder) / SOFT_EMBEDDINGS
        if soft_embeddings.is_file():  # results of folders without stay what they are
            found.update(soft_embeddings.read_bytes())
        return found.hexdigest()
    except OSError:
        raise UsageError("`denoised` must be a folder that rapt denoise made, with model.safetensors") from None
