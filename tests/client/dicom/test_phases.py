"""Which contrast phase each volume of a dynamic study is: by name, by time, by order; and when that cannot be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.dicom.phases import phases_of
from client.dicom.rules import Choice, facts_of
from tests.client.dicom import scanner as s
from tests.client.dicom.test_series import BOOK, parts_of


def dynamic(
    folder: Path, times: list[str], agents: list[str] | None = None, names: list[str] | None = None, **more
) -> list[Choice]:
    """Choices of a dynamic study, in the order of `times` (HHMMSS)."""
    for k, time in enumerate(times):
        tags = {**s.VIBE, "ContrastBolusAgent": (agents or ["", *["Gd"] * 9])[k], "AcquisitionDate": "20240312"}
        tags["SeriesDescription"] = (names or ["t1_vibe_fs_dyn"] * 9)[k]
        s.write_series(folder / str(k), {**tags, **more}, number=k + 1, AcquisitionTime=time)
    parts = sorted(parts_of(folder), key=lambda p: p.series.header.SeriesNumber)
    return phases_of([(p, facts_of(p, BOOK)) for p in parts], BOOK.phases, "liver")


def modalities(choices: list[Choice]) -> list[str | None]:
    return [c.modality for c in choices]


def test_phases_by_seconds_since_the_agent_was_given(tmp_path):
    choices = dynamic(tmp_path, ["095500", "100030", "100110", "100300"], ContrastBolusStartTime="100000")
    assert modalities(choices) == ["C-pre", "C+A", "C+V", "C+Delay"]
    assert min(c.confidence for c in choices) >= BOOK.review_below
    assert "30 s after the contrast agent" in choices[1].reason


def test_an_agent_given_just_before_midnight(tmp_path):
    for k, time in enumerate(("235800", "000015")):
        day = "20240313" if k else "20240312"
        s.write_series(
            tmp_path / str(k),
            s.VIBE,
            number=k + 1,
            AcquisitionDate=day,
            AcquisitionTime=time,
            ContrastBolusStartTime="235945",
        )
    parts = sorted(parts_of(tmp_path), key=lambda p: p.series.header.SeriesNumber)
    choices = phases_of([(p, facts_of(p, BOOK)) for p in parts], BOOK.phases, "liver")
    assert modalities(choices) == ["C-pre", "C+A"] and "30 s after" in choices[1].reason


def test_phases_by_their_order_where_nobody_wrote_when_the_agent_was_given(tmp_path):
    choices = dynamic(tmp_path, ["095500", "100030", "100110", "100300"])
    assert modalities(choices) == ["C-pre", "C+A", "C+V", "C+Delay"]
    assert "if C+A came first" in choices[2].reason
    assert max(c.confidence for c in choices) < 0.85  # less sure than with the time


def test_series_written_in_another_order_than_acquired_are_ordered_by_time(tmp_path):
    choices = dynamic(tmp_path, ["100300", "100110", "095500", "100030"], agents=["Gd", "Gd", "", "Gd"])
    assert modalities(choices) == ["C+Delay", "C+V", "C-pre", "C+A"]


def test_midnight_does_not_turn_the_order_around(tmp_path):
    for k, (date, time) in enumerate(
        [("20240312", "235800"), ("20240312", "235945"), ("20240313", "000025"), ("20240313", "000210")]
    ):
        s.write_series(
            tmp_path / str(k),
            {**s.VIBE, "ContrastBolusAgent": "Gd" if k else ""},
            number=k + 1,
            AcquisitionDate=date,
            AcquisitionTime=time,
        )
    parts = sorted(parts_of(tmp_path), key=lambda p: p.series.header.SeriesNumber)
    assert modalities(phases_of([(p, facts_of(p, BOOK)) for p in parts], BOOK.phases, "liver")) == [
        "C-pre",
        "C+A",
        "C+V",
        "C+Delay",
    ]


@pytest.mark.parametrize("dates", ["series", "study"])
def test_midnight_does_not_either_where_no_image_says_its_date(tmp_path, dates):
    """Times alone, of a study that begins before midnight: one that seems to be earlier than that is of the next day."""
    begun = {"SeriesDate": "20240312", "SeriesTime": "235700"} if dates == "series" else {}
    choices = dynamic(
        tmp_path, ["235800", "235945", "000025", "000210"], AcquisitionDate="", StudyTime="233000", **begun
    )
    assert modalities(choices) == ["C-pre", "C+A", "C+V", "C+Delay"]


def test_a_phase_in_the_name_holds_against_the_order(tmp_path):
    names = ["vibe nativ", "vibe art", "vibe portal venous", "vibe delayed 5 min"]
    choices = dynamic(tmp_path, ["100300", "100110", "100030", "095500"], names=names, agents=["Gd"] * 4)
    assert modalities(choices) == ["C-pre", "C+A", "C+V", "C+Delay"]


def test_a_named_phase_is_what_the_others_are_counted_from(tmp_path):
    names = ["vibe", "vibe portal venous", "vibe"]
    choices = dynamic(tmp_path, ["095500", "100110", "100300"], names=names)
    assert modalities(choices) == ["C-pre", "C+V", "C+Delay"] and "if C+V came first" in choices[2].reason


@pytest.mark.parametrize(
    ("times", "agents"), [(["100000"], ["Gd"]), (["095500", "100030"], ["", "Gd"]), (["", ""], ["", "Gd"]),
                          (["095500", "100030", "100110"], ["Gd", "Gd", "Gd"])],
)  # fmt: skip
def test_what_the_times_do_not_tell_is_left_to_a_person(tmp_path, times, agents):
    """A single phase after contrast, no time at all, or an agent named on every series: the last is no phase for certain."""
    choices = dynamic(tmp_path, times, agents=agents, ContentTime="", SeriesTime="")
    assert choices[-1].confidence < BOOK.review_below


@pytest.mark.parametrize("start", ["", "095900"])
def test_times_that_do_not_differ_tell_no_phase(tmp_path, start):
    """As a scanner writes them that gives every time point the time at which its series began."""
    uid = s.generate_uid()
    for k in range(4):
        tags = {**s.VIBE, "ContrastBolusAgent": "Gd", "ContrastBolusStartTime": start, "AcquisitionTime": "100000"}
        s.write_series(tmp_path / "a", tags, uid=uid, first=6 * k, TemporalPositionIdentifier=k + 1)
    parts = parts_of(tmp_path)
    choices = phases_of([(p, facts_of(p, BOOK)) for p in parts], BOOK.phases, "liver")
    assert len(choices) == 4 and max(c.confidence for c in choices) < BOOK.review_below
    choices = dynamic(tmp_path / "b", ["095500", "100030", "100030", "100030"])
    assert [c.confidence >= BOOK.review_below for c in choices] == [True, False, False, False]


def test_time_points_of_one_series_are_volumes_and_phases(tmp_path):
    uid = s.generate_uid()
    for k, time in enumerate(["095500", "100030", "100110", "100300"]):
        s.write_series(tmp_path, s.VIBE, uid=uid, first=6 * k, TemporalPositionIdentifier=k + 1, AcquisitionTime=time)
    parts = parts_of(tmp_path)
    assert [p.label for p in parts] == [f"time point {k}" for k in (1, 2, 3, 4)]
    assert modalities(phases_of([(p, facts_of(p, BOOK)) for p in parts], BOOK.phases, "liver")) == [
        "C-pre",
        "C+A",
        "C+V",
        "C+Delay",
    ]


def test_slices_with_times_of_their_own_stay_one_volume(tmp_path):
    for k, path in enumerate(s.write_series(tmp_path, s.T2)):
        s.edit(path, lambda ds, k=k: setattr(ds, "AcquisitionTime", f"1000{k:02d}"))
    assert [len(p.images) for p in parts_of(tmp_path)] == [6]
