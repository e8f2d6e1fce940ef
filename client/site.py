"""One hospital at run time: its records, its view of the model, and what it answers. Knows nothing of Flower."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.manifest import SPLITS
from client.policy import Privacy
from client.preprocess import nyul
from client.privacy.charge import charged, open_ledger
from client.privacy.cohort import CohortSize, noisy_size, release_cohort
from client.privacy.ledger import Key, Ledger
from client.problems import SiteError
from client.records import SiteRecords
from client.training import Figures, Trainer
from configs import from_json, load_vocabulary, to_json
from configs.schema import Config, TextConfig, VolumesConfig
from configs.setting import ConfigError
from medmap_model.accounting import Cost, with_noise
from medmap_model.contract import STAGES, VERSION, Card, Request, Task
from medmap_model.groups import group_names, owned, pack, trunks, unpack
from medmap_model.model import build_model
from medmap_model.randomness import SecretRandom
from medmap_model.releases import COHORT, SCALES, SHIFT
from medmap_model.text import build_text_encoder

if TYPE_CHECKING:
    from medmap_model.vocabulary import Organ


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

    def __init__(
        self,
        entry: SiteEntry,
        config: Config,
        trainer: Trainer,
        records: SiteRecords,
        policy: Privacy | None = None,
    ) -> None:
        """policy: the hospital's own; None: a simulated site, whose budget and ledger are the run's."""
        self.entry, self.config, self.trainer, self.records = entry, config, trainer, records
        self.policy, self.privacy = policy or Privacy(required=False), config.privacy
        if self.policy.required and config.privacy.kind == "none":
            raise SiteError("policy", "site.yaml requires privacy and the run has privacy.kind=none")
        self._ledger: Ledger | None = None
        self.vocabulary = load_vocabulary(config.data.vocabulary)
        self.text = build_text_encoder(config.text)
        self.trunks = trunks(config.model, self.vocabulary)

    def card(self) -> Card:
        """What this site says of itself: counts (of a hidden cohort noisy ones) and hashes."""
        size = self.size()
        return Card(self.entry.name, size.volumes, size.studies, size.splits, self.vocabulary.hash, self.text.hash)

    def size(self) -> CohortSize:
        """The numbers of patients and volumes that this site tells, owns groups by and divides by.

        Of a hidden cohort they are noisy: charged and drawn once in the ledger's life.
        """
        if self.policy.cohort == "public":
            return CohortSize(*self.records.counts("train"), self.records.splits())
        told = self.ledger().recall("cohort")
        if told is None:
            key, cost = Key("", "cohort", 0, "size"), Cost(1, epsilon=self.policy.cohort_epsilon)
            with self._charged(key, "the cohort's size", cost, None):
                told = asdict(noisy_size(self.records, epsilon=cost.epsilon, secret=SecretRandom()))
                self.ledger().remember("cohort", told)
        return CohortSize(**told)

    def train(
        self, vectors: Mapping[str, np.ndarray], task: Task, *, only: Collection[str] | None = None
    ) -> tuple[dict[str, np.ndarray], Figures]:
        """Validate the model as received, train the groups that this site owns, return the groups received.

        Under privacy: charge the ledger, train with noise, and return no figure at all. only: of the groups received those
        to train and return; the others stay as they came.
        """
        self._receive(vectors, task)
        vectors = vectors if only is None else {g: vectors[g] for g in only}
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
        """Tried on made-up patients, then charged before a real one is touched; marked as released when all may leave."""
        from client.privacy.checks import check_once, check_settings
        from client.privacy.training import PrivateTrainer, cost_of_round

        try:
            check_settings(self.config)  # whoever composed the settings: the site looks for itself
            organs = tuple(self.vocabulary.organs)
            check_once(self.trainer.model, self.config, run=task.run, stage=task.stage, organs=organs)
        except ConfigError as error:
            raise SiteError("policy", str(error)) from None
        size = self.size()
        mine = set(owned(self.vocabulary, size.volumes, size.studies, task.stage, self.trunks)) & set(vectors)
        key = Key(task.run, task.stage, task.round, task.message)
        with self._charged(key, f"training, {task.stage}", cost_of_round(self.privacy), task.receipt):
            try:
                PrivateTrainer(self.trainer).train(self.records, task, mine, cohort=max(1, size.splits.get("train", 0)))
            except Exception:
                unpack(self.trainer.model, vectors)  # nothing stays of patients whose round has failed
                raise
            return pack(self.trainer.model, vectors)

    def release_scores(self, vectors: Mapping[str, np.ndarray], request: Request) -> dict[str, Any]:
        """Organ -> a noisy histogram of the model's scores; charged before a patient is looked at."""
        from client.privacy.releases import release_scores

        if request.bins < 2 or request.split not in SPLITS:
            raise SiteError("task", f"{request.bins} bins of the split '{request.split}' cannot be released")
        organs, cost = self._asked(request)
        unpack(self.trainer.model, vectors)
        key = Key(request.run, "validation", request.number, request.message)
        secret, released = SecretRandom(), {}
        with self._charged(key, "validation", cost, request.receipt):
            for organ in organs:
                of = {"split": request.split, "organ": organ.name}
                labels, probabilities = self.trainer.predict(self.records, **of, known=request.known)
                mine = np.array(self.records.counted(**of), bool)
                noisy = release_scores(
                    labels[mine], probabilities[mine], cost=cost, bins=request.bins, secret=secret,
                    multi_label=organ.multi_label,
                )  # fmt: skip
                released[organ.name] = noisy.tolist()
        return released

    def release_cohort(self, request: Request) -> dict[str, Any]:
        """Organ -> table -> noisy counts of the training patients; charged before a patient is looked at."""
        tables = COHORT if request.tables is None else tuple(request.tables)
        if not tables or set(tables) - {*COHORT, *SHIFT, *SCALES}:
            raise SiteError("task", f"of a cohort there are no tables {tables}")
        organs, cost = self._asked(request)
        key = Key(request.run, "cohort", request.number, request.message)
        secret, released = SecretRandom(), {}
        with self._charged(key, "statistics of the cohort", cost, request.receipt):
            for organ in organs:
                noisy = release_cohort(self.records, organ, tables, cost=cost, secret=secret)
                released[organ.name] = {name: table.tolist() for name, table in noisy.items()}
        return released

    def _asked(self, request: Request) -> tuple[list[Organ], Cost]:
        if request.version != VERSION:
            raise SiteError("version", f"the server's contract has version {request.version}, this site's {VERSION}")
        if nyul.learnt(self.config.data.volumes):  # whatever the run announced
            raise SiteError("policy", "landmarks that this site learnt are in every record: no noise makes it private")
        unknown = sorted(set(request.organs) - set(self.vocabulary.organs))
        if unknown or not request.organs:
            raise SiteError("task", f"there is no organ '{unknown[0] if unknown else ''}'")
        if not _asked_for(request.epsilon, 1e-3, 1e3) or not _asked_for(request.noise_multiplier, 0.1, 1e3):
            raise SiteError(
                "task", "a release has an epsilon from 0.001 to 1000, or a noise multiplier from 0.1 to 1000"
            )
        try:
            cost = Cost(1, noise_multiplier=request.noise_multiplier, epsilon=request.epsilon)
        except ValueError as error:
            raise SiteError("task", str(error)) from None
        return [self.vocabulary.organs[o] for o in dict.fromkeys(request.organs)], cost

    def ledger(self) -> Ledger:
        """This site's ledger: where its site.yaml says, else in `privacy.ledger_dir`, else beside the first manifest."""
        if self._ledger is None:
            folder = Path(self.privacy.ledger_dir) if self.privacy.ledger_dir else self.entry.manifests[0].parent
            self._ledger = open_ledger(self.policy.ledger or folder / f"{self.entry.name}.db", self.privacy)
        return self._ledger

    def _charged(
        self, key: Key, purpose: str, cost: Cost, receipt: dict[str, Any] | None
    ) -> AbstractContextManager[None]:
        hidden = self.policy.cohort == "hidden"  # then what was told of it decides, if it was told already
        splits = (self.ledger().recall("cohort") or {}).get("splits", {}) if hidden else self.records.splits()
        if self.privacy.delta * sum(splits.values()) >= 1:
            raise SiteError("policy", f"delta {self.privacy.delta:g} is not below 1 / patients: take a smaller one")
        return charged(self.ledger(), key, purpose, cost, receipt)

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


def _asked_for(value: float, low: float, high: float) -> bool:
    """Not asked for (0), or a number in the range; never what is not a number."""
    return value == 0 or low <= value <= high


@functools.lru_cache(maxsize=256)
def open_site(
    config_json: str,
    name: str,
    manifests: tuple[Path, ...],
    cache_dir: Path,
    policy: Privacy | None = None,
    cache_gb: float = 0.0,
) -> Site:
    """The site of this name, opened once per process: the second message finds data and model ready.

    policy: a hospital's own: what the run says of budget, ledger, bad volumes, and places and room on the disk is overruled.
    """
    config = from_json(config_json)
    if policy is not None:
        volumes = replace(config.data.volumes, on_bad_volume="skip", cache_dir=None, cache_gb=cache_gb)
        config = replace(
            config,
            privacy=policy.over(config.privacy),
            data=replace(config.data, volumes=volumes),
            text=replace(config.text, cache_dir=str(cache_dir / "text")),
        )
    try:
        nyul.check(config)
    except ConfigError as error:
        raise SiteError("policy", str(error)) from None
    trainer = trainer_for(to_json(config))
    return Site(SiteEntry(name, manifests), config, trainer, open_records(config, manifests, cache_dir), policy)


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
