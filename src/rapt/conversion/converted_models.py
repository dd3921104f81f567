"""Where converted models are kept: one folder each, made once, whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from rapt.conversion.gguf_file import read_gguf
from rapt.conversion.gguf_llama import write_llama
from rapt.errors import UsageError, VocabularyError
from rapt.this_machine import cache_folder
from rapt.whole_files import whole_folder

# Part of a folder's name: a change of what is written makes new folders.
_VERSION: Final = 2


def converted_llama(source: Path, *, sha256: str) -> Path:
    """The folder of a Llama-style GGUF file in Hugging Face's layout, converted if it is not there yet.

    Two processes that convert at once both succeed, and one result is kept.

    Args:
        source: The GGUF file.
        sha256: Its hex digest: another file is refused.

    Raises:
        VocabularyError: The file is not the expected one, cannot be read, or the result cannot be written.
    """
    folder = cache_folder() / "models" / f"{source.stem}-{sha256[:12]}-{_VERSION}"
    if (folder / "config.json").is_file():
        return folder
    try:
        with source.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            raise VocabularyError(
                f"a model must be the file that was named, got digest {found[:12]} for {sha256[:12]}; install it again"
            )
        with whole_folder(folder) as partial:
            write_llama(read_gguf(source), partial)
    except (OSError, UsageError) as error:
        if (folder / "config.json").is_file():  # another process was first
            return folder
        kind = getattr(error, "strerror", None) or type(error).__name__
        raise VocabularyError(
            f"a model must be readable and its cache writable, got {kind}; "
            "free 600 MB, or choose another folder with RAPT_CACHE_DIR"
        ) from None
    return folder
