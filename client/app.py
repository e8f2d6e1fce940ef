"""Flower's side of a hospital: thin handlers around `client.site`. An exception's text never leaves the site."""

from __future__ import annotations

import functools
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SType

from medmap_model import contract
from medmap_model.contract import Task

if TYPE_CHECKING:
    from client.site import Site

log = logging.getLogger("medmap.client")
app = ClientApp()


def guarded(handler: Callable[[Message, Context], RecordDict]) -> Callable[[Message, Context], Message]:
    """Turn any failure into a fixed code and an incident id; the site's own log has the rest."""

    @functools.wraps(handler)
    def answer(msg: Message, context: Context) -> Message:
        try:
            content = handler(msg, context)
        except Exception as error:
            incident = uuid.uuid4().hex[:12]
            code = _code(error)
            log.exception("incident %s (%s)", incident, code)
            content = RecordDict({contract.REFUSAL: ConfigRecord({"code": code, "incident": incident})})
        return Message(content, reply_to=msg)

    return answer


def _code(error: Exception) -> str:
    """The code of `contract.REFUSALS` for a failure."""
    from client.manifest import ManifestError
    from client.problems import DataError
    from client.site import SiteError
    from client.training import Diverged

    if isinstance(error, SiteError):
        return error.code
    if isinstance(error, Diverged):
        return "diverged"
    return "data" if isinstance(error, ManifestError | DataError) else "internal"


def _site(context: Context) -> Site:
    """The hospital behind this node: `manifest` of the node config, or a line of the run's sites file (simulation)."""
    from client.site import SiteError, open_site, read_sites, run_config

    config = run_config(context.run_config)
    node, run = context.node_config, context.run_config
    if node.get("manifest"):
        manifest = Path(str(node["manifest"]))
        name = str(node.get("site", manifest.parent.name))
        manifests: tuple[Path, ...] = (manifest,)
    elif run.get("sites-file"):
        entries = read_sites(Path(str(run["sites-file"])))
        index = int(node.get("partition-id", -1))
        if not 0 <= index < len(entries):
            raise SiteError("data", f"partition-id {index}: the sites file has {len(entries)} sites")
        name, manifests = entries[index].name, entries[index].manifests
    else:
        raise SiteError("data", "no data: start this node with --node-config 'manifest=\"/path/manifest.csv\"'")
    cache = node.get("cache-dir") or run.get("cache-dir")
    return open_site(config, name, manifests, Path(str(cache)) if cache else manifests[0].parent / ".medmap-cache")


def _vectors(msg: Message) -> dict:
    record = msg.content.array_records[contract.ARRAYS]
    return {str(k): contract.decode_vector(v.data) for k, v in record.items()}


def _task(msg: Message) -> Task:
    return Task(**json.loads(str(msg.content[contract.TASK][contract.TASK])))


@app.query()
@guarded
def query(msg: Message, context: Context) -> RecordDict:
    """Answer with this site's card."""
    site = _site(context)
    if context.node_config.get("manifest"):  # a real node: its own log is the place to name what was left out
        for problem in site.records.problems:
            log.warning("left out: %s", problem)
    card = site.card()
    return RecordDict({contract.CARD: ConfigRecord({contract.CARD: json.dumps(card.to_dict())})})


@app.train()
@guarded
def train(msg: Message, context: Context) -> RecordDict:
    """One round of local training; returns the module groups received."""
    site = _site(context)
    vectors, figures = site.train(_vectors(msg), _task(msg))
    reply = RecordDict(
        {
            contract.ARRAYS: ArrayRecord(
                {g: Array("float32", v.shape, SType.NUMPY, contract.encode_vector(v)) for g, v in vectors.items()}
            ),
            contract.METRICS_RECORD: MetricRecord(dict(figures.known())),
        }
    )
    if site.config.privacy.kind == "patient_dp":
        receipt = json.dumps(asdict(site.ledger().receipt()))
        reply[contract.RECEIPT] = ConfigRecord({contract.RECEIPT: receipt})
    return reply


@app.evaluate()
@guarded
def evaluate(msg: Message, context: Context) -> RecordDict:
    """Validate the model as received."""
    figures = _site(context).evaluate(_vectors(msg), _task(msg))
    return RecordDict({contract.METRICS_RECORD: MetricRecord(dict(figures.known()))})
