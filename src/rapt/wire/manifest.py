"""The manifest: what was done to a text before it left, as inert data.

A service cannot tell privatized from plain text, so it demands this statement and checks it against what it can see:
ids, counts, hashes. That guards against mistakes, not against a client that lies. Meanings are append-only: a field
keeps its meaning for ever, and a new meaning is a new schema.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import field as field_of
from functools import cached_property
from typing import Any, Final, Literal, get_args

from rapt.errors import MechanismError, WireError
from rapt.wire.mechanism_setting import MechanismSetting, Unit, dump_mechanism, is_finite, parse_mechanism
from rapt.wire.policy_setting import KindSetting, dump_policy, parse_policy
from rapt.wire.strict_json import check_fields, check_json, dump_line, read_count, read_field, read_ids, read_name

SCHEMA: Final = "rapt.privatized/1"
# A file whose records have more than one text. Files of single texts stay of the first schema, byte for byte.
SCHEMA_OF_PARTS: Final = "rapt.privatized/2"
# A file whose records are codes of whole texts.
SCHEMA_OF_CODES: Final = "rapt.codes/1"

# How the target texts of a file left: through the mechanism, or as they are, because the user declared them public.
Targets = Literal["privatized", "public"]
_TARGETS: Final[tuple[Targets, ...]] = get_args(Targets)

MOST_PLAIN_TOKENS: Final = 4096  # before a text: more than a backbone has positions for
LONGEST_BUCKET: Final = 4096
MOST_LABELS: Final = 1000
LONGEST_LABEL: Final = 256
_SHA256: Final = re.compile(r"([0-9a-f]{64})?")  # nothing before the records are counted


@dataclass(frozen=True, kw_only=True)
class Randomness:
    """Origin of the noise. `insecure_seed` marks a file whose noise anyone can replay: it protects nothing."""

    source: str
    insecure_seed: int | None = None


# Origin of noise that was drawn on a cluster of machines, as `rapt.local.workers` does; the second where the
# processor of whoever asked does not compute AES.
CLUSTER_SOURCE: Final = (
    "AES-128 counter mode (randomgen) on a Ray cluster, keys of blocks by BLAKE2b under a key from the operating system"
)
CLUSTER_SOURCE_WITHOUT_AES: Final = (
    "ChaCha20 (randomgen) on a Ray cluster, 256-bit keys of blocks by BLAKE2b under a key from the operating system"
)


@dataclass(frozen=True, kw_only=True)
class PlainTokens:
    """The public plain tokens k of RAPT, Sec. 3: chosen before any text is read, privatized with the record.

    Attributes:
        count: m, the number of plain tokens before each record; 0 switches reconstruction off.
        pool: Ids that they are drawn from: the |T| classes of the reconstruction head.
        fixed: One sequence for the whole file, or None when each record has a fresh one of its own.
    """

    count: int
    pool: tuple[int, ...] = field_of(repr=False)
    fixed: tuple[int, ...] | None = field_of(repr=False)

    @cached_property
    def pool_set(self) -> frozenset[int]:
        """The pool, for membership tests."""
        return frozenset(self.pool)

    @cached_property
    def pool_index(self) -> dict[int, int]:
        """Class of each id of the pool in the reconstruction head."""
        return {token_id: index for index, token_id in enumerate(self.pool)}


NO_PLAIN_TOKENS: Final = PlainTokens(count=0, pool=(), fixed=None)

RANDOMIZED_RESPONSE: Final = "randomized-response"
# Below it a label is noise, and the rounding of a probability to 64 bits would no longer be negligible beside epsilon.
LEAST_LABEL_EPSILON: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class LabelPrivacy:
    """Privatization of labels: K-ary randomized response between the true ones and those in the file.

    A label is kept with probability e^ε / (e^ε + K - 1) and is otherwise one of the K - 1 others, each as likely. So ε
    and the number of names in the manifest fix the whole matrix, and whoever trains on the labels can correct for it.

    Attributes:
        epsilon: log P(y|x) - log P(y|x') is at most this for any labels x, x', y; nats, for one release of one label.
        mechanism: `randomized-response`, the only one.
    """

    epsilon: float
    mechanism: str = RANDOMIZED_RESPONSE

    def __post_init__(self) -> None:
        """Refuse an unknown mechanism, or an epsilon outside its domain (`MechanismError`)."""
        if self.mechanism != RANDOMIZED_RESPONSE:
            raise MechanismError(
                f"labels must be privatized by {RANDOMIZED_RESPONSE!r}, got another mechanism; upgrade rapt"
            )
        if not is_finite(self.epsilon) or self.epsilon < LEAST_LABEL_EPSILON:
            raise MechanismError(
                f"the epsilon of labels must be finite and at least {LEAST_LABEL_EPSILON:g}; "
                "1 is usual, and below 0.1 labels are close to noise"
            )


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """Arrangement of a file's records: what their equality, order and lengths still say.

    Attributes:
        replayed: Whether a text that was released before may stand here as it was sent then, so that equal texts show.
        shuffled: Whether the records stand in another order than their source, known to the trusted side alone.
        length_bucket: Number whose multiples the lengths are rounded up to, by public words that went through the
            mechanism; None for the lengths of the texts.
    """

    replayed: bool = False
    shuffled: bool = False
    length_bucket: int | None = None


UNARRANGED: Final = Arrangement()


@dataclass(frozen=True, kw_only=True, repr=False)
class Manifest:
    """The first line of a privatized file: what was done to its texts.

    Attributes:
        model: Name of the backbone whose vocabulary was used; of the encoder, in a file of codes.
        vocabulary_hash: `sha256:...` of that vocabulary; eta means nothing without it. In a file of codes, of the code
            bundle.
        mechanism: Mechanism that replaced each token, or the whole text.
        randomness: Source of the noise.
        plain_tokens: The public plain tokens, or none.
        labels: Names of the classes, in clear; None for a file without labels.
        label_privacy: Mechanism that privatized each record's label; None for true labels and for none.
        records: Number of record lines that follow.
        tokens: Number of privatized text tokens in them, plain tokens not counted; each code counts as one.
        records_sha256: Hex digest of the record lines as bytes: a truncated or edited file is refused.
        created_by: Program and version.
        pairs: Whether each record has a second text, privatized as the first.
        targets: Whether each record's target text was privatized or is public; None when records have none.
        arrangement: Equality, order and lengths of the records.
        policy: Kinds of entities that were treated otherwise than the rest of a text; empty where none were.
    """

    model: str
    vocabulary_hash: str
    mechanism: MechanismSetting
    randomness: Randomness
    plain_tokens: PlainTokens
    labels: tuple[str, ...] | None
    records: int
    tokens: int
    records_sha256: str
    created_by: str
    label_privacy: LabelPrivacy | None = None
    pairs: bool = False
    targets: Targets | None = None
    arrangement: Arrangement = UNARRANGED
    policy: tuple[KindSetting, ...] = ()

    def __repr__(self) -> str:
        """Describe the file without its labels and pools."""
        return (
            f"Manifest(model={self.model[:60]!r}, mechanism={self.mechanism.name[:30]!r}, records={self.records}, "
            f"tokens={self.tokens})"
        )

    @property
    def unit(self) -> Unit:
        """Unit of one guarantee of the mechanism: each token, or each whole text."""
        return self.mechanism.unit

    @property
    def weakest_eta(self) -> float:
        """The largest loss of a token of the file against one at distance 1: of η, and of each kind's own η or ε.

        Raises:
            MechanismError: The mechanism protects whole texts.
        """
        return max(self.mechanism.eta, *(one.strength or 0.0 for one in self.policy), 0.0)

    @property
    def schema(self) -> str:
        """The oldest schema that can express this manifest."""
        if self.unit == "text":
            return SCHEMA_OF_CODES
        return SCHEMA_OF_PARTS if self.pairs or self.targets is not None else SCHEMA


def digest_setting(manifest: Manifest) -> str:
    """Return the hex digest of what texts were privatized by, and of nothing else: of two files that may be joined.

    That is the vocabulary or codebook, the mechanism, plain tokens, labels and their privacy, and the texts of a
    record; not counts, arrangement, the source of randomness, names or versions.
    """
    parts = dump_manifest(replace(manifest, arrangement=UNARRANGED))
    for name in ("model", "randomness", "records", "tokens", "records_sha256", "created_by"):
        del parts[name]
    return hashlib.sha256(dump_line(parts).encode("ascii")).hexdigest()


def dump_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as plain JSON values, in a fixed order of keys."""
    plain = manifest.plain_tokens
    parts: dict[str, Any] = {}
    if manifest.schema != SCHEMA:
        parts = {"pairs": manifest.pairs, "targets": manifest.targets}
    # Absent where nothing is to be said, so that such files stay as they were, byte for byte.
    arranged: dict[str, Any] = (
        {} if manifest.arrangement == UNARRANGED else {"arrangement": asdict(manifest.arrangement)}
    )
    if manifest.policy:
        arranged["policy"] = dump_policy(manifest.policy)
    unit = {"unit": _name_unit(manifest)} if manifest.schema == SCHEMA_OF_CODES else {}
    return {
        "schema": manifest.schema,
        **unit,
        "model": manifest.model,
        "vocabulary_hash": manifest.vocabulary_hash,
        "mechanism": dump_mechanism(manifest.mechanism),
        "randomness": {
            "source": manifest.randomness.source,
            "insecure_seed": manifest.randomness.insecure_seed,
        },
        "plain_tokens": {
            "count": plain.count,
            "pool": list(plain.pool),
            "fixed": None if plain.fixed is None else list(plain.fixed),
        },
        "labels": None if manifest.labels is None else list(manifest.labels),
        "label_privacy": None if manifest.label_privacy is None else _dump_label_privacy(manifest.label_privacy),
        **parts,
        **arranged,
        "records": manifest.records,
        "tokens": manifest.tokens,
        "records_sha256": manifest.records_sha256,
        "created_by": manifest.created_by,
    }


def parse_manifest(value: Mapping[str, Any]) -> Manifest:
    """Return the manifest in a JSON object.

    Raises:
        WireError: Unknown schema, a missing, unknown or mistyped field, a value beyond the limits of this format, or
            counts that contradict each other.
        MechanismError: eta is not a finite number above 0, or an epsilon, of texts or of labels, is outside its domain.
    """
    what = "the manifest"
    check_json(value, what=what)
    schema = value.get("schema")
    if schema not in (SCHEMA, SCHEMA_OF_PARTS, SCHEMA_OF_CODES):
        raise WireError(
            f"the first line must be a manifest of schema {SCHEMA!r}, {SCHEMA_OF_PARTS!r} or {SCHEMA_OF_CODES!r}; "
            "run `rapt privatize` to make one"
        )
    names = {
        "schema",
        "model",
        "vocabulary_hash",
        "mechanism",
        "randomness",
        "plain_tokens",
        "labels",
        "label_privacy",
        "records",
    }
    if schema != SCHEMA:
        names |= {"pairs", "targets"}
    if schema == SCHEMA_OF_CODES:
        names |= {"unit"}
    check_fields(
        value,
        required=names | {"tokens", "records_sha256", "created_by"},
        optional={"arrangement", "policy"},
        what=what,
    )
    pairs = read_field(value, "pairs", bool, what=what) if schema != SCHEMA else False
    targets = _parse_targets(value["targets"]) if schema != SCHEMA else None
    if schema == SCHEMA_OF_PARTS and not pairs and targets is None:
        raise WireError(f"the manifest must be of schema {SCHEMA!r} when records have one text; write the file again")
    labels = None if value["labels"] is None else read_labels(value, what=what)
    hidden = (
        None
        if value["label_privacy"] is None
        else _parse_label_privacy(read_field(value, "label_privacy", dict, what=what))
    )
    if hidden is not None and (labels is None or len(labels) < 2):
        raise WireError("the manifest must name at least two labels when it says how labels were privatized")
    digest = read_field(value, "records_sha256", str, what=what)
    if not _SHA256.fullmatch(digest):
        raise WireError(f"{what} must have records_sha256 as 64 hexadecimal digits; write the file again")
    manifest = Manifest(
        model=read_name(value, "model", what=what),
        vocabulary_hash=read_name(value, "vocabulary_hash", what=what),
        mechanism=parse_mechanism(read_field(value, "mechanism", dict, what=what)),
        randomness=_parse_randomness(read_field(value, "randomness", dict, what=what)),
        plain_tokens=_parse_plain_tokens(read_field(value, "plain_tokens", dict, what=what)),
        labels=labels,
        label_privacy=hidden,
        records=read_count(value, "records", what=what),
        tokens=read_count(value, "tokens", what=what),
        records_sha256=digest,
        created_by=read_name(value, "created_by", what=what),
        pairs=pairs,
        targets=targets,
        arrangement=_parse_arrangement(value),
        policy=parse_policy(read_field(value, "policy", dict, what=what)) if "policy" in value else (),
    )
    if (schema == SCHEMA_OF_CODES) != (manifest.unit == "text"):
        raise WireError(
            f"a manifest of schema {SCHEMA_OF_CODES!r}, and no other, must have a mechanism that protects whole texts; "
            "write the file again"
        )
    if schema == SCHEMA_OF_CODES:
        _check_codes(manifest, unit=value["unit"])
    return manifest


def count_codes(manifest: Manifest) -> int:
    """Return how many ids each text of a file of codes has."""
    return int(manifest.mechanism.parameters["codes"])


def _name_unit(manifest: Manifest) -> str:
    return "pair" if manifest.mechanism.texts > 1 else manifest.unit


def _check_codes(manifest: Manifest, *, unit: Any) -> None:
    if unit != _name_unit(manifest):
        raise WireError("the manifest of codes must have unit as text, or as pair for one of pairs; write it again")
    if manifest.pairs and manifest.mechanism.texts > 1:
        raise WireError(
            "the manifest of a code of pairs must have pairs as false: a record has one code; write it again"
        )
    if any(one.strength is not None for one in manifest.policy):
        raise WireError("the manifest of codes must have no kinds with a strength of their own; write the file again")
    if manifest.plain_tokens != NO_PLAIN_TOKENS or manifest.targets is not None:
        raise WireError("the manifest of codes must have no plain tokens and no targets; write the file again")
    tokens = manifest.records * count_codes(manifest) * (2 if manifest.pairs else 1)
    if manifest.tokens != tokens:
        raise WireError(
            f"the manifest of codes must have {tokens} tokens for records={manifest.records}, as many as its mechanism "
            f"gives each text, got tokens={manifest.tokens}; write the file again"
        )


def read_labels(value: Mapping[str, Any], *, what: str) -> tuple[str, ...]:
    """Return the field `labels`: names of classes, each once. Raises `WireError`."""
    labels = value["labels"]
    if type(labels) is not list or not all(type(name) is str for name in labels):
        raise WireError(f"{what} must have labels as a list of names, or null")
    if len(labels) > MOST_LABELS or any(len(name) > LONGEST_LABEL for name in labels):
        raise WireError(
            f"{what} must have at most {MOST_LABELS} labels of at most {LONGEST_LABEL} characters, "
            f"got labels={len(labels)}; is the label column the right one?"
        )
    if len(set(labels)) != len(labels):
        raise WireError(f"{what} must name each label once; write the file again")
    return tuple(labels)


def _parse_targets(value: Any) -> Targets | None:
    for known in _TARGETS:
        if value == known:
            return known
    if value is not None:
        raise WireError(f"the manifest must have targets as {' or '.join(_TARGETS)}, or null; write the file again")
    return None


def _parse_arrangement(manifest: Mapping[str, Any]) -> Arrangement:
    what = "the arrangement of a manifest"
    if "arrangement" not in manifest:
        return UNARRANGED
    value = read_field(manifest, "arrangement", dict, what="the manifest")
    check_fields(value, required={"replayed", "shuffled", "length_bucket"}, optional=set(), what=what)
    bucket = None
    if value["length_bucket"] is not None:
        bucket = read_count(value, "length_bucket", what=what, most=LONGEST_BUCKET)
        if bucket < 2:
            raise WireError(f"{what} must have a length_bucket of at least 2 tokens, or null; write the file again")
    found = Arrangement(
        replayed=read_field(value, "replayed", bool, what=what),
        shuffled=read_field(value, "shuffled", bool, what=what),
        length_bucket=bucket,
    )
    if found == UNARRANGED:
        raise WireError(f"{what} must say something, or be left out; write the file again")
    return found


def _parse_randomness(value: Mapping[str, Any]) -> Randomness:
    what = "the manifest's randomness"
    check_fields(value, required={"source", "insecure_seed"}, optional=set(), what=what)
    seed = None if value["insecure_seed"] is None else read_count(value, "insecure_seed", what=what)
    return Randomness(source=read_name(value, "source", what=what), insecure_seed=seed)


def _dump_label_privacy(hidden: LabelPrivacy) -> dict[str, Any]:
    return {"mechanism": hidden.mechanism, "epsilon": float(hidden.epsilon)}


def _parse_label_privacy(value: Mapping[str, Any]) -> LabelPrivacy:
    what = "the manifest's label privacy"
    check_fields(value, required={"mechanism", "epsilon"}, optional=set(), what=what)
    return LabelPrivacy(
        mechanism=read_field(value, "mechanism", str, what=what), epsilon=read_field(value, "epsilon", float, what=what)
    )


def _parse_plain_tokens(value: Mapping[str, Any]) -> PlainTokens:
    what = "the manifest's plain tokens"
    check_fields(value, required={"count", "pool", "fixed"}, optional=set(), what=what)
    count, pool = read_count(value, "count", what=what, most=MOST_PLAIN_TOKENS), read_ids(value, "pool", what=what)
    fixed = None if value["fixed"] is None else read_ids(value, "fixed", what=what)
    if count > 0 and not pool:
        raise WireError(f"{what} must come from a pool, got count={count} and a pool of {len(pool)}")
    if len(set(pool)) != len(pool):
        raise WireError(f"{what} must have each id once in the pool; write the file again")
    if fixed is not None and (len(fixed) != count or not set(fixed) <= set(pool)):
        raise WireError(f"{what} must be {count} ids of the pool when fixed, got {len(fixed)}")
    return PlainTokens(count=count, pool=pool, fixed=fixed)
