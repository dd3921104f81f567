"""Environment variables that look like settings and are none: a mistyped one would be ignored without a word."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable
from typing import Final

from rapt.service.http.settings import Settings

log = logging.getLogger(__name__)

_PREFIX: Final = "RAPT_"
# Read by other parts than the settings, or by tests of this project.
_OTHERS: Final = frozenset(
    "RAPT_API_KEY RAPT_CACHE_DIR RAPT_CA_FILE RAPT_DEBUG RAPT_NATIVE RAPT_NODE_MODULES RAPT_TEST_POSTGRESQL "
    "RAPT_TEST_S3 RAPT_TEST_SEED".split()
)
_NAME: Final = re.compile(r"[A-Z0-9_]{1,64}")


def warn_of_unknown_variables(names: Iterable[str]) -> None:
    """Log each name that begins as a setting's and is of none, with the one that may be meant; never a value."""
    known = {f"{_PREFIX}{field.upper()}" for field in Settings.model_fields} | _OTHERS
    # Case says nothing to the settings.
    for name in sorted({name.upper() for name in names}):
        if not name.startswith(_PREFIX) or name in known or not _NAME.fullmatch(name):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        meant = f"; is {close[0]} meant?" if close else ""
        log.warning("the environment variable %s is of no setting and is not looked at%s", name, meant)
