"""What every command has in common: how it leaves, what it loads, where it writes."""

from __future__ import annotations

import ast
import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rapt.cli import program
from rapt.cli.help_pages import GROUPS
from rapt.cli.output import OPTIONS, format_table, name_options
from rapt.errors import RaptError, TuningError

SOURCE = Path(program.__file__).parent.parent
HELP_PAGES = Path(__file__).parents[2] / "docs" / "cli.md"
HEAVY = ("torch", "transformers", "fastapi", "sqlalchemy", "scipy", "jinja2", "numpy", "rich")


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rapt", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def every_error(kind: type[RaptError] = RaptError) -> list[type[RaptError]]:
    return [found for child in kind.__subclasses__() for found in (child, *every_error(child))]


def test_without_arguments_the_help_is_shown(rapt):
    assert rapt().out == rapt("--help").out
    assert rapt().code == 0


def test_help_has_an_example_for_every_command(rapt):
    for name in [program.name_command(command) for command in program.COMMANDS] + [
        name for name in GROUPS if " " in name
    ]:
        shown = rapt(*name.split(), "--help")
        assert shown.code == 0
        assert "Example" in shown.out
        assert f"  rapt {name}" in shown.out


ROOMS = ("local", "wire", "audit", "compare", "denoise", "service/tuning", "service/jobs", "service/answers")
FILES = [path for room in ROOMS for path in (SOURCE / room).rglob("*.py")] + [
    SOURCE / f"{name}.py" for name in ("at_home", "classifier", "training", "whole_files")
]
# Words in backquotes that are no arguments: the program, extras, methods, a name in a file of settings.
NO_ARGUMENTS = {"auto", "rapt", "service", "sklearn", "supervised", "training"}


def messages_of(path: Path) -> Iterator[str]:
    """The texts in a module's code that are no docstrings; what is put into one is a space."""
    tree = ast.parse(path.read_text())
    held = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else " " for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (held | inner):
            yield node.value


def test_messages_of_the_library_name_arguments_of_python_and_the_command_line_makes_options_of_them():
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", HELP_PAGES.read_text()))
    assert set(OPTIONS.values()) <= options
    known = {name.partition("=")[0] for name in OPTIONS} | NO_ARGUMENTS
    for path in FILES:
        for message in messages_of(path):
            bare = re.sub(r"`[a-z]+ [^`]*`|pip install .*", "", message)
            assert " " not in bare or not re.search(r"(?<![\w-])--[a-z]", bare), (path, message)
            assert set(re.findall(r"`([a-z][a-z0-9_]*)(?:=\w*)?`", message)) <= known, (path, message)
    for line, said in (
        ("add `overwrite=True`, or `truncate_to=12`", "add --overwrite, or --truncate 12"),
        ("see `rapt tune`; `header=False`; `no_such`", "see `rapt tune`; --no-header; `no_such`"),
    ):
        assert name_options(line) == said


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_is_one_line_on_stderr_and_its_own_exit_code(kind, rapt, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise kind("a rule must hold, got name=value; do this")

    monkeypatch.setattr(program, "_build_command", fail)
    outcome = rapt("mechanisms")
    assert (outcome.code, outcome.out) == (kind.exit_code, "")
    assert outcome.err == "rapt: error: a rule must hold, got name=value; do this\n"


def test_an_unexpected_exception_names_its_class_and_never_its_message(rapt, monkeypatch):
    def fail(*_: object) -> None:
        raise LookupError("the patient's name is Ada")

    monkeypatch.setattr(program, "_build_command", fail)
    outcome = rapt("mechanisms")
    assert outcome.code == 1
    assert outcome.err == "rapt: error: unexpected LookupError; run with RAPT_DEBUG=1 for the traceback\n"


def test_with_rapt_debug_an_unexpected_exception_keeps_its_traceback(rapt, monkeypatch):
    def fail(*_: object) -> None:
        raise LookupError("all of it")

    monkeypatch.setattr(program, "_build_command", fail)
    monkeypatch.setenv("RAPT_DEBUG", "1")
    with pytest.raises(LookupError, match="all of it"):
        rapt("mechanisms")


def test_a_missing_extra_says_how_to_install_it(rapt, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("rapt.service")]:
        above, _, last = name.rpartition(".")
        if hasattr(sys.modules[above], last):  # to put it back: what is imported below would stay there for other tests
            monkeypatch.setattr(sys.modules[above], last, sys.modules[name])
    for name in [name for name in sys.modules if name.startswith("rapt.service")]:
        monkeypatch.delitem(sys.modules, name)
    outcome = rapt("serve", "--port", "0")
    assert outcome.code == 2
    assert outcome.err == (
        "rapt: error: this command needs 'torch', which is not installed; "
        "run in the checkout: pip install -e '.[service]'\n"
    )


def test_an_interrupt_leaves_with_130(rapt, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "_build_command", interrupt)
    outcome = rapt("mechanisms")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "rapt: error: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "said", "helps"),
    [
        (("privatize",), "missing argument 'IN'", "rapt privatize"),
        (("privatize", "a.csv"), "missing argument 'OUT'", "rapt privatize"),
        (("privatize", "a.csv", "b", "--eta", "much"), "invalid value for '--eta'", "rapt privatize"),
        (("privatize", "a", "b", "--plain-tokens", "-1"), "invalid value for '--plain-tokens'", "rapt privatize"),
        (("pool", "open", "a", "--least", "1"), "invalid value for '--least'", "rapt pool open"),
        (("pool", "shut"), "no such command 'shut'", "rapt pool"),
        (("admin", "rotate-key"), "missing argument", "rapt admin rotate-key"),
        (("mechanisms", "--unknown"), "no such option: --unknown", "rapt mechanisms"),
        (("unknown",), "no such command 'unknown'", "rapt"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_2_and_names_the_help_of_its_command(arguments, said, helps, rapt):
    outcome = rapt(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert outcome.err.startswith("rapt: error: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith(f"; see {helps} --help\n")


def test_a_command_that_failed_before_still_knows_both_names_of_its_help(rapt, monkeypatch):
    monkeypatch.setattr(program, "_build_command", functools.cache(program._build_command.__wrapped__))
    assert rapt("privatize", "a.csv", "b", "--eta", "much").code == 2
    assert "  -h, --help" in rapt("privatize", "-h").out


def test_help_loads_nothing_heavy():
    script = f"""
import sys
from rapt.cli.program import name_command, run
assert run(["--help"]) == 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_the_console_script_reports_its_exit_code_to_the_shell(tmp_path: Path):
    done = shell("privatize", str(tmp_path / "none.csv"), str(tmp_path / "out"), "--eta", "nan", RAPT_DEBUG="")
    assert done.returncode == 6
    assert done.stderr.startswith("rapt: error: eta must be a finite number above 0")
    assert done.stderr.count("\n") == 1


def test_a_terminated_process_cleans_up_and_leaves_with_143():
    script = """
import os, signal, sys
import rapt.cli.program as program
def killed(arguments):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        print("cleaned", file=sys.stderr)
program.run = killed
from rapt.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "cleaned\n"


def test_numbers_stand_to_the_right_and_words_to_the_left():
    assert format_table(["arm", "accuracy"], [["clean", "81.1 %"], ["rapt", "9 %"]]) == (
        "arm    accuracy\n─────  ────────\nclean    81.1 %\nrapt        9 %"
    )


def test_the_tree_of_errors_has_an_exit_code_of_its_own_for_each_branch():
    branches = RaptError.__subclasses__()
    assert len({kind.exit_code for kind in branches}) == len(branches)
    assert TuningError.exit_code == 7
