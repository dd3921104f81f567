"""Writing text with an encoder-decoder: the text is read once, and each word costs one step of the decoder.

Rows of one call may have adapters of their own. A row that has ended is computed on with the others, and what it would
write is dropped: rows never see each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rapt.errors import UsageError
from rapt.service.model.backbone import Backbone
from rapt.service.model.decoding import GenerationRow, check_adapter
from rapt.service.model.layout import check_texts, encode_with_prompts, lay_out
from rapt.service.model.sampling import Choice, choose
from rapt.service.model.steering import steer, steered


@torch.inference_mode()
def write_texts(backbone: Backbone, rows: Sequence[GenerationRow]) -> list[tuple[Choice, ...]]:
    """What each row writes, without the token that ends it.

    Args:
        backbone: An encoder-decoder.
        rows: May mix adapters, lengths and samplings freely.

    Raises:
        UsageError: The backbone is of another kind, or a row does not fit.
    """
    if backbone.kind != "encoder-decoder":
        raise UsageError(
            f"text can be written here by an encoder-decoder, got model={backbone.model!r} of kind {backbone.kind}; "
            "continue it with a decoder's batch"
        )
    for position, row in enumerate(rows):
        _check_row(backbone, row, position=position)
    from transformers import DynamicCache, EncoderDecoderCache

    steering = steer([row.tuned for row in rows])
    layout = lay_out(
        backbone,
        prompt_lengths=steering.prompt_lengths,
        privatized_plain_tokens=[row.plain for row in rows],
        texts=[row.token_ids for row in rows],
        second_texts=[row.second_token_ids for row in rows],
    )
    states = encode_with_prompts(backbone, layout, steering.prompts, steering=steering).to(backbone.dtype)
    generators = [torch.Generator().manual_seed(row.sampling.seed) for row in rows]
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    written: list[list[Choice]] = [[] for _ in rows]
    ended = [row.most_tokens < 1 for row in rows]
    words = torch.tensor([backbone.frame.decoder_start] * len(rows), device=backbone.device)
    assert backbone.decoder is not None
    while not all(ended):
        with steered(steering):
            step = backbone.decoder(
                inputs_embeds=backbone.embed(words).to(backbone.dtype),
                encoder_hidden_states=states,
                encoder_attention_mask=layout.attention_mask,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        draws = [float(torch.rand((), generator=generator)) for generator in generators]
        choices = choose(backbone.word_logits(step.float()), [row.sampling for row in rows], draws=draws)
        for index, choice in enumerate(choices):
            if ended[index] or choice.token_id == backbone.frame.eos_id:
                ended[index] = True
                continue
            written[index].append(choice)
            ended[index] = len(written[index]) >= rows[index].most_tokens
        words = torch.tensor([[choice.token_id] for choice in choices], device=backbone.device)
    return [tuple(row) for row in written]


def _check_row(backbone: Backbone, row: GenerationRow, *, position: int) -> None:
    check_adapter(row, position=position)
    if row.most_tokens > backbone.max_positions:
        raise UsageError(
            f"an answer must fit into {backbone.max_positions} positions, got most_tokens={row.most_tokens}; "
            "ask for less"
        )
    check_texts(
        backbone,
        row.token_ids,
        row.second_token_ids,
        prompt_length=row.tuned.prompt_length,
        plain_tokens=len(row.plain),
        position=position,
    )
