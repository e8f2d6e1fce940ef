"""A site's side of secure aggregation: its secrets of one round, and what it answers in each phase. Knows nothing of Flower.

    keys -> shares -> admit, (training), mask -> unmask

Every step is done once per round, in this order, and refuses what would let a single update out: too few sites behind a
sum, a threshold that is no majority, both kinds of share of one site. The state between two messages is JSON-safe; it is
kept where the site's runtime keeps it (each message may be handled by another process), never sent, and gone after
`unmask`.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from client.site import SiteError
from configs.federated import StrategyConfig
from medmap_model.secure import keys, shamir
from medmap_model.secure.masks import own_mask, pair_mask
from medmap_model.secure.quantise import Quantiser

log = logging.getLogger("medmap.client")


class SecureSite:
    """One site in one round; the methods take and return the JSON bodies that `medmap_model.contract` lists.

    state: what the step before left, or nothing. Sites go by number, in JSON as text; `me` is this one's. Each step
    raises SiteError("secure") for a request out of order or against the rules.
    """

    def __init__(self, state: Mapping[str, Any], strategy: StrategyConfig) -> None:
        self.state, self.strategy = dict(state), strategy

    def keys(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Two fresh key pairs, one to seal shares and one to agree on masks; whatever was left of an earlier round goes."""
        secret = {"cipher": keys.new_secret().hex(), "mask": keys.new_secret().hex()}
        self.state = {"phase": "keys", "round": str(request["round"]), "me": int(request["me"]), "secret": secret}
        return {name: keys.public_of(bytes.fromhex(s)).hex() for name, s in secret.items()}

    def shares(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A seed for the own mask of every group owned; shares of these and of the mask key, sealed for each other site."""
        self._expect(request, "keys")
        others, groups = dict(request["keys"]), dict(request["groups"])
        threshold, me = int(request["threshold"]), self._me
        mine = others.pop(str(me), None)
        holders = [*map(int, others), me]
        if mine != {name: keys.public_of(self._secret(name)).hex() for name in ("cipher", "mask")}:
            raise SiteError("secure", "the list of keys does not hold this site's own: the round is not joined")
        if not len(holders) < 2 * threshold <= 2 * len(holders):
            raise SiteError(
                "secure", f"{threshold} of {len(holders)} sites could unmask: take more than half, at most all"
            )
        for group, owners in groups.items():
            self._enough(group, owners, holders)
        seeds = {g: secrets.token_bytes(32) for g, owners in groups.items() if me in owners}
        split = {g: shamir.split(seed, holders, threshold=threshold) for g, seed in seeds.items()}
        key = shamir.split(self._secret("mask"), holders, threshold=threshold)
        bundle = {str(i): {"key": key[i].hex(), "seeds": {g: split[g][i].hex() for g in split}} for i in holders}
        self.state |= {
            "phase": "shares",
            "keys": others,
            "groups": groups,
            "threshold": threshold,
            "seeds": {g: seed.hex() for g, seed in seeds.items()},
            "held": {str(me): bundle[str(me)]},
        }
        return {"sealed": {i: keys.seal(self._channel(i, me, i), json.dumps(bundle[i]).encode()).hex() for i in others}}

    def admit(self, request: Mapping[str, Any], groups: Iterable[str]) -> None:
        """Before training: open the shares that the others sent, and look at who will be summed in each of these groups."""
        self._expect(request, "shares")
        held = dict(self.state["held"])
        for other, sealed in request["sealed"].items():
            try:
                held[other] = json.loads(keys.unseal(self._channel(other, other, self._me), bytes.fromhex(sealed)))
            except ValueError as error:
                raise SiteError("secure", f"the shares of site {other}: {error}") from None
        if len(held) < self.state["threshold"]:
            raise SiteError("secure", f"{len(held)} sites are left, {self.state['threshold']} are needed to unmask")
        for group in groups:
            owners = self.state["groups"].get(group, [])
            if self._me not in owners:
                raise SiteError("secure", f"{group}: this site was not said to be among its owners")
            self._enough(group, owners, map(int, held))
        self.state |= {"phase": "admitted", "held": held, "weights": dict(request["weights"])}

    def mask(self, update: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Group -> (n,) masked numbers: the site's share of the mean change, quantised, plus its masks.

        update, start: group -> (n,) float32, after and before training. Raises SiteError("diverged") when it is not finite.
        """
        self._expect(self.state, "admitted")
        self.state["phase"] = "masked"
        held, me, cut = set(map(int, self.state["held"])), self._me, 0
        masked: dict[str, np.ndarray] = {}
        for group, vector in update.items():
            owners = set(self.state["groups"][group]) & held
            quantiser = Quantiser(self.strategy.secure_clip, self.strategy.secure_bits, len(owners))
            weight, total = self.state["weights"][group]
            change = vector - start[group]
            cut += int((np.abs(change) > quantiser.clip).sum())
            try:
                numbers = quantiser.encode(change, share=weight / total)
            except ValueError as error:
                raise SiteError("diverged", f"{group}: {error}") from None
            where: Any = {"round_id": self.state["round"], "group": group}
            numbers += own_mask(bytes.fromhex(self.state["seeds"][group]), len(numbers), quantiser.dtype, **where)
            for other in sorted(owners - {me}):
                public = bytes.fromhex(self.state["keys"][str(other)]["mask"])
                numbers += pair_mask(
                    self._secret("mask"), public, len(numbers), quantiser.dtype, me=me, other=other, **where
                )
            masked[group] = numbers
        if cut:
            log.warning(
                "%d parameters changed by more than strategy.secure_clip=%g: cut", cut, self.strategy.secure_clip
            )
        return masked

    def unmask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Of a site that returned, its seed's share in every group that enough sites returned; of another, its key's."""
        self._expect(request, "admitted", "masked")
        returned, held, groups = set(map(int, request["returned"])), self.state["held"], self.state["groups"]
        if not returned <= set(map(int, held)) or len(returned) < self.state["threshold"]:
            raise SiteError(
                "secure", f"{len(returned)} sites are said to have returned: too few, or others than took part"
            )
        shown = {g for g, owners in groups.items() if len(returned & set(owners)) >= self.strategy.secure_min}
        shares = {
            i: {"seeds": {g: s for g, s in bundle["seeds"].items() if g in shown}}
            if int(i) in returned
            else {"key": bundle["key"]}
            for i, bundle in held.items()
        }
        self.state = {}
        return {"shares": shares}

    @property
    def _me(self) -> int:
        return int(self.state["me"])

    def _secret(self, name: str) -> bytes:
        return bytes.fromhex(self.state["secret"][name])

    def _channel(self, other: str, sender: str | int, receiver: str | int) -> bytes:
        """The key with which the sender, this site or the other, seals its shares for the receiver."""
        if other not in self.state["keys"]:
            raise SiteError("secure", f"site {other} sent shares but no keys")
        public = bytes.fromhex(self.state["keys"][other]["cipher"])
        return keys.agree(self._secret("cipher"), public, "shares", self.state["round"], int(sender), int(receiver))

    def _expect(self, request: Mapping[str, Any], *phases: str) -> None:
        """The request is of this round, and of the step that is next."""
        phase = self.state.get("phase", "nothing")
        if phase not in phases or request.get("round") != self.state["round"]:
            raise SiteError("secure", f"a request out of order: of this round the site has '{phase}'")

    def _enough(self, group: str, owners: Iterable[int], present: Iterable[int]) -> None:
        left = len(set(owners) & set(present))
        if left < self.strategy.secure_min:
            raise SiteError("secure", f"{group}: a sum over {left} sites would tell too much (strategy.secure_min)")
