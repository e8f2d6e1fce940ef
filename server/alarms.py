"""Updates that look wrong though they may enter the average: far off, empty, or sent before.

far        a module group's distance from the model sent is beyond `strategy.alarm_ratio` times the median of the other sites'
unchanged  every group came back as it was sent
repeated   the same numbers as the site's last update, of an earlier round

An alarm refuses nothing: it tells the coordinator whom to ask. Of an update norms and checksums are held, never the numbers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from configs.federated import StrategyConfig

_OTHERS = 2  # a site is compared with at least so many others


def watch(strategy: StrategyConfig) -> Watch | None:
    """None where alarms are off, or secure aggregation hides the updates."""
    return Watch(strategy.alarm_ratio) if strategy.alarm_ratio and not strategy.secure_aggregation else None


@dataclass
class Watch:
    """Over the rounds of one process: after a resume a site's first update has none to be compared with.

    ratio: `strategy.alarm_ratio`.
    """

    ratio: float
    _norms: dict[str, dict[str, float]] = field(default_factory=dict)  # site -> group -> norm of its change
    _marks: dict[str, tuple[int, ...]] = field(default_factory=dict)  # site -> checksums
    _last: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of the latest round that counted

    def begin(self) -> None:
        """A round starts, or is tried again."""
        self._norms, self._marks = {}, {}

    def see(
        self,
        site: str,
        update: Mapping[str, np.ndarray],
        current: Mapping[str, np.ndarray],
        sent: list[np.ndarray],
    ) -> None:
        """Take note of an update. current: the model sent; sent: the arrays as they came, compressed or not."""
        with np.errstate(over="ignore"):
            self._norms[site] = {group: _norm(vector, current[group]) for group, vector in update.items()}
        self._marks[site] = tuple(_checksum(vector) for vector in sent)

    def end(self) -> list[dict[str, Any]]:
        """The alarms of a round that counts, by site: {"site", "kind", "groups", "ratio" (largest; None but for far)}."""
        alarms = []
        for site, norms in sorted(self._norms.items()):
            if not any(norms.values()):
                alarms.append(_alarm(site, "unchanged", sorted(norms)))
            elif self._marks[site] == self._last.get(site):
                alarms.append(_alarm(site, "repeated", sorted(norms)))
            ratios = {group: ratio for group in sorted(norms) if (ratio := self._ratio(site, group)) > self.ratio}
            if ratios:
                alarms.append(_alarm(site, "far", list(ratios), round(max(ratios.values()), 1)))
        self._last |= self._marks
        return alarms

    def _ratio(self, site: str, group: str) -> float:
        """A site's distance over the median of the others'; 0 where they are too few or have not moved."""
        others = [norms[group] for name, norms in self._norms.items() if name != site and group in norms]
        usual = statistics.median(others) if len(others) >= _OTHERS else 0.0
        return self._norms[site][group] / usual if usual else 0.0


def words(alarm: Mapping[str, Any]) -> str:
    """One alarm as a sentence about the site's update."""
    if alarm["kind"] == "unchanged":
        return "alarm: its update is the model as it was sent"
    if alarm["kind"] == "repeated":
        return "alarm: its update is the one it sent before"
    groups = alarm["groups"]
    what = groups[0] if len(groups) == 1 else f"{len(groups)} module groups ({groups[0]}, ...)"
    return f"alarm: its update of {what} is {alarm['ratio']:g} times as far from the model as the others'"


def _alarm(site: str, kind: str, groups: list[str], ratio: float | None = None) -> dict[str, Any]:
    return {"site": site, "kind": kind, "groups": groups, "ratio": ratio}


def _checksum(vector: np.ndarray) -> int:
    """Of the bytes, but for the last few where eight do not divide them: a tenth of the time of a hash, and nobody hides here."""
    per = 8 // vector.itemsize
    return int(vector[: len(vector) // per * per].view(np.uint64).sum())


def _norm(vector: np.ndarray, start: np.ndarray) -> float:
    """Of the change; in float32, which is ten times as fast, unless that is too narrow for it."""
    change = vector - start
    square = float(np.dot(change, change))
    if math.isfinite(square) and (square > 0 or not change.any()):
        return math.sqrt(square)
    wide = np.subtract(vector, start, dtype=np.float64)
    return math.sqrt(float(np.dot(wide, wide)))
