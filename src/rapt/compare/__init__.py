"""THE LABORATORY: the same tuning on the same files with one thing changed, until the difference has an interval.

It holds clear text and a service's model in one process, as an experimenter may and a service never can: use it on text
that you may see, to choose a setting for text that you may not.

`compare_files` does what the command `rapt compare` does; `read_comparison` reads what it needs from a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rapt.lazy_names import load_lazily

if TYPE_CHECKING:
    from rapt.compare.comparison import Comparison as Comparison
    from rapt.compare.comparison import ComparisonReport as ComparisonReport
    from rapt.compare.comparison import TextFiles as TextFiles
    from rapt.compare.comparison import compare_files as compare_files
    from rapt.compare.comparison import read_comparison as read_comparison
    from rapt.compare.plan import ComparisonPlan as ComparisonPlan

_COMPARISON = "rapt.compare.comparison"
__getattr__, __dir__ = load_lazily(
    __name__,
    {
        "Comparison": _COMPARISON,
        "ComparisonPlan": "rapt.compare.plan",
        "ComparisonReport": _COMPARISON,
        "TextFiles": _COMPARISON,
        "compare_files": _COMPARISON,
        "read_comparison": _COMPARISON,
    },
)
