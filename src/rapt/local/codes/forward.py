"""The forward pass of a public encoder in numpy: token ids in, last-layer states out; BERT, RoBERTa and MPNet.

Post-norm layers of Devlin et al. 2019; MPNet (Song et al. 2020) adds to every score a bias of the two positions'
distance. No padding exists, so there is no mask: what acts on one position at a time runs over the positions of all
texts, one after the other, and attention over the texts of one length at a time.

GELU is x Φ(x). Φ(x) = (1 + tanh(x P(x²))) / 2, where P is the polynomial that fits artanh(erf(x / √2)) / x: at most
7e-7 from the exact value in float32, for every x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError
from rapt.wire.vocabulary_bundle import find_first_position

Floats = NDArray[np.float32]

# Least squares of the error of x Φ(x) on [0, 6], weighted anew until the largest error was level.
_GELU: Final = (
    0.7978721065907708,
    0.03636690212485029,
    -5.8708537146267875e-05,
    -4.7041486260904005e-05,
    2.774140918636091e-06,
    -5.5715448520346934e-08,
)
_GELU_SQUARES: Final = 25.0  # beyond it P stays as it is, and tanh is 1
_GELU_BLOCK: Final = 65_536  # numbers that are worked on at a time: two blocks of them stay in a core's cache
_USUAL: Final = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
_FARTHEST: Final = 128  # MPNet: distances from here on share a bucket

# Names below a layer: query, key, value, output of attention and its norm. The rest has one name in all of them.
_BERT: Final = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
)
_MPNET: Final = ("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm")
_NAMES: Final = {"bert": _BERT, "roberta": _BERT, "xlm-roberta": _BERT, "camembert": _BERT, "mpnet": _MPNET}
_TAIL: Final = ("intermediate.dense", "output.dense", "output.LayerNorm")


@dataclass(frozen=True)
class EncoderShape:
    """Shape of an encoder from `config.json`, checked.

    Attributes:
        kind: Model type, a key of `_NAMES`.
        layers: Number of layers.
        heads: Number of heads, which divides the width.
        width: Width h of a state.
        epsilon: Number that a layer norm adds to the variance.
        first_position: Row of the table of positions that the first token takes.
        buckets: Number of buckets of relative distances; 0 where there is no such bias.
    """

    kind: str
    layers: int
    heads: int
    width: int
    epsilon: float
    first_position: int
    buckets: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> EncoderShape:
        """Check the content of a `config.json`.

        Raises:
            VocabularyError: The encoder is of an unknown kind, or a size is missing or wrong.
        """
        kind = config.get("model_type")
        if (
            type(kind) is not str
            or kind not in _NAMES
            or any(config.get(k, usual) != usual for k, usual in _USUAL.items())
        ):
            raise VocabularyError(
                f"an encoder must be one of {', '.join(_NAMES)}, with gelu and absolute positions; choose another model"
            )
        sizes: list[Any] = [config.get(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")]
        buckets = config.get("relative_attention_num_buckets", 32) if kind == "mpnet" else 0
        epsilon = config.get("layer_norm_eps", 1e-12)
        if (
            not all(type(size) is int and 0 < size < 2**20 for size in sizes)
            or sizes[2] % sizes[1]
            or type(buckets) is not int
            or not (buckets == 0 or 4 <= buckets < 4 * _FARTHEST)
            or type(epsilon) is not float
            or not 0 < epsilon < 1
        ):
            raise VocabularyError("config.json must state the sizes of a whole encoder; take it from the model again")
        layers, heads, width = sizes
        return cls(kind, layers, heads, width, epsilon, find_first_position(config), buckets)

    def list_tensors(self) -> list[str]:
        """List the names of the tensors that are read, without the prefix of the model's class, in a fixed order."""
        tables = ["word_embeddings", "position_embeddings"]
        if self.kind != "mpnet":
            tables.append("token_type_embeddings")
        names = [f"embeddings.{table}.weight" for table in tables]
        modules = ["embeddings.LayerNorm"]
        for layer in range(self.layers):
            modules += [f"encoder.layer.{layer}.{part}" for part in (*_NAMES[self.kind], *_TAIL)]
        names += [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
        return names + (["encoder.relative_attention_bias.weight"] if self.buckets else [])


@dataclass(frozen=True, eq=False, repr=False)
class _Layer:
    """The weights of a layer as they are used: query, key and value in one, the query's scaled by 1 / √(h / heads)."""

    qkv: tuple[Floats, Floats]
    out: tuple[Floats, Floats]
    norm1: tuple[Floats, Floats]
    up: tuple[Floats, Floats]
    down: tuple[Floats, Floats]
    norm2: tuple[Floats, Floats]


@dataclass(frozen=True, eq=False, repr=False)
class Forward:
    """A frozen encoder: `states` turns token ids into last-layer states. Any thread may call it.

    Attributes:
        shape: Sizes of the encoder.
        words: Table of word embeddings, (V, h).
        positions: Table of positions from the first one on, with the first token type on top, (P, h).
    """

    shape: EncoderShape
    words: Floats
    positions: Floats
    _norm: tuple[Floats, Floats]
    _layers: tuple[_Layer, ...]
    _bias: Floats | None

    @classmethod
    def of(
        cls, weights: Mapping[str, Floats], shape: EncoderShape, *, dtype: type[np.floating] = np.float32
    ) -> Forward:
        """Prepare the weights of `shape.list_tensors()`.

        Args:
            weights: Tensors by name.
            shape: Sizes they must have.
            dtype: Type to compute in; float64 is for measuring what rounding changes.

        Raises:
            VocabularyError: A tensor has another shape, or is not finite.
        """
        width, inner = shape.width, weights[f"encoder.layer.0.{_TAIL[0]}.bias"].size
        expected: dict[str, tuple[int | None, ...]] = {}
        query, key, value, out, norm = _NAMES[shape.kind]
        sizes = {_TAIL[0]: (inner, width), _TAIL[1]: (width, inner)}
        for name in shape.list_tensors():
            module, _, kind = name.rpartition(".")
            if "LayerNorm" in module or (kind == "bias" and not module.endswith(_TAIL[0])):
                expected[name] = (width,)
            elif "embeddings" in module:
                expected[name] = (None, width)
            elif "relative" in module:
                expected[name] = (shape.buckets, shape.heads)
            else:
                rows = next(
                    (size for end, size in sizes.items() if module.endswith(end) and ".attention." not in module), None
                )
                expected[name] = (rows or (width, width)) if kind == "weight" else (inner,)
        for name, size in expected.items():
            tensor = weights[name]
            if len(tensor.shape) != len(size) or any(
                want not in (None, got) for want, got in zip(size, tensor.shape, strict=True)
            ):
                raise VocabularyError(
                    f"the weights must fit config.json, got another shape of {name}; give a whole model"
                )
            if not np.isfinite(tensor).all():
                raise VocabularyError(f"the weights must be finite, got others in {name}; give another model")

        def both(module: str) -> tuple[Floats, Floats]:
            weight, bias = (
                np.ascontiguousarray(weights[f"{module}.{kind}"], dtype=dtype) for kind in ("weight", "bias")
            )
            return weight, bias

        def layer(number: int) -> _Layer:
            name = f"encoder.layer.{number}."
            scale = dtype(1 / math.sqrt(width // shape.heads))
            parts = [both(name + part) for part in (query, key, value)]
            parts[0] = (parts[0][0] * scale, parts[0][1] * scale)
            return _Layer(
                qkv=(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])),
                out=both(name + out),
                norm1=both(name + norm),
                up=both(name + _TAIL[0]),
                down=both(name + _TAIL[1]),
                norm2=both(name + _TAIL[2]),
            )

        positions = weights["embeddings.position_embeddings.weight"][shape.first_position :].astype(dtype)
        if shape.kind != "mpnet":
            positions += weights["embeddings.token_type_embeddings.weight"][0].astype(dtype)
        return cls(
            shape=shape,
            words=weights["embeddings.word_embeddings.weight"].astype(dtype, copy=False),
            positions=positions,
            _norm=both("embeddings.LayerNorm"),
            _layers=tuple(layer(number) for number in range(shape.layers)),
            _bias=weights["encoder.relative_attention_bias.weight"].astype(dtype) if shape.buckets else None,
        )

    def states(self, groups: Sequence[NDArray[np.int64]]) -> Floats:
        """Last-layer states of texts, special tokens included.

        Args:
            groups: Token ids, (B, T) for texts of one length T, one array for each length.

        Returns:
            States of all positions, those of a text after each other, in the order given, (sum of B T, h).
        """
        sizes = [ids.size for ids in groups]
        count, width = sum(sizes), self.shape.width
        dtype = self.words.dtype
        x: Floats = self.words[np.concatenate([ids.reshape(-1) for ids in groups])]
        spans: list[tuple[slice, tuple[int, int], Floats | None]] = []
        start = 0
        for ids, size in zip(groups, sizes, strict=True):
            span = slice(start, start + size)
            x[span].reshape(*ids.shape, width)[...] += self.positions[: ids.shape[1]]
            spans.append((span, ids.shape, self._find_relative_bias(ids.shape[1])))
            start += size
        work = _Work.of(count, width=width, inner=len(self._layers[0].up[1]), dtype=dtype)
        self._normalize(x, self._norm, work)
        for layer in self._layers:
            _project(x, layer.qkv, out=work.qkv)
            for span, shape, bias in spans:
                self._attend(work.qkv[span], work.mixed[span], shape, bias)
            x += _project(work.mixed, layer.out, out=work.wide)
            self._normalize(x, layer.norm1, work)
            np.matmul(x, layer.up[0].T, out=work.inner)
            for block in _iterate_blocks(work.inner):
                block += layer.up[1]
                gelu(block)
            x += _project(work.inner, layer.down, out=work.wide)
            self._normalize(x, layer.norm2, work)
        return x

    def _attend(self, qkv: Floats, out: Floats, shape: tuple[int, int], bias: Floats | None) -> None:
        """Mix the values of each text of one length, (B T, 3 h), into (B T, h)."""
        heads, depth = self.shape.heads, self.shape.width // self.shape.heads
        query, key, value = qkv.reshape(*shape, 3, heads, depth).transpose(2, 0, 3, 1, 4)  # each (B, H, T, d)
        scores = query @ key.swapaxes(2, 3)
        if bias is not None:
            scores += bias
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores @ np.ones((shape[1], 1), dtype=scores.dtype)
        np.matmul(scores, value, out=out.reshape(*shape, heads, depth).transpose(0, 2, 1, 3))

    def _normalize(self, x: Floats, norm: tuple[Floats, Floats], work: _Work) -> None:
        """Apply a layer norm in place."""
        width = self.shape.width
        x -= (x @ work.ones)[:, None]
        variance = np.einsum("ij,ij->i", x, x) / width
        x *= (1 / np.sqrt(variance + self.shape.epsilon))[:, None].astype(x.dtype)
        x *= norm[0]
        x += norm[1]

    def _find_relative_bias(self, length: int) -> Floats | None:
        """Bias of each pair of positions of a text, (H, T, T)."""
        if self._bias is None:
            return None
        at = np.arange(length)
        distance = at[None, :] - at[:, None]  # of the key from the query
        half = self.shape.buckets // 2
        near = half // 2
        steps = np.abs(distance)
        # In float32, as those who trained it computed it: a distance on the border of two buckets must fall as there.
        far = np.log(np.maximum(steps, 1).astype(np.float32) / near) / np.float32(math.log(_FARTHEST / near))
        bucket = np.minimum(near + (far * (half - near)).astype(np.int64), half - 1)
        bucket = np.where(steps < near, steps, bucket) + half * (distance > 0)
        relative: Floats = np.ascontiguousarray(self._bias[bucket].transpose(2, 0, 1))
        return relative


@dataclass(frozen=True, eq=False, repr=False)
class _Work:
    """Memory of one pass: it is written over in every layer."""

    qkv: Floats
    mixed: Floats
    wide: Floats
    inner: Floats
    ones: Floats

    @classmethod
    def of(cls, count: int, *, width: int, inner: int, dtype: np.dtype[Any]) -> _Work:
        """Take memory for so many positions."""
        qkv, mixed, wide, up = (np.empty((count, size), dtype=dtype) for size in (3 * width, width, width, inner))
        return cls(qkv, mixed, wide, up, np.full(width, 1 / width, dtype=dtype))


def _project(x: Floats, weights: tuple[Floats, Floats], *, out: Floats) -> Floats:
    np.matmul(x, weights[0].T, out=out)
    out += weights[1]
    return out


def _iterate_blocks(rows: Floats) -> Iterator[Floats]:
    step = max(1, _GELU_BLOCK // rows.shape[1])
    return (rows[start : start + step] for start in range(0, len(rows), step))


def gelu(x: Floats) -> None:
    """Replace each x by x Φ(x)."""
    square = np.multiply(x, x)
    np.minimum(square, _GELU_SQUARES, out=square)
    sum_ = np.multiply(square, x.dtype.type(_GELU[-1]))
    for coefficient in _GELU[-2:0:-1]:
        sum_ += x.dtype.type(coefficient)
        sum_ *= square
    sum_ += x.dtype.type(_GELU[0])
    sum_ *= x
    np.tanh(sum_, out=sum_)
    x *= x.dtype.type(0.5)
    sum_ *= x
    x += sum_
