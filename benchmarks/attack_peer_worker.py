"""One attack of a public package, in its own environment: a file of answers comes in, one of scores goes out.

Run by `attack_peers.py`; it imports nothing of `rapt`. Scores are larger for members, nan where there is none.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable

import numpy as np

ALARMS = np.linspace(0.0, 1.0, 402)[1:-1]


def privacyguard(arm: str, target: int, answers, members, population):
    """LiRA and RMIA of PrivacyGuard, from tables of scores as its tutorials make them."""
    import pandas as pd
    from privacy_guard.analysis.mia.aggregate_analysis_input import AggregationType
    from privacy_guard.attacks.lira_attack import LiraAttack
    from privacy_guard.attacks.rmia_attack import RmiaAttack

    others, had = np.delete(answers, target, axis=0), np.delete(members, target, axis=0)
    if "LiRA" in arm:
        inside, outside = (np.where(mask, others, np.nan) for mask in (had, ~had))
        columns = {
            "score_orig": answers[target],
            "score_mean_in": np.nanmean(inside, axis=0),
            "score_std_in": np.nanstd(inside, axis=0, ddof=1),
            "score_mean_out": np.nanmean(outside, axis=0),
            "score_std_out": np.nanstd(outside, axis=0, ddof=1),
        }
        columns |= {"score_mean": columns["score_mean_out"], "score_std": columns["score_std_out"]}
        table = pd.DataFrame(columns | {"user_id": np.arange(answers.shape[1])})
        mine, rest = (table[mask].copy() for mask in (members[target], ~members[target]))
        online = arm.endswith("online")
        attack = LiraAttack(
            mine,
            rest,
            row_aggregation=AggregationType.NONE,
            use_fixed_variance=True,
            std_dev_type="mix" if online else "shadows_out",
            online_attack=online,
        )
    else:
        table, outside = (
            pd.DataFrame(
                {"score_orig": 1 / (1 + np.exp(-values[target])), "user_id": np.arange(values.shape[1])}
                | {f"score_ref_{i}": row for i, row in enumerate(1 / (1 + np.exp(-np.delete(values, target, axis=0))))}
                | {f"member_ref_{i}": row for i, row in enumerate(np.delete(inside, target, axis=0))}
            )
            for values, inside in ((answers, members), (population, np.zeros(population.shape, dtype=bool)))
        )
        mine, rest = (table[mask].copy() for mask in (members[target], ~members[target]))
        attack = RmiaAttack(
            mine,
            rest,
            outside,
            row_aggregation=AggregationType.NONE,
            num_reference_models=len(others) // 2,
            online=arm.endswith("online"),
        )
    result = attack.run_attack()
    scores = np.full(answers.shape[1], np.nan)
    for part in (result.df_train_user, result.df_test_user):
        scores[part["user_id"].to_numpy()] = part["score"].to_numpy()
    return scores


def privacy_meter(arm: str, target: int, answers, members, population):
    """Two metrics of Privacy Meter; a score is the share of error rates at which it says "member"."""
    # Before the empty modules: SciPy asks a torch that is there for its tensors.
    import sklearn.linear_model
    import sklearn.metrics  # noqa: F401  # imported so that Privacy Meter finds it

    # Its module of models imports these at its top; models of ours are answers in a table, and none of them is used.
    for name in ("tensorflow", "torch", "opacus"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["opacus"].GradSampleModule = object
    import privacy_meter.hypothesis_test as tests
    from privacy_meter.dataset import Dataset
    from privacy_meter.information_source import InformationSource
    from privacy_meter.information_source_signal import ModelLoss
    from privacy_meter.metric import PopulationMetric, ReferenceMetric
    from privacy_meter.model import Model

    for name in ("tensorflow", "torch", "opacus"):
        del sys.modules[name]

    class Answers(Model):
        """A model whose losses are known: -log p of the label."""

        def __init__(self, row):
            self.row = np.logaddexp(0.0, -row)

        def get_loss(self, batch_samples, batch_labels, per_point=True):
            return self.row[np.asarray(batch_samples)]

        def get_logits(self, batch_samples):
            raise NotImplementedError

        def get_grad(self, batch_samples, batch_labels):
            raise NotImplementedError

        def get_intermediate_outputs(self, layers, batch_samples, forward_pass=True):
            raise NotImplementedError

    n = answers.shape[1]
    both = np.concatenate([answers, population], axis=1)
    parts = {
        "train": np.flatnonzero(members[target]),
        "test": np.flatnonzero(~members[target]),
        "population": np.arange(n, both.shape[1]),
    }
    data = Dataset({name: {"x": ids, "y": ids} for name, ids in parts.items()}, default_input="x", default_output="y")
    attacked = InformationSource(models=[Answers(both[target])], datasets=[data])
    if arm.endswith("reference"):
        rest = [Answers(row) for row in np.delete(both, target, axis=0)]
        metric = ReferenceMetric(
            target_info_source=attacked,
            reference_info_source=InformationSource(models=rest, datasets=[data]),
            signals=[ModelLoss()],
            hypothesis_test_func=tests.logit_rescale_threshold_func,
        )
    else:
        metric = PopulationMetric(
            target_info_source=attacked,
            reference_info_source=attacked,
            signals=[ModelLoss()],
            hypothesis_test_func=tests.linear_itp_threshold_func,
            reference_model_to_train_split_mapping=[(0, "population", "<default_input>", "<default_output>")],
        )
    metric.prepare_metric()
    (result,) = metric.run_metric(ALARMS)
    scores = np.full(n, np.nan)
    scores[np.concatenate([parts["train"], parts["test"]])] = np.asarray(result.predicted_labels).mean(axis=0)
    return scores


def pypantera(given: str, taken: str) -> None:
    """How many words two texts share, as a share of those of either."""
    from src.utils.metrics import lexicalSimilarity

    with open(given, encoding="utf-8") as stream:
        pairs = json.load(stream)
    with open(taken, "w", encoding="utf-8") as stream:
        json.dump([lexicalSimilarity(before, after) for before, after in pairs], stream)


def main() -> None:
    """Read, attack every model in turn, and write."""
    arm, given, taken = sys.argv[1:]
    if arm.startswith("pypantera"):
        pypantera(given, taken)
        return
    attack: Callable = privacyguard if arm.startswith("privacyguard") else privacy_meter
    with np.load(given) as held:
        answers, members, population = held["answers"], held["members"], held["population"]
    np.save(taken, np.stack([attack(arm, target, answers, members, population) for target in range(len(answers))]))


if __name__ == "__main__":
    main()
