"""site.yaml: what a hospital demands whatever a run says; a mistake in it is one sentence."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from client.policy import Privacy, read_site
from client.site import SiteError, open_site
from configs import to_json
from configs.federated import PrivacyConfig
from configs.setting import ConfigError
from tests.conftest import small_config


def write(folder: Path, text: str) -> Path:
    (folder / "site.yaml").write_text(text)
    return folder / "site.yaml"


def test_what_is_not_said_has_a_default_and_paths_are_the_files_own(tmp_path):
    own = read_site(write(tmp_path, "manifest: data/manifest.csv\n"))
    assert own.manifest == tmp_path / "data" / "manifest.csv" and own.name == "data"
    assert own.cache_dir == tmp_path / "data" / ".medmap-cache" and own.privacy == Privacy(required=False)
    assert read_site(write(tmp_path, "manifest: /m.csv\nprivacy: {epsilon: 3}\n")).privacy.required, (
        "a section means it"
    )
    text = "manifest: /m.csv\nname: north\ncache_dir: c\nprivacy: {required: true, ledger: n.db, epsilon: 3, delta: 1e-6}\n"
    own = read_site(write(tmp_path, text))
    assert (own.name, own.manifest, own.cache_dir) == ("north", Path("/m.csv"), tmp_path / "c")
    assert own.privacy == Privacy(required=True, ledger=tmp_path / "n.db", epsilon=3.0, delta=1e-6)


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
    from flwr.app import Context, Message, RecordDict

    from client.app import app
    from medmap_model import contract
    from simulation.engines import InProcessGrid

    InProcessGrid(app, 1, {})  # stamps messages as Flower's runtime does
    path = write(tmp_path, f"manifest: {hospitals['east']}\nprivacy: {{required: true}}\n")
    context = Context(
        run_id=1, node_id=2, node_config={"site-file": str(path)}, state=RecordDict(),
        run_config={"config": to_json(small_config()), "cache-dir": str(cache)},
    )  # fmt: skip
    with caplog.at_level(logging.ERROR, "medmap.client"):
        reply = app(Message(RecordDict(), dst_node_id=2, message_type="query", group_id="join"), context)
    assert reply.content[contract.REFUSAL]["code"] == "policy"
    assert "site.yaml" in caplog.text and "site.yaml" not in str(reply.content)


def test_a_run_cannot_choose_a_hospitals_ledger_or_budget(tmp_path, hospitals, cache):
    settings = small_config(
        "privacy=patient_dp", "stage.pretrain.rounds=0", "privacy.epsilon=500", f"privacy.ledger_dir={tmp_path}"
    )
    own = Privacy(ledger=tmp_path / "own" / "north.db", epsilon=2.0)
    ledger = open_site(to_json(settings), "north", (hospitals["east"],), cache, own).ledger()
    assert (ledger.path, ledger.epsilon) == (tmp_path / "own" / "north.db", 2.0)
    simulated = open_site(to_json(settings), "north", (hospitals["east"],), cache).ledger()
    assert (simulated.path, simulated.epsilon) == (tmp_path / "north.db", 500.0)
