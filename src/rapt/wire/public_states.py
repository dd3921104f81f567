"""States of public texts beside a code: what a provider's heads are taught on, and no contributor needs.

One more file in the folder of a code bundle, `public_states.safetensors`: an array `states`, (n, h), float16, of public
texts in the code's encoder. It is no part of the bundle's hash, because nothing that leaves a contributor depends on
it; the hash of the encoder in it says whether it belongs there. Only whoever tunes reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rapt.errors import VocabularyError

PUBLIC_STATES: Final = "public_states.safetensors"
MOST_PUBLIC_STATES: Final = 8_000  # 6 MB of MiniLM
_STATES, _ENCODER = "states", "encoder_hash"


def write_public_states(states: NDArray[np.float32], folder: Path, *, encoder_hash: str) -> None:
    """Write states of public texts, (n, h), into the folder of their code; at most the first `MOST_PUBLIC_STATES`.

    Raises:
        VocabularyError: They are not finite numbers of float16.
        OSError: The folder cannot be written.
    """
    with np.errstate(over="ignore"):
        kept = states[:MOST_PUBLIC_STATES].astype("<f2")
    if not np.isfinite(kept).all():
        raise VocabularyError("states of public texts must be finite numbers of float16; take another encoder")
    (folder / PUBLIC_STATES).write_bytes(save({_STATES: kept}, metadata={_ENCODER: encoder_hash}))


def read_public_states(folder: Path, *, encoder_hash: str, width: int) -> NDArray[np.float32] | None:
    """Read the states of public texts beside a code, (n, h); None where there are none.

    Args:
        folder: Folder of the code.
        encoder_hash: Hash of the code's encoder.
        width: Number h of numbers in one of its states.

    Raises:
        VocabularyError: They are damaged, of another encoder, or too many.
    """
    if not (folder / PUBLIC_STATES).is_file():
        return None
    try:
        with safe_open(folder / PUBLIC_STATES, framework="numpy") as file:
            place = file.get_slice(_STATES)
            (rows, columns), kind = place.get_shape(), place.get_dtype()
            if (file.metadata() or {}).get(_ENCODER) != encoder_hash or set(file.keys()) != {_STATES}:
                raise VocabularyError(
                    f"{PUBLIC_STATES} must be of the encoder of its code; leave it out, or make both again"
                )
            if not 0 < rows <= MOST_PUBLIC_STATES or columns != width or kind != "F16":
                raise VocabularyError(
                    f"{PUBLIC_STATES} must hold 1 to {MOST_PUBLIC_STATES} states of {width} numbers as float16; make "
                    "the code again"
                )
            states: NDArray[np.float32] = file.get_tensor(_STATES).astype(np.float32)
    except (OSError, SafetensorError, ValueError):
        raise VocabularyError(f"{PUBLIC_STATES} must be a whole file; leave it out, or make the code again") from None
    if not np.isfinite(states).all():
        raise VocabularyError(f"{PUBLIC_STATES} must hold finite numbers; make the code again")
    return states
