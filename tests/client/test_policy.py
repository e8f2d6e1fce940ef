"""site.yaml: what a hospital demands whatever a run says; a mistake in it is one sentence."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from client.app import app
from client.policy import Egress, Privacy, read_site
from client.site import SiteError, open_site
from configs import to_json
from configs.federated import PrivacyConfig, StrategyConfig
from configs.setting import ConfigError
from medmap_model import contract
from simulation.engines import InProcessGrid
from tests.conftest import small_config, write_hospital


def write(folder: Path, text: str) -> Path:
    (folder / "site.yaml").write_text(text)
    return folder / "site.yaml"


def test_what_is_not_said_has_a_default_and_paths_are_the_files_own(tmp_path):
    own = read_site(write(tmp_path, "manifest: data/manifest.csv\n"))
    assert own.manifest == tmp_path / "data" / "manifest.csv" and own.name == "data"
    assert own.cache_dir == tmp_path / "data" / ".medmap-cache" and own.privacy == Privacy(required=False)
    assert own.egress == Egress() and own.gate == tmp_path / "gate" and own.ledger == tmp_path / "data" / "data.db"
    assert read_site(write(tmp_path, "manifest: /m.csv\nprivacy: {epsilon: 3}\n")).privacy.required, (
        "a section means it"
    )
    text = "manifest: /m.csv\nname: north\ncache_dir: c\nprivacy: {required: true, ledger: n.db, epsilon: 3, delta: 1e-6}\n"
    own = read_site(write(tmp_path, text))
    assert (own.name, own.manifest, own.cache_dir) == ("north", Path("/m.csv"), tmp_path / "c")
    assert own.privacy == Privacy(required=True, ledger=tmp_path / "n.db", epsilon=3.0, delta=1e-6)
    assert own.ledger == tmp_path / "n.db"
    own = read_site(write(tmp_path, "manifest: /m.csv\negress: {metrics: [loss], minimum_cohort: 9, folder: /g}\n"))
    assert own.egress == Egress(metrics=("loss",), minimum_cohort=9, folder=Path("/g")) and own.gate == Path("/g")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: north\n", "has no `manifest`"),
        ("manifest: m.csv\nmanifets: x\n", "`manifets` is not a setting"),
        ("manifest: m.csv\nprivacy: {epsilon: -1}\n", r"privacy.epsilon: -1 is out of range"),
        ("manifest: m.csv\nprivacy: {delta: small}\n", "'small' is not a number"),
        ("manifest: m.csv\nprivacy: {cohort: secret}\n", "secret is not a choice"),
        ("manifest: m.csv\nprivacy: {required: perhaps}\n", "take true or false"),
        ("manifest: m.csv\nprivacy: {eps: 1}\n", "there are cohort, cohort_epsilon, delta"),
        ("manifest: m.csv\negress: {metrics: [loss, age]}\n", "egress.metrics: age is not a choice: take one of loss"),
        ("manifest: m.csv\negress: {minimum_cohort: few}\n", "'few' is not a whole number"),
        ("manifest: m.csv\negress: {maximum_mb: 0}\n", "egress.maximum_mb: 0 is out of range"),
        ("manifest: m.csv\negress: {maximum_request_mb: 0}\n", "egress.maximum_request_mb: 0 is out of range"),
        ("manifest: m.csv\negress: {secure_minimum: 1}\n", "egress.secure_minimum: 1 is out of range: take 2 or more"),
        ("manifest: m.csv\nname: [\n", "line 3 is not YAML"),
        ("- a\n", "holds no settings"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        read_site(write(tmp_path, text))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_site(tmp_path / "none.yaml")


def test_the_sites_budget_stands_in_place_of_the_runs():
    run = PrivacyConfig(epsilon=8.0, delta=1e-5, steps=7)
    assert Privacy().over(run) == run
    mine = Privacy(epsilon=1.5).over(run)
    assert (mine.epsilon, mine.delta, mine.steps) == (1.5, 1e-5, 7)


def test_a_site_that_requires_privacy_takes_part_in_no_run_without(hospitals, cache):
    arguments = ("north", (hospitals["east"],), cache, Privacy(required=True))
    with pytest.raises(SiteError, match="requires privacy") as refused:
        open_site(to_json(small_config()), *arguments)
    assert refused.value.code == "policy"
    private = to_json(small_config("privacy=patient_dp", "stage.pretrain.rounds=0"))
    assert open_site(private, *arguments).policy.required


def test_over_messages_the_refusal_is_a_code_and_the_words_stay(tmp_path, hospitals, cache, caplog):
    site = write(tmp_path, f"manifest: {hospitals['east']}\nprivacy: {{required: true}}\n")
    with caplog.at_level(logging.ERROR, "medmap.client"):
        content = ask(site, cache, "query", RecordDict())
    assert content[contract.REFUSAL]["code"] == "policy"
    assert "site.yaml" in caplog.text and "site.yaml" not in str(content)


def ask(site: Path, cache: Path, kind: str, content: RecordDict, *settings: str) -> RecordDict:
    """What the app of this site answers."""
    InProcessGrid(app, 1, {})  # stamps messages as Flower's runtime does
    context = Context(
        run_id=1, node_id=2, node_config={"site-file": str(site)}, state=RecordDict(),
        run_config={"config": to_json(small_config(*settings)), "cache-dir": str(cache)},
    )  # fmt: skip
    return app(Message(content, dst_node_id=2, message_type=kind, group_id="x"), context).content


def test_a_hospital_with_few_patients_behind_a_number_takes_no_part(tmp_path, hospitals, cache, caplog):
    """The fixture's hospital has 4 patients for validation."""
    site = write(tmp_path, f"manifest: {hospitals['east']}\ncache_dir: {cache}\n")
    assert ask(site, cache, "query", RecordDict())[contract.REFUSAL]["code"] == "egress"
    assert "splits of 'val': 4" in caplog.text
    write(tmp_path, f"manifest: {hospitals['east']}\ncache_dir: {cache}\negress: {{minimum_cohort: 4}}\n")
    assert set(ask(site, cache, "query", RecordDict())) == {contract.CARD}


def test_it_is_patients_that_are_counted_behind_a_modality_not_their_volumes(tmp_path, caplog):
    """Of T1 four volumes, of two patients; of FLAIR four, of four."""
    manifest = write_hospital(tmp_path / "data", ["T1", "FLAIR"], patients=4)
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [r for r in rows if not (r["patient_id"] in ("data-train-2", "data-train-3") and r["modality"] == "T1")]
    for row in [r for r in rows if r["patient_id"] in ("data-train-0", "data-train-1") and r["modality"] == "T1"]:
        again = f"again-{row['image']}"
        shutil.copy(manifest.parent / row["image"], manifest.parent / again)
        rows.append(row | {"study_id": again, "image": again})
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    text = f"manifest: {manifest}\ncache_dir: c\negress: {{minimum_cohort: 4}}\n"
    assert ask(write(tmp_path, text), tmp_path, "query", RecordDict())[contract.REFUSAL]["code"] == "egress"
    assert "volumes of 'T1': 2 patients, and site.yaml has egress.minimum_cohort 4" in caplog.text
    for kind in ("train", "evaluate"):  # of a server that has not asked for the card
        caplog.clear()
        assert ask(tmp_path / "site.yaml", tmp_path, kind, RecordDict())[contract.REFUSAL]["code"] == "egress"
        assert "egress.minimum_cohort 4" in caplog.text
    lower = write(tmp_path, text.replace("4}", "2}"))
    card = json.loads(str(ask(lower, tmp_path, "query", RecordDict())[contract.CARD][contract.CARD]))
    assert card["volumes"] == {"T1": 4, "FLAIR": 4} and card["site"] == "data"
    hidden = write(tmp_path, text + "privacy: {cohort: hidden}\n")
    private = ("privacy=patient_dp", "stage.pretrain.rounds=0")
    assert contract.CARD in ask(hidden, tmp_path, "query", RecordDict(), *private), "noise is told"


def test_a_run_whose_secure_sums_may_be_over_fewer_sites_than_site_yaml_says_is_not_joined(
    tmp_path, hospitals, cache, caplog
):
    text = f"manifest: {hospitals['east']}\ncache_dir: {cache}\negress: {{minimum_cohort: 0}}\n"
    two, three = (("strategy=secure", f"strategy.secure_min={n}") for n in (2, 3))
    step = RecordDict({"secure": ConfigRecord({"secure": contract.to_json({"round": "ab", "me": 1})})})
    site = write(tmp_path, text)
    for kind, content in (("query", RecordDict()), ("query.secure_keys", step)):
        caplog.clear()
        assert ask(site, cache, kind, content, *two)[contract.REFUSAL]["code"] == "policy"
        assert (
            "the run sums 2 sites or more (strategy.secure_min), and site.yaml has egress.secure_minimum 3"
            in caplog.text
        )
    assert contract.SECURE in ask(site, cache, "query.secure_keys", step, *three)
    site = write(tmp_path, text.replace("cohort: 0", "cohort: 0, secure_minimum: 2"))
    assert contract.CARD in ask(site, cache, "query", RecordDict(), *two)
    Egress().check_sum(StrategyConfig(secure_min=2))  # of which nothing is summed secretly


@pytest.mark.parametrize("told", [True, False])
def test_the_budget_is_told_or_not_as_the_hospital_says(tmp_path, hospitals, cache, told):
    text = f"manifest: {hospitals['east']}\ncache_dir: {cache}\negress: {{minimum_cohort: 4}}\n"
    text += f"privacy: {{ledger: n.db, epsilon: 3, tell_budget: {str(told).lower()}}}\n"
    request = ConfigRecord(
        {"request": contract.to_json(contract.Request(["brain"], epsilon=0.5, run="r", message="m"))}
    )
    settings = ("privacy=patient_dp", "stage.pretrain.rounds=0")
    reply = ask(write(tmp_path, text), cache, "query.cohort", RecordDict({"request": request}), *settings)
    receipt = json.loads(str(reply[contract.RECEIPT][contract.RECEIPT]))
    assert receipt["seq"] == 2 and {k: receipt.get(k) for k in ("spent", "budget")} == (
        {"spent": 0.5, "budget": 3.0} if told else {"spent": None, "budget": None}
    )


def test_a_run_cannot_choose_a_hospitals_ledger_or_budget(tmp_path, hospitals, cache):
    settings = small_config(
        "privacy=patient_dp", "stage.pretrain.rounds=0", "privacy.epsilon=500", f"privacy.ledger_dir={tmp_path}"
    )
    own = Privacy(ledger=tmp_path / "own" / "north.db", epsilon=2.0)
    ledger = open_site(to_json(settings), "north", (hospitals["east"],), cache, own).ledger()
    assert (ledger.path, ledger.epsilon) == (tmp_path / "own" / "north.db", 2.0)
    simulated = open_site(to_json(settings), "north", (hospitals["east"],), cache).ledger()
    assert (simulated.path, simulated.epsilon) == (tmp_path / "north.db", 500.0)


def test_the_room_that_prepared_volumes_take_is_the_hospitals_to_say(tmp_path, hospitals, monkeypatch):
    """Whatever bound the run has, or has none."""
    asked = []
    monkeypatch.setattr("client.site.open_records", lambda config, *more: asked.append(config.data.volumes.cache_gb))
    config = to_json(small_config("data.volumes.cache_gb=7"))
    own = read_site(write(tmp_path, f"manifest: {hospitals['east']}\ncache_gb: 0.5\n"))
    open_site(config, "east", (own.manifest,), tmp_path, own.privacy, own.cache_gb)
    open_site(config, "east", (own.manifest,), tmp_path)
    assert asked == [0.5, 7]
