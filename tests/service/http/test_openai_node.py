"""The official npm client against the real service. Run with `make test-node`, which fetches the client."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from running_service import running_service

MODULES = os.environ.get("RAPT_NODE_MODULES", "")
STORY = Path(__file__).parents[2] / "openai_story.mjs"
KEY = "a-key-of-the-provider-for-its-tenant"


@pytest.mark.skipif(
    shutil.which("node") is None or not (Path(MODULES) / "openai").is_dir(),
    reason="needs node and the openai package; run make test-node",
)
def test_the_npm_client_tells_the_same_story(backbones, tmp_path, training_path):
    with running_service(tmp_path, backbones=backbones, settings={"admin_key": KEY}) as url:
        told = subprocess.run(
            ["node", STORY, f"{url}/v1", KEY, training_path], capture_output=True, text=True, timeout=300, check=False
        )
    assert told.returncode == 0, told.stderr
    assert told.stdout == "the story is told\n"
