"""The models of an audit tuned as tasks of a cluster: each answer is that of one machine, and is kept as it comes.

A task is one tuning run, or one run with canaries. It depends on the texts, the setting and its seed alone, so a task
that is tried again, or an audit that is asked for again, has the same bits. What was done is kept in a folder under a
digest of all that it depends on; a later run takes what is there and does the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rapt.audit.artefact.memory import CanaryResult, find_canaries
from rapt.audit.artefact.workshop import CLEAR, TokenTexts, Workshop
from rapt.audit.kept_results import from_json, to_json
from rapt.cluster import Cluster
from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.service.adapter.adapter import Adapter, adapter_from_files, adapter_to_files
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuning_config import TuningConfig, list_card_settings
from rapt.version import __version__
from rapt.whole_files import write_folder
from rapt.wire.mechanism_setting import MechanismSetting, Parameter

_RESULT = "canaries.json"
Files = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Shop:
    """What a workshop is made of, for whoever has the model's files.

    Attributes:
        model: Backbone, a known model or a model folder.
        mechanism: Name in `MECHANISMS`.
        eta: Slope of the mechanism, 1/distance.
        options: Options of the mechanism.
        allow_unproved: Whether a mechanism without a proved guarantee is taken.
        config: Settings of each run but for its seed.
        threads: Threads of torch: another number may round another way.
    """

    model: str
    mechanism: str
    eta: float
    options: Mapping[str, Parameter]
    allow_unproved: bool
    config: TuningConfig
    threads: int

    @cached_property
    def workshop(self) -> Workshop:
        """The workshop. Raises `VocabularyError` where the model's files are missing."""
        torch.set_num_threads(self.threads)
        vocabulary = load_vocabulary(self.model)
        return Workshop(
            backbone=load_backbone(self.model, precision="float32"),
            vocabulary=vocabulary,
            mechanism=make_mechanism(
                self.mechanism,
                vocabulary=vocabulary,
                eta=self.eta,
                options=dict(self.options),
                allow_unproved=self.allow_unproved,
            ),
            config=self.config,
        )

    def digest(self, texts: TokenTexts) -> str:
        """Digest of all that a task depends on beside itself."""
        stated = [
            __version__,
            self.model,
            self.mechanism,
            self.eta,
            dict(self.options),
            list_card_settings(self.config),
        ]
        stated += [self.config.init_text, self.threads, texts.contents, texts.labels, texts.names]
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ModelTask:
    """One model to be tuned.

    Attributes:
        privatized: Whether it is tuned through the mechanism.
        places: Texts that it has; None for a run with canaries, which has all.
        repetitions: Number of times that each canary is put in.
        canaries: Number of different canaries.
        seed: Seed of noise and run.
    """

    privatized: bool
    seed: int
    places: tuple[int, ...] | None = None
    repetitions: int = 0
    canaries: int = 0


def do_task(setting: tuple[Shop, TokenTexts], task: ModelTask) -> Files:
    """The files of the tuned model, or the result of the canaries, by name."""
    shop, texts = setting
    workshop = shop.workshop if task.privatized else replace(shop.workshop, mechanism=None)
    if task.places is not None:
        tuned = workshop.tune(texts.at(task.places), seed=task.seed)
        # No file may say that it is of clear text: `SharedWork.tune` puts that back.
        return adapter_to_files(_restate(tuned, _state_mechanism(shop.workshop)))
    found = find_canaries(workshop, texts, repetitions=task.repetitions, canaries=task.canaries, seed=task.seed)
    return {_RESULT: json.dumps(to_json(found)).encode()}


def _restate(adapter: Adapter, setting: MechanismSetting) -> Adapter:
    return replace(adapter, card=replace(adapter.card, mechanism=setting))


def _state_mechanism(workshop: Workshop) -> MechanismSetting:
    assert workshop.mechanism is not None, "a shop has a mechanism"
    return workshop.mechanism.setting


@dataclass(frozen=True, kw_only=True)
class SharedWork:
    """Tasks of an audit on a cluster.

    Attributes:
        cluster: Cluster that was joined.
        shop: Parts that the workshop of every task is made of.
        texts: Texts of the audit, in clear.
        kept: Folder of what is done; None keeps nothing.
    """

    cluster: Cluster
    shop: Shop
    texts: TokenTexts = field(repr=False)
    kept: Path | None

    def tune(
        self, parts: Sequence[tuple[NDArray[np.int64], int]], *, privatized: bool, on_done: Callable[[int], None]
    ) -> list[Adapter]:
        """The model of each part of the texts and seed, in order."""
        tasks = [ModelTask(privatized=privatized, seed=seed, places=tuple(places.tolist())) for places, seed in parts]
        files = self._do(tasks, on_done=on_done)
        workshop = self.shop.workshop
        stated = _state_mechanism(workshop) if privatized else CLEAR
        return [_restate(adapter_from_files(one, backbone=workshop.backbone), stated) for one in files]

    def find_canaries(
        self, runs: Sequence[tuple[bool, int]], *, canaries: int, seed: int, on_done: Callable[[int], None]
    ) -> list[CanaryResult]:
        """The result of each run, whether privatized and with so many repetitions, in order."""
        tasks = [
            ModelTask(privatized=privatized, seed=seed, repetitions=times, canaries=canaries)
            for privatized, times in runs
        ]
        return [from_json(CanaryResult, json.loads(one[_RESULT])) for one in self._do(tasks, on_done=on_done)]

    def _do(self, tasks: Sequence[ModelTask], *, on_done: Callable[[int], None]) -> list[Files]:
        done = {place: files for place, task in enumerate(tasks) if (files := self._read(task)) is not None}
        left = [place for place in range(len(tasks)) if place not in done]
        setting = (replace(self.shop), self.texts)  # a copy has no workshop: each node opens its own
        for number, files in self.cluster.run(do_task, (tasks[place] for place in left), setting=setting):
            done[left[number]] = files
            if self.kept is not None:
                self.kept.mkdir(parents=True, exist_ok=True)
                write_folder(self._name(self.kept, tasks[left[number]]), files)
            on_done(len(done))
        return [done[place] for place in range(len(tasks))]

    @cached_property
    def _digest(self) -> str:
        return self.shop.digest(self.texts)

    def _read(self, task: ModelTask) -> Files | None:
        if self.kept is None or not (folder := self._name(self.kept, task)).is_dir():
            return None
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    def _name(self, kept: Path, task: ModelTask) -> Path:
        return kept / hashlib.sha256(f"{self._digest} {task}".encode()).hexdigest()[:32]
