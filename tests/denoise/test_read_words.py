"""A word head that is taught by public text beats copying where there is context; one taught by nonsense does not."""

import copy
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from rapt.compare.plan import weights_digest
from rapt.denoise.model_folder import check_denoised, save_with_word_head
from rapt.denoise.plan import WordHeadPlan
from rapt.denoise.read_words import WordsRead, expected_mechanisms, new_word_head, train_word_head, words_read
from rapt.errors import UsageError
from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.service.model.architectures import ARCHITECTURES
from rapt.service.model.backbone import load_backbone
from rapt.service.model.noise_expected import CARD, NoiseExpected
from rapt.service.model.word_head import WORD_HEAD, read_word_head
from tiny_backbones import write_tiny_model
from word_head_material import ETAS, write_denoised, write_reading

PLAN = WordHeadPlan(epochs=4, batch_size=16, learning_rate=5e-3)


@dataclass(frozen=True)
class Shuffled:
    """What arrives at a position is what the mechanism made of another one."""

    sound: object

    def privatize(self, token_ids, *, rng):
        return rng.permutation(self.sound.privatize(token_ids, rng=rng))


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary("bert-tiny")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("bert-tiny", precision="float32")


@pytest.fixture(scope="module")
def texts(vocabulary):
    """Each repeats one of twelve words, so what was changed can be told from what was not."""
    rng = np.random.default_rng(0)
    words = rng.choice(vocabulary.eligible, size=12, replace=False)
    found = [(int(words[place % 12]),) * (6 + place // 12 % 5) for place in range(240)]
    return [found[place] for place in rng.permutation(240)]


def trained(backbone, vocabulary, texts, mechanism):
    head = new_word_head(backbone, texts, vocabulary=vocabulary, seed=0)
    before = copy.deepcopy(head)
    train_word_head(head, backbone, texts, mechanisms=[mechanism], plan=PLAN)
    return before, head


def test_a_trained_head_reads_more_words_than_copying_and_one_of_nonsense_does_not(backbone, vocabulary, texts):
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=85.0)
    reads = {}
    for name, taught_by in (("sound", mechanism), ("twin", Shuffled(mechanism))):
        heads = trained(backbone, vocabulary, texts[40:], taught_by)
        reads[name] = words_read(heads, backbone, texts[:40], mechanism=mechanism, eta=85.0, seed=1)
    sound, twin = reads["sound"], reads["twin"]
    assert 0.2 < sound.unchanged == twin.unchanged < 0.8
    assert sound.read > sound.unchanged + 0.25
    assert sound.nats < sound.nats_without_context - 0.5
    assert twin.read < twin.unchanged + 0.15  # that there are twelve words can be learned from nonsense, too
    assert twin.nats > twin.nats_without_context


def test_what_is_reported_is_what_the_head_says(backbone, vocabulary, texts):
    """Naive twin: without noise everything is unchanged, and an untrained head reads all of it."""
    head = new_word_head(backbone, texts, vocabulary=vocabulary, seed=0)
    quiet = make_mechanism("laplace", vocabulary=vocabulary, eta=100_000.0)
    found = words_read((head, head), backbone, texts[:40], mechanism=quiet, eta=100_000.0, seed=0)
    assert (found.unchanged, found.read) == (1.0, 1.0)
    assert 0 < found.nats == found.nats_without_context < 0.2


def test_the_same_plan_gives_the_same_head_and_the_backbone_stays(backbone, vocabulary, texts):
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=85.0)
    states = {name: tensor.clone() for name, tensor in backbone.encoder.state_dict().items()}
    heads = []
    for _ in range(2):
        head, seen = new_word_head(backbone, texts, vocabulary=vocabulary, seed=2), []
        plan = WordHeadPlan(epochs=0.3, batch_size=16, seed=2)
        train_word_head(
            head,
            backbone,
            texts,
            mechanisms=[mechanism],
            plan=plan,
            on_step=lambda step, steps, nats, seen=seen: seen.append((step, steps)),
        )
        heads.append(head.state_dict())
    assert seen == [(step, 5) for step in range(1, 6)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert all(torch.equal(tensor, states[name]) for name, tensor in backbone.encoder.state_dict().items())


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_head_is_trained_on_every_architecture(architecture, tmp_path, rng):
    model = str(write_tiny_model(architecture, tmp_path / "model"))
    vocabulary, backbone = load_vocabulary(model), load_backbone(model, precision="float32", device="cpu")
    words = rng.choice(vocabulary.eligible, size=6, replace=False)
    texts = [tuple(int(words[place % 6]) for _ in range(4 + place % 5)) for place in range(96)]
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=2.0)
    heads = trained(backbone, vocabulary, texts[16:], mechanism)
    found = words_read(heads, backbone, texts[:16], mechanism=mechanism, eta=2.0, seed=0)
    assert found.nats < found.nats_without_context


def test_the_folder_is_the_old_one_with_a_head_and_a_longer_card(backbone, vocabulary, texts, tmp_path):
    source = write_denoised(tmp_path / "denoised")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    head = new_word_head(backbone, texts, vocabulary=vocabulary, seed=0)
    read = WordsRead(eta=85.0, unchanged=0.5, read=0.6, nats_without_context=3.0, nats=2.0)
    told = {"vocabulary_hash": vocabulary.hash, "plan": PLAN, "reads": [read], "texts": 3, "tokens": 4}
    save_with_word_head(head, tmp_path / "reads", model=str(source), **told)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    after = {path.name: path.read_bytes() for path in (tmp_path / "reads").iterdir()}
    assert after.keys() == {*before, WORD_HEAD}
    assert {name for name in before if before[name] != after[name]} == {CARD}
    card = json.loads(after[CARD])
    assert card["word_head"]["reads"][0]["read"] == 0.6
    assert card["word_head"]["plan"]["epochs"] == 4
    served = load_backbone(str(tmp_path / "reads"), precision="float32")
    assert served.expects == NoiseExpected(mechanism="laplace", options={}, etas=ETAS)
    assert torch.equal(read_word_head(tmp_path / "reads", table=served.word_embeddings).bias, head.bias)
    assert weights_digest(str(tmp_path / "reads")) != weights_digest(str(source))
    save_with_word_head(head, tmp_path / "again", model=str(tmp_path / "reads"), **told)  # a head it had is replaced
    with pytest.raises(UsageError, match="--out must be a new or empty folder"):
        save_with_word_head(head, tmp_path / "reads", model=str(source), **told)


def test_a_service_loads_a_folder_whatever_its_head_is(tmp_path):
    folder = write_reading(tmp_path / "reads")
    (folder / WORD_HEAD).write_bytes(b"damaged")
    assert load_backbone.__wrapped__(str(folder), precision="float32").expects is not None


def test_mechanisms_are_those_of_the_card(vocabulary):
    noise = NoiseExpected(mechanism="exponential", options={}, etas=(10.0, 20.0))
    found = expected_mechanisms(noise, vocabulary=vocabulary)
    assert [(item.name, item.setting.eta) for item in found] == [("exponential", 10.0), ("exponential", 20.0)]


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UsageError, match=r"--model must be a folder that rapt denoise made, with denoising\.json"):
        check_denoised("bert-tiny")
    for changes, message in (
        ({"epochs": 0.0}, "epochs must be finite and above 0"),
        ({"batch_size": 1}, "at least 2 texts"),
        ({"learning_rate": 0.0}, "learning_rate must be finite"),
        ({"seed": -1}, "seed must be at least 0"),
    ):
        with pytest.raises(UsageError, match=message):
            WordHeadPlan(**changes)
