"""Options that need not be typed each time: profiles in `~/.config/rapt/config.toml`, and the way to a service.

An option is what the command line says, else the environment, else the profile, else its default. A key and a CA file
of a profile go with the service of that profile alone. Of a file that others can read no key is taken.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.main import get_command

from rapt.cli import output
from rapt.errors import UsageError

if TYPE_CHECKING:
    from rapt.local.client import ServiceClient

# What a profile may state, by the names of the arguments: names in the file are these, too.
FIELDS: Final = ("service", "api_key", "ca_file", "vocabulary", "codes")
_WITH_SERVICE: Final = ("api_key", "ca_file")
_MOST_BYTES: Final = 64 * 1024
_LINE: Final = re.compile(r"at line (\d+)")
_OTHERS: Final = 0o077  # what the mode of a file lets everybody but its owner do


@dataclass(frozen=True, kw_only=True)
class ServiceAccess:
    """Address of a service, and how to be let in.

    Attributes:
        url: Address of the service.
        api_key: API key; None where there is none.
        ca_file: PEM certificates that vouch for the service; None for those that this machine trusts.
        insecure: Whether a key may go to another machine over `http://`.
    """

    url: str
    api_key: str | None = field(repr=False)
    ca_file: Path | None
    insecure: bool

    def open(self) -> ServiceClient:
        """Open a client. Raises `UsageError` as `ServiceClient`."""
        from rapt.local.client import ServiceClient

        return ServiceClient(
            self.url, api_key=self.api_key, ca_file=self.ca_file, insecure=self.insecure, on_retry=output.say
        )


def _take_access(
    context: typer.Context,
    service: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="RAPT_SERVICE",
            show_envvar=True,
            help="Address of the service, such as http://127.0.0.1:8420.",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", envvar="RAPT_API_KEY", show_envvar=True, help="API key, if the service requires one."
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file",
            metavar="FILE",
            envvar="RAPT_CA_FILE",
            show_envvar=True,
            help="PEM certificates to trust, if this machine does not trust the service's certificate.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Allow http:// to another machine, where anybody on the way can read the key."),
    ] = False,
) -> ServiceAccess:
    """Return the way to the service that the options of a command, the environment and the profile name."""
    if service is None:
        raise UsageError("a service must be named; give --service URL, set RAPT_SERVICE, or state it in a profile")
    stated: Mapping[str, Any] = context.default_map or {}
    if service != stated.get("service"):  # what a profile states beside its service is for no other
        api_key = None if _find_source(context, "api_key") == "DEFAULT_MAP" else api_key
        ca_file = None if _find_source(context, "ca_file") == "DEFAULT_MAP" else ca_file
    return ServiceAccess(url=service, api_key=api_key, ca_file=ca_file, insecure=insecure)


def asks_a_service(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a service, in the place of its parameter `access`, a `ServiceAccess`."""
    own, options = (inspect.signature(one, eval_str=True).parameters for one in (command, _take_access))
    # By keyword alone, as Typer calls it: then an option without a default may stand behind one that has one.
    found = [
        item.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for item in {**own, **options}.values()  # both may ask for the context
        if item.name != "access"
    ]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        access = _take_access(**{name: given[name] if name in own else given.pop(name) for name in options})
        command(access=access, **given)

    called.__signature__ = inspect.Signature(found)  # type: ignore[attr-defined]  # of `inspect`, not of functions
    called.__annotations__ = {item.name: item.annotation for item in found}
    return called


def add_shared_options(command: Any) -> None:
    """Give every command of a command line -q, and a profile to those that have an option which a profile states."""
    for below in getattr(command, "commands", {}).values():
        add_shared_options(below)
    if not hasattr(command, "commands"):
        profile, quiet = get_command(_shared).params
        command.params += [profile, quiet] if list(_list_statable(command)) else [quiet]


def _list_statable(command: Any) -> list[str]:
    """List the options of a command that a profile may state: where None means `as the file says`, it may not."""
    found = [item for item in command.params if item.name in FIELDS and item.param_type_name == "option"]
    return [item.name for item in found if item.envvar is not None or item.default is not None]


def _take_profile(context: typer.Context, name: str | None) -> str | None:
    """Make what a profile states the defaults of a command; a callback of Typer."""
    if context.resilient_parsing:
        return name
    stated, own = read_profile(name), _list_statable(context.command)
    context.default_map = {name: value for name, value in stated.items() if name in own}
    if _find_source(context, "profile") == "COMMANDLINE":
        for option in context.command.params:
            variable, value = str(option.envvar), context.default_map.get(option.name or "")
            if value is not None and (os.environ.get(variable) or value) != value:
                raise UsageError(
                    f"--profile and {variable} must not name two things, got --profile {name}; unset {variable}, or "
                    "leave --profile out"
                )
    return name


def _be_quiet(quiet: bool) -> bool:
    """Say nothing but warnings and errors from here on; a callback of Typer."""
    if quiet:
        output.be_quiet(True)
    return quiet


_shared = typer.Typer(add_completion=False, rich_markup_mode=None)


@_shared.command()
def _take_shared(
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="RAPT_PROFILE",
            show_envvar=True,
            is_eager=True,
            expose_value=False,
            callback=_take_profile,
            help="Profile of ~/.config/rapt/config.toml, for what is not given here.",
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            is_eager=True,
            expose_value=False,
            callback=_be_quiet,
            help="Say nothing on stderr but warnings and errors.",
        ),
    ] = False,
) -> None:
    """Declare the options that commands share."""


def find_configuration() -> Path:
    """Return the path of the configuration: `rapt/config.toml` in `XDG_CONFIG_HOME` or `~/.config`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "rapt" / "config.toml"


def read_profile(name: str | None) -> Mapping[str, str]:
    """Return what a profile states by `FIELDS`; without a name that of the file's `profile`, or nothing.

    Raises:
        UsageError: There is no such profile, or the file is not what `docs/cli.md` describes, or holds a key and can be
            read by others.
    """
    path = find_configuration()
    try:
        with path.open("rb") as stream:
            mode, content = os.fstat(stream.fileno()).st_mode, stream.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        if name is None:
            return {}
        raise _refuse(f"must exist where a profile is named, got --profile {name}; write it") from None
    except OSError as error:
        raise _refuse(f"must be readable, got {error.strerror or type(error).__name__}; mend its mode") from None
    profiles, chosen = _read_profiles(content)
    if os.name == "posix" and mode & _OTHERS and any("api_key" in stated for stated in profiles.values()):
        raise _refuse("must be readable by you alone where it holds an api_key; run chmod 600 on it")
    chosen = name or chosen
    if chosen is None:
        return {}
    if chosen not in profiles:
        raise _refuse(f"must have the profile that is named, got {chosen!r}; write [profiles.{chosen}]")
    stated = dict(profiles[chosen])
    for what in ("ca_file", "vocabulary", "codes"):
        if stated.get(what, "").startswith("~"):
            stated[what] = os.path.expanduser(stated[what])
    return stated


def _read_profiles(content: bytes) -> tuple[Mapping[str, Mapping[str, str]], str | None]:
    """Read the profiles by name, and the name of the usual one; no message repeats a value."""
    if len(content) > _MOST_BYTES:
        raise _refuse(f"must have at most {_MOST_BYTES:,} bytes; shorten it")
    try:
        stated = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # its own message may quote what stands there
        line = _LINE.search(str(error))
        raise _refuse(f"must be TOML in UTF-8, got a fault{f' in line {line[1]}' if line else ''}; mend it") from None
    _check_names(stated, ("profile", "profiles"), where="at the top")
    usual, profiles = stated.get("profile"), stated.get("profiles", {})
    if not (usual is None or isinstance(usual, str)) or not isinstance(profiles, dict):
        raise _refuse('must have profile = "NAME" and tables [profiles.NAME]; mend it')
    for name, profile in profiles.items():
        if not isinstance(profile, dict):
            raise _refuse(f"must have a table [profiles.{name}]; mend it")
        _check_names(profile, FIELDS, where=f"in [profiles.{name}]")
        for what, value in profile.items():
            if not (isinstance(value, str) and value.strip() == value != ""):
                raise _refuse(f"must have a text as {what} in [profiles.{name}]; put it in quotes")
        if "service" not in profile and any(what in profile for what in _WITH_SERVICE):
            raise _refuse(f"must name the service of {' and '.join(_WITH_SERVICE)} in [profiles.{name}]; add service")
    return profiles, usual


def _check_names(stated: Mapping[str, Any], known: tuple[str, ...], *, where: str) -> None:
    for name in stated:
        if name not in known:
            raise _refuse(f"must have only {', '.join(known)} {where}, got {name!r}; correct or remove it")


def _refuse(rule: str) -> UsageError:
    return UsageError(f"the configuration {rule} ({find_configuration()})")


def _find_source(context: typer.Context, name: str) -> str | None:
    source = context.get_parameter_source(name)
    return None if source is None else str(source.name)
