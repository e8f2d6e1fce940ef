"""All that leaves a private site, message by message: whitelisted records and keys, exactly, and no name in any byte."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.constant import SType
from flwr.common.serde import message_to_proto

from client.privacy.ledger import Receipt
from client.problems import DataError
from client.records import SiteRecords
from client.site import SiteError
from client.training import Diverged
from medmap_model import contract
from medmap_model.contract import Task
from server.exchange import Broadcast
from server.members import FederationError
from simulation.engines import InProcessGrid
from tests.client.privacy.test_federation import ledger, run
from tests.conftest import write_hospital

SETTINGS = (
    "stage.pretrain.rounds=1", "stage.finetune.rounds=1", "stage.pretrain.objective=bank", "privacy.engine=vmap",
)  # fmt: skip


RECEIPT, TOLD = {"ledger", "seq", "hash"}, {"spent", "budget"}  # the latter by choice: privacy.tell_budget


class Kept(InProcessGrid):
    """Keeps every request with its reply."""

    exchanged: list[tuple[Message, Message]] = []
    latest: InProcessGrid

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        Kept.latest = self
        Kept.exchanged.append((message, reply))
        return reply


@dataclass
class Transcript:
    """One federation of two hospitals with as many patients and the same modalities, but other patients."""

    folder: Path
    hospitals: dict[str, Path]
    vectors: Mapping[str, np.ndarray]
    grid: InProcessGrid
    exchanged: list[tuple[Message, Message]]

    @property
    def layout(self) -> dict[str, int]:
        return {group: len(vector) for group, vector in self.vectors.items()}

    def of(self, node: int, kind: str) -> list[tuple[Message, Message]]:
        return [(q, r) for q, r in self.exchanged if (q.metadata.dst_node_id, q.metadata.message_type) == (node, kind)]

    @property
    def nodes(self) -> list[int]:
        return sorted({q.metadata.dst_node_id for q, _ in self.exchanged})


def names_of(hospitals: Mapping[str, Path]) -> set[bytes]:
    """Every patient, study, file, report and folder of the hospitals."""
    found = set()
    for manifest in hospitals.values():
        with manifest.open(newline="") as f:
            for row in csv.DictReader(f):
                found |= {row[c] for c in ("patient_id", "study_id", "image", "report")}
        found |= {str(manifest), manifest.parent.name}
    return {name.encode() for name in found}


def serialised(message: Message) -> bytes:
    return message_to_proto(message).SerializeToString()


def named_in(data: bytes, names: set[bytes]) -> set[bytes]:
    return {n for n in names if n in data}


@pytest.fixture(scope="module")
def two_hospitals(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("archive")
    return {
        "east": write_hospital(root / "Mustermann", ["T1", "FLAIR"], patients=8, seed=1),
        "west": write_hospital(root / "Musterfrau", ["T1", "FLAIR"], patients=8, seed=2),
    }


@pytest.fixture(scope="module")
def private(tmp_path_factory, two_hospitals, cache) -> Transcript:
    folder = tmp_path_factory.mktemp("private")
    Kept.exchanged = []
    f, _ = run(folder, two_hospitals, cache, *SETTINGS, spy=Kept)
    return Transcript(folder, two_hospitals, f.vectors, Kept.latest, Kept.exchanged[:])


def undeclared(request: Message, reply: Message, layout: Mapping[str, int]) -> list[str]:
    """What a private reply holds that it should not, or lacks."""
    kind, records = request.metadata.message_type, {str(k): reply.content[k] for k in reply.content}
    expected = {
        "query": {contract.CARD},
        "train": {contract.ARRAYS, contract.METRICS_RECORD, contract.RECEIPT},
        "evaluate": {contract.METRICS_RECORD},
    }[kind]
    wrong = [f"record {k}" for k in set(records) ^ expected]
    wrong += [f"figure {k}" for k in records.get(contract.METRICS_RECORD, ())]
    keys = {contract.CARD: {f.name for f in fields(contract.Card)}, contract.RECEIPT: RECEIPT | TOLD}
    for name, allowed in keys.items():
        if name not in records:
            continue
        wrong += [f"{name}/{k}" for k in set(records[name]) ^ {name}]
        wrong += [f"{name}: {k}" for k in set(json.loads(str(records[name][name]))) ^ allowed]
    if kind == "train":
        wrong += [f"array {k}" for k in set(records[contract.ARRAYS]) ^ set(request.content[contract.ARRAYS])]
        for group, array in records[contract.ARRAYS].items():
            n = layout.get(group)
            header = len(contract.encode_vector(np.zeros(0, np.float32)))
            if (array.dtype, tuple(array.shape), len(array.data)) != ("float32", (n,), header + 4 * (n or 0)):
                wrong.append(f"size of {group}")
    return wrong


def test_every_reply_holds_what_is_whitelisted_and_no_more(private):
    kinds = [q.metadata.message_type for q, _ in private.exchanged]
    assert {k: kinds.count(k) for k in kinds} == {"query": 2, "train": 4, "evaluate": 4}
    for request, reply in private.exchanged:
        assert not reply.has_error()
        assert undeclared(request, reply, private.layout) == []


def test_receipts_are_entries_of_the_sites_own_ledger(private):
    for node, site in zip(private.nodes, private.hospitals, strict=True):
        receipts = [
            Receipt(**{k: v for k, v in told.items() if k in RECEIPT})
            for told in (
                json.loads(str(r.content[contract.RECEIPT][contract.RECEIPT])) for _, r in private.of(node, "train")
            )
        ]
        assert len(receipts) == 2
        for receipt in receipts:
            ledger(private.folder, site).check_receipt(receipt)


def test_groups_that_a_site_does_not_own_come_back_as_they_were_sent(private):
    """Even when a server sends the whole model."""
    task = Task("finetune", 0, 1, 0, run="another", message="m")
    request = Broadcast(private.vectors).message(private.nodes[0], "train", private.vectors, task, wait_s=60)
    [reply] = private.grid.send_and_receive([request])
    assert undeclared(request, reply, private.layout) == []
    got = {g: array.data for g, array in reply.content[contract.ARRAYS].items()}
    changed = {g for g, data in got.items() if data != contract.encode_vector(private.vectors[g])}
    assert {"encoder/T1", "encoder/FLAIR", "projection/T1", "fusion", "head/brain"} <= changed
    own = {"T1", "FLAIR", "brain", "fusion", "text_projection"}
    assert {g.split("/")[-1] for g in changed} == own


def test_other_patients_change_nothing_but_vectors_and_hashes(private):
    """No loss, no count, no time: of hospitals of one size, replies to one request are of one shape and one length."""
    for kind in ("train", "evaluate"):
        for (_, a), (_, b) in zip(*(private.of(node, kind) for node in private.nodes), strict=True):
            assert len(serialised(a)) == len(serialised(b))
            assert list(a.content) == list(b.content)
            if kind == "train":
                first, second = (json.loads(str(m.content[contract.RECEIPT][contract.RECEIPT])) for m in (a, b))
                assert first["seq"] == second["seq"] and first["hash"] != second["hash"]


def test_no_name_is_in_any_byte_that_leaves(private):
    names = names_of(private.hospitals)
    assert len(names) > 50
    for _, reply in private.exchanged:
        assert not named_in(serialised(reply), names)
    assert b"east" in serialised(private.exchanged[0][1])  # the site's own name is: the search does find what is there


@pytest.mark.parametrize(
    "leak",
    ["a record", "a figure", "a buffer", "a longer vector", "a field of the receipt", "the receipt missing", "a group"],
)
def test_each_thing_too_many_is_noticed(private, leak):
    """The negative control of the whitelist, on a real reply."""
    request, reply = private.of(private.nodes[0], "train")[0]
    content = reply.content.copy()
    vectors = dict(content[contract.ARRAYS])
    some = next(iter(vectors))

    def array(n: int) -> Array:
        return Array("float32", (n,), SType.NUMPY, contract.encode_vector(np.zeros(n, np.float32)))

    if leak == "a record":
        content["state"] = ConfigRecord({"x": 1})
    elif leak == "a figure":
        content[contract.METRICS_RECORD] = MetricRecord({"loss": 0.5})
    elif leak == "a buffer":
        content[contract.ARRAYS] = ArrayRecord({**vectors, "encoder/T1.running_mean": array(4)})
    elif leak == "a longer vector":
        content[contract.ARRAYS] = ArrayRecord({**vectors, some: array(private.layout[some] + 1)})
    elif leak == "a field of the receipt":
        told = {**json.loads(str(content[contract.RECEIPT][contract.RECEIPT])), "clipped": 0.4}
        content[contract.RECEIPT] = ConfigRecord({contract.RECEIPT: json.dumps(told)})
    elif leak == "the receipt missing":
        del content[contract.RECEIPT]
    else:
        content[contract.ARRAYS] = ArrayRecord({g: v for g, v in vectors.items() if g != some})
    assert undeclared(request, Message(content, reply_to=request), private.layout)


def test_a_site_without_privacy_fails_the_whitelist(tmp_path, two_hospitals, cache, private):
    Kept.exchanged = []
    run(tmp_path, two_hospitals, cache, *SETTINGS, "privacy.kind=none", "stage.pretrain.rounds=0", spy=Kept)
    found = {w for q, r in Kept.exchanged for w in undeclared(q, r, private.layout)}
    assert {"figure loss", "figure val_loss", "figure train_s", f"record {contract.RECEIPT}"} <= found


SECRET = "patient Erika Mustermann, id 4711-0815, /archive/Mustermann/Mustermann-train-0-T1.nii.gz"
FAILURES = {
    "internal": RuntimeError(SECRET),
    "data": DataError(SECRET, []),
    "diverged": Diverged(SECRET),
    "policy": SiteError("policy", SECRET),
}
WORDS = {w.encode() for w in ("Erika", "Mustermann", "4711-0815", "/archive", ".nii.gz", "Traceback", "Error")}


@pytest.mark.parametrize("code", FAILURES)
def test_the_text_of_a_failure_in_training_stays_with_the_site(
    code, tmp_path, two_hospitals, cache, monkeypatch, caplog
):
    def fail(self, patients, **_):
        raise FAILURES[code] from OSError(SECRET)

    monkeypatch.setattr(SiteRecords, "batches_of", fail)
    Kept.exchanged = []
    with caplog.at_level(logging.DEBUG), pytest.raises(FederationError) as raised:
        run(tmp_path, two_hospitals, cache, *SETTINGS, "stage.pretrain.rounds=0", "strategy.retries=0", spy=Kept)
    refused = [(q, r) for q, r in Kept.exchanged if contract.REFUSAL in r.content]
    assert [q.metadata.message_type for q, _ in refused] == ["train", "train"]
    names = names_of(two_hospitals) | WORDS
    for _, reply in refused:
        assert list(reply.content) == [contract.REFUSAL]
        assert set(reply.content[contract.REFUSAL]) == {"code", "incident"}
        assert reply.content[contract.REFUSAL]["code"] == code
        assert not named_in(serialised(reply), names)
    own, rest = [], [str(raised.value)]
    for record in caplog.records:
        (own if record.name == "medmap.client" else rest).append(logging.Formatter().format(record))
    assert "Erika" in "".join(own)  # it did fail so, and the site can read it
    assert not named_in("\n".join(rest).encode(), WORDS)
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or not named_in(path.read_bytes(), names), path.name
    for site in two_hospitals:  # charged before a patient was touched; a refusal leaves too
        assert [c.released for c in ledger(tmp_path, site).charges()] == [True]


def test_a_file_that_cannot_be_read_is_not_named_to_the_server(tmp_path, cache, caplog):
    """The real thing: a truncated volume, and settings that stop for it."""
    manifest = write_hospital(tmp_path / "Mustermann", ["T1"], patients=4)
    broken = manifest.parent / "Mustermann-train-2-T1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:60])
    Kept.exchanged = []
    with caplog.at_level(logging.INFO), pytest.raises(FederationError) as raised:
        run(
            tmp_path, {"east": manifest}, cache, "data.volumes.on_bad_volume=stop", "strategy.join_timeout_s=0", spy=Kept
        )  # fmt: skip
    [reply] = [r for _, r in Kept.exchanged]
    assert reply.content[contract.REFUSAL]["code"] == "data"
    names = names_of({"east": manifest})
    assert not named_in(serialised(reply), names)
    assert not named_in(str(raised.value).encode(), names)
    assert broken.name in caplog.text  # the site's own log
