"""Which mechanisms have a channel that an attacker can compute, in one closed dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from rapt.audit.channels.estimate import ChannelEstimate
from rapt.audit.channels.laplace import estimate_laplace_channel
from rapt.errors import AuditError
from rapt.wire.manifest import MechanismSetting
from rapt.wire.vocabulary_bundle import VocabularyBundle


class ChannelFunction(Protocol):
    """Computes or estimates P(y|x) at given outputs."""

    def __call__(
        self,
        bundle: VocabularyBundle,
        *,
        eta: float,
        outputs: NDArray[np.int64],
        prior: NDArray[np.float64],
        rng: np.random.Generator,
        on_progress: Callable[[float], None] | None = None,
    ) -> ChannelEstimate:
        """The channel at `outputs`, for the sources that `prior` makes likely; see `estimate_channel`."""
        ...


CHANNELS: Final[Mapping[str, ChannelFunction]] = MappingProxyType({"laplace": estimate_laplace_channel})


def estimate_channel(
    setting: MechanismSetting,
    bundle: VocabularyBundle,
    *,
    outputs: NDArray[np.int64],
    prior: NDArray[np.float64],
    rng: np.random.Generator,
    on_progress: Callable[[float], None] | None = None,
) -> ChannelEstimate:
    """The channel of a mechanism at the given outputs.

    Args:
        setting: The mechanism, from the manifest.
        bundle: The public table.
        outputs: Sorted eligible ids, (O,).
        prior: Chooses which sources are looked at, (V,).
        rng: Of the draws, where there are any.
        on_progress: Called with the share done.

    Raises:
        AuditError: The mechanism's channel is not known here.
    """
    if setting.name not in CHANNELS:
        raise AuditError(
            f"a channel must be of one of {', '.join(CHANNELS)}, got mechanism={setting.name!r}; "
            "leave out the attacks that need one"
        )
    return CHANNELS[setting.name](
        bundle, eta=setting.eta, outputs=outputs, prior=prior, rng=rng, on_progress=on_progress
    )
