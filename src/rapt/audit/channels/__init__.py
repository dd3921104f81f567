"""The channels of the mechanisms, where an attacker can compute or count them, in one closed dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from rapt.audit.channels.closed import exact_channel
from rapt.audit.channels.estimate import SOURCES, ChannelEstimate
from rapt.audit.channels.laplace import estimate_laplace_channel
from rapt.audit.channels.simulated import counted_channel
from rapt.errors import AuditError, MechanismError
from rapt.local.mechanisms import MECHANISMS, mechanism_of_setting
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import MechanismSetting
from rapt.wire.vocabulary_bundle import VocabularyBundle


class ChannelFunction(Protocol):
    """Computes or estimates P(y|x) at given outputs."""

    def __call__(
        self,
        bundle: VocabularyBundle,
        *,
        setting: MechanismSetting,
        outputs: NDArray[np.int64],
        prior: NDArray[np.float64],
        rng: np.random.Generator,
        sources: int = SOURCES,
        on_progress: Callable[[float], None] | None = None,
    ) -> ChannelEstimate:
        """The channel at `outputs`, for the sources that `prior` makes likely; see `estimate_channel`."""
        ...


CHANNELS: Final[Mapping[str, ChannelFunction]] = MappingProxyType(
    {
        "laplace": estimate_laplace_channel,
        "exponential": exact_channel,
        "soft-pos": exact_channel,
        "tem": exact_channel,
        "santext": exact_channel,
        "custext": exact_channel,
        "mahalanobis": counted_channel,
        "vickrey": counted_channel,
        "rank-fix": counted_channel,
        "pct2t": counted_channel,
    }
)


def reason_unknown(setting: MechanismSetting, bundle: VocabularyBundle) -> str | None:
    """Why the channel of a mechanism cannot be known here, or None where it can."""
    if setting.name not in CHANNELS or setting.name not in MECHANISMS:
        return f"the channel of mechanism={setting.name!r} is not known here"
    try:
        mechanism_of_setting(setting, vocabulary=Vocabulary(bundle), allow_unproved=True)
    except MechanismError:
        return f"mechanism={setting.name!r} cannot be made again from the manifest alone"
    return None


def estimate_channel(
    setting: MechanismSetting,
    bundle: VocabularyBundle,
    *,
    outputs: NDArray[np.int64],
    prior: NDArray[np.float64],
    rng: np.random.Generator,
    sources: int = SOURCES,
    on_progress: Callable[[float], None] | None = None,
) -> ChannelEstimate:
    """The channel of a mechanism at the given outputs.

    Args:
        setting: The mechanism, from the manifest.
        bundle: The public table.
        outputs: Sorted eligible ids, (O,).
        prior: Chooses which sources are looked at, (V,).
        rng: Of the draws, where there are any.
        sources: Kept for each output beside itself.
        on_progress: Called with the share done.

    Raises:
        AuditError: The mechanism's channel is not known here.
    """
    if (reason := reason_unknown(setting, bundle)) is not None:
        raise AuditError(f"a channel must be of one of {', '.join(CHANNELS)}: {reason}; leave out what needs one")
    return CHANNELS[setting.name](
        bundle, setting=setting, outputs=outputs, prior=prior, rng=rng, sources=sources, on_progress=on_progress
    )
