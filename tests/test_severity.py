"""The scale of severity: bad is never green, anywhere; a colour can be read, and stands beside words."""

import colorsys
import re
from pathlib import Path

import numpy as np
import pytest

import rapt
from rapt.severity import (
    GIVEN_AWAY,
    NEARLY_USED,
    PALETTE,
    USED_UP,
    Severity,
    find_worst,
    paint,
    weigh_attack,
    weigh_use,
)

LIGHT, DARK = (dict(re.findall(r"--([a-z-]+): #([0-9a-f]{6})", part)) for part in PALETTE.split("@media"))


def channels(colour):
    return [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]


def hue(colour):
    return 360 * colorsys.rgb_to_hls(*channels(colour))[0]


def luminance(colour):
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def is_green(colour):
    return 75 < hue(colour) < 185


def test_no_style_and_no_picture_has_a_colour_of_severity_of_its_own():
    styled = [path for path in Path(rapt.__file__).parent.rglob("*") if path.suffix in {".css", ".svg", ".js", ".j2"}]
    assert len(styled) > 10
    styled.append(Path(rapt.__file__).with_name("drawing.py"))
    green = {
        (path.name, colour)
        for path in styled
        for colour in re.findall(r"#([0-9a-f]{6})\b", path.read_text(encoding="utf-8"))
        if is_green(colour) and max(channels(colour)) - min(channels(colour)) > 0.15
    }
    assert green == set()


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_only_good_is_green_and_every_tone_can_be_read_on_paper_and_on_its_faint_form(colours):
    assert is_green(colours["good"])
    for name in ("accent", "second", "caution", "bad", "caution-faint", "bad-faint", "accent-faint"):
        assert not is_green(colours[name]), name
    for name in ("accent", "good", "caution", "bad"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
        assert contrast(colours[name], colours[f"{name}-faint"]) >= 4.5, name
        assert contrast(colours["ink"], colours[f"{name}-faint"]) >= 7, name
    assert contrast(colours["soft"], colours["panel"]) >= 4.5


def test_an_attack_is_good_at_chance_alone_and_bad_from_a_fifth_beyond_it_on():
    for blind in (0.001, 0.04, 0.1, 0.5, 0.9):
        assert weigh_attack(blind, blind=blind) is Severity.GOOD
        assert weigh_attack(0.9 * blind, blind=blind) is Severity.GOOD
        found = [weigh_attack(named, blind=blind) for named in np.linspace(blind, 1, 400)]
        assert found == sorted(found, key=list(Severity).index), "more that is named is never less severe"
        if blind <= 0.79:
            assert weigh_attack(blind + 0.201, blind=blind) is Severity.BAD
    assert weigh_attack(0.57, blind=0.04) is Severity.BAD
    assert weigh_attack(0.09, blind=0.04) is Severity.CAUTION
    assert weigh_attack(float("nan"), blind=0.1) is Severity.BAD


def test_a_quota_that_is_nearly_used_up_warns():
    assert [weigh_use(share) for share in (0, 0.74, NEARLY_USED, 0.94, USED_UP, 3, float("nan"))] == [
        *[Severity.PLAIN] * 2,
        *[Severity.CAUTION] * 2,
        *[Severity.BAD] * 3,
    ]
    assert f"--nearly-used: {NEARLY_USED}; --used-up: {USED_UP};" in PALETTE, "scripts of the pages read them there"


def test_the_worst_finding_counts_and_each_has_words():
    assert find_worst([]) is Severity.PLAIN
    assert find_worst([Severity.GOOD, Severity.BAD, Severity.CAUTION]) is Severity.BAD
    assert find_worst([Severity.GOOD, Severity.PLAIN]) is Severity.GOOD
    assert {*GIVEN_AWAY} == {*Severity}


def test_a_terminal_shows_bad_in_red_and_plain_without_colour():
    assert paint("x", Severity.BAD) == "\033[31mx\033[0m"
    assert paint("x", Severity.GOOD) == "\033[32mx\033[0m"
    assert paint("x", Severity.PLAIN) == "x"
