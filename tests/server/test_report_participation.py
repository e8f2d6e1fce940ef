"""The report says who took part: a notice, a matrix of sites and rounds, the rounds without every site."""

from __future__ import annotations

import json
import re

import pytest

from server.report import write_report
from server.report.participation import MAX_ROUNDS, participation_view


def entry(number: int, returned: str, stage: str = "finetune", **more) -> dict:
    return {"stage": stage, "round": number, "returned": list(returned), "missing": [], "refused": [], **more}


ENTRIES = [
    entry(1, "EW", stage="pretrain"),
    entry(1, "E", missing=["W"], absent=[]),
    entry(2, "E", refused=[{"site": "W", "reason": "no <b>budget</b>"}], absent=[]),
    entry(3, "EN", absent=["W"]),
]


@pytest.fixture
def page(tmp_path):
    def written(entries: list[dict]) -> str:
        (tmp_path / "summary.json").write_text(json.dumps({"status": "completed", "participation": entries}))
        return write_report(tmp_path).read_text()

    return written


def test_counts_and_matrix_tell_what_each_site_did_in_each_round():
    view = participation_view({"participation": ENTRIES}, [])
    counts = {r["site"]: [r[k] for k in ("returned", "silent", "refused", "absent")] for r in view["rows"]}
    assert counts == {"E": [4, 0, 0, 0], "N": [1, 0, 0, 0], "W": [1, 1, 1, 1]}
    assert view["stages"] == [("pretrain", 1), ("finetune", 3)]
    signs = {name: "".join(sign or "-" for _, sign in cells) for name, cells in view["matrix"]}
    assert signs == {"E": "✓✓✓✓", "N": "---✓", "W": "✓sra"}, "N joined in the last round"
    assert view["events"] == [
        "finetune, round 1: W silent",
        "finetune, round 2: W refused (no <b>budget</b>)",
        "finetune, round 3: W absent",
    ]


def test_a_run_without_some_site_says_so_at_the_top_and_shows_the_matrix(page):
    text = page(ENTRIES)
    assert "No update came from W in 3 of 4 rounds." in text
    assert text.count('<table class="grid rounds">') == 1
    assert len(re.findall(r'<td class="(silent|refused|absent)">', text)) == 3
    assert "<b>budget" not in text


def test_a_run_with_everyone_has_neither_notice_nor_matrix(page):
    text = page([entry(1, "EW"), entry(2, "EW")])
    assert "Not every site" not in text
    assert '<table class="grid rounds">' not in text
    assert "Every site returned an update in every round" in text


def test_of_many_rounds_the_last_are_shown():
    view = participation_view({"participation": [entry(n, "E", absent=["W"]) for n in range(1, 101)]}, [])
    assert (view["cut"], view["columns"][0], len(view["columns"])) == (True, 101 - MAX_ROUNDS, MAX_ROUNDS)
    assert all(len(cells) == MAX_ROUNDS for _, cells in view["matrix"])
