import pytest

from rapt.local.vocabulary import load_vocabulary


@pytest.fixture(scope="session")
def bert_tiny():
    """A real vocabulary: 30,522 WordPiece tokens, d = 128."""
    return load_vocabulary("bert-tiny")
