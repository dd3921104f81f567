"""What a release carries for others, to run it, cite it or report on it, says what the program understands."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from configparser import ConfigParser
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from rapt.cli.program import run
from rapt.service.http.door import OPEN_PATHS
from rapt.service.http.settings import Settings, load_settings, reveal
from rapt.version import __version__

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
IMAGE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
GATEWAY = yaml.safe_load((DEPLOY / "gateway.compose.yaml").read_text(encoding="utf-8"))
# Read when the package is built, by both halves, and by clients of a service.
ELSEWHERE = {"RAPT_NATIVE", "RAPT_CACHE_DIR", "RAPT_SERVICE", "RAPT_API_KEY"}


def test_citation_and_security_name_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__
    assert f"## [{__version__}] - {cited['date-released']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    line = __version__.rpartition(".")[0]
    assert f"| {line}.x | in the newest of them |" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def instructions(name, *, stage=IMAGE):
    return re.findall(rf"^\s*{name} (.+)$", stage, re.MULTILINE)


# The last of each kind: that of the service, and that of the gateway.
STAGES = {stage.split("\n")[0]: stage for stage in re.split(r"^(?=FROM )", IMAGE, flags=re.MULTILINE)[1:]}
RUNTIME = STAGES["FROM python:3.11-slim-bookworm AS runtime"]
IMAGES = {"serve": STAGES["FROM runtime"], "gateway": STAGES["FROM runtime AS gateway"]}


def test_every_setting_that_a_file_names_is_one_of_the_service():
    named = {name for path in DEPLOY.iterdir() for name in re.findall(r"\bRAPT_\w+", path.read_text(encoding="utf-8"))}
    assert {"RAPT_ADMIN_KEY", "RAPT_DATABASE_URL", "RAPT_HOST"} <= named
    assert named - ELSEWHERE <= {f"RAPT_{name.upper()}" for name in Settings.model_fields}


def test_the_settings_of_image_and_compose_are_accepted_together(monkeypatch):
    secrets = {"POSTGRES_PASSWORD": "e5Yq0cWm3VtH8kPz", "RAPT_ADMIN_KEY": "Zk39fQm1vTxW7bRu0aLsYc6D"}
    settings = dict(part.split("=", 1) for line in instructions("ENV") for part in line.split())
    settings |= COMPOSE["services"]["service"]["environment"]
    for name, value in settings.items():
        if name.startswith("RAPT_"):
            monkeypatch.setenv(name, re.sub(r"\$\{(\w+)[^}]*\}", lambda found: secrets[found[1]], value))
    loaded = load_settings({})
    assert loaded.host == "0.0.0.0"
    assert reveal(loaded.database_url) == "postgresql://rapt:e5Yq0cWm3VtH8kPz@database/rapt"
    assert f"127.0.0.1:{loaded.port}:{loaded.port}" in COMPOSE["services"]["service"]["ports"]


def test_the_images_copy_what_is_there_and_run_as_a_user():
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", IMAGE, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())
    assert instructions("USER") == instructions("USER", stage=RUNTIME) == ["10001"]
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    copied = {name for line in instructions("COPY") if "--from" not in line for name in line.split()[:-1]}
    assert {f"!{name}" for name in copied} <= set(kept.splitlines())


@pytest.mark.parametrize(("command", "stage"), IMAGES.items(), ids=IMAGES)
def test_an_image_runs_a_command_that_exists_and_asks_whether_it_answers(command, stage):
    (start,) = instructions("ENTRYPOINT", stage=stage)
    (default,) = instructions("CMD", stage=stage)
    words = [*json.loads(start)[1:], *json.loads(default)]
    assert words[0] == command
    assert run([*words, "--help"]) == 0
    (check,) = (json.loads(line.partition(" CMD ")[2])[-1] for line in instructions("HEALTHCHECK", stage=stage))
    compile(check, "health check", "exec")
    assert ("'/v1/models'" in check) if command == "gateway" else any(f":8420{path}'" in check for path in OPEN_PATHS)


def test_the_gateway_listens_where_its_file_says_and_has_no_port_of_its_own():
    service = GATEWAY["services"]["gateway"]
    assert service["network_mode"] == "host", "it listens on loopback alone"
    assert "ports" not in service
    assert service["build"]["target"] == "gateway"
    with redirect_stdout(io.StringIO()) as out:
        run(["gateway", "--help"])
    assert "127.0.0.1" in out.getvalue()
    assert "8421" in out.getvalue()
    assert "8421" in IMAGES["gateway"]


def test_no_secret_stands_in_a_file_and_each_volume_is_declared():
    for volumes, service in (
        (file["volumes"], one) for file in (COMPOSE, GATEWAY) for one in file["services"].values()
    ):
        secret = {name: value for name, value in service["environment"].items() if re.search("KEY|PASSWORD", name)}
        assert all(re.fullmatch(r"\$\{\w+:\?[^}]+\}", value) for value in secret.values())
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(volumes)
    for unit in DEPLOY.glob("*.service"):
        assert not re.search(r"(KEY|PASSWORD)=[^\n .]", unit.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "command", "named"),
    [
        ("rapt", "serve", "Environment=RAPT_DATA_DIRECTORY=/var/lib/rapt "),
        ("gateway", "gateway", "WorkingDirectory=/var/lib/rapt-gateway\n"),
    ],
)
def test_a_unit_starts_its_command_in_a_folder_of_its_own(name, command, named):
    text = (DEPLOY / f"{name}.service").read_text(encoding="utf-8")
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # systemd's names have capitals
    unit.read_string(text)
    service = unit["Service"]
    words = service["ExecStart"].split()[1:]
    assert words[0] == command
    assert run([*words, "--help"]) == 0
    assert service["StateDirectoryMode"] == "0700"
    assert named in text
    assert f"/var/lib/{service['StateDirectory']}" in named


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("name", ["rapt.service", "gateway.service"])
def test_systemd_finds_nothing_to_say_about_a_unit(name, tmp_path):
    unit = tmp_path / name
    unit.write_text(re.sub("/srv/rapt/bin/rapt", "/bin/true", (DEPLOY / name).read_text()))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint here; `make lint-images` brings it")
def test_hadolint_finds_nothing_to_say_about_the_images():
    done = subprocess.run(["hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
