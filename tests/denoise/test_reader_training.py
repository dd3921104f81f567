"""A reader is taught what each kind of backbone answers from, on public text, with noise in the loop."""

from dataclasses import replace

import numpy as np
import pytest

from code_material import code_bundle
from rapt.denoise.reader_training import CodedTexts, ReaderPlan, teach_reader
from rapt.errors import MechanismError, UsageError
from rapt.service.backbone.opening import load_backbone
from tiny_backbones import tiny_backbone, write_tiny_model

HASH = "sha256:" + "ef" * 32
PLAN = ReaderPlan(model="tiny", epsilons=(8.0, 2.0), vectors=2, width=32, epochs=15, batch_size=32, learning_rate=1e-2)
# A random BERT is put out of its mind by steps that the others need.
RATES = {"bert": 3e-3, "t5": 1e-2, "llama": 1e-2}


@pytest.fixture(scope="module")
def code():
    return code_bundle(size=24, run=4)


def coded_texts(code, words, *, texts=320):
    """Texts of three words, told apart by the side of the first coordinate on which their code lies."""
    rng = np.random.default_rng(4)
    codes = rng.standard_normal((texts, len(code.directions)))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    halves = np.split(np.array(words), 2)
    tokens = tuple(tuple(rng.choice(halves[int(row[0] > 0)], size=3).tolist()) for row in codes)
    return CodedTexts(codes=codes, tokens=tokens)


@pytest.mark.parametrize("architecture", RATES)
def test_a_backbone_learns_to_tell_texts_it_has_not_seen_by_their_codes(architecture, code, tmp_path):
    backbone = tiny_backbone(architecture, tmp_path)
    before = {name: tensor.clone() for name, tensor in backbone.encoder.state_dict().items()}
    texts = coded_texts(code, backbone.bundle.eligible[:8])
    steps = []
    made = teach_reader(
        backbone,
        texts,
        code=code,
        plan=replace(PLAN, learning_rate=RATES[architecture]),
        backbone_hash=HASH,
        on_step=lambda step, of, losses: steps.append((step, of)),
    )
    assert steps[-1] == (len(steps), len(steps))
    high, low = made.measures[1], made.measures[0]
    assert (low.epsilon, high.epsilon) == (2.0, 8.0)
    assert high.loss < high.blind_loss - 0.1
    assert high.blind_loss - high.loss > low.blind_loss - low.loss
    assert all((tensor == before[name]).all() for name, tensor in backbone.encoder.state_dict().items())


def test_the_same_plan_and_texts_make_the_same_reader(code, tmp_path):
    write_tiny_model("bert", tmp_path)
    backbone = load_backbone(str(tmp_path), precision="float32", device="cpu")
    texts, plan = coded_texts(code, backbone.bundle.eligible[:8], texts=40), replace(PLAN, epochs=1)
    hashes = {teach_reader(backbone, texts, code=code, plan=plan, backbone_hash=HASH).hash for _ in range(2)}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "change", [{"epsilons": ()}, {"epsilons": (1.0, 1.0)}, {"vectors": 0}, {"epochs": 0.0}, {"learning_rate": -1.0}]
)
def test_a_plan_that_cannot_be_trained_is_refused(change):
    with pytest.raises(UsageError):
        replace(PLAN, **change)
    with pytest.raises(MechanismError):
        replace(PLAN, epsilons=(0.0,))
