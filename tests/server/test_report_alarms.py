"""The report on single sites' updates: alarms and Krum's choices, and nothing where there are none."""

from __future__ import annotations

import json

from server.report import write_report
from server.report.alarms import alarms_view


def line(number: int, alarms=(), chosen=None, condition: str = "federated") -> dict:
    return {
        "condition": condition, "stage": "finetune", "round": number, "rounds": 3, "loss": 1.0, "val_loss": None, "val_score": None,
        "wall_s": 1.0, "bytes_down": 0, "bytes_up": 0, "bytes_up_per_group": {}, "sites": {}, "returned": ["H1"], "missing": [],
        "refused": [], "alarms": list(alarms), "chosen": chosen or {},
    }  # fmt: skip


def far(ratio: float, *groups: str, site: str = "H<1>") -> dict:
    return {"site": site, "kind": "far", "groups": list(groups), "ratio": ratio}


UNCHANGED = {"site": "H2", "kind": "unchanged", "groups": ["fusion"], "ratio": None}


def page(tmp_path, lines: list[dict]) -> str:
    summary = {"schema_version": 1, "status": "completed", "stages": {}, "communication": {}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return write_report(tmp_path).read_text()


def test_alarms_are_gathered_by_site_and_kind():
    lines = [line(1, [far(12.5, "fusion")]), line(2, [far(999.4, "encoder/T1", "fusion"), UNCHANGED])]
    view = alarms_view([*lines, line(1, [far(5, "fusion", site="other")], condition="naive")])
    assert [(r["site"], r["rounds"], r["ratio"], r["groups"]) for r in view["rows"]] == [
        ("H2", ["finetune 2"], None, []),
        ("H<1>", ["finetune 1", "finetune 2"], 999.4, ["encoder/T1", "fusion"]),
    ]


def test_the_page_tells_of_them_and_of_whom_krum_took(tmp_path):
    text = page(tmp_path, [line(1, [far(999.4, "fusion")], {"fusion": "H1"}), line(2, [UNCHANGED], {"fusion": "H1"})])
    assert "Updates that look wrong" in text
    assert "H&lt;1&gt;" in text and "H<1>" not in text
    assert ">999<" in text
    assert "the model as it was sent" in text
    assert "H1 (2)." in text


def test_a_run_without_alarms_or_of_before_says_nothing(tmp_path):
    old = {k: v for k, v in line(1).items() if k not in ("alarms", "chosen")}
    text = page(tmp_path, [old, line(2)])
    assert "look wrong" not in text and "Krum" not in text
