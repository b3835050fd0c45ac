"""How many photos a claim needs, said before any is looked at.

The headline claims something where an interval allows it (`claim.py`). Here the same intervals say how likely that is
if a defense truly has some effect: by exact sums over the binomial distribution, with no approximation but that photos
are independent.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from loraguard.metrics import exact_share

from .claim import LEAST_PHOTOS

POWER = 0.8
"""An audit is large enough for a claim that is true if it comes to it in four of five cases."""

EXAMPLE = 0.7
"""A share of spoilt edits that a protection might have."""

MOST = 5_000
"""Photos; a claim that needs more is out of reach."""


def chance_to_protect(n: int, share: float, defenses: int = 1, over: float = 0.5) -> float:
    """How likely n photos show that a defense protects: that the interval of its DSR lies above a half.

    The interval is the exact one (Clopper and Pearson), corrected for the defenses that the best is picked from.

    Args:
        n: how many photos.
        share: the defense's true DSR.
        defenses: how many there are.
        over: what it has to exceed.

    Example:
        >>> round(chance_to_protect(100, 0.65), 3), chance_to_protect(5, 0.9)
        (0.828, 0.0)
    """
    return float(_chances(np.array([n]), share, defenses, over)[0])


def _chances(n: NDArray[np.int64], share: float, defenses: int, over: float) -> NDArray[np.float64]:
    """:func:`chance_to_protect` for several numbers of photos."""
    least = binom.isf(0.05 / defenses / 2, n, over) + 1  # the smallest count whose interval lies above
    return np.where(n >= LEAST_PHOTOS, binom.sf(least - 1, n, share), 0.0)


@cache
def photos_to_protect(share: float, defenses: int = 1, over: float = 0.5, power: float = POWER) -> int | None:
    """The least number of photos that show that a defense protects, and of which no larger number shows it less often.

    Args:
        share: the defense's true DSR.
        defenses: how many the best is picked from.
        over: what it has to exceed.
        power: how often they are to show it.

    Returns:
        None where more than :data:`MOST` are needed.

    Example:
        >>> photos_to_protect(0.7), photos_to_protect(0.5)
        (54, None)
    """
    n = np.arange(1, MOST + 1)
    weak = np.flatnonzero(_chances(n, share, defenses, over) < power)
    return int(n[weak[-1]]) + 1 if len(weak) and n[weak[-1]] < MOST else None


@cache
def least_share(n: int, defenses: int = 1, over: float = 0.5, power: float = POWER) -> float | None:
    """The smallest true DSR, in percents, that n photos show to be above a half often enough; None where none is.

    Example:
        >>> least_share(100), least_share(8)
        (0.65, None)
    """
    shares = (percent / 100 for percent in range(int(100 * over), 101))
    return next((one for one in shares if chance_to_protect(n, one, defenses, over) >= power), None)


def chance_to_differ(n: int, gained: float, lost: float = 0.0, defenses: int = 1) -> float:
    """How likely n photos show that one situation spoils more edits than another, paired photo by photo.

    The interval of the difference is Tango's, as in :func:`~loraguard.audit.paired_difference`: it lies above 0 where
    the score `(b - c) / sqrt(b + c)` of b photos gained and c lost is large enough.

    Args:
        n: how many photos.
        gained: the true share of photos that the first spoils and the second does not.
        lost: the true share of which it is the other way about.
        defenses: how many the best is picked from.

    Example:
        >>> round(chance_to_differ(100, 0.1), 2), round(chance_to_differ(100, 0.2, 0.1), 2)
        (0.99, 0.46)
    """
    z = NormalDist().inv_cdf(1 - 0.05 / defenses / 2)
    discordant = np.arange(n + 1)
    least = np.floor((discordant + z * np.sqrt(discordant)) / 2) + 1  # of those gained; the interval's score at 0
    shown = binom.sf(least - 1, discordant, gained / (gained + lost))
    return float((binom.pmf(discordant, n, gained + lost) * shown).sum())


def planned(n: int, defenses: int) -> dict[str, Any]:
    """What an audit of this size can show, as JSON takes it."""
    return {
        "protects_from": least_share(n, defenses),
        "none_means_at_most": exact_share(0, n, 0.95)[1],
        "example": EXAMPLE,
        "photos_for_example": photos_to_protect(EXAMPLE, defenses),
        "power": POWER,
        "defenses": defenses,
    }


def power_words(n: int, defenses: int) -> str:
    """The same for people, in a sentence or two.

    Example:
        >>> power_words(100, 1)
        'On 100 photos a defense is found to protect in 4 of 5 audits if it truly spoils 65% of the edits or more, and
        a share of 0% means at most 3.6%.'
    """
    found = planned(n, defenses)
    nothing = f"a share of 0% means at most {found['none_means_at_most']:.1%}"
    many = f", of which the best of {defenses} is picked," if defenses > 1 else ""
    if found["protects_from"] is not None:
        return (
            f"On {n} photos a defense{many} is found to protect in 4 of 5 audits if it truly spoils "
            f"{found['protects_from']:.0%} of the edits or more, and {nothing}."
        )
    return (
        f"{n} photos are too few to show that a defense protects, and {nothing}. For one that truly spoils "
        f"{EXAMPLE:.0%} of the edits it takes {found['photos_for_example']} photos to show that in 4 of 5 audits."
    )
