"""The code bundle: everything public that turns a whole text into codewords, and its hash.

A text's code is its mean state in a public encoder, projected on public directions and scaled to length 1. What leaves
is never the code, but the id of a codeword that a mechanism drew: a codebook is the vocabulary of whole texts. A folder
of two public files: `code.safetensors` (centre, directions, codewords, float32) and `code.json` (encoder, hash, longest
input). The encoder's weights are not in it: they come by name or folder, and `encoder_hash` says whether they are the
right ones. Centre, directions and codewords must come from public text alone; no file can show that they do. A code may
be centred a second time, by codes that others released (`rapt.centering`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as field_of
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rapt.errors import VocabularyError, WireError
from rapt.whole_files import open_whole_folder
from rapt.wire.mechanism_setting import MOST_CODES, MOST_CODEWORDS, check_epsilon
from rapt.wire.public_states import write_public_states
from rapt.wire.strict_json import check_fields, parse_document, read_count, read_field, read_name

SCHEMA: Final = "rapt.code/1"
# A code that is centred by what a first round of contributors released.
SCHEMA_CENTERED: Final = "rapt.code/2"
# A code of pairs of texts.
SCHEMA_OF_PAIRS: Final = "rapt.code/3"
DESCRIPTION: Final = "code.json"
TENSORS: Final = "code.safetensors"
MOST_DIMENSIONS: Final = 4096  # of a code; 4 to 64 are usual
MOST_STATE_WIDTH: Final = 65_536  # of an encoder's states; 384 and 768 are usual
_MOST_LANGUAGES: Final = 1000
_LENGTH_SLACK: Final = 1e-3
HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")
_NAMES: Final = ("center", "directions", "codewords")
_LONGEST_DESCRIPTION: Final = 1 << 20  # bytes of `code.json`


@dataclass(frozen=True, kw_only=True)
class FirstRound:
    """Released codes that the second centre of a code was computed from.

    Attributes:
        code_hash: `sha256:...` of the code that they were released by.
        epsilon: ε of each of those texts, nats.
        texts: Number of those texts.
    """

    code_hash: str
    epsilon: float
    texts: int


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeBundle:
    """A public map from the states of a public encoder to codes, and the codewords that may leave in their place.

    Attributes:
        model: Name of the encoder.
        encoder_hash: `sha256:...` of the encoder's tokenizer and weights.
        center: State that is subtracted before projecting, (h,), float32, read-only.
        directions: Directions with their whitening, (k, h), float32, read-only.
        codewords: Codewords of length 1, (r, N, k / r), float32, read-only: the k dimensions are cut into r equal runs,
            and each run has a codebook of its own. A text becomes one id of each.
        max_tokens: Number of tokens after which the encoder cuts a text, special tokens included.
        languages: Languages that the encoder was trained on, such as `en`; empty where nobody says. The guarantee holds
            for every language, the use does not.
        hash: `sha256:...` over all but the name.
        offset: Second centre, which is subtracted from a code of length 1 before it is scaled to length 1 again, (k,),
            float32, read-only; None without a first round.
        first_round: Releases that the second centre was computed from; None without one.
        pairs: Whether a code is of a pair of texts: of how alike their two states are, which is one number (h = 1). It
            lies between -1 and 1 after the map, and its code on a half circle, so k = 1 and codewords have two numbers.
    """

    model: str
    encoder_hash: str
    center: NDArray[np.float32] = field_of(repr=False)
    directions: NDArray[np.float32] = field_of(repr=False)
    codewords: NDArray[np.float32] = field_of(repr=False)
    max_tokens: int
    languages: tuple[str, ...] = ()
    hash: str
    offset: NDArray[np.float32] | None = field_of(repr=False, default=None)
    first_round: FirstRound | None = None
    pairs: bool = False

    @property
    def width(self) -> int:
        """The numbers of a code, all of its runs together."""
        return int(self.codewords.shape[0] * self.codewords.shape[2])

    @property
    def codes(self) -> int:
        """The number of codewords that a text becomes, r."""
        return int(self.codewords.shape[0])

    @property
    def size(self) -> int:
        """The number of codewords in each codebook, N."""
        return int(self.codewords.shape[1])


def make_code_bundle(
    *,
    model: str,
    encoder_hash: str,
    center: NDArray[np.float32],
    directions: NDArray[np.float32],
    codewords: NDArray[np.float32],
    max_tokens: int,
    languages: Sequence[str] = (),
    offset: NDArray[np.float32] | None = None,
    first_round: FirstRound | None = None,
    pairs: bool = False,
) -> CodeBundle:
    """Make the bundle of a map and its codebooks; arrays have the shapes of `CodeBundle`.

    Raises:
        VocabularyError: An array is not finite float32 of its shape, a codeword is there twice or not of length 1, or
            a size is beyond what a bundle may have.
    """
    arrays = dict(zip(_NAMES, (center, directions, codewords), strict=True))
    for (name, array), axes in zip(arrays.items(), (1, 2, 3), strict=True):
        if array.ndim != axes or array.dtype != np.float32 or not np.isfinite(array).all():
            raise VocabularyError(
                f"the {name} of a code must be finite float32 of {axes} axes, got {array.dtype} {array.shape}"
            )
    (width,), (dimensions, seen), (codes, size, run) = center.shape, directions.shape, codewords.shape
    if pairs and (width, dimensions, codes, run, offset) != (1, 1, 1, 2, None):
        raise VocabularyError(
            "a code of pairs must have center (1,), directions (1, 1), codewords (1, N, 2) and no second centre, got "
            f"{center.shape}, {directions.shape} and {codewords.shape}"
        )
    if seen != width or codes * run != (2 if pairs else dimensions) or not 0 < dimensions <= MOST_DIMENSIONS:
        raise VocabularyError(
            "a code must have center (h,), directions (k, h) and codewords (r, N, k / r), with k from 1 to "
            f"{MOST_DIMENSIONS}; got {center.shape}, {directions.shape} and {codewords.shape}"
        )
    if not (0 < width <= MOST_STATE_WIDTH and 2 <= size <= MOST_CODEWORDS and codes <= MOST_CODES):
        raise VocabularyError(
            f"a code must have states of 1 to {MOST_STATE_WIDTH} numbers, 2 to {MOST_CODEWORDS} codewords and at most "
            f"{MOST_CODES} codes a text, got {width}, {size} and {codes}"
        )
    if max_tokens < 1 or not HASH.fullmatch(encoder_hash):
        raise VocabularyError("a code must have max_tokens above 0 and the hash of an encoder as sha256:HEX")
    check_codewords(codewords)
    if (offset is None) != (first_round is None):
        raise VocabularyError("a second centre must come with the first round that it was computed from; give both")
    if offset is not None and first_round is not None:
        _check_second_center(offset, first_round, codes=codes, dimensions=dimensions)
        arrays["offset"] = offset
    kept = {name: np.array(array, dtype="<f4", order="C") for name, array in arrays.items()}
    shapes = [item.shape for item in kept.values()]
    stated: list[Any] = [SCHEMA, encoder_hash, max_tokens, list(languages), shapes]
    if first_round is not None:
        stated = [SCHEMA_CENTERED, *stated[1:], asdict(first_round)]
    if pairs:
        stated[0] = SCHEMA_OF_PAIRS
    digest = hashlib.sha256(json.dumps(stated).encode())
    for item in kept.values():
        digest.update(item.data.cast("B"))
    for item in kept.values():
        item.flags.writeable = False
    return CodeBundle(
        model=model,
        encoder_hash=encoder_hash,
        max_tokens=max_tokens,
        languages=tuple(languages),
        hash=f"sha256:{digest.hexdigest()}",
        first_round=first_round,
        pairs=pairs,
        **kept,
    )


def project_states(states: NDArray[np.float32], bundle: CodeBundle) -> NDArray[np.float64]:
    """Return the codes of states, (n, h) to (n, width), each of length 1; 0 where a state has no direction at all.

    The state of a pair is what `compare_pairs` returns.

    A state that is not finite has the code 0, like one at the centre: nothing that a text does to its encoder can stop
    a release, or be seen by its stopping.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        codes = (states.astype(np.float64) - bundle.center) @ bundle.directions.T.astype(np.float64)
        if bundle.pairs:
            codes = place_on_arc(codes[:, 0])
        lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    known = np.isfinite(lengths) & (lengths > 0)
    found: NDArray[np.float64] = np.divide(codes, lengths, out=np.zeros_like(codes), where=known)
    return (
        found
        if bundle.offset is None
        else _shift(found, bundle.offset.astype(np.float64), codes_of_a_text=bundle.codes)
    )


def place_on_arc(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points of a half circle for numbers that are cut at -1 and 1, (n,) to (n, 2)."""
    angles = places.clip(-1, 1) * (math.pi / 2)
    return np.stack([np.sin(angles), np.cos(angles)], axis=1)


def compare_pairs(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the state of each pair of texts, the cosine of their two states, (n, h) twice to (n, 1); 0 without one."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        products, sizes = (one * other).sum(axis=1), np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        known = np.isfinite(products) & np.isfinite(sizes) & (sizes > 0)
        found: NDArray[np.float64] = np.divide(products, sizes, out=np.zeros(len(one)), where=known)
    state: NDArray[np.float32] = found[:, None].astype(np.float32)
    return state


def split_into_units(codes: NDArray[np.float64], *, codes_of_a_text: int) -> NDArray[np.float64]:
    """Return the runs of codes, (n, k) to (n, r, k / r), each of length 1, as it is released; 0 where a run is 0."""
    runs = codes.reshape(len(codes), codes_of_a_text, -1)
    lengths = np.linalg.norm(runs, axis=2, keepdims=True)
    found: NDArray[np.float64] = np.divide(runs, lengths, out=np.zeros_like(runs), where=lengths > 0)
    return found


def _shift(codes: NDArray[np.float64], offset: NDArray[np.float64], *, codes_of_a_text: int) -> NDArray[np.float64]:
    """Codes from another centre: each run of a code has length 1, less the centre of that run; the whole length 1."""
    units = split_into_units(codes, codes_of_a_text=codes_of_a_text)
    moved = (units - offset.reshape(1, codes_of_a_text, -1)).reshape(codes.shape)
    moved[~codes.any(axis=1)] = 0  # a state without a direction stays one
    whole = np.linalg.norm(moved, axis=1, keepdims=True)
    found: NDArray[np.float64] = np.divide(moved, whole, out=np.zeros_like(moved), where=whole > 0)
    return found


def check_codewords(codewords: NDArray[np.float32]) -> None:
    """Refuse codewords, (r, N, k / r), that are not of length 1, or that a codebook has twice (`VocabularyError`)."""
    if (abs(np.linalg.norm(codewords.astype(np.float64), axis=2) - 1) > _LENGTH_SLACK).any():
        raise VocabularyError("every codeword must have length 1; divide each by its length")
    for book in codewords:
        # As bytes, because that sorts once; adding 0 makes the two zeros of floating point one.
        rows = np.ascontiguousarray(book + np.float32(0)).view(f"V{book.shape[1] * book.itemsize}")
        if len(np.unique(rows)) < len(book):
            raise VocabularyError("every codeword must be in its codebook once; leave out what is there twice")


def write_center(bundle: CodeBundle) -> str:
    """Return the second centre of a centred code as one word, `TEXTS:EPSILON:NUMBERS`, as `apply_center` reads it."""
    assert bundle.offset is not None
    assert bundle.first_round is not None
    numbers = base64.b64encode(bundle.offset.tobytes()).decode("ascii")
    return f"{bundle.first_round.texts}:{bundle.first_round.epsilon!r}:{numbers}"


def apply_center(bundle: CodeBundle, center: str) -> CodeBundle:
    """Return the centred code that `write_center` was of, from the code that it came from.

    Raises:
        WireError: `center` is no centre of this code.
        VocabularyError: It is one that no code can have.
    """
    texts, _, rest = center.partition(":")
    epsilon, _, numbers = rest.partition(":")
    try:
        first_round = FirstRound(code_hash=bundle.hash, epsilon=float(epsilon), texts=int(texts))
        offset = np.frombuffer(base64.b64decode(numbers, validate=True), dtype="<f4").astype(np.float32)
    except (ValueError, OverflowError):
        raise WireError("the centre of a code must be TEXTS:EPSILON:NUMBERS; fetch it again") from None
    return add_second_center(bundle, offset, first_round=first_round)


def add_second_center(bundle: CodeBundle, offset: NDArray[np.float32], *, first_round: FirstRound) -> CodeBundle:
    """Return the code with a second centre, (k,); raises as `make_code_bundle`."""
    parts = {name: getattr(bundle, name) for name in ("model", "encoder_hash", *_NAMES, "max_tokens", "languages")}
    return make_code_bundle(**parts, offset=offset, first_round=first_round)


def write_code_bundle(bundle: CodeBundle, folder: Path, *, public_states: NDArray[np.float32] | None = None) -> None:
    """Write the two files into a new or empty folder, which appears whole or not at all.

    Args:
        bundle: The code.
        folder: New or empty folder.
        public_states: States of public texts in its encoder, (n, h), which stand beside it (`rapt.wire.public_states`).

    Raises:
        UsageError: The folder is not empty, or is something else.
        VocabularyError: The folder cannot be written, or the states cannot.
    """
    try:
        with open_whole_folder(folder) as partial:
            write_code_files(bundle, partial)
            if public_states is not None:
                write_public_states(public_states, partial, encoder_hash=bundle.encoder_hash)
    except (OSError, SafetensorError) as error:
        raise VocabularyError(
            f"the folder of a code must be writable, got {getattr(error, 'strerror', None) or type(error).__name__}; "
            "free space, or choose another"
        ) from None


def write_code_files(bundle: CodeBundle, folder: Path) -> None:
    """Write the two files into a folder that is there (`OSError`, `SafetensorError`)."""
    # Not by `save_file`, whose file only its owner may read: a service may run as somebody else.
    (folder / TENSORS).write_bytes(save({name: np.asarray(getattr(bundle, name)) for name in _list_arrays(bundle)}))
    (folder / DESCRIPTION).write_text(json.dumps(describe_code_bundle(bundle)) + "\n", encoding="ascii")


def _list_arrays(bundle: CodeBundle) -> tuple[str, ...]:
    return _NAMES if bundle.offset is None else (*_NAMES, "offset")


def describe_code_bundle(bundle: CodeBundle) -> dict[str, Any]:
    """Return the content of `code.json`."""
    return {
        "schema": _find_schema(bundle),
        "model": bundle.model,
        "encoder_hash": bundle.encoder_hash,
        "hash": bundle.hash,
        "state_width": len(bundle.center),
        "dimensions": len(bundle.directions),
        "codewords": bundle.size,
        "codes": bundle.codes,
        "max_tokens": bundle.max_tokens,
        "languages": list(bundle.languages),
        **({} if bundle.first_round is None else {"first_round": asdict(bundle.first_round)}),
    }


def _find_schema(bundle: CodeBundle) -> str:
    if bundle.pairs:
        return SCHEMA_OF_PAIRS
    return SCHEMA if bundle.first_round is None else SCHEMA_CENTERED


def holds_code_bundle(folder: Path) -> bool:
    """Whether a folder says that it holds a code bundle."""
    return (folder / DESCRIPTION).is_file()


def read_code_bundle(folder: Path) -> CodeBundle:
    """Read the bundle in a folder, its hash computed again from its files.

    Raises:
        VocabularyError: A file is missing or damaged, the contents do not match the hash, or the bundle is none that
            `make_code_bundle` makes.
        WireError: `code.json` is malformed or of an unknown version.
    """
    try:
        with (folder / DESCRIPTION).open("rb") as stream:
            described = parse_document(stream.read(_LONGEST_DESCRIPTION), what=DESCRIPTION)
        arrays_of = (*_NAMES, "offset") if described.get("schema") == SCHEMA_CENTERED else _NAMES
        with safe_open(folder / TENSORS, framework="numpy") as file:
            if set(file.keys()) != set(arrays_of) or any(
                file.get_slice(name).get_dtype() != "F32" for name in arrays_of
            ):
                raise VocabularyError(f"{TENSORS} must hold {', '.join(arrays_of)} as float32; fetch it again")
            arrays: dict[str, NDArray[np.float32]] = {name: file.get_tensor(name) for name in arrays_of}
    except (OSError, SafetensorError):
        raise VocabularyError(
            f"a code bundle must have {DESCRIPTION} and {TENSORS}; fetch it again, or make it with `rapt codebook`"
        ) from None
    if described.get("schema") not in (SCHEMA, SCHEMA_CENTERED, SCHEMA_OF_PAIRS):
        raise WireError(f"{DESCRIPTION} must be of schema {SCHEMA!r}; upgrade rapt or fetch the bundle again")
    names = {"schema", "model", "encoder_hash", "hash", "state_width", "dimensions", "codewords", "codes"}
    names |= {"max_tokens", "languages"} | ({"first_round"} if "offset" in arrays else set())
    check_fields(described, required=names, optional=set(), what=DESCRIPTION)
    languages = read_field(described, "languages", list, what=DESCRIPTION)
    if len(languages) > _MOST_LANGUAGES:
        raise WireError(f"{DESCRIPTION} must have at most {_MOST_LANGUAGES} languages; write it again")
    bundle = make_code_bundle(
        model=read_name(described, "model", what=DESCRIPTION),
        encoder_hash=read_name(described, "encoder_hash", what=DESCRIPTION),
        max_tokens=read_count(described, "max_tokens", what=DESCRIPTION),
        languages=[read_name({"languages": name}, "languages", what=DESCRIPTION) for name in languages],
        first_round=_read_first_round(described) if "offset" in arrays else None,
        pairs=described["schema"] == SCHEMA_OF_PAIRS,
        **arrays,
    )
    if describe_code_bundle(bundle) != described:
        raise VocabularyError(
            f"the hash and the sizes in {DESCRIPTION} must be those of {TENSORS}, got others; "
            "one of the two was changed or damaged: fetch both again"
        )
    return bundle


def _read_first_round(described: Mapping[str, Any]) -> FirstRound:
    what = "the first round of a code"
    stated = read_field(described, "first_round", dict, what=DESCRIPTION)
    check_fields(stated, required=set(FirstRound.__dataclass_fields__), optional=set(), what=what)
    epsilon = stated["epsilon"]
    if type(epsilon) not in (int, float):
        raise WireError(f"{what} must have epsilon as a number; fetch the bundle again")
    return FirstRound(
        code_hash=read_name(stated, "code_hash", what=what),
        epsilon=float(epsilon),
        texts=read_count(stated, "texts", what=what),
    )


def _check_second_center(offset: NDArray[np.float32], first_round: FirstRound, *, codes: int, dimensions: int) -> None:
    check_epsilon(first_round.epsilon)
    if first_round.texts < 1 or not HASH.fullmatch(first_round.code_hash):
        raise VocabularyError("the first round of a code must have texts, and the hash of a code as sha256:HEX")
    if offset.shape != (dimensions,) or offset.dtype != np.float32 or not np.isfinite(offset).all():
        raise VocabularyError(f"the offset of a code must be finite float32 of {dimensions} numbers")
    if (np.linalg.norm(offset.reshape(codes, -1).astype(np.float64), axis=1) >= 1).any():
        raise VocabularyError("the offset of a code must be shorter than its codes, which have length 1")
