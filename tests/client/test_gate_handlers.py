"""What an exception in a handler tells the server: a code and an incident, nothing of its text."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

import client.app as flower
from medmap_model import contract
from tests.client.test_egress import said

SECRET = "Anna Muster /data/mri/patient-4711.nii.gz"


def test_every_handlers_exception_is_a_code_and_its_text_stays(monkeypatch, caplog):
    """Names, paths and ids in an exception, its cause and its notes; in each handler that there is."""

    def fails(*_: Any) -> Any:
        error = ValueError(f"{SECRET} is not readable", {"patient_id": "4711", "path": Path("/data/mri")})
        error.add_note(SECRET)
        raise error from OSError(2, "No such file", SECRET)

    for name in ("_site", "_secure"):
        monkeypatch.setattr(flower, name, fails)
    monkeypatch.setattr(flower, "_strategy", lambda config: None)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    kinds = [k.removesuffix(".default") for k in flower.app._registered_funcs]
    assert len(kinds) >= 8
    for kind in kinds:
        caplog.clear()
        request = Message(RecordDict({"secure": said("secure", {})}), dst_node_id=2, message_type=kind, group_id="1")
        context = Context(7, 2, {}, RecordDict(), {"config": "{}"})
        with caplog.at_level(logging.ERROR, "medmap.client"):
            reply = flower.app(request, context)
        refusal = dict(reply.content[contract.REFUSAL])
        assert (
            set(reply.content) == {contract.REFUSAL}
            and refusal["code"] == "internal"
            and set(refusal) == {"code", "incident"}
        )
        sent = b"".join(o.deflate() for o in get_all_nested_objects(reply).values())
        for word in (b"Anna", b"Muster", b"4711", b"/data", b"nii", b"Error", b"readable"):
            assert word not in sent, (kind, word)
        assert SECRET in caplog.text and str(refusal["incident"]) in caplog.text, "the site's own log has all of it"
