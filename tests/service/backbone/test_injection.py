"""Attention written out computes what torch's own kernel does, with masks, biases, causality and shared keys."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from closeness import assert_close
from rapt.service.backbone.injection import attend, attend_step_by_step, is_written_out
from rapt.service.backbone.layout import lay_out
from rapt.service.backbone.opening import load_backbone
from rapt.service.backbone.steering import Tuned, steer

ROWS, HEADS, QUERIES, KEYS, WIDTH = 3, 4, 5, 7, 8


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)

    def vectors(heads, length):
        return torch.randn(ROWS, heads, length, WIDTH, generator=generator, dtype=torch.float64)

    return vectors(HEADS, QUERIES), vectors(HEADS, KEYS), vectors(HEADS, KEYS)


def a_mask():
    seen = torch.rand(ROWS, 1, QUERIES, KEYS, generator=torch.Generator().manual_seed(1)) > 0.4
    seen[..., 0] = True
    return seen


def close(found, expected):
    assert_close(found, expected, layers=2, width=WIDTH, dtype=torch.float32)  # of the softmax


def test_it_is_torch_s_attention_with_a_mask_and_without(parts):
    close(attend_step_by_step(*parts, mask=None), scaled_dot_product_attention(*parts))
    seen = a_mask()
    close(attend_step_by_step(*parts, mask=seen), scaled_dot_product_attention(*parts, attn_mask=seen))


def test_a_bias_a_mask_of_numbers_and_a_scale_count(parts):
    bias = torch.randn(1, HEADS, QUERIES, KEYS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    seen = a_mask()
    both = torch.zeros_like(bias).expand(ROWS, -1, -1, -1).masked_fill(~seen, -torch.inf) + bias
    expected = scaled_dot_product_attention(*parts, attn_mask=both, scale=1.0)
    close(attend_step_by_step(*parts, mask=seen, bias=bias, scale=1.0), expected)
    close(attend_step_by_step(*parts, mask=both, scale=1.0), expected)


def test_it_sees_no_key_behind_the_query_where_it_is_causal(parts):
    expected = scaled_dot_product_attention(*parts, is_causal=True)
    close(attend_step_by_step(*parts, mask=None, causal=True), expected)
    with pytest.raises(AssertionError):
        close(attend_step_by_step(*parts, mask=None), expected)


def test_grouped_queries_share_keys(parts):
    query, key, value = parts[0], parts[1][:, :2], parts[2][:, :2]
    expected = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    close(attend_step_by_step(query, key, value, mask=None), expected)


def test_a_row_that_sees_nothing_is_finite(parts):
    seen = torch.zeros(ROWS, 1, 1, KEYS, dtype=torch.bool)
    assert bool(attend_step_by_step(*parts, mask=seen).isfinite().all())


def test_gradients_in_bfloat16_are_those_of_the_fused_kernel(parts):
    seen = a_mask()

    def gradients(attention, dtype):
        leaves = [part.to(dtype).requires_grad_() for part in parts]
        return torch.autograd.grad(attention(*leaves).double().square().sum(), leaves)

    exact = gradients(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=seen), torch.float64)
    ours = gradients(lambda q, k, v: attend(q, k, v, seen=seen), torch.bfloat16)
    for found, expected in zip(ours, exact, strict=True):
        assert ((found.double() - expected).norm() / expected.norm()).item() < 0.02


def test_only_gradients_in_bfloat16_on_a_processor_are_written_out(parts):
    query = parts[0].bfloat16()
    assert is_written_out(query)
    assert not is_written_out(query.float())
    with torch.no_grad():
        assert not is_written_out(query)


@pytest.mark.parametrize("architecture", ["bert", "t5", "llama", "gpt2"])
@pytest.mark.parametrize("prefixed", [False, True])
def test_a_backbone_in_bfloat16_has_the_gradients_of_float32(architecture, prefixed, tiny, tiny_folder):
    tiny(architecture)  # makes the folder

    def gradient(precision):
        backbone = load_backbone.__wrapped__(str(tiny_folder / architecture), precision=precision, device="cpu")
        for name, bias in backbone.encoder.named_parameters():
            if "relative_attention_bias" in name:  # of a random T5 it is too small to be missed
                bias.data.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(2)))
        layout = lay_out(
            backbone,
            prompt_lengths=[0, 0],
            privatized_plain_tokens=[[], []],
            texts=[[40, 41, 42, 43, 44], [45, 46]],
            padding="left" if backbone.kind == "decoder" else "right",
        )
        steering = None
        if prefixed:
            generator = torch.Generator().manual_seed(0)
            prefix = [
                torch.randn(2, site.key_heads, 3, site.head_size, generator=generator)
                for site in backbone.sites.attention
            ]
            steering = steer([Tuned(prefix=torch.stack(prefix))] * 2)
        inputs = backbone.embed(layout.token_ids).requires_grad_()
        states = backbone.encode(
            inputs,
            attention_mask=layout.attention_mask,
            position_ids=layout.position_ids,
            steering=steering,
        )
        # Not their squares: the last norm fixes the sum of those.
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1)) * layout.text_mask[:, :, None]
        return torch.autograd.grad((states * weights).sum(), inputs)[0]

    exact, found = gradient("float32"), gradient("bfloat16")
    assert ((found - exact).norm() / exact.norm()).item() < 0.06
