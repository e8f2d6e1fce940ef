"""A small Flower app for a gate: a card, a figure that may not leave, and an exception with a patient in it."""

from __future__ import annotations

APP = {
    "pyproject.toml": """\
[project]
name = "tiny"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "lab"
fab-include = ["**/*.py"]
[tool.flwr.app.components]
serverapp = "asks:app"
clientapp = "answers:app"
[tool.flwr.app.config]
""",
    "asks.py": """\
import time
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
def ask(grid, *kinds):
    node = next(iter(grid.get_node_ids()))
    messages = [Message(RecordDict(), dst_node_id=node, message_type=kind, group_id="join") for kind in kinds]
    replies = list(grid.send_and_receive(messages, timeout=60))
    for reply in replies:
        said = f"error {reply.error.code} {reply.error.reason}" if reply.has_error() else dict(reply.content)
        print("ANSWER", reply.metadata.message_type, said, flush=True)
    return replies
@app.main()
def main(grid, context):
    while not list(grid.get_node_ids()):
        time.sleep(1)
    while "refusal" in ask(grid, "query")[0].content:
        pass
    ask(grid, "evaluate", "train")
""",
    "answers.py": """\
import json
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
CARD = {"site": "north", "volumes": {"T1": 40}, "studies": {"brain": 40}, "splits": {"train": 40},
        "vocabulary_hash": "ab", "text_hash": "cd", "version": 2}
@app.query()
def query(message, context):
    return Message(RecordDict({"card": ConfigRecord({"card": json.dumps(CARD)})}), reply_to=message)
@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"age_of_patient_4711": 63.0})}), reply_to=message)
@app.train()
def train(message, context):
    raise ValueError("patient 4711 is not readable")
""",
}
