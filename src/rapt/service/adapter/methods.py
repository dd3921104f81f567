"""The names of the tuning methods, as cards, files and requests have them."""

from typing import Final

PROMPT_TUNING: Final = "prompt_tuning"
P_TUNING: Final = "p_tuning"
PREFIX_TUNING: Final = "prefix_tuning"
LORA: Final = "lora"
LINEAR_PROBING: Final = "linear_probing"
METHOD_NAMES: Final = (PROMPT_TUNING, P_TUNING, PREFIX_TUNING, LORA, LINEAR_PROBING)
