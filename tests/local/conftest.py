import pytest

from rapt.local.ledger import open_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, plan_plain_tokens
from rapt.local.randomness import insecure_stream
from rapt.local.vocabulary import load_vocabulary


@pytest.fixture(scope="session")
def bert_tiny():
    """A real vocabulary: 30,522 WordPiece tokens, d = 128."""
    return load_vocabulary("bert-tiny")


@pytest.fixture(scope="module")
def privatizer(bert_tiny):
    """Privatize with so large an eta that every token stays."""
    plain = plan_plain_tokens(bert_tiny, count=3, pool_size=50, drawn="file", rng=insecure_stream(1).generator)
    return Privatizer(bert_tiny, make_mechanism("laplace", vocabulary=bert_tiny, eta=1e7), plain)


@pytest.fixture
def file(tmp_path):
    """Write a file of a name, and return its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


@pytest.fixture
def path(tmp_path):
    """Return the place of a ledger that is not there yet."""
    return tmp_path / "releases.ledger"


@pytest.fixture
def ledger(path):
    """Open a new ledger."""
    with open_ledger(path) as opened:
        yield opened
