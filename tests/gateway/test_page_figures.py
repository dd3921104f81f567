"""Figures of the page are those of the kept lines, for the settings that were measured and no other."""

from page_figures import FIGURES, RESULTS, write_figures
from rapt.own_page.figures import find_figures
from rapt.public_models import PUBLIC_CODES, PUBLIC_MODELS
from rapt.severity import Severity


def test_the_figures_of_the_page_follow_from_the_kept_lines():
    assert FIGURES.read_text(encoding="utf-8") == write_figures()


def test_each_figure_has_its_n_its_interval_and_its_lines_and_57_of_100_is_bad():
    found = [
        find_figures(PUBLIC_MODELS["minilm"].vocabulary, "laplace"),
        find_figures(PUBLIC_CODES["minilm-codes"], "subset"),
    ]
    for known in found:
        assert all((RESULTS / name).is_file() for name in known["lines"])
        for point in known["points"]:
            for one in (point["named"], *point["right"]):
                assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1
                assert one["n"] > 0
    assert {point["at"]: point["named"]["severity"] for point in found[0]["points"]}[75.0] is Severity.BAD
    assert find_figures(PUBLIC_MODELS["minilm"].vocabulary, "exponential") is None
    assert find_figures("sha256:" + "0" * 64, "laplace") is None
