"""Every architecture can be taught to expect noise: layers change, words stay, and the folder serves."""

import shutil

import pytest
import torch

from closeness import assert_close
from rapt.denoise.plan import PublicTexts, WarmUpPlan
from rapt.denoise.warm_up import Student, check_source, save_denoised, warm_up
from rapt.errors import UsageError
from rapt.local.vocabulary import load_vocabulary
from rapt.service.backbone.architectures import ARCHITECTURES
from rapt.service.backbone.layout import encode_with_prompts, lay_out
from rapt.service.backbone.opening import load_backbone
from tiny_backbones import write_tiny_model


def states_of(backbone, texts):
    count = len(texts)
    layout = lay_out(backbone, prompt_lengths=[0] * count, privatized_plain_tokens=[()] * count, texts=texts)
    with torch.no_grad():
        return encode_with_prompts(backbone, layout, None) * layout.attention_mask[:, :, None]


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_backbone_of_any_architecture_learns_and_is_served_as_it_was_trained(architecture, tmp_path, rng):
    model = str(write_tiny_model(architecture, tmp_path / "clean"))
    vocabulary = load_vocabulary(model)
    # A language with structure: each text repeats one of a few words, so a changed one can be told from the others.
    words = rng.choice(vocabulary.eligible, size=6, replace=False)
    texts = [tuple(int(words[place % 6]) for _ in range(4 + place % 5)) for place in range(96)]
    public = PublicTexts(training=tuple(texts[:80]), held_out=tuple(texts[80:]))
    plan = WarmUpPlan(model=model, etas=(2.0,), epochs=30, batch_size=16, learning_rate=3e-3)
    student = Student(model)
    (explained,) = warm_up(student, public, vocabulary=vocabulary, plan=plan)
    assert explained.after > explained.before + 0.1
    folder = tmp_path / "denoised"
    save_denoised(student, folder, plan=plan, explained=[explained], texts=80, tokens=500)
    loaded, original = (load_backbone(path, precision="float32", device="cpu") for path in (str(folder), model))
    assert loaded.bundle.hash == original.bundle.hash
    assert loaded.expects is not None
    assert original.expects is None
    assert torch.equal(loaded.word_embeddings, original.word_embeddings)
    assert_close(states_of(loaded, texts[:8]), states_of(student.backbone, texts[:8]), of=loaded)
    assert not torch.allclose(states_of(loaded, texts[:8]), states_of(original, texts[:8]), atol=1e-2)
    if original.decoder is not None:  # it reads words in clear, so it must not have learned to distrust them
        fresh = original.decoder.state_dict()
        assert all(torch.equal(weight, fresh[name]) for name, weight in loaded.decoder.state_dict().items())


def test_weights_in_several_files_are_refused_before_the_work(tmp_path):
    folder = write_tiny_model("bert", tmp_path / "model")
    check_source(str(folder))
    shutil.move(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    with pytest.raises(UsageError, match=r"weights in one model\.safetensors; save it without shards"):
        check_source(str(folder))
