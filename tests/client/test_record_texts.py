"""Texts that a site makes itself: captions for labelled patients without a report, and hard negatives of reports."""

from __future__ import annotations

import pytest
import torch

from client.records import SiteRecords
from client.site import open_records
from medmap_model.text.captions import caption
from medmap_model.text.negatives import negation_negative, side_negative
from tests.client.test_records import MEDMOM, MIRROR, VOLUMES, Hospital, Texts
from tests.conftest import small_config

LIVER = MEDMOM.organs["liver"]


def opened(site: Hospital, embed: Texts, *, captions: bool = False, hard_negatives: bool = False) -> SiteRecords:
    return SiteRecords(
        [site.manifest()], vocabulary=MEDMOM, volumes=VOLUMES, embed=embed, cache_dir=site.folder / "cache",
        captions=captions, hard_negatives=hard_negatives,
    )  # fmt: skip


@pytest.fixture
def site(tmp_path) -> Hospital:
    """Liver patients: with a report, with a label alone, with nothing; also for validation and testing."""
    site = Hospital(tmp_path / "site")
    for split in ("train", "val", "test"):
        for i in range(4):
            site.add(f"{split}-R{i}", "1", ("DWI", "C+A"), "liver", "hcc", f"Report {i}.", split)
            site.add(f"{split}-L{i}", "1", ("DWI", "C+A"), "liver", "cyst", "", split)
            site.add(f"{split}-N{i}", "1", ("DWI", "C+A"), "liver", "", "", split)
    return site


def texts_of(records: SiteRecords, embed: Texts, split: str) -> dict[str, str]:
    """Patient -> text, "" where there is no report."""
    batch = next(iter(records.eval_batches(split=split, organ="liver", batch_size=99)))
    texts = embed.of(batch.report)
    assert [bool(t) for t in texts] == batch.has_report.tolist()
    return {s.patient_id: t for s, t in zip(records.studies(split=split, organ="liver"), texts, strict=True)}


def test_training_patients_with_a_label_alone_get_a_caption_and_nobody_else(site):
    embed = Texts()
    records = opened(site, embed, captions=True)
    assert records.captioned == 4
    train = texts_of(records, embed, "train")
    possible = {caption(LIVER, "cyst", ("DWI", "C+A"), seed=s) for s in range(50)}
    for patient, text in train.items():
        assert text.startswith("Report") if "R" in patient else text in possible if "L" in patient else text == ""
    assert {p: bool(t) for p, t in texts_of(records, embed, "val").items()} == {
        f"val-{kind}{i}": kind == "R" for i in range(4) for kind in "RLN"
    }
    assert not any(texts_of(records, embed, "test").values())
    again = Texts()
    assert texts_of(opened(site, again, captions=True), again, "train") == train
    assert opened(site, Texts()).captioned == 0


def test_a_caption_names_only_volumes_that_can_be_used(site):
    for i in range(4):
        (site.folder / f"train-L{i}-1-C+A.nii.gz").write_bytes(b"junk")
    embed = Texts()
    texts = texts_of(opened(site, embed, captions=True), embed, "train")
    assert all("diffusion" in texts[f"train-L{i}"] and "arterial" not in texts[f"train-L{i}"] for i in range(4))


def test_captioned_patients_are_mirrored_and_keep_their_text(site):
    embed = Texts()
    records = opened(site, embed, captions=True)
    plain = torch.cat([b.volumes for b in records.eval_batches(split="train", organ="liver")])
    batches = [b for s in range(3) for b in records.train_batches(batch_size=4, seed=s, augment=MIRROR)]
    moved = [v for b in batches for v in b.volumes if not any(torch.equal(v, p) for p in plain)]
    assert moved
    assert sum(int(b.has_report.sum()) for b in batches) == 3 * 8


def test_negatives_follow_the_report_through_a_mirror(tmp_path):
    site = Hospital(tmp_path / "s")
    reports = [f"Mass {i} in the {('left', 'right')[i % 2]} lobe. No washout." for i in range(12)]
    for i, report in enumerate(reports):
        site.add(f"P{i}", "1", ("T1",), report=report)
    embed = Texts()
    records = opened(site, embed, hard_negatives=True)
    assert len(embed.calls) == 1
    swapped = 0
    for batch in records.train_batches(batch_size=4, seed=0, augment=MIRROR):
        assert batch.negatives is not None and batch.negatives.shape == (4, 2, 4)
        texts = embed.of(batch.report)
        assert embed.of(batch.negatives[:, 0]) == [side_negative(t) for t in texts]
        assert embed.of(batch.negatives[:, 1]) == [negation_negative(t) for t in texts]
        swapped += sum(t not in reports for t in texts)
    assert 0 < swapped < 12


def test_where_there_is_no_negative_there_are_zeros_and_off_costs_nothing(tmp_path):
    site = Hospital(tmp_path / "s")
    site.add("A", "1", ("T1",), report="Mass on the left.").add("B", "1", ("T1",), report="No washout.")
    site.add("C", "1", ("T1",)).add("D", "1", ("T1",), report="Raumforderung.")
    site.add("V", "1", ("T1",), report="It enhances.", split="val").add("T", "1", ("T1",), report="Left.", split="test")
    embed = Texts()
    records = opened(site, embed, hard_negatives=True)
    batch = next(iter(records.eval_batches(split="train", organ="brain")))
    there = (batch.negatives != 0).any(2).tolist()
    assert there == [[True, False], [False, True], [False, False], [False, False]]
    assert (batch.rows(slice(1, 2)).negatives[0, 1] != 0).all()
    validation = next(iter(records.eval_batches(split="val", organ="brain")))
    assert embed.of(validation.negatives[:, 1]) == ["It does not enhance."]
    assert (next(iter(records.eval_batches(split="test", organ="brain"))).negatives == 0).all()
    off = Texts()
    assert next(iter(opened(site, off).eval_batches(split="train", organ="brain"))).negatives is None
    assert set(off.calls[0]) == {
        "Mass on the left.",
        "Mass on the right.",
        "No washout.",
        "Raumforderung.",
        "It enhances.",
    }


def test_the_settings_reach_the_records_and_separate_them(hospitals, cache):
    manifests = (hospitals["east"],)
    plain = open_records(small_config(), manifests, cache)
    negatives = open_records(small_config("stage.pretrain.hard_negatives=true"), manifests, cache)
    assert open_records(small_config(), manifests, cache) is plain is not negatives
    assert open_records(small_config("data.captions=true"), manifests, cache) is not plain
    batches = [next(iter(r.eval_batches(split="train", organ="brain"))) for r in (plain, negatives)]
    assert batches[0].negatives is None and batches[1].negatives.shape[:2] == (12, 2)
