"""One hospital at run time: its records, its view of the model, and what it answers. Knows nothing of Flower."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.records import SiteRecords
from client.training import Figures, Trainer
from configs import from_json, load_vocabulary
from configs.schema import Config, ConfigError, TextConfig, VolumesConfig
from medmap_model.accounting import with_noise
from medmap_model.contract import STAGES, VERSION, Card, Task
from medmap_model.groups import group_names, owned, pack, trunks, unpack
from medmap_model.model import build_model
from medmap_model.text import build_text_encoder

if TYPE_CHECKING:
    from client.privacy.ledger import Key, Ledger
    from medmap_model.accounting import Cost


class SiteError(Exception):
    """Why a site does not do what it is asked: a code of `contract.REFUSALS`, and a text for its own log only."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class SiteEntry:
    """Where a site's data are: its name and its manifests (several: the pooled baseline)."""

    name: str
    manifests: tuple[Path, ...]


def read_sites(path: Path) -> list[SiteEntry]:
    """The entries of a sites file (JSON: a list of {"name", "manifests"}, paths relative to the file)."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [SiteEntry(r["name"], tuple(path.parent / m for m in r["manifests"])) for r in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SiteError(
            "data", f"{path} is not a sites file ({type(error).__name__}); `medmap-sim phantom` writes one"
        ) from None


@functools.lru_cache(maxsize=2)
def trainer_for(config_json: str) -> Trainer:
    """The process's one model and trainer: sites of a simulation take turns on it, so memory does not grow with them."""
    config = from_json(config_json)
    text = build_text_encoder(config.text)
    vocabulary = load_vocabulary(config.data.vocabulary)
    return Trainer(build_model(config.model, vocabulary, text, seed=config.seed), config)


class Site:
    """Answers the three messages of the contract for one hospital."""

    def __init__(self, entry: SiteEntry, config: Config, trainer: Trainer, records: SiteRecords) -> None:
        self.entry, self.config, self.trainer, self.records = entry, config, trainer, records
        self.vocabulary = load_vocabulary(config.data.vocabulary)
        self.text = build_text_encoder(config.text)
        self.trunks = trunks(config.model, self.vocabulary)

    def card(self) -> Card:
        """What this site says of itself: counts and hashes."""
        volumes, studies = self.records.counts("train")
        return Card(self.entry.name, volumes, studies, self.records.splits(), self.vocabulary.hash, self.text.hash)

    def train(self, vectors: Mapping[str, np.ndarray], task: Task) -> tuple[dict[str, np.ndarray], Figures]:
        """Validate the model as received, train the groups that this site owns, return the groups received.

        Under privacy: charge the ledger, train with noise, and return no figure at all.
        """
        self._receive(vectors, task)
        if self.config.privacy.kind == "patient_dp":
            return self._train_privately(vectors, task), Figures()
        figures = self.trainer.validate(self.records, task)
        volumes, studies = self.records.counts("train")
        mine = set(owned(self.vocabulary, volumes, studies, task.stage, self.trunks)) & set(vectors)
        trained = self.trainer.train(self.records, task, mine, site=self.entry.name)
        for name, value in trained.known().items():
            setattr(figures, name, value)
        return pack(self.trainer.model, vectors), figures

    def _train_privately(self, vectors: Mapping[str, np.ndarray], task: Task) -> dict[str, np.ndarray]:
        """Charged before a patient is touched; marked as released when all that may leave is ready."""
        from client.privacy.training import PrivateTrainer, cost_of_round

        volumes, studies = self.records.counts("train")
        mine = set(owned(self.vocabulary, volumes, studies, task.stage, self.trunks)) & set(vectors)
        key = self._charge(task, f"training, {task.stage}", cost_of_round(self.config.privacy))
        PrivateTrainer(self.trainer).train(self.records, task, mine)
        update = pack(self.trainer.model, vectors)
        self.ledger().release(key)
        return update

    def _charge(self, task: Task, purpose: str, cost: Cost) -> Key:
        from client.privacy.checks import check_settings
        from client.privacy.ledger import BudgetExceeded, Key, LedgerError, Receipt

        try:
            check_settings(self.config)  # whoever composed the settings: the site looks for itself
        except ConfigError as error:
            raise SiteError("policy", str(error)) from None
        key, privacy = Key(task.run, task.stage, task.round, task.message), self.config.privacy
        if privacy.delta * self.records.patients("train") >= 1:
            raise SiteError("policy", f"privacy.delta={privacy.delta:g} is not below 1 / patients: take a smaller one")
        try:
            if task.receipt is not None:
                self.ledger().check_receipt(Receipt(**task.receipt))
            self.ledger().reserve(key, purpose, cost)
        except BudgetExceeded as error:
            raise SiteError("budget", str(error)) from None
        except LedgerError as error:
            raise SiteError("ledger", str(error)) from None
        return key

    def ledger(self) -> Ledger:
        """This site's ledger, in `privacy.ledger_dir` or beside the first manifest."""
        from client.privacy.ledger import Ledger

        privacy = self.config.privacy
        folder = Path(privacy.ledger_dir) if privacy.ledger_dir else self.entry.manifests[0].parent
        path = folder / f"{self.entry.name}.db"
        return Ledger(path, epsilon=privacy.epsilon, delta=privacy.delta)

    def evaluate(self, vectors: Mapping[str, np.ndarray], task: Task) -> Figures:
        """Validate the model as received; under privacy a figure would be a release of its own: there is none."""
        self._receive(vectors, task)
        if self.config.privacy.kind == "patient_dp":
            return Figures()
        return self.trainer.validate(self.records, task)

    def _receive(self, vectors: Mapping[str, np.ndarray], task: Task) -> None:
        if task.version != VERSION:
            raise SiteError("version", f"the server's contract has version {task.version}, this site's {VERSION}")
        if task.stage not in STAGES:
            raise SiteError("task", f"there is no stage '{task.stage}'")
        unknown = sorted(set(vectors) - set(group_names(self.vocabulary, self.trunks)))
        if unknown:
            raise SiteError("task", f"there is no module group '{unknown[0]}'")
        unpack(self.trainer.model, vectors)


@functools.lru_cache(maxsize=256)
def open_site(config_json: str, name: str, manifests: tuple[Path, ...], cache_dir: Path) -> Site:
    """The site of this name, opened once per process: the second message finds data and model ready."""
    config, trainer = from_json(config_json), trainer_for(config_json)
    return Site(SiteEntry(name, manifests), config, trainer, open_records(config, manifests, cache_dir))


def open_records(config: Config, manifests: Sequence[Path], cache_dir: Path) -> SiteRecords:
    """A site's records, prepared or from the cache, once per process. Raises ManifestError or DataError."""
    options = {"captions": config.data.captions, "hard_negatives": config.stage.pretrain.hard_negatives}
    data = json.dumps([config.data.vocabulary, asdict(config.data.volumes), asdict(config.text), options])
    return _records(data, tuple(manifests), cache_dir)


@functools.lru_cache(maxsize=256)
def _records(data: str, manifests: tuple[Path, ...], cache_dir: Path) -> SiteRecords:
    """What `open_records` opens, whichever federation asks: methods that differ elsewhere share the volumes."""
    vocabulary, volumes, text, options = json.loads(data)
    return SiteRecords(
        manifests,
        vocabulary=load_vocabulary(vocabulary),
        volumes=VolumesConfig(**volumes),
        embed=build_text_encoder(TextConfig(**text)).embed,
        cache_dir=cache_dir,
        **options,
    )


def run_config(values: Mapping[str, Any]) -> str:
    """The composed config, as JSON, from a Flower run config: `config` (whole) or `experiment` and `overrides`."""
    from configs import load, to_json

    if values.get("config"):
        return str(values["config"])
    overrides = [o for o in str(values.get("overrides", "")).split() if o]
    experiment = str(values.get("experiment", ""))
    return to_json(with_noise(load([*([f"experiment={experiment}"] if experiment else []), *overrides])))
