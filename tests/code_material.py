"""A small public code bundle, a manifest of codes, and a reader: arrays drawn from a seed stand for learned ones."""

from dataclasses import replace

import numpy as np

from manifest_material import hand_made_manifest
from rapt.local.codes.code_privatizer import CodePrivatizer
from rapt.local.codes.subset import SubsetMechanism
from rapt.wire.code_bundle import make_code_bundle
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.model_files import hash_model
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from rapt.wire.reader_bundle import ReaderMeasure, make_reader_bundle, write_reader_bundle

ENCODER_HASH = "sha256:" + "cd" * 32


def draw_codewords(*, codes=1, size=12, run=3, seed=0):
    rows = np.random.default_rng(seed).standard_normal((codes, size, run))
    return (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)


def code_parts(*, width=6, codes=1, size=12, run=3, seed=0):
    """What `make_code_bundle` takes, good in every part."""
    rng = np.random.default_rng(seed + 1)
    return {
        "model": "tiny-encoder",
        "encoder_hash": ENCODER_HASH,
        "center": rng.standard_normal(width).astype(np.float32),
        "directions": rng.standard_normal((codes * run, width)).astype(np.float32),
        "codewords": draw_codewords(codes=codes, size=size, run=run, seed=seed),
        "max_tokens": 16,
        "languages": ("en",),
    }


def code_bundle(**sizes):
    return make_code_bundle(**code_parts(**sizes))


def parts_for(encoder, *, public, **sizes):
    """What `make_code_bundle` takes for a real encoder, centred on a few public sentences."""
    return code_parts(width=encoder.hidden_size, **sizes) | {
        "model": encoder.model,
        "encoder_hash": encoder.hash,
        "center": encoder.encode(public).mean(axis=0),
        "max_tokens": encoder.max_tokens,
    }


def codes_manifest(*, epsilon=4.0, preferred=3, codewords=12, codes=1, **others):
    parameters = {"epsilon": epsilon, "preferred": preferred, "codewords": codewords, "codes": codes}
    mechanism = MechanismSetting(name="subset", parameters=parameters)
    return hand_made_manifest(model="tiny-encoder", mechanism=mechanism, **others)


def codes_file(code, *, records=24, **others):
    """Texts of one codeword each, of two labels in turn."""
    manifest = replace(codes_manifest(codewords=code.size, **others), vocabulary_hash=code.hash)
    made = tuple(
        PrivatizedRecord(
            token_ids=(7 * number % code.size,),
            label=number % 2,
            second_token_ids=(5 * number % code.size,) if manifest.pairs else None,
        )
        for number in range(records)
    )
    return PrivatizedFile(manifest=seal_manifest(manifest, made), records=made)


def reader_parts(code, *, width=32, vectors=3, hidden=5, plain=4, seed=0):
    """What `make_reader_bundle` takes for a backbone of states of `width` numbers: a network that was never trained."""
    rng, k = np.random.default_rng(seed + 2), len(code.directions)
    shapes = {
        "hidden.weight": (hidden, k),
        "hidden.bias": (hidden,),
        "output.weight": (vectors * width, hidden),
        "output.bias": (vectors * width,),
        "plain": (plain, k),
    }
    return {
        "code": code,
        "model": "tiny",
        "backbone_hash": "sha256:" + "ef" * 32,
        "epsilons": (1.0, 4.0),
        "attenuations": (0.25, 0.75),
        "tensors": {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        "vectors": vectors,
        "measures": (ReaderMeasure(epsilon=4.0, loss=1.5, blind_loss=2.0),),
        "public_texts": 100,
    }


def reader_folder(backbone_folder, folder, *, code, **sizes):
    """The folder of a reader for the backbone in a folder."""
    parts = reader_parts(code, **sizes) | {"model": backbone_folder.name, "backbone_hash": hash_model(backbone_folder)}
    write_reader_bundle(make_reader_bundle(**parts), folder)
    return folder


class RowsEncoder:
    """An encoder without layers: a text's state is the mean row of its tokens in a real embedding table."""

    def __init__(self, vocabulary, *, max_tokens=16):
        self.vocabulary, self.max_tokens = vocabulary, max_tokens
        self.model, self.hash, self.encoded = vocabulary.model, ENCODER_HASH, 0

    def encode(self, texts, *, first_position=0):
        room = self.max_tokens - self.vocabulary.bundle.special_tokens
        contents = self.vocabulary.encode(texts, first_position=first_position)
        self.encoded += len(texts)
        states = [self.vocabulary.embeddings[ids[:room]].mean(axis=0) for ids in contents]
        return np.array(states, np.float32).reshape(len(texts), self.vocabulary.dimension)


def code_privatizer(vocabulary, *, epsilon=4.0, preferred=3, encoder=None, **sizes):
    center = vocabulary.embeddings.mean(axis=0)  # a map that does not put all texts into one corner
    bundle = make_code_bundle(**code_parts(width=vocabulary.dimension, **sizes) | {"center": center})
    mechanism = SubsetMechanism(bundle=bundle, epsilon=epsilon, preferred=preferred)
    return CodePrivatizer(encoder or RowsEncoder(vocabulary), mechanism)
