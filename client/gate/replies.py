"""What the gate sends: a checked reply in an order that says nothing, refusals and errors in its own words under its own ids."""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from client.gate.asked import Asked
from client.gate.audit import Event
from medmap_model import contract

log = logging.getLogger("medmap.gate")


@dataclass
class Open:
    """A request that is not answered yet: its message without content, what was asked, how large it was, its bundle."""

    message: Message
    bundle: str
    asked: Asked
    bytes: int = 0

    def event(self, direction: str, outcome: str, peer: str, reply: Message | None = None) -> Event:
        """A line of the audit log on it, or on the reply to it."""
        meta = self.message.metadata
        incident, object_id = "", meta.message_id
        if reply is not None:
            object_id = reply.metadata.message_id
            if reply.has_content() and (told := reply.content.config_records.get(contract.REFUSAL)):
                incident = str(told["incident"])
        return Event(
            direction, outcome, peer, str(meta.run_id), meta.message_type, meta.group_id, self.bytes, object_id,
            meta.message_id, self.bundle, incident,
        )  # fmt: skip


def refusal(code: str, why: str) -> RecordDict:
    """What the server is told, while the log has why."""
    incident = uuid.uuid4().hex[:12]
    log.warning("incident %s (%s): %s", incident, code, why)
    return RecordDict({contract.REFUSAL: ConfigRecord({"code": code, "incident": incident})})


def runtime_error(error: Error) -> Error:
    """An error of Flower's runtime in the worker, in fixed words: its own are an exception's text."""
    incident = uuid.uuid4().hex[:12]
    log.warning("incident %s: the worker's runtime says %s", incident, error.reason)
    code = error.code if error.code in vars(ErrorCode).values() else ErrorCode.UNKNOWN
    return Error(code, f"the site failed; its own log has the incident {incident}")


def outgoing(checked: RecordDict) -> RecordDict:
    """A reply that may leave, without what its worker could have said beside it: names are in alphabetical order, and a refusal
    has an incident of the gate's own, whose line in the log says which of the worker's log it is."""
    if told := checked.config_records.get(contract.REFUSAL):
        return refusal(str(told["code"]), f"the worker refused; worker.log has it as incident {told['incident']!s}")
    made = RecordDict()
    for name in sorted(checked):
        match checked[name]:
            case ArrayRecord() as arrays:
                made[name] = ArrayRecord({group: arrays[group] for group in sorted(arrays)})
            case MetricRecord() as figures:
                made[name] = MetricRecord({figure: figures[figure] for figure in sorted(figures)})
            case ConfigRecord() as fields:  # one, of JSON
                said = json.loads(str(fields[name]))
                made[name] = ConfigRecord({name: json.dumps(said, sort_keys=True)})
    return made
