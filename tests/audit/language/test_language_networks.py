"""The decoder as a reader of words: its values are those of the decoder on the whole text, whatever was taken back."""

import numpy as np
import pytest
import torch

from closeness import assert_close
from rapt.audit.language.decoders import CHOSEN_FAMILIES
from rapt.audit.language.networks import Decoder
from rapt.audit.language.search import ENDED
from rapt.errors import VocabularyError
from rapt.public_models import find_model_folder
from tiny_backbones import FAMILIES, write_family, write_tiny_model

ROWS = ("a", "funny", "film", "##s", "##making", "zwieback", ".")
A, FUNNY, FILM, S, MAKING, ZWIEBACK, STOP = range(len(ROWS))
SOMETHING_ELSE = len(ROWS) + 1


@pytest.fixture(scope="module")
def decoder():
    try:
        find_model_folder("smollm2")
    except VocabularyError:
        pytest.skip("the weights of the decoder are not installed")
    return Decoder(ROWS, model="smollm2")


@pytest.mark.parametrize("architecture", sorted(CHOSEN_FAMILIES))
def test_a_decoder_of_any_folder_reads_piece_by_piece_what_it_says_of_the_words(architecture, tmp_path):
    write = write_family if architecture in FAMILIES else write_tiny_model
    own = Decoder(ROWS, model=str(write(architecture, tmp_path)))
    for tokens, words in (((A, FUNNY, FILM, STOP), ("a", "funny", "film", ".")), ((A, FILM, S), ("a", "films"))):
        value = read(own, tokens, beside=(ZWIEBACK, S, A, MAKING))
        assert_close(torch.tensor(value), torch.tensor(whole(own, words)), layers=3, width=32)


def test_what_is_no_decoder_is_refused_before_it_is_loaded(tmp_path):
    with pytest.raises(VocabularyError, match="names no architecture of one"):
        Decoder(ROWS, model=str(write_tiny_model("bert", tmp_path / "bert")))
    folder = write_tiny_model("gpt2", tmp_path / "gpt2")
    (folder / "model.safetensors").rename(folder / "model.bin")
    with pytest.raises(VocabularyError, match="weights in safetensors"):
        Decoder(ROWS, model=str(folder))


SIZE = {"layers": 31, "width": 576}  # of the decoder


def whole(decoder, words):
    """Log P of these words, read at once."""
    ids = [decoder.begin, *(token for word in words for token in decoder.spelled(word))]
    with torch.inference_mode():
        given = torch.tensor([ids], device=decoder.network.device)
        logs = decoder.network(given).logits[0].log_softmax(dim=-1)
    return float(sum(logs[i, ids[i + 1]] for i in range(len(ids) - 1)))


def read(decoder, tokens, *, beside=(A, A, A, A)):
    """Log P of these tokens by offers and corrections, in the second of two rows."""
    reader = decoder.reader(2)
    total = 0.0
    for other, token in zip(beside, tokens, strict=False):
        offered = reader.offer(np.array([[other, token]] * 2))
        total += offered[1, 1] + reader.take(np.array([0, 1]), np.array([other, token]))[1]
    return total


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ((A, FUNNY, FILM, STOP), ("a", "funny", "film", ".")),
        ((A, ZWIEBACK, FILM), ("a", "zwieback", "film")),
        ((A, FILM, S, STOP), ("a", "films", ".")),
        ((FUNNY, FILM, MAKING, S), ("funny", "filmmakings")),
    ],
)
@pytest.mark.slow
def test_what_is_read_piece_by_piece_is_what_the_decoder_says_of_the_words(tokens, words, decoder):
    beside = (ZWIEBACK, S, A, MAKING)  # other lengths in the other row
    assert_close(read(decoder, tokens, beside=beside), whole(decoder, words), **SIZE)


@pytest.mark.slow
def test_rows_change_places_and_ended_ones_stay_as_they_are(decoder):
    reader = decoder.reader(2)
    reader.take(np.array([0, 0]), np.array([A, FUNNY]))
    reader.take(np.array([1, 0]), np.array([FILM, ENDED]))
    offered = reader.offer(np.array([[STOP], [FILM]]))[:, 0]
    wanted = [
        whole(decoder, ("funny", "film", ".")) - whole(decoder, ("funny", "film")),
        whole(decoder, ("a", "film")) - whole(decoder, ("a",)),
    ]
    assert_close(offered.tolist(), wanted, **SIZE)


@pytest.mark.slow
def test_something_else_adds_no_word(decoder):
    reader = decoder.reader(1)
    reader.take(np.array([0]), np.array([FUNNY]))
    assert reader.offer(np.array([[SOMETHING_ELSE]]))[0, 0] == 0
    assert reader.take(np.array([0]), np.array([SOMETHING_ELSE]))[0] == 0
    offered = reader.offer(np.array([[FILM]]))[0, 0]
    assert_close(offered, whole(decoder, ("funny", "film")) - whole(decoder, ("funny",)), **SIZE)
