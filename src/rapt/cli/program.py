"""The program: the commands by who one is, and how an error leaves it.

Exit codes are those of `rapt.errors`. An error is one line on stderr and never a traceback, because the message of an
unexpected exception could quote a text: only its class is named, unless RAPT_DEBUG=1 asks for everything.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from rapt.cli.admin import admin
from rapt.cli.audit import audit
from rapt.cli.audit_models import audit_adapter, audit_model
from rapt.cli.calibrate import calibrate
from rapt.cli.codebook import center, codebook
from rapt.cli.compare import compare
from rapt.cli.demo import demo
from rapt.cli.denoise import denoise, reader
from rapt.cli.gateway import gateway
from rapt.cli.holdings import files, jobs, models
from rapt.cli.ledger import ledger
from rapt.cli.mechanisms import mechanisms, statement
from rapt.cli.output import accept_every_letter, be_quiet, flush_stdout, say, show
from rapt.cli.pool import contribute, pool
from rapt.cli.preview import preview
from rapt.cli.privatize import privatize
from rapt.cli.profiles import add_shared_options
from rapt.cli.remote import export, predict, tune
from rapt.cli.serve import serve, worker
from rapt.cli.show import show as show_file
from rapt.cli.vocabulary import vocabulary
from rapt.errors import RaptError, UsageError
from rapt.version import __version__

# Commands by who one is, in the order of a first visit; a group stands by its name.
SECTIONS: Final[Mapping[str, tuple[Callable[..., None] | str, ...]]] = {
    "Your text": (demo, preview, privatize, show_file, statement, calibrate, "ledger", "vocabulary"),
    "A service's customer": (tune, predict, gateway, export, "jobs", "files", "models", "pool", contribute),
    "A provider": (serve, worker, "admin"),
    "A laboratory": (audit, audit_model, audit_adapter, compare, mechanisms, denoise, codebook, center, reader),
}
GROUPED: Final = {
    "ledger": ledger,
    "vocabulary": vocabulary,
    "jobs": jobs,
    "files": files,
    "models": models,
    "pool": pool,
    "admin": admin,
}
COMMANDS: Final[tuple[Callable[..., None], ...]] = tuple(
    item for section in SECTIONS.values() for item in section if not isinstance(item, str)
)

# What a command may find missing on a machine with the trusted half only, and the extra that brings it.
EXTRAS: Final = {
    "torch": "service",
    "transformers": "service",
    "fastapi": "service",
    "starlette": "gateway",
    "uvicorn": "gateway",
    "sqlalchemy": "service",
    "alembic": "service",
    "prometheus_client": "service",
    "psycopg": "postgresql",
    "pydantic_settings": "service",
    "python_multipart": "gateway",
    "scipy": "audit",
    "jinja2": "audit",
}

# What the service and the demo lock and limit with, and Windows lacks.
_POSIX_MODULES: Final = ("fcntl", "resource")

_HELP: Final = ["-h", "--help"]


class _Sections(TyperGroup):
    """The program, whose help lists the commands by who one is."""

    def format_commands(self, context: Any, formatter: Any) -> None:
        """Write the list of the commands."""
        room = formatter.width - 6 - max(map(len, self.commands))
        for title, section in SECTIONS.items():
            names = [item if isinstance(item, str) else name_command(item) for item in section]
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(room)) for name in names])


def name_command(command: Callable[..., None]) -> str:
    """Return the name of a command on the command line."""
    return command.__name__.replace("_", "-")


app = typer.Typer(
    cls=_Sections,
    # Plain help: the same bytes on a terminal, in a pipe and in docs/cli.md, and rich is not loaded to print it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": _HELP, "max_content_width": 100},
)
for _command in COMMANDS:
    app.command(name_command(_command))(_command)
for _name, _group in GROUPED.items():
    app.add_typer(_group, name=_name)


@app.callback(invoke_without_command=True)
def show_version_or_help(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but warnings and errors.")
    ] = False,
) -> None:
    """Tune and use a language-model service on private text without the text leaving the machine.

    \b
    Start here:
      rapt demo
    """
    if quiet:
        be_quiet(True)
    if version:
        show(f"rapt {__version__}")
    elif context.invoked_subcommand is None:
        show(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run the command line `rapt ARGUMENTS`, and return its exit code."""
    accept_every_letter()
    be_quiet(False)
    code = _run(arguments)
    return code if flush_stdout() else code or 1


@functools.cache
def _build_command() -> Any:
    """Build the command line, once for a process: Typer reads the types of every option of every command."""
    command = get_command(app)
    add_shared_options(command)
    return command


def _run(arguments: Sequence[str]) -> int:
    try:
        command = _build_command()
        _refuse_repeated(command, list(arguments))
        code: Any = command.main(args=list(arguments), prog_name="rapt", standalone_mode=False)
    except RaptError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(_rewrite_usage(error.format_message(), arguments), error.exit_code)
    except ModuleNotFoundError as error:
        if error.name in _POSIX_MODULES:
            return _fail("this command needs Linux or macOS; on Windows, run it in WSL", 2)
        if error.name not in EXTRAS:
            return _fail_unexpectedly(error)
        extra = EXTRAS[error.name]
        what = f"this command needs {error.name!r}, which is not installed"
        return _fail(f"{what}; run in the checkout: pip install -e '.[{extra}]'", 2)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        return _fail_unexpectedly(error)
    if code == 130:
        return _fail("interrupted", 130)
    return code if isinstance(code, int) else 0


def _refuse_repeated(command: Any, arguments: list[str]) -> None:
    """Refuse an option that is given twice: the last would win silently, and with it another η, cap or file.

    Raises:
        UsageError: An option of one value is given twice.
    """
    while subcommands := getattr(command, "commands", None):
        if not arguments or arguments[0] not in subcommands:
            return  # help, the version, or what the program itself will refuse
        command, arguments = subcommands[arguments[0]], arguments[1:]
    if set(_HELP).intersection(arguments):
        return
    # With the names of its help: a command keeps those of the first context that asks for them.
    context = typer.Context(command, help_option_names=_HELP, resilient_parsing=True)
    _, _, order = command.make_parser(context).parse_args(args=arguments)
    given = [option for option in order if option.param_type_name == "option" and not option.multiple]
    for place, option in enumerate(given):
        if option in given[:place]:
            raise UsageError(
                f"{option.opts[0]} must be given once, got it {given.count(option)} times; keep one of them"
            )


def _fail_unexpectedly(error: Exception) -> int:
    if os.environ.get("RAPT_DEBUG") == "1":
        raise error
    return _fail(f"unexpected {type(error).__name__}; run with RAPT_DEBUG=1 for the traceback", 1)


def _fail(message: str, code: int) -> int:
    say(f"rapt: error: {message}")
    return code


def _rewrite_usage(message: str, arguments: Sequence[str]) -> str:
    """Rewrite Typer's message as one line: lower case, no full stop, with the command whose help says what to do."""
    line = " ".join(message.split()).rstrip(".")
    command, called = _build_command(), ["rapt"]
    for argument in arguments:
        if argument not in (subcommands := getattr(command, "commands", {})):
            break
        command = subcommands[argument]
        called.append(argument)
    return f"{line[:1].lower()}{line[1:]}; see {' '.join(called)} --help"
