"""Compiles the search kernel where there is a compiler for it; without one the package is pure Python and slower."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/rapt/local/native/nearest.c")
LIBRARY = SOURCE.with_name("_nearest.so")
# No -march: the functions that need newer instructions say so, and ask the processor first. No -ffast-math: the bounds
# are about the arithmetic as it is written.
FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC", "-fvisibility=hidden")


class KernelBuild(BuildHookInterface[Any]):
    """Puts the compiled kernel beside its source, for wheels and for editable installs alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one for this platform; do neither where that is not possible.

        `RAPT_NATIVE=0` leaves the kernel out; `RAPT_NATIVE=require` fails where it cannot be built.
        """
        if self.target_name != "wheel":
            return
        wish = os.environ.get("RAPT_NATIVE", "")
        library = Path(self.root) / LIBRARY
        library.unlink(missing_ok=True)
        reason = "RAPT_NATIVE=0" if wish == "0" else compile_kernel(Path(self.root) / SOURCE, library)
        if reason:
            if wish == "require":
                raise RuntimeError(f"the search kernel must be built, got: {reason}")
            self.app.display_warning(f"the search kernel is left out, and the search is slower: {reason}")
            return
        build_data["pure_python"] = False
        # It is loaded by ctypes, so one build serves every Python.
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


def compile_kernel(source: Path, library: Path) -> str:
    """Compile; an empty string, or why not."""
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform == "win32":
        return f"it is written for x86-64 with Linux or macOS, got {platform.machine()} with {sys.platform}"
    wanted = (
        shlex.split(os.environ.get("CC", ""))
        or [name for name in ("cc", "gcc", "clang") if shutil.which(name) is not None][:1]
    )
    if not wanted:
        return "no C compiler"
    partial = library.with_suffix(".partial")
    try:
        run = subprocess.run(
            [*wanted, *FLAGS, str(source), "-o", str(partial), "-lm"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        return f"{wanted[0]}: {error.strerror}"
    if run.returncode != 0:
        partial.unlink(missing_ok=True)
        return (run.stderr.strip().splitlines() or [f"{wanted[0]} ended with {run.returncode}"])[0]
    partial.replace(library)
    return ""
