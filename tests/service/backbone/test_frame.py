import json
import logging

import pytest
from transformers import PreTrainedTokenizerFast

from rapt.service.backbone.frame import read_chat_frame
from rapt.wire.model_files import make_tokenizer
from tiny_backbones import write_tiny_model

# As in the GGUF file of SmolLM2-135M-Instruct: a system message of its authors comes first.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }} [/]{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture
def frame_of(folder, tmp_path):
    """The chat frame of a template in a folder of its own."""
    content = (folder / "tokenizer.json").read_bytes()

    def read(template, *, start=(), **settings):
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return read_chat_frame(tmp_path, tokenizer_json=content, start=start)

    return read


@pytest.mark.parametrize("template", [SMOLLM2, TRIMMING])
def test_the_frame_is_what_the_library_of_models_puts_around_a_text(frame_of, folder, template):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|im_start|>")
    frame = frame_of(template, bos_token={"content": "<|im_start|>"})
    for text in ("good", "rather bad"):
        content = tuple(make_tokenizer((folder / "tokenizer.json").read_bytes()).encode(text).ids)
        theirs = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            chat_template=template,
            add_generation_prompt=True,
            return_dict=False,
        )
        ours = (*frame.before, *content, *frame.after)
        assert tokenizer.decode(ours) == tokenizer.decode(theirs)
        if template is SMOLLM2:  # it leaves no space where a word may take it along
            assert list(ours) == list(theirs)


def test_a_start_that_every_row_has_is_not_written_twice(frame_of):
    whole = frame_of(SMOLLM2)
    found = frame_of(SMOLLM2, start=whole.before[:1])
    assert (found.before, found.after) == (whole.before[1:], whole.after)


@pytest.mark.parametrize(
    "settings",
    [
        {"chat_template": SMOLLM2},
        {"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": SMOLLM2}]},
    ],
)
def test_a_template_may_stand_in_the_settings_of_the_tokenizer(frame_of, settings, tmp_path):
    found = frame_of(None, **settings)
    assert found == frame_of(SMOLLM2)


def test_a_model_without_a_template_has_no_frame(frame_of):
    assert frame_of(None) is None


@pytest.mark.parametrize(
    "template",
    ["no message", "{{ messages[0].content }}{{ messages[0].content }}", "{{ raise_exception('no') }}", "{% if %}"],
)
def test_a_template_that_is_of_no_use_is_left_out_and_told(frame_of, template, caplog):
    with caplog.at_level(logging.WARNING):
        assert frame_of(template) is None
    assert "is left out" in caplog.text


def test_a_template_reaches_nothing_of_the_program(frame_of, caplog):
    with caplog.at_level(logging.WARNING):
        assert frame_of("{{ messages.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}") is None
    assert "SecurityError" in caplog.text
