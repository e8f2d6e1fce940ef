"""Settings: every named choice composes, and every mistake is one line that names the key and the way out."""

from __future__ import annotations

import pytest

from configs import GROUPS, choices, from_json, keys, load, load_vocabulary, to_json
from configs.setting import ConfigError


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g in GROUPS for c in choices(g)])
def test_every_named_setting_composes(group, choice):
    load([f"{group}={choice}"])


def test_the_config_survives_the_journey_as_json():
    config = load(["seed=3", "sites=iid", "stage.pretrain.lr=0.01"])
    assert from_json(to_json(config)) == config
    assert config.seed == 3 and config.sites.kind == "iid"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stage.pretrain.lrr=1",
            "stage.pretrain.lrr=1: there is no setting 'stage.pretrain.lrr'; did you mean stage.pretrain.lr",
        ),
        ("site=iid", "did you mean sites"),
        ("stage.pretrain.lr=fast", r"stage.pretrain.lr: Value 'fast'.*Float"),
        (
            "stage.pretrain.lr=-1",
            r"stage.pretrain.lr=-1.* is out of range: take 1e-08 to 10 \(peak learning rate",
        ),
        ("stage.finetune.batch_size=1", "take 2 to 4096"),
        ("sites=mixd", "sites=mixd is not a choice: take one of iid, label_skew, mixed"),
        ("data.volumes.crop=nose", "data.volumes.crop=nose is not a choice: take one of lesion, organ"),
        ("baselines=[pooled,best]", "baselines=best is not a choice: take one of local, pooled, naive"),
        ("seed", "'seed' is not key=value"),
        ("data.volumes=1", "data.volumes is a group of settings, set one of: data.volumes.spacing_mm"),
        ("data.vocabulary.name=x", "there is no setting"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_choices(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load([override])
    assert "\n" not in str(caught.value)


def test_a_variant_lies_over_every_other_setting():
    """Else an experiment whose rounds are overridden would pre-train in its `no_pretraining`."""
    config = load(["variant=no_pretraining", "stage.pretrain.rounds=3", "stage.finetune.rounds=5"])
    assert (config.variant, config.stage.pretrain.rounds, config.stage.finetune.rounds) == ("no_pretraining", 0, 5)
    equal = load(["stage.pretrain.rounds=3", "variant=no_pretraining_equal", "stage.finetune.rounds=5"])
    assert (equal.stage.pretrain.rounds, equal.stage.finetune.rounds) == (0, 8)
    assert from_json(to_json(equal)) == equal, "and is not applied twice"
    assert load(["variant=none", "seed=2"]) == load(["seed=2"])
    with pytest.raises(ConfigError, match="variant=no_cca is not a choice: take one of full, no_cct, no_csa"):
        load(["variant=no_cca"])


def test_every_setting_says_what_it_means():
    assert [k for k, _, meaning in keys() if not meaning] == []


def test_the_vocabulary_is_medmom():
    v = load_vocabulary("medmom")
    assert len(v.modalities) == 12
    assert sum(len(o.abnormalities) for o in v.organs.values()) == 9
    with pytest.raises(ConfigError, match=r"neither a file nor one of medmom"):
        load_vocabulary("nowhere")


def test_a_vocabulary_that_contradicts_itself_is_refused(tmp_path):
    path = tmp_path / "v.yaml"
    path.write_text("name: x\norgans: {knee: {modalities: [PD, PD], query: q, prompts: {a: [x], b: [y]}}}")
    with pytest.raises(ConfigError, match="names a modality twice"):
        load_vocabulary(str(path))
