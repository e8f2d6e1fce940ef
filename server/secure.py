"""The server's side of secure aggregation: one round's keys, shares, masked sums and their unmasking.

In: per site, module group -> (n,) masked numbers. Out: module group -> the weighted mean over the sites that returned, or the
vector as it was where fewer than `strategy.secure_min` of its owners did. The server holds running sums modulo 2^bits; it
never holds what would unmask one site's numbers, as long as sites keep to `client/secure.py`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from configs.federated import StrategyConfig
from medmap_model.secure import keys, shamir
from medmap_model.secure.masks import own_mask, pair_mask
from medmap_model.secure.quantise import Quantiser
from server.aggregation import Vectors, check
from server.members import FederationError

Weights = dict[int, dict[str, int]]  # node -> its module groups, with their weight in the average
Bodies = Mapping[int, Mapping[str, Any]]


def hidden(groups: Mapping[int, Mapping[str, int]], minimum: int) -> tuple[Weights, list[str]]:
    """What a sum can hide: node -> those of its groups that `minimum` nodes or more own; and the names of the others."""
    owners = _owners(groups)
    alone = sorted(g for g, nodes in owners.items() if len(nodes) < minimum)
    kept = {n: {g: w for g, w in weights.items() if g not in alone} for n, weights in groups.items()}
    return {n: weights for n, weights in kept.items() if weights}, alone


def say_what_stays(
    groups: Mapping[int, Mapping[str, int]], minimum: int, stage: str, tell: Callable[[str], None]
) -> None:
    """Name the module groups with too few owners for a sum to hide them. Raises FederationError when it is all of them."""
    asked, alone = hidden(groups, minimum)
    if alone:
        tell(f"secure aggregation needs {minimum} owners of a module group; not trained in {stage}: {', '.join(alone)}")
    if not asked:
        raise FederationError(
            f"{stage}: no module group has {minimum} owners, so that secure aggregation could train nothing; "
            "more sites, model.sharing=shared, or strategy.secure_aggregation=false"
        )


class SecureRound:
    """One round: `open`, then a `ticket` with each train message, `add` each masked update, `result`.

    current: the global model, group -> (n,) float32. groups: node -> its groups with their weights. ask: sends the bodies of
    one step; returns the answers, and why others gave none (`exchange.ask`). tell: hears what is not done, and by whom.
    """

    def __init__(
        self,
        current: Mapping[str, np.ndarray],
        groups: Mapping[int, Mapping[str, int]],
        names: Mapping[int, str],
        strategy: StrategyConfig,
        *,
        ask: Callable[[str, Bodies], tuple[dict[int, dict[str, Any]], dict[int, str]]],
        tell: Callable[..., None],
    ) -> None:
        self.current, self.names, self.strategy, self._send, self._tell = current, names, strategy, ask, tell
        self.asked, _ = hidden(groups, strategy.secure_min)
        self.groups: Weights = {}
        self.summed: set[str] = set()
        self._id = secrets.token_hex(16)
        self._number = {node: i for i, node in enumerate(sorted(self.asked), 1)}
        self._keys: dict[int, dict[str, str]] = {}
        self._sealed: dict[int, dict[str, str]] = {}
        self._threshold = 0
        self._sums: dict[str, np.ndarray] = {}

    def open(self) -> Weights:
        """Exchange keys and shares. Node -> groups it may return, of the sites that did both; empty when they are too few."""
        answers = self._ask("secure_keys", {n: {"round": self._id, "me": i} for n, i in self._number.items()})
        self._keys = {
            n: {k: str(a[k]) for k in ("cipher", "mask")} for n, a in answers.items() if {"cipher", "mask"} <= set(a)
        }
        present, _ = hidden({n: self.asked[n] for n in self._keys}, self.strategy.secure_min)
        self._keys = {n: self._keys[n] for n in sorted(present)}
        self._threshold = len(self._keys) // 2 + 1
        request = {
            "round": self._id,
            "threshold": self._threshold,
            "keys": {str(self._number[n]): k for n, k in self._keys.items()},
            "groups": {g: [self._number[n] for n in nodes] for g, nodes in _owners(present).items()},
        }
        answers = self._ask("secure_shares", dict.fromkeys(self._keys, request))
        everyone = {str(self._number[n]) for n in self._keys}
        self._sealed = {
            n: a["sealed"]
            for n, a in answers.items()
            if isinstance(a.get("sealed"), dict) and set(a["sealed"]) == everyone - {str(self._number[n])}
        }
        self.groups, _ = hidden({n: present[n] for n in sorted(self._sealed)}, self.strategy.secure_min)
        lost = sorted(set(_owners(self.asked)) - set(_owners(self.groups)))
        if len(self._sealed) < max(self._threshold, 1) or not self.groups:
            self._tell(f"secure sum: {len(self._sealed)} of {len(self.asked)} sites gave keys and shares, too few")
            self.groups = {}
        elif lost:
            self._tell(f"secure sum: too few sites of {', '.join(lost)} are here; not trained in this round")
        return self.groups

    def ticket(self, node: int) -> dict[str, Any]:
        """What a site needs to mask its update: the shares for it, and its weights and those of all owners together."""
        me = str(self._number[node])
        totals = {g: sum(self.groups[n][g] for n in nodes) for g, nodes in _owners(self.groups).items()}
        return {
            "round": self._id,
            "sealed": {str(self._number[n]): s[me] for n, s in self._sealed.items() if n != node},
            "weights": {g: [w, totals[g]] for g, w in self.groups[node].items()},
        }

    def add(self, update: Mapping[str, np.ndarray], owned: Mapping[str, int]) -> None:
        """Add a masked update to the sums, whole. Raises UpdateRefused and adds nothing."""
        dtype = np.dtype(f"uint{self.strategy.secure_bits}")
        check(update, owned, self.current, dtype=dtype)
        for group, numbers in update.items():
            if group in self._sums:
                self._sums[group] += numbers
            else:
                self._sums[group] = numbers.copy()

    def result(self, returned: Collection[int]) -> Vectors | None:
        """The next global model; None when the sums cannot be unmasked. returned: the nodes whose updates were added."""
        request = {"round": self._id, "returned": sorted(self._number[n] for n in returned)}
        kept, lost = hidden({n: self.groups[n] for n in returned}, self.strategy.secure_min)
        if len(returned) < self._threshold or not kept:
            self._tell(f"secure sum: {len(returned)} of {len(self.groups)} sites returned, too few to unmask anything")
            return None
        answers = self._ask("secure_unmask", dict.fromkeys(self.groups, request))
        if len(answers) < self._threshold:
            self._tell(f"secure sum: {len(answers)} sites gave their shares, {self._threshold} are needed to unmask")
            return None
        if lost:
            self._tell(f"secure sum: too few sites returned {', '.join(lost)}; kept as before")
        self.summed = {g for groups in kept.values() for g in groups}
        shares = {self._number[n]: a.get("shares", {}) for n, a in answers.items()}
        try:
            return {g: self._mean(g, kept, shares) if g in self.summed else v for g, v in self.current.items()}
        except (ValueError, LookupError, TypeError) as error:
            self._tell(f"secure sum: a site's shares are wrong ({error}); the round is void")
            return None

    def _ask(self, step: str, bodies: Bodies) -> dict[int, dict[str, Any]]:
        answers, silent = self._send(step, bodies)
        for node, reason in silent.items():
            self._tell(f"secure sum: {reason}", self.names[node])
        return answers

    def _mean(self, group: str, kept: Weights, shares: Mapping[int, Mapping[str, Any]]) -> np.ndarray:
        """(n,) float32: the group's vector plus the mean change of the nodes in `kept`."""
        owners = _owners(self.groups)[group]
        quantiser = Quantiser(self.strategy.secure_clip, self.strategy.secure_bits, len(owners))
        total, where = self._sums[group].copy(), {"round_id": self._id, "group": group}
        returned = [n for n in owners if group in kept.get(n, {})]
        for node in returned:
            seed = self._combine(node, shares, "seeds", group)
            total -= own_mask(seed, len(total), quantiser.dtype, **where)
        for gone in set(owners) - set(returned):
            secret = self._combine(gone, shares, "key")
            if keys.public_of(secret).hex() != self._keys[gone]["mask"]:
                raise ValueError("they are of another key")
            for node in returned:
                public = bytes.fromhex(self._keys[node]["mask"])
                me, other = self._number[node], self._number[gone]
                total -= pair_mask(secret, public, len(total), quantiser.dtype, me=me, other=other, **where)
        whole = sum(self.groups[n][group] for n in owners)
        part = sum(self.groups[n][group] for n in returned)
        return (self.current[group] + quantiser.decode(total) * (whole / part)).astype(np.float32)

    def _combine(self, node: int, shares: Mapping[int, Mapping[str, Any]], *path: str) -> bytes:
        """The secret of a node that the answers hold shares of."""
        found: dict[int, bytes] = {}
        for holder, answer in shares.items():
            value: Any = answer[str(self._number[node])]
            for step in path:
                value = value[step]
            found[holder] = bytes.fromhex(value)
        return shamir.combine(found, threshold=self._threshold)


def _owners(groups: Mapping[int, Mapping[str, int]]) -> dict[str, list[int]]:
    """Module group -> the nodes that own it."""
    owners: dict[str, list[int]] = {}
    for node in sorted(groups):
        for group in groups[node]:
            owners.setdefault(group, []).append(node)
    return owners
