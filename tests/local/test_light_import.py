"""The trusted half imports and works where the heavy half is not installed."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys

HEAVY = {"torch", "transformers", "fastapi", "sqlalchemy", "pydantic", "scipy", "jinja2", "pandas", "sklearn"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import rapt, rapt.local, rapt.wire
for package in (rapt.local, rapt.wire):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # The kernel is a library that ctypes loads; its name alone makes it look like a module.
        if module.name != "rapt.local.native._nearest":
            importlib.import_module(module.name)
assert not HEAVY & set(sys.modules), sorted(HEAVY & set(sys.modules))

from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS

vocabulary = load_vocabulary("bert-tiny")
mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=50.0)
records = Privatizer(vocabulary, mechanism, NO_PLAIN_TOKENS).privatize(["a text"], labels=None, stream=secure_stream())
print(len(records[0].token_ids))
"""


def test_the_trusted_half_works_with_everything_heavy_blocked():
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n"
