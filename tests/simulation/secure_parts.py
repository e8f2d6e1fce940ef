"""Five hospitals whose training is a known addition, behind the real client, and a wire that loses messages."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

import client.app
from client.training import Diverged, Figures
from configs import from_json, load, load_vocabulary, to_json
from medmap_model.contract import Card
from medmap_model.groups import group_names
from medmap_model.secure.quantise import Quantiser
from server.rounds import Federation
from simulation.engines import InProcessGrid

VOCABULARY = load_vocabulary("medmom")
GROUPS = group_names(VOCABULARY)
N = 4096  # parameters in each group
LAYOUT = {g: [(f"p.{g}", (N,))] for g in GROUPS}
# T1: all five; T2: three; FLAIR: two, whom a sum cannot hide.
VOLUMES = [
    {"T1": 10, "T2": 7},
    {"T1": 300, "T2": 1},
    {"T1": 30, "T2": 40},
    {"T1": 5, "FLAIR": 9},
    {"T1": 8, "FLAIR": 2},
]
HIDDEN = {"encoder/T1", "projection/T1", "encoder/T2", "projection/T2", "text_projection"}
ALONE = {"encoder/FLAIR", "projection/FLAIR"}
STEP = Quantiser(clip=1.0, bits=32, sites=5).step
TOLERANCE = 5 * STEP + 1e-7  # quantised, then rounded to float32
MESSAGES = ("query.secure_keys", "query.secure_shares", "train", "query.secure_unmask")


class Ward:
    """A hospital whose training adds `change(site, round, group)`; everything else is the real client."""

    def __init__(self, number: int) -> None:
        self.number, self.config, self.fail = number, None, False
        self.given: list[tuple[set[str], set[str]]] = []  # per round: groups received, groups to train

    def card(self) -> Card:
        volumes = VOLUMES[self.number]
        return Card(f"h{self.number}", volumes, {"brain": volumes["T1"]}, {"train": 9}, VOCABULARY.hash, "text")

    def train(self, vectors, task, *, only=None):
        if self.fail:
            raise Diverged("on purpose")
        self.given.append((set(vectors), set(only or vectors)))
        after = {g: vectors[g] + change(self.number, task.round, g) for g in only or vectors}
        return after, Figures(loss=1.0)

    def evaluate(self, vectors, task):
        return Figures()


def change(site: int, number: int, group: str) -> np.ndarray:
    rng = np.random.default_rng([site, number, *map(ord, group)])
    return rng.normal(0.1 * site, 0.05, N).astype(np.float32)


def mean_change(number: int, group: str, sites) -> np.ndarray:
    modality = group.split("/")[1] if "/" in group else "T1"
    weights = {s: VOLUMES[s].get(modality, 0) for s in sites}
    owners = [s for s in sites if weights[s]]
    return np.average([change(s, number, group) for s in owners], axis=0, weights=[weights[s] for s in owners])


class Wire(InProcessGrid):
    """Keeps all that the server sends and gets; loses messages on the way (`before` the site) or their replies (`after`)."""

    def __init__(self, *args, lose=()) -> None:
        super().__init__(*args)
        self.lose, self.seen, self.dropped = list(lose), [], []

    def _answer(self, message: Message) -> Message:
        site = self._contexts[message.metadata.dst_node_id].node_config["partition-id"]
        kind = message.metadata.message_type
        lost = next((x for x in self.lose if x[:2] == (site, kind)), None)
        if lost:
            self.lose.remove(lost)
        gone = Message(Error(code=ErrorCode.NODE_UNAVAILABLE), reply_to=message)
        if lost and lost[2] == "before":
            return gone
        reply = super()._answer(message)
        if lost:
            self.dropped.append(reply)
            return gone
        self.seen.append((site, kind, message, reply))
        return reply


@pytest.fixture
def wards(monkeypatch):
    """Site number -> its Ward, as the real handlers find them."""
    found: dict[int, Ward] = {}
    configs: dict = {}

    def site(context):
        number, text = context.node_config["partition-id"], context.run_config["config"]
        if text not in configs:
            configs[text] = from_json(text)
        found.setdefault(number, Ward(number)).config = configs[text]
        return found[number]

    monkeypatch.setattr(client.app, "_site", site)
    return found


def settings(*overrides: str):
    return load([
        "strategy=secure", "stage.pretrain.rounds=1", "stage.finetune.rounds=0", "strategy.join_timeout_s=0", "strategy.retries=0", *overrides,
    ])  # fmt: skip


def run(folder, *overrides: str, lose=(), sites: int = 5):
    folder.mkdir(exist_ok=True)
    config = settings(*overrides)
    wire = Wire(client.app.app, sites, {"config": to_json(config)}, lose=lose)
    told: list[str] = []
    f = Federation(
        wire, config, VOCABULARY, initial={g: np.full(N, 0.5, np.float32) for g in GROUPS}, layout=LAYOUT, text_hash="text",
        folder=folder, sites=sites, progress=lambda e: told.append(f"{e.site} {e.text}".strip()),
    )  # fmt: skip
    f.told, f.wire = told, wire
    f.run()
    return f
