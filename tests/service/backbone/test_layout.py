import pytest
import torch

from closeness import assert_close
from rapt.errors import UsageError
from rapt.service.backbone.layout import check_length, embed_with_prompts, encode_with_prompts, lay_out


def test_cls_is_first_then_prompt_plain_tokens_text_and_sep(backbone):
    layout = lay_out(
        backbone, prompt_lengths=[2, 1], privatized_plain_tokens=[[7001], []], texts=[[2001, 2002], [3001]]
    )
    cls, sep, pad = *backbone.frame.start, *backbone.frame.end, backbone.pad_id
    assert layout.token_ids.tolist() == [[cls, pad, pad, 7001, 2001, 2002, sep], [cls, pad, 3001, sep, pad, pad, pad]]
    assert layout.attention_mask.tolist() == [[1] * 7, [1, 1, 1, 1, 0, 0, 0]]
    assert layout.position_ids.tolist() == [list(range(7))] * 2
    assert layout.text_mask.tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0, 0]]
    assert layout.plain_start.tolist() == [3, 2]


def test_each_prompt_vector_lands_in_its_own_row(backbone):
    layout = lay_out(backbone, prompt_lengths=[2, 1], privatized_plain_tokens=[[], []], texts=[[2001], [3001]])
    prompts = torch.arange(3.0)[:, None].expand(3, backbone.hidden_size)
    vectors = embed_with_prompts(backbone, layout, prompts)
    assert vectors[0, 1, 0] == 0
    assert vectors[0, 2, 0] == 1
    assert vectors[1, 1, 0] == 2
    assert torch.equal(vectors[1, 2], backbone.word_embeddings[3001])


def test_padding_changes_no_state(backbone):
    alone = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[[2001, 2002]])
    padded = lay_out(
        backbone, prompt_lengths=[0, 0], privatized_plain_tokens=[[], []], texts=[[2001, 2002], list(range(2000, 2040))]
    )
    nothing = torch.empty(0, backbone.hidden_size)
    one = encode_with_prompts(backbone, alone, nothing)
    both = encode_with_prompts(backbone, padded, nothing)
    assert_close(both[0, :4], one[0], of=backbone)


def test_states_equal_those_of_the_library_when_there_is_no_prompt(backbone):
    layout = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[[2001, 2002, 2003]])
    ours = encode_with_prompts(backbone, layout, torch.empty(0, backbone.hidden_size))
    theirs = backbone.encoder(input_ids=torch.tensor([[*backbone.frame.start, 2001, 2002, 2003, *backbone.frame.end]]))
    assert_close(ours, theirs.last_hidden_state, of=backbone)


def test_a_record_that_is_too_long_is_refused_by_counts_only(backbone):
    with pytest.raises(UsageError, match="record 8 must fit into 512 positions, got 532"):
        check_length(backbone, prompt_length=20, plain_tokens=10, text_tokens=500, position=7)
    check_length(backbone, prompt_length=20, plain_tokens=10, text_tokens=480, position=7)


def test_a_record_without_text_is_refused(backbone):
    with pytest.raises(UsageError, match="record 1 must have at least one token"):
        check_length(backbone, prompt_length=1, plain_tokens=0, text_tokens=0, position=0)
