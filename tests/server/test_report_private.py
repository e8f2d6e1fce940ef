"""The report on privacy: the budget's picture, validation from noisy histograms, and noisy statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medmap_model.accounting import Cost
from server.validate import figures
from tests.server.report_run import full_summary
from tests.server.test_report import page_of
from tests.server.test_report_evaluation import section


def private_summary() -> dict[str, Any]:
    from configs import load_vocabulary

    counts = np.array([[[20, 1], [9, 4], [3, 12], [1, 18]]])
    tables = {
        "federated": {"H1": {"brain": counts}, "H2": {"brain": counts[:, ::-1]}},
        "naive": {"H1": {"brain": counts * 0}},
    }
    organs = figures(tables, load_vocabulary("medmom"), cost=Cost(1, epsilon=1.0), bins=4, seed=0)
    by_run = [{"run": "r", "purpose": "training, finetune", "charges": 3, "epsilon_alone": 1.0}]
    ledger = {
        "epsilon_spent": 1.25,
        "epsilon_budget": 3.0,
        "delta": 1e-5,
        "unit": "patient",
        "charges": 4,
        "by_run": by_run,
    }
    table = {"names": ["no_tumour", "tumour", "not known"], "sum": [50, 31, -3], "sum_sd": 5.6}
    return full_summary() | {
        "private_updates": True,
        "privacy": {"H1": ledger, "H2": ledger | {"epsilon_spent": 3.0}},
        "validation": {
            "epsilon": 1.0, "bins": 4, "split": "test", "organs": organs,
            "refused": [{"site": "H2", "of": "naive", "reason": "<b>no</b> budget"}],
        },
        "statistics": {"epsilon": 0.5, "sites": ["H1", "H2"], "organs": {"brain": {"classes": table}}},
    }  # fmt: skip


def test_budgets_are_drawn_and_told_and_the_warning_is_gone(tmp_path: Path) -> None:
    page = page_of(private_summary(), tmp_path)
    text = section(page, "privacy")
    assert "H1 1.25 3.00 patient 1e-05 4 training, finetune 1.00" in text
    assert "1.25 of 3" in page and "3.00 of 3" in page, "in the picture"
    assert "Privacy is off." not in page


def test_releases_alone_do_not_make_updates_private(tmp_path: Path) -> None:
    page = page_of(private_summary() | {"private_updates": False}, tmp_path)
    assert "Privacy is off." in page and "The updates were not private" in section(page, "privacy")


def test_a_private_run_whose_sites_tell_nothing_is_not_said_to_be_off(tmp_path: Path) -> None:
    """A server has no ledger: of a deployed run it knows what sites tell, and that may be nothing."""
    told = private_summary() | {"engine": "flower", "privacy": None}
    text = section(page_of(told, tmp_path), "privacy")
    assert "The updates were private." in text and "medmap-client budget" in text and "Off." not in text
    rows = {"H1": {"epsilon_spent": 1.5, "epsilon_budget": 3.0, "delta": None, "unit": "patient"}}
    text = section(page_of(told | {"privacy": rows}, tmp_path), "privacy")
    assert "Unit H1 1.50 3.00 patient" in text and "As the sites told the server" in text


def test_validation_has_a_row_per_model_and_says_who_gave_nothing(tmp_path: Path) -> None:
    summary = private_summary()
    text = section(page_of(summary, tmp_path), "privacy")
    federated = summary["validation"]["organs"]["brain"]["tumour"]["federated"]
    ours, theirs = federated["sites"]["H1"]["auroc"], federated["sites"]["H2"]["auroc"]
    assert ours > 0.85 and theirs < 0.15
    assert f"H1 H2 federated {federated['pooled']['auroc']:.3f} [" in text and f"{ours:.3f} [" in text
    assert "naive – – –" in text, "counts of nothing have no score"
    assert "H2 released nothing of naive: <b>no</b> budget." in text.replace("&lt;", "<").replace("&gt;", ">")
    assert "<b>no</b>" not in page_of(summary, tmp_path)


def test_statistics_are_shown_as_released_with_the_noise(tmp_path: Path) -> None:
    text = section(page_of(private_summary(), tmp_path), "privacy")
    assert "class tumour 31 5.6" in text and "class not known −3 5.6" in text


def test_the_operating_point_of_all_sites_together_has_intervals(tmp_path: Path) -> None:
    summary = private_summary()
    pooled = summary["validation"]["organs"]["brain"]["tumour"]["federated"]["pooled"]
    text = section(page_of(summary, tmp_path), "privacy")
    low, high = pooled["sensitivity_ci"]
    assert f"{pooled['sensitivity']:.3f} [{low:.2f}–{high:.2f}]" in text and "naive – – – – –" in text
