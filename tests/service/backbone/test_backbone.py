"""One interface over four architectures: what every backbone has to obey, on real models with random weights."""

import dataclasses
import json

import pytest
import torch
from transformers import BertForMaskedLM, BertModel, GPT2LMHeadModel, LlamaForCausalLM, T5ForConditionalGeneration

import tokenizer_zoo
from closeness import assert_close
from rapt.errors import UsageError, VocabularyError
from rapt.public_models import find_model_folder
from rapt.service.backbone.architectures import ARCHITECTURES
from rapt.service.backbone.frame import frame_of
from rapt.service.backbone.layout import check_length, embed_with_prompts, encode_with_prompts, lay_out
from rapt.service.backbone.opening import load_backbone
from tiny_backbones import TINY, WIDTH, write_tiny_model

LONG, SHORT = [30, 31, 32, 33, 34, 35, 36, 37], [40, 41]


@pytest.fixture(params=TINY)
def backbone(request, tiny):
    return tiny(request.param)


def prompts_of(*lengths):
    return torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(7))


def states_of(backbone, layout, prompts=None):
    """The states at each row's real positions."""
    states = encode_with_prompts(backbone, layout, prompts)
    return [row[mask.bool()] for row, mask in zip(states, layout.attention_mask, strict=True)]


def laid_out(backbone, **changes):
    rows = {
        "prompt_lengths": [3, 0, 1],
        "privatized_plain_tokens": [[50, 51], [], [52]],
        "texts": [LONG, SHORT, [42]],
        "second_texts": [None, [43, 44, 45], None],
        "cues": [[], [46], [47, 48]],
    }
    return lay_out(backbone, **(rows | changes))


def test_every_architecture_has_a_tiny_model():
    assert set(TINY) == set(ARCHITECTURES)


def test_without_a_prompt_the_states_are_those_of_the_library(backbone, tiny_folder):
    layout = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[LONG])
    (ours,) = states_of(backbone, layout)
    classes = {"bert": BertModel, "t5": T5ForConditionalGeneration, "llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel}
    model = classes[backbone.architecture].from_pretrained(str(tiny_folder / backbone.architecture)).eval()
    whole = {"bert": model, "t5": getattr(model, "encoder", None)}.get(backbone.architecture) or model.base_model
    theirs = whole(input_ids=layout.token_ids).last_hidden_state[0]
    assert_close(ours, theirs, of=backbone)


def test_the_frame_is_what_the_tokenizer_puts_around_a_text(backbone):
    frame = backbone.frame
    assert len(frame.start) + len(frame.end) == backbone.bundle.special_tokens
    layout = lay_out(
        backbone, prompt_lengths=[2], privatized_plain_tokens=[[50]], texts=[SHORT], second_texts=[[43]], cues=[[46]]
    )
    pad = [frame.pad_id] * 2
    expected = [*frame.start, *pad, 50, *SHORT, *frame.between, 43, 46, *frame.end]
    assert layout.token_ids[0].tolist() == expected
    assert frame.between
    assert layout.token_ids[0, layout.plain_start].item() == 50
    assert layout.token_ids[layout.text_mask.bool()].tolist() == [*SHORT, 43]
    # Without a mask in the cue, the answer is read at the last position, which has seen everything.
    assert layout.answer_column.item() == len(expected) - 1


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_changes_no_state(backbone, padding):
    prompts = prompts_of(3, 0, 1)
    together = states_of(backbone, laid_out(backbone, padding=padding), prompts)
    for row, own in enumerate(prompts.split([3, 0, 1])):
        rows = laid_out(backbone)
        alone = lay_out(
            backbone,
            prompt_lengths=[len(own)],
            privatized_plain_tokens=[[[50, 51], [], [52]][row]],
            texts=[[LONG, SHORT, [42]][row]],
            second_texts=[[None, [43, 44, 45], None][row]],
            cues=[[[], [46], [47, 48]][row]],
        )
        assert len(together[row]) == int(rows.lengths[row])
        assert_close(together[row], states_of(backbone, alone, own)[0], of=backbone)


def test_a_prompt_stands_with_its_text_and_never_behind_padding(backbone):
    layout = laid_out(backbone, padding="left")
    first = int(layout.attention_mask[1].argmax())
    assert layout.position_ids[1, first:].tolist() == list(range(int(layout.lengths[1])))
    start = int(layout.attention_mask[2].argmax()) + len(backbone.frame.start)
    assert layout.prompt_columns[-1].item() == start
    assert layout.attention_mask[layout.prompt_rows, layout.prompt_columns].all()


def test_what_a_cut_off_pad_holds_is_never_seen(backbone):
    layout = laid_out(backbone)
    other = dataclasses.replace(layout, token_ids=torch.where(layout.attention_mask.bool(), layout.token_ids, 60))
    for ours, theirs in zip(
        states_of(backbone, layout, prompts_of(3, 0, 1)), states_of(backbone, other, prompts_of(3, 0, 1)), strict=True
    ):
        assert_close(ours, theirs, of=backbone)


def test_gradients_reach_the_prompt_and_never_the_backbone(backbone):
    prompts = prompts_of(3, 0, 1).requires_grad_()
    states = encode_with_prompts(backbone, laid_out(backbone), prompts)
    states.square().mean(dim=(1, 2)).mul(torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert (prompts.grad.abs().sum(dim=1) > 0).all()
    modules = [backbone.encoder, backbone.decoder, backbone.language_head]
    for module in modules:
        for parameter in module.parameters() if module is not None else ():
            assert not parameter.requires_grad
            assert parameter.grad is None


def test_rows_of_other_tenants_change_nothing(backbone):
    mixed = states_of(backbone, laid_out(backbone), prompts_of(3, 0, 1))
    changed = torch.cat([prompts_of(3, 0, 1)[:3], torch.full((1, WIDTH), 9.0)])
    again = states_of(backbone, laid_out(backbone), changed)
    assert_close(mixed[0], again[0], of=backbone)
    assert (mixed[2] - again[2]).abs().max() > 1e-3


def test_more_positions_than_there_are_is_refused(backbone):
    room = backbone.max_positions - backbone.bundle.special_tokens
    check_length(backbone, prompt_length=2, plain_tokens=1, text_tokens=room - 3, position=5)
    with pytest.raises(UsageError, match=f"record 6 must fit into {backbone.max_positions} positions"):
        check_length(backbone, prompt_length=2, plain_tokens=1, text_tokens=room - 2, position=5)
    with pytest.raises(UsageError, match="record 6 must fit into"):
        check_length(backbone, prompt_length=2, plain_tokens=1, text_tokens=room - 3, position=5, other_tokens=1)
    with pytest.raises(UsageError, match="record 6 must have at least one token"):
        check_length(backbone, prompt_length=2, plain_tokens=1, text_tokens=0, position=5)


def test_the_longest_row_is_computed(backbone):
    room = min(backbone.max_positions, 512) - backbone.bundle.special_tokens - 3
    layout = lay_out(backbone, prompt_lengths=[3], privatized_plain_tokens=[[]], texts=[[30] * room])
    assert torch.isfinite(states_of(backbone, layout, prompts_of(3))[0]).all()


def test_word_logits_are_those_of_the_library(backbone, tiny_folder):
    layout = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[LONG])
    states = encode_with_prompts(backbone, layout, None)
    ids, mask = layout.token_ids, layout.attention_mask
    if backbone.kind == "encoder-decoder":
        words = torch.tensor([[0, 30, 31]])
        model = T5ForConditionalGeneration.from_pretrained(str(tiny_folder / backbone.architecture)).eval()
        theirs = model(input_ids=ids, decoder_input_ids=words).logits
        states = backbone.decode(words, encoder_states=states, encoder_mask=mask)
    else:
        classes = {"bert": BertForMaskedLM, "llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel}
        theirs = (
            classes[backbone.architecture]
            .from_pretrained(str(tiny_folder / backbone.architecture))
            .eval()(input_ids=ids)
            .logits
        )
    assert_close(backbone.word_logits(states), theirs, of=backbone)
    some = torch.tensor([40, 33])
    assert_close(backbone.word_logits(states, word_ids=some), theirs[..., some], of=backbone)
    weight, bias = backbone.language_head.rows(some)
    by_hand = backbone.language_head.transformed(states) @ weight.T + bias
    assert_close(by_hand, theirs[..., some], of=backbone)


def test_a_pair_of_bert_has_the_segments_of_the_library(tiny, tiny_folder):
    backbone = tiny("bert")
    layout = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[SHORT], second_texts=[[43, 44]])
    kinds = layout.segments.long()
    assert kinds.tolist() == [[0, 0, 0, 0, 1, 1, 1]]  # [CLS] x x [SEP] | x2 x2 [SEP]
    theirs = BertModel.from_pretrained(str(tiny_folder / backbone.architecture)).eval()(
        input_ids=layout.token_ids, token_type_ids=kinds
    )
    assert_close(encode_with_prompts(backbone, layout, None), theirs.last_hidden_state, of=backbone)


def test_a_row_of_one_text_has_one_segment(backbone):
    layout = lay_out(backbone, prompt_lengths=[1], privatized_plain_tokens=[[50]], texts=[LONG])
    assert not layout.segments.any()
    plain = backbone.embed(layout.token_ids)
    assert torch.equal(embed_with_prompts(backbone, layout, None), plain)


def test_a_mask_in_the_cue_is_where_the_answer_is_read(tiny):
    backbone = tiny("bert")
    layout = lay_out(
        backbone,
        prompt_lengths=[1, 0],
        privatized_plain_tokens=[[], []],
        texts=[LONG, SHORT],
        cues=[[46, backbone.frame.mask_id, 47], []],
        padding="left",
    )
    assert layout.token_ids[0, layout.answer_column[0]].item() == backbone.frame.mask_id
    assert layout.token_ids[1, layout.answer_column[1]].item() == backbone.frame.end[0]


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_continuation_stands_behind_everything_and_outside_of_the_text(backbone, padding):
    layout = laid_out(backbone, continuations=[[61], [62, 63], []], padding=padding)
    last = layout.answer_column
    assert layout.token_ids[0, last[0] + 1].item() == 61
    assert layout.token_ids[1, last[1] + 1 : last[1] + 3].tolist() == [62, 63]
    texts = [layout.token_ids[row][layout.text_mask[row].bool()].tolist() for row in range(3)]
    assert texts == [LONG, [*SHORT, 43, 44, 45], [42]]


def test_a_decoder_sees_what_stands_before_and_nothing_behind(tiny):
    for name in ("llama", "gpt2"):
        backbone = tiny(name)
        one = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[LONG])
        two = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[[*LONG[:-1], 60]])
        ours, theirs = states_of(backbone, one)[0], states_of(backbone, two)[0]
        assert_close(ours[:-1], theirs[:-1], of=backbone)
        assert (ours[-1] - theirs[-1]).abs().max() > 1e-3


def test_a_bert_without_a_masked_word_head_scores_no_words():
    backbone = load_backbone("minilm", precision="float32", device="cpu")
    assert backbone.language_head is None
    with pytest.raises(UsageError, match="got model='minilm' without one"):
        backbone.word_logits(torch.zeros(1, backbone.hidden_size))


def test_bert_tiny_fills_a_gap_as_the_library_does():
    backbone = load_backbone("bert-tiny", precision="float32", device="cpu")
    ids = backbone.tokenize("the movie was very")
    layout = lay_out(
        backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[ids], cues=[[backbone.frame.mask_id]]
    )
    logits = backbone.word_logits(encode_with_prompts(backbone, layout, None))
    theirs = BertForMaskedLM.from_pretrained(str(find_model_folder("bert-tiny"))).eval()(input_ids=layout.token_ids)
    assert_close(logits, theirs.logits, of=backbone)


def test_the_start_of_a_llama_is_in_its_frame(tmp_path):
    folder = tokenizer_zoo.llama2(tmp_path / "llama2")
    frame = frame_of((folder / "tokenizer.json").read_bytes(), config={"eos_token_id": [2, 5]}, causal=True)
    assert frame.start == (1,)
    assert frame.end == ()
    assert frame.eos_id == 2
    assert len(frame.between) == 1


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("mamba", VocabularyError, "all weights of its architecture 'mamba'"),
        ("bart", UsageError, "must state decoder_start_token_id"),
        ("vit", UsageError, "no encoder or decoder of it"),
        ("made-up", UsageError, "'made-up'"),
    ],
)
def test_an_architecture_that_cannot_be_served_is_refused(tmp_path, kind, error, says):
    folder = write_tiny_model("bert", tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    with pytest.raises(error, match=says):
        load_backbone(str(folder))


def test_weights_that_do_not_fit_the_config_are_refused_without_a_path(tmp_path):
    folder = write_tiny_model("gpt2", tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_inner": 8}))
    with pytest.raises(VocabularyError, match=r"config\.json and model\.safetensors that fit each other"):
        load_backbone(str(folder))
