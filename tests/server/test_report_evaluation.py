"""The report's tables of all measures, of subgroups and of the evaluation: what is there, and what is said of the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.report import write_report
from tests.server.report_parts import evaluation
from tests.server.report_run import full_summary, write_run
from tests.server.test_report import page_of, plain


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_run(tmp_path_factory.mktemp("report") / "run")
    return write_report(folder).read_text(encoding="utf-8")


def section(page: str, name: str) -> str:
    """What a reader reads of one section."""
    found = re.search(rf'<section aria-labelledby="{name}">(.*?)</section>', page, re.DOTALL)
    assert found, name
    return plain(found[1])


def test_every_measure_is_in_the_table_with_its_interval(page: str) -> None:
    text = section(page, "results")
    assert "AUROC Balanced accuracy Macro F1 Sensitivity Specificity MCC Cohen κ ECE Patients" in text
    assert "Federated 0.945 [0.91–0.97] 0.845 [0.79–0.89] 0.825 0.895 0.875 0.745 0.725 0.130 [0.08–0.19] 168" in text
    assert "brain: ROC, common test set" in text and "brain: reliability, common test set" in text
    assert "liver: ROC, common test set" in text and "liver: reliability" not in text
    assert "Operating point, brain: no tumour 0.37, tumour 0.63 (the largest" in text
    assert "96 validation patients" in text
    assert "Operating point, liver: 0.5 for every class; there are no validation patients." in text


def test_subgroups_have_their_patients_and_a_reason_where_nothing_can_be_said(page: str) -> None:
    text = section(page, "subgroups")
    assert "brain: each class against the rest" in text
    assert "no tumour 24 of 168 0.900 [0.87–0.93]" in text
    assert "H2 one class only: no_tumour (12 patients) 12 – – – 0.750" in text
    assert text.count("one class only: no_tumour (12 patients)") == 2  # common and own; said once a row
    assert "8 20 0.860" in text


def test_evaluation_is_shown_as_far_as_it_goes(page: str) -> None:
    text = section(page, "zero-shot")
    assert "brain After stage 1 0.710" in text
    assert "liver one class only: no_tumour (12 patients) At the end – – – 3" in text
    assert "brain After stage 1 Report for an image 0.21 0.55 0.75 4.5 70" in text
    assert "liver no patient has a report At the end Report for an image – – – – 0" in text
    text = section(page, "missing")
    assert "The 10 worst of 255 subsets" in text
    assert "The 10 worst of 15 subsets" in text
    assert "0 1 0.950 0.950 1 4 0.902 0.880" in text  # brain: hidden, subsets, mean, worst
    assert "Worst subset: T2 0.800" in text
    assert "Modalities left AUROC Balanced accuracy T2 0.800 0.700 T1ce 0.800" in text
    assert "75 % of the voxels lost, worst subset –" in text
    text = section(page, "corruptions")
    assert "bias field 1 0.930 0.800 0.130 −0.01" in text
    assert "Worst: resolution, severity 3, 0.840." in text
    assert "motion needs torchio" in text and "<i>x" not in page
    text = section(page, "importance")
    assert "T1ce +0.310 T1 +0.020 T2 −0.040 FLAIR –" in text
    examples = section(page, "examples")
    assert "T1 +0.21 T1ce −0.03 T2 FLAIR" in examples, "an importance that is not known is not shown as 0"
    assert examples.count("The second picture") == 1


def test_any_part_of_the_evaluation_may_be_null(tmp_path: Path) -> None:
    whole = full_summary()
    whole["evaluation"] = {k: dict.fromkeys(v) if isinstance(v, dict) else v for k, v in evaluation().items()}
    page = page_of(whole, tmp_path)
    for name in ("zero-shot", "missing", "corruptions", "importance"):
        assert f'aria-labelledby="{name}"' not in page
    assert "Zero-shot, Missing modalities, Corruptions and What mattered." in section(page, "left-out")
    halves = {
        "brain": {"pretrained": None, "final": {"image_to_report": None}},
        "liver": {"subsets": [{"auroc": None}]},
    }
    whole["evaluation"] = dict.fromkeys(("retrieval", "missing", "corruptions", "importance"), halves)
    assert not re.search(r"\b0\.0+\b", section(page_of(whole, tmp_path), "missing"))
