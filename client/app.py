"""Flower's side of a hospital: thin handlers around `client.site`. An exception's text never leaves the site."""

from __future__ import annotations

import functools
import json
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SType

from client.gate.words import one_line
from client.problems import SiteError
from medmap_model import contract
from medmap_model.contract import Request, Task

if TYPE_CHECKING:
    import numpy as np

    from client.policy import Egress, Privacy, SiteFile
    from client.secure import SecureSite
    from client.site import Site
    from client.training import Figures
    from configs.federated import StrategyConfig

    Vectors = Mapping[str, np.ndarray]

log = logging.getLogger("medmap.client")
log.addFilter(one_line)  # an exception's text may be the server's
app = ClientApp()


def guarded(handler: Callable[[Message, Context], RecordDict]) -> Callable[[Message, Context], Message]:
    """Turn any failure into a fixed code and an incident id; the site's own log has the rest."""

    @functools.wraps(handler)
    def answer(msg: Message, context: Context) -> Message:
        try:
            content = handler(msg, context)
            _look_over(content, msg, context)
        except Exception as error:
            incident = uuid.uuid4().hex[:12]
            code = _code(error)
            log.exception("incident %s (%s)", incident, code)
            content = RecordDict({contract.REFUSAL: ConfigRecord({"code": code, "incident": incident})})
        return Message(content, reply_to=msg)

    return answer


def _look_over(content: RecordDict, msg: Message, context: Context) -> None:
    """Raises SiteError for a reply that may not leave. A site's gate asks the same again, in its own process."""
    from client.gate.asked import Asked
    from client.gate.egress import objection
    from client.gate.names import Names

    asked, own = Asked.of(msg.metadata.message_type, msg.content), _own(context)
    if (why := objection(content, asked, *_demands(own), names=Names.of(own) if own else None)) is not None:
        raise SiteError("egress", why)


def _own(context: Context) -> SiteFile | None:
    """This node's site.yaml, if it has one. Raises SiteError where it cannot be used."""
    from client.policy import read_site
    from configs.setting import ConfigError

    try:
        path = context.node_config.get("site-file")
        return read_site(Path(str(path))) if path else None
    except ConfigError as error:
        raise SiteError("policy", str(error)) from None


def _demands(own: SiteFile | None) -> tuple[Egress, Privacy]:
    """What a site.yaml says may leave; of a site without one, whatever the contract allows."""
    from client.policy import SIMULATED, Privacy

    return (own.egress, own.privacy) if own else (SIMULATED, Privacy(required=False))


def _code(error: Exception) -> str:
    """The code of `contract.REFUSALS` for a failure."""
    from client.manifest import ManifestError
    from client.problems import DataError
    from client.training import Diverged

    if isinstance(error, SiteError):
        return error.code
    if isinstance(error, Diverged):
        return "diverged"
    return "data" if isinstance(error, ManifestError | DataError) else "internal"


def _site(context: Context) -> Site:
    """The hospital behind this node: `site-file` or `manifest` of the node config, or a line of the run's sites file."""
    from client.policy import Privacy
    from client.site import open_site, read_sites, run_config

    manifests: tuple[Path, ...]
    config = run_config(context.run_config)
    node, run = context.node_config, context.run_config
    policy, folder, cache_gb = None, None, 0.0
    if own := _own(context):
        name, manifests, policy = own.name, (own.manifest,), own.privacy
        folder, cache_gb = own.cache_dir, own.cache_gb
    elif node.get("manifest"):
        manifest = Path(str(node["manifest"]))
        name, policy = str(node.get("site", manifest.parent.name)), Privacy(required=False)
        manifests = (manifest,)
    elif run.get("sites-file"):
        entries = read_sites(Path(str(run["sites-file"])))
        index = int(node.get("partition-id", -1))
        if not 0 <= index < len(entries):
            raise SiteError("data", f"partition-id {index}: the sites file has {len(entries)} sites")
        name, manifests = entries[index].name, entries[index].manifests
    else:
        raise SiteError("data", "no data: start this node with --node-config 'site-file=\"/path/site.yaml\"'")
    chosen = node.get("cache-dir") or folder or (None if policy else run.get("cache-dir"))
    cache = chosen or manifests[0].parent / ".medmap-cache"
    site = open_site(config, name, manifests, Path(str(cache)), policy, cache_gb)
    if own:  # whatever it is asked: a server need not ask for the card first
        own.egress.check_sum(site.config.strategy)
        own.egress.check_cohort({} if own.privacy.cohort == "hidden" else site.records.behind())
    return site


def _vectors(msg: Message) -> dict:
    record = msg.content.array_records[contract.ARRAYS]
    return {str(k): contract.decode_vector(v.data) for k, v in record.items()}


def _arrays(vectors: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord(
        {g: Array(str(v.dtype), v.shape, SType.NUMPY, contract.encode_vector(v)) for g, v in vectors.items()}
    )


def _record(name: str, value: Any) -> ConfigRecord:
    """A value as JSON, in the one field of a record; both have that name."""
    return ConfigRecord({name: contract.to_json(value)})


def _read(msg: Message, name: str) -> dict[str, Any]:
    return dict(json.loads(str(msg.content[name][name])))


@app.query()
@guarded
def query(msg: Message, context: Context) -> RecordDict:
    """Answer with this site's card."""
    site = _site(context)
    real = context.node_config.get("site-file") or context.node_config.get("manifest")
    if real and (problems := site.records.problems):  # by row: a problem's own words name patients
        rows = ", ".join(str(p.row) for p in problems if p.row is not None)
        log.warning("%d problems left volumes out (rows %s): see `medmap-client check`", len(problems), rows or "-")
    return RecordDict({contract.CARD: _record(contract.CARD, site.card())})


def _secure_step(
    msg: Message, context: Context, step: Callable[[SecureSite, Mapping[str, Any]], Mapping[str, Any]]
) -> RecordDict:
    from client.site import run_config

    secure = _secure(context, _strategy(run_config(context.run_config)))
    answer = step(secure, _read(msg, contract.SECURE))
    _remember(context, secure)
    return RecordDict({contract.SECURE: _record(contract.SECURE, answer)})


@functools.lru_cache(maxsize=4)
def _strategy(config_json: str) -> StrategyConfig:
    """The strategy alone: keys and shares need neither model nor data."""
    from configs import from_json

    return from_json(config_json).strategy


def _secure(context: Context, strategy: StrategyConfig) -> SecureSite:
    """This site's secrets of the present round. They live in Flower's context, which a SuperNode keeps and hands on."""
    from client.secure import SecureSite

    _demands(_own(context))[0].check_sum(strategy)
    kept: Any = context.state.get(contract.SECURE) or {contract.SECURE: "{}"}
    return SecureSite(json.loads(str(kept[contract.SECURE])), strategy)


def _remember(context: Context, secure: SecureSite) -> None:
    context.state[contract.SECURE] = _record(contract.SECURE, secure.state)


@app.query("secure_keys")
@guarded
def secure_keys(msg: Message, context: Context) -> RecordDict:
    """Public keys for the next round."""
    from client.secure import SecureSite

    return _secure_step(msg, context, SecureSite.keys)


@app.query("secure_shares")
@guarded
def secure_shares(msg: Message, context: Context) -> RecordDict:
    """Shares of this site's secrets, sealed for each other site."""
    from client.secure import SecureSite

    return _secure_step(msg, context, SecureSite.shares)


@app.query("secure_unmask")
@guarded
def secure_unmask(msg: Message, context: Context) -> RecordDict:
    """The shares that unmask the round's sums."""
    from client.secure import SecureSite

    return _secure_step(msg, context, SecureSite.unmask)


def _train(site: Site, msg: Message, context: Context) -> tuple[Vectors, Vectors, Figures]:
    """The update, its scales if it travels compressed, and its figures; masked when the federation aggregates securely, and
    then never otherwise."""
    received, task = _vectors(msg), Task(**_read(msg, contract.TASK))
    strategy = site.config.strategy
    if not strategy.secure_aggregation:
        update, figures = site.train(received, task)
        if strategy.update_dtype == "float32":
            return update, {}, figures
        from client.residuals import Residuals

        left = Residuals.of(site.records.cache_dir, site.entry.name, task.run)
        return *left.compressed(update, received, task, strategy.update_dtype), figures
    secure, body = _secure(context, strategy), _read(msg, contract.SECURE)
    groups = list(body["weights"])
    secure.admit(body, groups)
    _remember(context, secure)
    update, figures = site.train(received, task, only=groups)
    masked = secure.mask(update, received)
    _remember(context, secure)
    return masked, {}, figures


@app.train()
@guarded
def train(msg: Message, context: Context) -> RecordDict:
    """One round of local training; returns the module groups received."""
    site = _site(context)
    vectors, scales, figures = _train(site, msg, context)
    reply = RecordDict({contract.ARRAYS: _arrays(vectors), contract.METRICS_RECORD: _figures(figures, context)})
    if scales:
        reply[contract.SCALES] = _arrays(scales)
    if site.config.privacy.kind == "patient_dp":
        reply[contract.RECEIPT] = _receipt(site)
    return reply


@app.evaluate()
@guarded
def evaluate(msg: Message, context: Context) -> RecordDict:
    """Validate the model as received."""
    figures = _site(context).evaluate(_vectors(msg), Task(**_read(msg, contract.TASK)))
    return RecordDict({contract.METRICS_RECORD: _figures(figures, context)})


def _figures(figures: Figures, context: Context) -> MetricRecord:
    """Those that are known, and that the hospital tells."""
    from client.gate.egress import told

    return MetricRecord(told(figures.known(), *_demands(_own(context))))


@app.evaluate("scores")
@guarded
def scores(msg: Message, context: Context) -> RecordDict:
    """A noisy histogram of the model's scores."""
    site = _site(context)
    return _released(site, site.release_scores(_vectors(msg), Request(**_read(msg, contract.REQUEST))))


@app.query("cohort")
@guarded
def cohort(msg: Message, context: Context) -> RecordDict:
    """Noisy statistics of the training patients."""
    site = _site(context)
    return _released(site, site.release_cohort(Request(**_read(msg, contract.REQUEST))))


def _released(site: Site, tables: dict) -> RecordDict:
    return RecordDict({contract.RELEASE: _record(contract.RELEASE, tables), contract.RECEIPT: _receipt(site)})


def _receipt(site: Site) -> ConfigRecord:
    ledger = site.ledger()
    told: dict[str, Any] = asdict(ledger.receipt())
    if site.policy.tell_budget:
        told |= {"spent": ledger.spent(), "budget": ledger.epsilon}
    return _record(contract.RECEIPT, told)
