"""Noisy releases over real messages: validation and statistics, what is charged, what leaves, and a hidden cohort."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from client.app import app
from client.privacy.cohort import CohortSize, cohort
from client.privacy.ledger import Key, Ledger
from client.privacy.releases import score_histograms
from client.site import open_records, open_site, trainer_for
from configs import load_vocabulary, to_json
from medmap_model import contract
from medmap_model.accounting import Cost, with_noise
from medmap_model.groups import layout, pack, unpack
from medmap_model.releases import COHORT, INTENSITY, SCALES, SHIFT, UNIT, cohort_tables
from medmap_model.text import build_text_encoder
from server.app import federate
from server.releases import open_releases, read_receipts
from server.validate import Model, validate
from simulation.engines import InProcessGrid
from tests.conftest import small_config

MUCH = "privacy.epsilon=1000"  # so that the noise is small beside the counts: what is tested is the path


class Spy(InProcessGrid):
    """Keeps every message, both ways."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.seen: list = []

    def _answer(self, message):
        reply = super()._answer(message)
        self.seen.append((message, reply))
        return reply


def grid_of(folder: Path, hospitals, cache, config) -> Spy:
    sites = folder / "sites.json"
    sites.write_text(json.dumps([{"name": k, "manifests": [str(v)]} for k, v in hospitals.items()]))
    values = {"config": to_json(config), "sites-file": str(sites), "cache-dir": str(cache)}
    return Spy(app, len(hospitals), values)


def ledger(folder: Path, site: str, epsilon: float) -> Ledger:
    return Ledger(folder / "ledgers" / f"{site}.db", epsilon=epsilon, delta=1e-5)


def run_validation(folder, hospitals, cache, *overrides, models=("one",), known=("T1", "T2", "FLAIR")):
    config = small_config(f"privacy.ledger_dir={folder / 'ledgers'}", "privacy.validation_split=common", *overrides)
    trainer = trainer_for(to_json(config))
    start = pack(trainer.model, layout(trainer.model))
    rng = np.random.default_rng(0)
    given = {}
    for i, name in enumerate(models):
        noise = {g: (rng.normal(0, 0.05 * i, v.shape)).astype(np.float32) for g, v in start.items()}
        given[name] = Model({g: v + noise[g] for g, v in start.items()}, ["brain"], list(known))
    grid = grid_of(folder, hospitals, cache, config)
    vocabulary = load_vocabulary(config.data.vocabulary)
    releases = open_releases(
        grid, config, vocabulary, text_hash=build_text_encoder(config.text).hash, folder=folder, sites=len(hospitals)
    )
    found = validate(releases, config, vocabulary, given, folder=folder, run="r")
    return found, grid, given, config, trainer


def test_with_hardly_any_noise_the_figures_are_the_sites_own(tmp_path, hospitals, cache):
    found, _, given, config, trainer = run_validation(
        tmp_path,
        hospitals,
        cache,
        MUCH,
        "privacy.validation_epsilon=400",
        "privacy.validation_bins=200",
        models=("a", "b"),
    )
    assert found["refused"] == [] and list(found["organs"]) == ["brain"]
    tumour = found["organs"]["brain"]["tumour"]
    for name, model in given.items():
        unpack(trainer.model, model.vectors)
        everybody = []
        for site, manifest in hospitals.items():
            records = open_records(config, (manifest,), cache)
            everybody.append(trainer.predict(records, split="common", organ="brain", known=model.modalities))
            assert tumour[name]["sites"][site]["n"] == score_histograms(*everybody[-1], bins=200).sum() == 6
        labels, p = (np.concatenate(x) for x in zip(*everybody, strict=True))
        binned = np.floor(p[:, 1] * 200)
        assert tumour[name]["pooled"]["auroc"] == pytest.approx(roc_auc_score(labels, binned))
    assert json.loads((tmp_path / "validation.json").read_text()) == found
    east = ledger(tmp_path, "east", 1000)
    assert [(c.purpose, c.cost, c.released, c.key.round) for c in east.charges()] == [
        ("validation", Cost(1, epsilon=400), True, 0),
        ("validation", Cost(1, epsilon=400), True, 1),
    ]
    assert read_receipts(tmp_path)["east"]["seq"] == east.receipt().seq


def test_a_release_holds_tables_and_a_receipt_and_nothing_else(tmp_path, hospitals, cache):
    _, grid, *_ = run_validation(tmp_path, hospitals, cache)
    replies = [r for m, r in grid.seen if m.metadata.message_type == "evaluate.scores"]
    assert len(replies) == 2
    for reply in replies:
        assert set(reply.content.keys()) == {contract.RELEASE, contract.RECEIPT}
        tables = json.loads(reply.content[contract.RELEASE][contract.RELEASE])
        assert list(tables) == ["brain"] and np.array(tables["brain"]).shape[1:] == (8, 2)
    exact = 6 * np.array(tables["brain"]).shape[0]
    drawn = {np.array(json.loads(r.content[contract.RELEASE][contract.RELEASE])["brain"]).sum() for r in replies}
    assert drawn != {exact}, "noise was added"


def test_a_site_without_budget_releases_nothing_and_the_others_do(tmp_path, hospitals, cache, caplog):
    poor = ledger(tmp_path, "east", 2.0)
    poor.reserve(Key("earlier", "finetune", 0, "x"), "an earlier study", Cost(1, epsilon=1.5))
    with caplog.at_level(logging.CRITICAL, "medmap.client"):
        found, *_ = run_validation(tmp_path, hospitals, cache, "privacy.epsilon=2")
    assert [(r["site"], r["of"]) for r in found["refused"]] == [("east", "one")]
    assert "privacy budget does not allow" in found["refused"][0]["reason"]
    assert all(list(row["one"]["sites"]) == ["west"] for row in found["organs"]["brain"].values())
    assert len(poor.charges()) == 1


def test_a_patient_of_two_organs_is_counted_for_one(tmp_path, hospitals, cache):
    import csv

    rows = list(csv.DictReader(hospitals["east"].open()))
    both = sorted({r["patient_id"] for r in rows if r["split"] == "train"})[:3]
    for row in [r for r in rows if r["patient_id"] in both and r["modality"] == "FLAIR"]:
        row |= {"study_id": row["study_id"] + "-liver", "organ": "liver", "modality": "DWI", "abnormality": "hcc"}
    for row in rows:
        row["image"] = str(hospitals["east"].parent / row["image"])
    path = tmp_path / "two" / "manifest.csv"
    path.parent.mkdir()
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = small_config()
    records = open_records(config, (path,), cache)
    organs = load_vocabulary("medmom").organs
    counted = {o: records.counted(split="train", organ=o) for o in ("brain", "liver")}
    assert len(counted["brain"]) == 12 and len(counted["liver"]) == 3
    assert sum(counted["brain"]) == 9 and sum(counted["liver"]) == 3
    assert cohort(records, organs["brain"], ("classes",))["classes"].sum() == 9


def test_statistics_are_the_cohorts_and_paid_once(tmp_path, hospitals, cache):
    config = small_config(
        f"privacy.ledger_dir={tmp_path / 'ledgers'}", MUCH, "privacy.statistics_epsilon=900", "stage.pretrain.rounds=0",
        "stage.finetune.rounds=1",
    )  # fmt: skip
    for _ in range(2):  # the second time the run resumes
        federate(grid_of(tmp_path, hospitals, cache, config), to_json(config), folder=tmp_path, sites=2)
    told = json.loads((tmp_path / "statistics.json").read_text())
    assert told["sites"] == ["east", "west"] and set(told["organs"]) == {"brain", "liver"}
    brain = told["organs"]["brain"]
    assert sum(brain["classes"]["sum"]) == 24 and brain["classes"]["sd"] < 0.1
    have = dict(zip(brain["modalities"]["names"], brain["modalities"]["sum"], strict=True))
    assert (have["T1"], have["T2"], have["FLAIR"]) == (12, 12, 24)
    shares = np.array(brain["intensity"]["sites"]["east"])
    assert shares.shape == (4, len(INTENSITY) - 1)
    assert shares.sum(1)[brain["intensity"]["names"].index("FLAIR")] == pytest.approx(12, abs=0.5)
    assert sum(brain["report_words"]["sum"]) == 24
    charges = ledger(tmp_path, "east", 1000).charges()
    assert [(c.purpose, c.cost) for c in charges] == [("statistics of the cohort", Cost(1, epsilon=900))]


def test_one_patient_moves_a_cohorts_tables_by_no_more_than_is_said(hospitals, cache):
    config = small_config()
    records = open_records(config, (hospitals["east"],), cache)
    organ = load_vocabulary("medmom").organs["brain"]
    whole = cohort(records, organ, (*COHORT, *SHIFT, *SCALES))
    keep = records.counted
    tables = cohort_tables(organ)
    for left_out in range(12):
        records.counted = lambda split, organ, i=left_out: [j != i for j in range(len(keep(split=split, organ=organ)))]
        try:
            without = cohort(records, organ, (*COHORT, *SHIFT, *SCALES))
        finally:
            del records.counted
        for name, table in tables.items():
            moved = np.abs(whole[name] - without[name])
            assert moved.sum() > 0
            assert moved.sum() <= table.cells * table.unit
            assert np.linalg.norm(moved.astype(float)) <= np.sqrt(table.cells) * table.unit
    assert tables["intensity"].unit == UNIT


def test_a_hidden_cohort_is_told_with_noise_once_and_its_own_budget_holds(tmp_path, hospitals, cache):
    site = open_hidden(tmp_path, hospitals, cache)
    first = site.card()
    assert first.volumes != {"T1": 12, "FLAIR": 12} or first.splits != site.records.splits()
    open_site.cache_clear()
    again = open_hidden(tmp_path, hospitals, cache)
    assert again is not site and again.card() == first, "drawn once in the ledger's life"
    charges = Ledger(tmp_path / "own.db", epsilon=3.0, delta=1e-6).charges()
    assert [(c.purpose, c.cost) for c in charges] == [("the cohort's size", Cost(1, epsilon=0.5))]


def open_hidden(folder, hospitals, cache):
    from client.policy import read_site

    (folder / "site.yaml").write_text(
        f"name: north\nmanifest: {hospitals['east']}\nprivacy:\n  ledger: own.db\n  epsilon: 3\n  delta: 1e-6\n  cohort: hidden\n"
    )
    own = read_site(folder / "site.yaml")
    config = to_json(
        with_noise(small_config("privacy=patient_dp", "stage.pretrain.rounds=0", "privacy.noise_multiplier=20"))
    )
    return open_site(config, own.name, (own.manifest,), cache, own.privacy)


def test_a_hidden_cohorts_number_is_what_updates_are_divided_by(tmp_path, hospitals, cache, monkeypatch):
    import client.privacy.training as training
    from medmap_model.contract import Task

    site, divisors = open_hidden(tmp_path, hospitals, cache), []
    made = training.PatientDPOptimizer

    def optimizer(*args, **more):
        divisors.append(more["expected_patients"])
        return made(*args, **more)

    monkeypatch.setattr(training, "PatientDPOptimizer", optimizer)
    start = pack(site.trainer.model, layout(site.trainer.model))
    for told in (37, 0):
        monkeypatch.setattr(
            type(site), "size", lambda self, n=told: CohortSize({"FLAIR": 5}, {"brain": 9}, {"train": n})
        )
        site.train(start, Task("finetune", 0, 2, 0, run="r", message=str(told)))
    assert divisors == [0.5 * 37, 0.5 * 1], "never the exact 12"


@pytest.mark.parametrize(
    "asked", [{"epsilon": float("nan"), "noise_multiplier": 5.0}, {"epsilon": -1e6}, {"epsilon": 1e-30}]
)
def test_a_request_that_is_no_honest_cost_is_refused_and_nothing_is_charged(tmp_path, hospitals, cache, asked):
    from client.problems import SiteError
    from medmap_model.contract import Request

    site = open_hidden(tmp_path, hospitals, cache)
    with pytest.raises(SiteError) as refused:
        site.release_cohort(Request(["brain"], **asked))
    assert refused.value.code == "task" and site.ledger().charges() == []


def test_a_failure_is_charged_like_an_answer_and_leaves_no_trace_in_the_model(tmp_path, hospitals, cache, monkeypatch):
    from client.privacy.training import PrivateTrainer
    from medmap_model.contract import Task

    site = open_hidden(tmp_path, hospitals, cache)
    start = pack(site.trainer.model, layout(site.trainer.model))
    real = PrivateTrainer.train

    def fails(self, *args, **more):
        real(self, *args, **more)
        raise OSError("a volume is gone")

    monkeypatch.setattr(PrivateTrainer, "train", fails)
    task = Task("finetune", 0, 2, 0, run="r", message="m")
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            site.train(start, task)
    after = pack(site.trainer.model, layout(site.trainer.model))
    assert all((after[g] == start[g]).all() for g in start)
    trained = [c for c in site.ledger().charges() if c.key.message == "m"]
    assert [c.released for c in trained] == [True, True], "a second try is charged anew"
