"""Nyul's scale: two scanners' histograms meet, landmarks are of training patients alone, privacy refuses to learn them."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.preprocess.nyul import check, read_landmarks, scale_of, standardised
from client.problems import DataError, SiteError
from client.records import SiteRecords
from client.site import open_site
from client.volumes import CLIP_Z
from configs import load, load_vocabulary, to_json
from configs.setting import ConfigError
from medmap_model import load as load_model
from medmap_model.contract import Request
from medmap_model.landmarks import landmarks_of
from medmap_model.releases import SHIFT
from medmap_model.text import build_text_encoder
from server.export.card import write_card
from tests.conftest import small_config
from tests.trained import manifest_of, trained_run

MEDMOM = load_vocabulary("medmom")
NYUL = "data.volumes.standardise=nyul"


def tissues(gamma: float, *, seed: int, shares: tuple[float, ...] = (0.3, 0.5, 0.2)) -> np.ndarray:
    """(16, 16, 16) voxels of three tissues in air; `gamma` is the scanner's contrast."""
    rng = np.random.default_rng(seed)
    data = np.zeros((16, 16, 16))
    kinds = rng.choice(3, size=(12, 12, 12), p=shares)
    data[2:-2, 2:-2, 2:-2] = np.array([0.4, 0.6, 1.0])[kinds] ** gamma * 500 + rng.normal(0, 8, (12, 12, 12))
    return data


def hospital(folder: Path, gamma: float, *, train: int = 6, test: int = 4, brighter: float = 1.0) -> Path:
    """A manifest of T1 volumes of one scanner; `brighter` spoils the test patients alone."""
    folder.mkdir(exist_ok=True)
    lines = ["patient_id,study_id,modality,image,split"]
    for i in range(train + test):
        split = "train" if i < train else "test"
        data = tissues(gamma * (1 if i < train else brighter), seed=100 + i).astype(np.float32)
        image = nib.Nifti1Image(data, np.diag([4.0, 4, 4, 1]))
        (folder / f"{i}.nii.gz").write_bytes(gzip.compress(image.to_bytes(), 1))
        lines.append(f"P{i},A,T1,{i}.nii.gz,{split}")
    (folder / "m.csv").write_text("\n".join(lines))
    return folder / "m.csv"


def records(manifest: Path, cache: Path, *overrides: str) -> SiteRecords:
    config = small_config(*overrides)
    embed = build_text_encoder(config.text).embed
    return SiteRecords([manifest], vocabulary=MEDMOM, volumes=config.data.volumes, embed=embed, cache_dir=cache)


def deciles(found: SiteRecords, split: str) -> np.ndarray:
    """Of what is not air, over all patients."""
    inner = [cube[:, 2:-2, 2:-2, 2:-2].float().ravel().numpy() for _, cube in found.cubes(split=split, organ="brain")]
    return np.percentile(np.concatenate(inner), np.arange(10, 100, 10))


def test_two_scanners_histograms_meet_on_public_landmarks_and_not_without(tmp_path):
    paths = [hospital(tmp_path / name, gamma) for name, gamma in (("soft", 0.5), ("hard", 2.0))]
    scale = scale_of(landmarks_of(tissues(1.0, seed=s)[2:-2, 2:-2, 2:-2].ravel().astype(np.float32)) for s in range(5))
    public = f"data.volumes.landmarks={{T1: [{','.join(map(str, scale))}]}}"

    def apart(*overrides: str) -> float:
        a, b = (deciles(records(p, tmp_path / "cache", *overrides), "train") for p in paths)
        return float(np.abs(a - b).max())

    assert apart() > 0.3  # the control: z-scores leave them apart
    assert apart(NYUL, public) < 0.1


def test_landmarks_are_of_training_patients_alone(tmp_path):
    plain, spoilt = (hospital(tmp_path / name, 1.0, brighter=b) for name, b in (("plain", 1.0), ("spoilt", 3.0)))
    one, two = (records(path, tmp_path / "cache", NYUL) for path in (plain, spoilt))
    assert one.scales == two.scales
    other = records(hospital(tmp_path / "other", 2.0), tmp_path / "cache", NYUL)
    assert other.scales != one.scales  # a change of training patients does show


def test_a_site_without_training_patients_needs_public_landmarks(tmp_path):
    path = hospital(tmp_path / "external", 1.0, train=0)
    with pytest.raises(DataError, match="landmarks of T1") as error:
        records(path, tmp_path / "cache", NYUL)
    assert "\n" not in str(error.value)
    records(path, tmp_path / "cache", NYUL, f"data.volumes.landmarks={{T1: {[float(v) for v in range(-5, 6)]}}}")


def test_privacy_refuses_landmarks_that_a_site_learns_and_takes_public_ones():
    private = ("privacy=patient_dp", "stage.pretrain.objective=bank", NYUL)
    with pytest.raises(ConfigError, match="public ones"):
        check(load([*private]))
    from client.privacy.checks import check_settings

    with pytest.raises(ConfigError, match="public ones"):
        check_settings(load([*private]))
    check_settings(load([*private, f"data.volumes.landmarks={{T1: {[float(v) for v in range(11)]}}}"]))
    plain = load([NYUL])
    check(plain)
    for release in ({"shift_epsilon": 2.0}, {"landmarks_epsilon": 8.0}, {"validations": 1}):
        with pytest.raises(ConfigError, match="a release with noise"):
            check(replace(plain, privacy=replace(plain.privacy, **release)))


def test_a_site_that_learnt_its_landmarks_releases_nothing_whatever_the_run_announced(tmp_path):
    config = small_config(NYUL, f"privacy.ledger_dir={tmp_path / 'ledgers'}")
    site = open_site(to_json(config), "north", (hospital(tmp_path / "north", 1.0),), tmp_path / "cache")
    with pytest.raises(SiteError, match="learnt") as error:
        site.release_cohort(Request(["brain"], epsilon=1.0, tables=list(SHIFT), run="r", number=1))
    assert error.value.code == "policy" and not (tmp_path / "ledgers").exists()


def test_a_site_itself_refuses_before_it_opens_a_volume(tmp_path):
    config = small_config("privacy=patient_dp", "stage.pretrain.objective=bank", NYUL)
    with pytest.raises(SiteError, match="public ones") as error:
        open_site(to_json(config), "north", (hospital(tmp_path / "north", 1.0),), tmp_path / "cache")
    assert error.value.code == "policy" and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "row",
    ["[1.0,2.0]", "[0.0,1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,9.0]", "[-inf,1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,9.5]"],
)
def test_landmarks_that_are_none_are_refused(row):
    with pytest.raises(ConfigError, match=r"data\.volumes\.landmarks, T1: give 11 increasing numbers"):
        check(load([f"data.volumes.landmarks={{T1: {row}}}"]))


def test_the_map_is_monotone_goes_on_beyond_its_ends_and_survives_a_plateau():
    own = landmarks_of(np.repeat(np.float32([1.0, 2.0, 2.0, 2.0, 3.0]), 100))
    scale = tuple(float(v) for v in np.linspace(-2, 2, 11))
    values = np.linspace(-5, 8, 400)
    mapped = standardised(values, own, scale)
    assert (np.diff(mapped) >= 0).all() and mapped[0] == CLIP_Z[0] and mapped[-1] == CLIP_Z[1]
    np.testing.assert_allclose(standardised(np.array(own), own, scale), scale, atol=1e-3)


def test_the_command_writes_what_a_run_and_predict_take(tmp_path):
    path = hospital(tmp_path / "public", 1.0)
    done = CliRunner().invoke(
        app, ["landmarks", str(path), "-o", str(tmp_path / "l.yaml"), "--set", "data.volumes.spacing_mm=4"]
    )
    assert done.exit_code == 0, done.output
    text = (tmp_path / "l.yaml").read_text().strip().replace(" ", "")
    assert "\n" not in text and load([f"data.volumes.landmarks={text}"]).data.volumes.landmarks == read_landmarks(
        tmp_path / "l.yaml"
    )
    assert tuple(read_landmarks(tmp_path / "l.yaml")["T1"]) == records(path, tmp_path / "cache", NYUL).scales["T1"]
    (tmp_path / "l.yaml").write_text("T1: 3\n")
    with pytest.raises(ConfigError, match="11 increasing"):
        read_landmarks(tmp_path / "l.yaml")
    assert CliRunner().invoke(app, ["landmarks", str(path), "--set", "nothing"]).exit_code == 2


def test_a_model_says_what_was_done_to_volumes_and_predict_does_the_same(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run(), run)
    image = str(next(manifest_of(trained_run(), "east").parent.glob("*test-1-T1.nii.gz")))
    predict = ["predict", "-c", str(run), f"T1={image}", "--json"]
    plain = json.loads(CliRunner().invoke(app, predict).stdout)["studies"][0]["probabilities"]
    for about in run.rglob("model.json"):
        info = json.loads(about.read_text())
        info["volumes"] |= {"standardise": "nyul", "bias_correction": "n4"}
        about.write_text(json.dumps(info))
    model = load_model(run)
    card = write_card(model.info, None, kind="safetensors")
    assert "N4" in card and "Nyul" in card and "registered" not in card and "each site learnt" in card
    shared = model.info | {"volumes": model.info["volumes"] | {"landmarks": {"T1": list(range(11))}}}
    assert "the same at all sites" in write_card(shared, None, kind="safetensors")
    refused = CliRunner().invoke(app, predict)
    assert refused.exit_code == 1 and re.search("no landmarks of", refused.stderr)
    file = tmp_path / "l.yaml"
    file.write_text(json.dumps({m: list(range(-5, 6)) for m in model.info["modalities"]}))
    done = CliRunner().invoke(app, [*predict, "--landmarks", str(file)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["studies"][0]["probabilities"] != plain


def test_a_plain_models_card_claims_nothing():
    card = write_card(load_model(trained_run()).info, None, kind="safetensors")
    assert "z-scores" in card and not re.search("N4|Nyul|skull|registered", card)
