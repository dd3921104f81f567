"""The reader bundle: what turns the codewords of whole texts into input vectors of one frozen backbone, and its hash.

A reader is a small public network, trained on public text alone. Its folder holds the code bundle that it reads, so
`rapt privatize --codes` takes it as well, and two files more: `reader.safetensors` (float32) and `reader.json`. The
backbone's weights are not in it: they come by name or folder, and `backbone_hash` says whether they are the right ones.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as field_of
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rapt.errors import VocabularyError, WireError
from rapt.version import __version__
from rapt.whole_files import open_whole_folder
from rapt.wire.code_bundle import HASH, MOST_STATE_WIDTH, CodeBundle, read_code_bundle, write_code_files
from rapt.wire.strict_json import check_fields, parse_document, read_count, read_field, read_name

SCHEMA: Final = "rapt.reader/1"
DESCRIPTION: Final = "reader.json"
TENSORS: Final = "reader.safetensors"
MOST_VECTORS: Final = 64  # of a codeword; 2 to 8 are usual
MOST_HIDDEN: Final = 8192
MOST_PLAIN: Final = 10_000
MOST_EPSILONS: Final = 16
# No trained number comes near it, and no forward pass of a backbone leaves float32 below it.
_LARGEST: Final = 1e4
_LONGEST_DESCRIPTION: Final = 1 << 20  # bytes of `reader.json`
_AXES: Final = {"hidden.weight": 2, "hidden.bias": 1, "output.weight": 2, "output.bias": 1, "plain": 2}


@dataclass(frozen=True, kw_only=True)
class ReaderMeasure:
    """Losses of a reader on public texts that it was not trained on, at one ε.

    Attributes:
        epsilon: ε that the texts were released at.
        loss: Loss with each text's own code.
        blind_loss: Loss with the code of another text, which says nothing of the text.
    """

    epsilon: float
    loss: float
    blind_loss: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ReaderBundle:
    """A public network from codewords to the input vectors of a backbone.

    With the codeword y of a text that was released at ε, c(ε) y stands for the posterior mean of the text's code, and
    the v vectors are W₂ gelu(W₁ c(ε) y + b₁) + b₂.

    Attributes:
        code: Code bundle whose codewords are read.
        model: Name of the backbone.
        backbone_hash: `sha256:...` of the backbone's tokenizer, table and weights.
        epsilons: Every ε that it was trained at, ascending, nats.
        attenuations: c at each of them, from 0 to 1.
        tensors: `hidden.weight` (w, k), `hidden.bias` (w,), `output.weight` (v h, w), `output.bias` (v h,), and `plain`
            (P, k), codes of public texts in clear, which reconstruction may ask for; float32, read-only.
        vectors: v, the number of input vectors that a codeword becomes.
        measures: Losses on held-out public text.
        public_texts: Number of public texts that it was trained on.
        hash: `sha256:...` over code, backbone, tensors and ε.
    """

    code: CodeBundle
    model: str
    backbone_hash: str
    epsilons: tuple[float, ...]
    attenuations: tuple[float, ...]
    tensors: Mapping[str, NDArray[np.float32]] = field_of(repr=False)
    vectors: int
    measures: tuple[ReaderMeasure, ...]
    public_texts: int
    hash: str


def make_reader_bundle(
    *,
    code: CodeBundle,
    model: str,
    backbone_hash: str,
    epsilons: Sequence[float],
    attenuations: Sequence[float],
    tensors: Mapping[str, NDArray[np.float32]],
    vectors: int,
    measures: Sequence[ReaderMeasure] = (),
    public_texts: int = 0,
) -> ReaderBundle:
    """Make the bundle of a trained network; the arguments are those of `ReaderBundle`.

    Raises:
        VocabularyError: A tensor is not finite float32 of its shape, an ε or its c is outside its domain, or a size is
            beyond what a bundle may have.
    """
    _check_levels(epsilons, attenuations)
    if not (1 <= vectors <= MOST_VECTORS and HASH.fullmatch(backbone_hash)):
        raise VocabularyError(
            f"a reader must make 1 to {MOST_VECTORS} vectors of a codeword and have the hash of a backbone as "
            f"sha256:HEX, got vectors={vectors}"
        )
    _check_shapes({name: item.shape for name, item in tensors.items()}, code=code, vectors=vectors)
    for name, item in tensors.items():
        # A comparison with NaN is false.
        if item.dtype != np.float32 or not (abs(item) <= _LARGEST).all():
            raise VocabularyError(
                f"the {name} of a reader must be finite float32 of size {_LARGEST:g} at most, got others; make it again"
            )
    kept = {name: np.array(tensors[name], dtype="<f4", order="C") for name in _AXES}
    levels = [list(map(float, epsilons)), list(map(float, attenuations))]
    shapes = [item.shape for item in kept.values()]
    digest = hashlib.sha256(json.dumps([SCHEMA, code.hash, backbone_hash, vectors, levels, shapes]).encode())
    for item in kept.values():
        digest.update(item.data.cast("B"))
        item.flags.writeable = False
    return ReaderBundle(
        code=code,
        model=model,
        backbone_hash=backbone_hash,
        epsilons=tuple(levels[0]),
        attenuations=tuple(levels[1]),
        tensors=kept,
        vectors=vectors,
        measures=tuple(measures),
        public_texts=public_texts,
        hash=f"sha256:{digest.hexdigest()}",
    )


def _check_levels(epsilons: Sequence[float], attenuations: Sequence[float]) -> None:
    good = (
        0 < len(epsilons) <= MOST_EPSILONS
        and len(epsilons) == len(attenuations)
        and all(math.isfinite(one) and one > 0 for one in epsilons)
        and all(low < high for low, high in itertools.pairwise(epsilons))
        and all(0 <= one <= 1 for one in attenuations)
    )
    if not good:
        raise VocabularyError(
            f"a reader must have 1 to {MOST_EPSILONS} ascending epsilons above 0, each with an attenuation from 0 to 1"
        )


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], *, code: CodeBundle, vectors: int) -> None:
    """Refuse tensors that are not those of a network from codes of this bundle to so many vectors."""
    if shapes.keys() != _AXES.keys() or any(len(shapes[name]) != axes for name, axes in _AXES.items()):
        raise VocabularyError(f"a reader must have the tensors {', '.join(_AXES)}; make it again with `rapt reader`")
    dimensions, width, outputs = len(code.directions), shapes["hidden.bias"][0], shapes["output.bias"][0]
    hidden, plain = outputs // vectors, shapes["plain"][0]
    wanted = {
        "hidden.weight": (width, dimensions),
        "hidden.bias": (width,),
        "output.weight": (hidden * vectors, width),
        "output.bias": (hidden * vectors,),
        "plain": (plain, dimensions),
    }
    if dict(shapes) != wanted:
        raise VocabularyError(
            f"a reader of codes of {dimensions} dimensions must have tensors that fit them and {vectors} vectors, got "
            "others; make it again for this codebook"
        )
    if not (0 < width <= MOST_HIDDEN and 0 < hidden <= MOST_STATE_WIDTH and plain <= MOST_PLAIN):
        raise VocabularyError(
            f"a reader must have 1 to {MOST_HIDDEN} hidden numbers, vectors of 1 to {MOST_STATE_WIDTH} and at most "
            f"{MOST_PLAIN} plain texts, got {width}, {hidden} and {plain}"
        )


def describe_reader_bundle(bundle: ReaderBundle) -> dict[str, Any]:
    """Return the content of `reader.json` but for who wrote it."""
    return {
        "schema": SCHEMA,
        "model": bundle.model,
        "backbone_hash": bundle.backbone_hash,
        "code_hash": bundle.code.hash,
        "hash": bundle.hash,
        "vectors": bundle.vectors,
        "epsilons": list(bundle.epsilons),
        "attenuations": list(bundle.attenuations),
        "measures": [[one.epsilon, one.loss, one.blind_loss] for one in bundle.measures],
        "public_texts": bundle.public_texts,
    }


def write_reader_bundle(bundle: ReaderBundle, folder: Path) -> None:
    """Write the files of a reader and of its code into a new or empty folder, which appears whole or not at all.

    Raises:
        UsageError: The folder is not empty, or is something else.
        VocabularyError: The folder cannot be written.
    """
    described = describe_reader_bundle(bundle) | {"created_by": f"rapt {__version__}"}
    try:
        with open_whole_folder(folder) as partial:
            write_code_files(bundle.code, partial)
            (partial / TENSORS).write_bytes(save({name: np.asarray(item) for name, item in bundle.tensors.items()}))
            (partial / DESCRIPTION).write_text(json.dumps(described) + "\n", encoding="ascii")
    except (OSError, SafetensorError) as error:
        raise VocabularyError(
            f"the folder of a reader must be writable, got {getattr(error, 'strerror', None) or type(error).__name__}; "
            "free space, or choose another"
        ) from None


def holds_reader_bundle(folder: Path) -> bool:
    """Whether a folder says that it holds a reader."""
    return (folder / DESCRIPTION).is_file()


def read_reader_bundle(folder: Path) -> ReaderBundle:
    """Read the reader in a folder, its hash computed again; sizes and types are checked before a number is read.

    Raises:
        VocabularyError: A file is missing or damaged, the contents do not match the hash, the reader is of another code
            than the one beside it, or it is none that `make_reader_bundle` makes.
        WireError: `reader.json` is malformed or of an unknown version.
    """
    code = read_code_bundle(folder)
    try:
        with (folder / DESCRIPTION).open("rb") as stream:
            described = parse_document(stream.read(_LONGEST_DESCRIPTION), what=DESCRIPTION)
        known = _read_description(described)
        if described["code_hash"] != code.hash:
            raise VocabularyError(
                "a reader must be of the codebook beside it, got one of another; make it again for this codebook"
            )
        with safe_open(folder / TENSORS, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}
            if any(part.get_dtype() != "F32" for part in parts.values()):
                raise VocabularyError(f"{TENSORS} must hold float32 alone; make it again with `rapt reader`")
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
            _check_shapes(shapes, code=code, vectors=known["vectors"])
            tensors: dict[str, NDArray[np.float32]] = {name: file.get_tensor(name) for name in parts}
    except (OSError, SafetensorError):
        raise VocabularyError(
            f"a reader must have {DESCRIPTION} and {TENSORS}; copy it again, or make it with `rapt reader`"
        ) from None
    bundle = make_reader_bundle(code=code, tensors=tensors, **known)
    if bundle.hash != described["hash"]:
        raise VocabularyError(
            f"the hash in {DESCRIPTION} must be that of {TENSORS}, got another; one of the two was changed or damaged: "
            "copy both again"
        )
    return bundle


def _read_description(described: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `make_reader_bundle` that stand in `reader.json`."""
    what = DESCRIPTION
    if described.get("schema") != SCHEMA:
        raise WireError(f"{what} must be of schema {SCHEMA!r}; upgrade rapt or make the reader again")
    names = {"schema", "model", "backbone_hash", "code_hash", "hash", "vectors", "epsilons", "attenuations"}
    check_fields(described, required=names | {"measures", "public_texts", "created_by"}, optional=set(), what=what)
    for name in ("code_hash", "hash", "created_by"):
        read_name(described, name, what=what)
    measures = read_field(described, "measures", list, what=what)
    if len(measures) > MOST_EPSILONS or not all(isinstance(row, list) and len(row) == 3 for row in measures):
        raise WireError(f"{what} must have at most {MOST_EPSILONS} measures of three numbers; make the reader again")
    return {
        "model": read_name(described, "model", what=what),
        "backbone_hash": read_name(described, "backbone_hash", what=what),
        "vectors": read_count(described, "vectors", what=what, most=MOST_VECTORS),
        "epsilons": _read_numbers(described["epsilons"]),
        "attenuations": _read_numbers(described["attenuations"]),
        "measures": [ReaderMeasure(epsilon=a, loss=b, blind_loss=c) for a, b, c in map(_read_numbers, measures)],
        "public_texts": read_count(described, "public_texts", what=what),
    }


def _read_numbers(value: object) -> list[float]:
    if not isinstance(value, list) or len(value) > MOST_EPSILONS or not all(type(one) in (int, float) for one in value):
        raise WireError(f"{DESCRIPTION} must have lists of at most {MOST_EPSILONS} numbers; make the reader again")
    return [float(one) for one in value]
