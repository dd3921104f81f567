"""A run as lines of JSON and as TensorBoard curves: give `add` of either, or of both, to `tune(on_progress=...)`.

Both are written as the run goes, a line a step, so that a killed run leaves what it had. They hold figures and nothing
of any text.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rapt.errors import UsageError
from rapt.service.model.tuning.progress import Progress


class JsonLinesLog:
    """One JSON object a step, appended to a file. Use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        """Append to `path`, which need not exist."""
        self._path = path
        self._stream: TextIO | None = None

    def __enter__(self) -> JsonLinesLog:
        """Open the file."""
        self._stream = self._path.open("a", encoding="ascii")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        if self._stream is not None:
            self._stream.close()

    def add(self, progress: Progress) -> None:
        """Write one step."""
        assert self._stream is not None, "the log is used in a with block"
        self._stream.write(json.dumps(asdict(progress)) + "\n")
        self._stream.flush()


class TensorBoardLog:
    """One point a step and curve, in TensorBoard's files. Use it in a `with` block; needs `tensorboard` installed."""

    def __init__(self, folder: Path) -> None:
        """Write into `folder`, which need not exist.

        Raises:
            UsageError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError("curves for TensorBoard need its writer; run: pip install 'rapt[tensorboard]'") from None
        self._writer: Any = SummaryWriter(str(folder))

    def __enter__(self) -> TensorBoardLog:
        """It is open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left, and close."""
        self._writer.close()

    def add(self, progress: Progress) -> None:
        """Write one step."""
        for name, value in asdict(progress).items():
            if name not in ("step", "steps") and value is not None:
                self._writer.add_scalar(name, value, progress.step)
