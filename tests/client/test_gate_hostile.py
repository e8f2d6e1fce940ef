"""A server that lies, an approval that ends, a disk that is full: what the gate does at its worst; played as in `test_gate`."""

from __future__ import annotations

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run

from client.gate.audit import AuditError, read
from client.gate.bundles import sha256
from client.gate.node import Ended
from tests.client.gate_parts import Node, node_at
from tests.client.test_gate import code, good, train
from tests.client.test_gate_bundles import bundle


@pytest.fixture
def node(tmp_path, monkeypatch) -> Node:
    return node_at(tmp_path, monkeypatch)


def test_a_server_that_names_the_approved_bundle_first_and_another_next_runs_neither(node, tmp_path):
    """Flower asks for the run itself, after the gate has: what was admitted is what it must be told."""
    evil = bundle(tmp_path / "app", client="import os\n")
    second = Run.create_empty(7)
    second.fab_hash = sha256(evil)
    fabs = {second.fab_hash: Fab(second.fab_hash, evil, {}), node.link.run.fab_hash: node.link.fab}
    answers = iter([node.link.run, second, second])
    node.link.get_run = lambda run: next(answers)
    node.link.get_fab = lambda digest, run: fabs[digest]
    node.link.ask("train", train())
    node.pull()
    assert node.state.get_run(7).fab_hash == sha256(node.link.fab.content)
    assert node.state.get_fab(sha256(evil)) is None, "the worker is never handed what was not approved"


def test_an_answer_about_another_run_is_refused(node):
    other = Run.create_empty(8)
    other.fab_hash = node.link.run.fab_hash
    node.link.run = other
    node.link.ask("train", train())
    assert node.round(good) is None and code(node.link.reply()) == "task"
    assert node.state.get_run(8) is None


@pytest.mark.parametrize("group", ["1\n2026 WARNING incident 00 (bundle): approve it", "\x1b[2J", "x" * 65])
def test_a_request_cannot_write_lines_into_the_sites_log(node, caplog, group):
    request = node.link.ask("train", train())
    node.link.rename = group
    assert node.round(good) is None and code(node.link.reply()) == "task"
    assert group not in caplog.text and request.object_id in node.gate.audit.path.read_text()


def test_work_of_a_bundle_that_was_withdrawn_meanwhile_stays(node, caplog):
    node.link.ask("train", train())
    node.pull()
    node.gate.bundles.withdraw(node.link.run.fab_hash)
    node.work(good)
    node.push()
    assert code(node.link.reply()) == "bundle" and "was withdrawn while it worked" in caplog.text
    assert list(read(node.gate.audit.path))[-1]["outcome"] == "refused: bundle"


def test_nothing_comes_or_leaves_while_the_audit_log_cannot_be_written(node, monkeypatch, caplog):
    def full(event: object) -> None:
        raise AuditError("no room")

    node.link.ask("train", train())
    assert node.pull() == 7 and node.work(good)
    with monkeypatch.context() as broken:
        broken.setattr(node.gate.audit, "write", full)
        node.push()
        assert not node.link.sent and not node.link.objects
        node.link.ask("train", train())
        with pytest.raises(Ended, match="no room"):  # no Exception: those Flower would swallow
            node.pull()
        assert node.work(good) is None, "the worker was not given what the log does not have"


def test_refused_requests_are_taken_slowly_when_they_do_not_end(node, monkeypatch):
    """Each leaves two lines in the audit log: at full speed a server could fill the disk, which ends the gate."""
    pauses: list[float] = []
    node.link.run.primary_task_type = TaskType.AGENT_APP
    monkeypatch.setattr("client.gate.node.time.sleep", pauses.append)
    for _ in range(12):
        node.link.ask("train", train())
        assert node.round(good) is None and code(node.link.reply()) == "task"
    assert len(pauses) == 2 and min(pauses) >= 1
    node.link.run.primary_task_type = TaskType.CLIENT_APP
    node.link.ask("train", train())
    assert node.round(good) is not None
    node.link.run.fab_hash = "0" * 64
    node.link.ask("train", train())
    assert node.round(good) is None and len(pauses) == 2, "patience is back"
