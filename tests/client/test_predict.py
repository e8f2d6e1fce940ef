"""Predictions from files: as the simulation's, whatever is missing, ignored or broken, and however the files are given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from client.cli import app
from client.exams import UsageError, read_exams
from client.manifest import ManifestError, read_manifest
from client.predict import called, operating_point, predict
from medmap_model import load
from medmap_model.checkpoint import LoadedMedMAP
from simulation.conditions import load_predictions
from tests.trained import manifest_of, trained_run


@pytest.fixture(scope="module")
def run() -> Path:
    return trained_run()


@pytest.fixture(scope="module")
def model(run) -> LoadedMedMAP:
    return load(run)


@pytest.fixture
def study(run, tmp_path) -> Path:
    """A folder with the files of one patient, T1 and FLAIR."""
    for modality in ("T1", "FLAIR"):
        shutil.copy(
            manifest_of(run, "east").parent / f"east-test-1-{modality}.nii.gz", tmp_path / f"x_{modality}_1.nii.gz"
        )
    return tmp_path


def one(model, *arguments, **more):
    [found] = predict(model, read_exams([str(a) for a in arguments], model.vocabulary, **more))
    return found


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], env={"COLUMNS": "300"})


@pytest.mark.parametrize("site", ["east", "west"])
@pytest.mark.parametrize("split", ["test", "common"])
def test_a_manifest_gives_the_numbers_of_the_simulation(run, model, site, split):
    wanted = load_predictions(run, "federated")[site, split, "brain"].probabilities
    path = manifest_of(run, site)
    found = list(predict(model, read_exams([str(path)], model.vocabulary, split=split)))
    got = np.array([list(p.probabilities.values()) for p in found])
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert np.ptp(wanted[:, 1]) > 1e-4, "patients must differ, or order would not matter"
    order = [s.study_id for s in read_manifest(path, model.vocabulary).studies if s.split == split]
    assert [p.study_id for p in found] == order


def test_labels_and_reports_are_not_needed_and_do_not_matter(run, model, tmp_path):
    source = manifest_of(run, "east")
    bare = tmp_path / "bare.csv"
    rows = [
        [*line.split(",")[:3], str(source.parent / line.split(",")[3])] for line in source.read_text().splitlines()[1:]
    ]
    bare.write_text("\n".join(["patient_id,study_id,modality,image", *(",".join(r) for r in rows)]))
    wrong = tmp_path / "wrong.csv"
    wrong.write_text(
        "\n".join(["patient_id,study_id,modality,image,abnormality", *(",".join([*r, "plague"]) for r in rows)])
    )
    full, plain, odd = (list(predict(model, read_exams([str(p)], model.vocabulary))) for p in (source, bare, wrong))
    assert [p.probabilities for p in full] == [p.probabilities for p in plain] == [p.probabilities for p in odd]
    assert all(p.clean for p in odd)


def test_loose_files_a_folder_and_a_manifest_of_one_study_agree(run, model, study):
    files = one(model, *(f"{m}={study / f'x_{m}_1.nii.gz'}" for m in ("FLAIR", "T1")))
    folder = one(model, study)
    in_manifest = {
        p.patient_id: p for p in predict(model, read_exams([str(manifest_of(run, "east"))], model.vocabulary))
    }
    assert (
        files.probabilities == folder.probabilities == pytest.approx(in_manifest["east-test-1"].probabilities, abs=1e-6)
    )
    assert folder.used == ["T1", "FLAIR"] and folder.missing == ["T2"], "T1ce was never trained: it is not missed"


def test_what_the_model_never_saw_is_listed_and_changes_nothing(model, study):
    before = one(model, study).probabilities
    for name in ("x_T1ce_1", "x_DWI_1", "y_1"):
        shutil.copy(study / "x_T1_1.nii.gz", study / f"{name}.nii.gz")
    found = one(model, study)
    assert found.probabilities == before and found.clean
    reasons = {i.modality: i.reason for i in found.ignored}
    assert reasons["T1ce"] == "the model was never trained on T1ce"
    assert reasons["DWI"] == "'DWI' is not a modality of the brain: the model never saw it"
    assert "its name holds no modality" in reasons[None]
    slip = one(model, f"FLAR={study / 'x_FLAIR_1.nii.gz'}", f"T1={study / 'x_T1_1.nii.gz'}")
    assert "did you mean FLAIR?" in slip.ignored[0].reason
    # Control: the same file as a modality that was trained does change the result.
    shutil.copy(study / "x_T1_1.nii.gz", study / "x_T2_1.nii.gz")
    assert one(model, study).probabilities != before


def test_a_manifest_row_of_an_unknown_modality_is_ignored_with_its_reason(run, model, tmp_path):
    source = manifest_of(run, "east")
    rows = [r for r in source.read_text().splitlines()[1:] if r.startswith("east-test-1,")]
    rows = [",".join([*r.split(",")[:3], str(source.parent / r.split(",")[3]), "brain"]) for r in rows]
    extra = rows[0].replace(",T1,", ",SWI,")
    lonely = rows[0].replace("east-test-1", "only-swi", 2).replace(",T1,", ",SWI,")
    path = tmp_path / "m.csv"
    path.write_text("\n".join(["patient_id,study_id,modality,image,organ", *rows, extra, lonely]))
    first, second = predict(model, read_exams([str(path)], model.vocabulary))
    assert first.used == ["T1", "FLAIR"] and [i.modality for i in first.ignored] == ["SWI"] and first.clean
    assert second.probabilities is None and second.reason == "none of its volumes can be used"
    assert [i.modality for i in second.ignored] == ["SWI"]


def test_a_broken_file_costs_its_volume_and_a_broken_study_not_the_others(model, study, run):
    (study / "x_T1_1.nii.gz").write_bytes((study / "x_T1_1.nii.gz").read_bytes()[:200])
    found = one(model, study)
    assert found.used == ["FLAIR"] and found.missing == ["T1", "T2"] and found.probabilities
    assert "truncated" in found.problems[0].problem and found.problems[0].remedy == "Copy or export it again"
    (study / "x_FLAIR_1.nii.gz").write_bytes(b"junk")
    both = read_exams([str(study), str(manifest_of(run, "east"))], model.vocabulary)
    lost, good, *_ = predict(model, both)
    assert lost.probabilities is None and lost.reason == "none of its volumes can be used" and len(lost.problems) == 2
    assert good.clean


def test_an_organ_that_was_never_trained_gets_no_number(model, study):
    liver = one(model, f"DWI={study / 'x_T1_1.nii.gz'}")
    assert (liver.organ, liver.probabilities, liver.call) == ("liver", None, None)
    assert liver.reason == "the model was never trained on the liver"


def test_names_of_files_are_read_as_words(model, tmp_path, study):
    folder = tmp_path / "names"
    folder.mkdir()
    names = ["sub-1_t1CE", "sub-1_T1", "sub-1_FLAIR_to_T2", "sub-1_seg", "T2W"]
    for name in names:
        shutil.copy(study / "x_T1_1.nii.gz", folder / f"{name}.nii.gz")
    [exam] = read_exams([str(folder)], model.vocabulary)
    assert {m: p.name for m, p in exam.images.items()} == {"T1ce": "sub-1_t1CE.nii.gz", "T1": "sub-1_T1.nii.gz"}
    assert exam.mask is not None and exam.mask.name == "sub-1_seg.nii.gz"
    assert "holds T2 and FLAIR" in exam.problems[0].problem or "holds FLAIR and T2" in exam.problems[0].problem
    assert [Path(i.file).name for i in exam.ignored] == ["T2W.nii.gz"]
    for a, b in (("C+A", "liver_C+A"), ("C+Delay", "x.c+delay.2"), ("C-pre", "C-pre")):
        (folder / "x").mkdir(exist_ok=True)
        for old in (folder / "x").iterdir():
            old.unlink()
        shutil.copy(study / "x_T1_1.nii.gz", folder / "x" / f"{b}.nii.gz")
        [exam] = read_exams([str(folder / "x")], model.vocabulary)
        assert list(exam.images) == [a] and exam.organ == "liver"


@pytest.mark.parametrize(
    ("arguments", "more", "sentence"),
    [
        (["a.nii.gz"], {}, "say which modality it is, such as T1=a.nii.gz"),
        (["nowhere"], {}, "nowhere is not there: give a manifest"),
        (["."], {"organ": "lung"}, "--organ lung is not an organ"),
        (["."], {"split": "tset"}, "--split tset is not a split"),
    ],
)
def test_a_wrong_word_is_one_sentence(model, arguments, more, sentence):
    with pytest.raises(UsageError, match=sentence):
        read_exams(arguments, model.vocabulary, **more)


def test_the_call_follows_the_operating_point(model):
    brain = model.vocabulary.organs["brain"]
    thresholds, source = operating_point(model.info, brain)
    chosen = model.info["operating_points"]["brain"]
    assert thresholds == chosen["thresholds"] and (str(chosen["patients"]) in source or "0.5" in source)
    assert operating_point({}, brain)[0] == {"no_tumour": 0.5, "tumour": 0.5}
    p = {"no_tumour": 0.6, "tumour": 0.4}
    assert called(p, {"no_tumour": 0.5, "tumour": 0.5}, multi_label=False) == ["no_tumour"]
    assert called(p, {"no_tumour": 0.7, "tumour": 0.3}, multi_label=False) == ["tumour"]
    several = {"a": 0.2, "b": 0.5, "c": 0.3}
    assert called(several, dict.fromkeys("abc", 0.9), multi_label=False) == ["b"]
    assert called(several, {"a": 0.1, "b": 0.6, "c": 0.3}, multi_label=True) == ["a", "c"]


def test_a_model_after_stage_one_predicts_nothing(run, study):
    model = load(run / "checkpoints" / "pretrain-0001")
    with pytest.raises(ValueError, match="ends with stage 1"):
        one(model, study)


def test_a_model_of_lesion_crops_says_when_no_mask_was_given(run, study):
    model = load(run)
    model.info["volumes"] = model.info["volumes"] | {"crop": "lesion"}
    assert "No mask was given" in one(model, study).notes[0]
    shutil.copy(study / "x_T1_1.nii.gz", study / "mask.nii.gz")
    assert one(model, study).notes == []


def test_the_command_prints_a_table_or_json_and_exits_by_what_could_be_read(run, study, tmp_path):
    out = tmp_path / "result.json"
    shown = cli("-c", run, study, "-o", out)
    assert shown.exit_code == 0, shown.stderr
    for text in ("tumour", "T1, FLAIR", "T2", "Operating point, brain", "Not a medical device", "simulated patients"):
        assert text in shown.stdout
    printed = cli("--checkpoint", run, study, "--json")
    assert json.loads(printed.stdout) == json.loads(out.read_text())
    answer = json.loads(printed.stdout)["studies"][0]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert answer["modalities"] == {"used": ["T1", "FLAIR"], "missing": ["T2"], "ignored": []}
    gone = cli("-c", run, f"T1={study / 'x_T1_1.nii.gz'}", f"FLAIR={study / 'no.nii.gz'}", "--json")
    assert gone.exit_code == 1 and json.loads(gone.stdout)["studies"][0]["modalities"]["used"] == ["T1"]


def test_a_wrong_command_is_one_sentence_and_2(run, study, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(
        'name: other\norgans: {brain: {modalities: [T1], query: "Tumour", prompts: {none: ["No mass."], some: ["A mass."]}}}'
    )
    for arguments, sentence in (
        (("-c", tmp_path / "none", study), "is not there: give a run's folder"),
        (("-c", run / "checkpoints" / "pretrain-0001", study), "ends with stage 1"),
        (("-c", run, "a.nii.gz"), "say which modality it is"),
        (("-c", run, study, "--vocabulary", other), "yours is"),
        (("-c", run, study, "-o", tmp_path / "no" / "x.json"), "cannot be written"),
    ):
        shown = cli(*arguments)
        assert (shown.exit_code, shown.stderr.count("\n")) == (2, 1), shown.stderr
        assert sentence in shown.stderr


def test_a_manifest_without_its_columns_is_named(model, tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ManifestError, match="columns are missing"):
        read_exams([str(path)], model.vocabulary)
