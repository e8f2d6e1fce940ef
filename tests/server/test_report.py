"""The report, on a realistic run and on the barest one: what it says, what it escapes, and how Chromium shows it."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.report import headline_figure, write_report
from tests.server.report_parts import entry
from tests.server.report_run import full_summary, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: scripts/install_packages.sh")


BARE = {
    "schema_version": 1,
    "status": "interrupted",
    "seed": None,
    "engine": None,
    "sites": [{"name": "A", "modalities": ["T1"], "studies": {"train": 3, "val": None, "test": None}}],
    "stages": {"pretrain": {"rounds": 0, "loss": []}, "finetune": {"rounds": 1, "loss": [None]}},
    "metrics": {
        "federated": {"brain": {"auroc": 0.8, "macro_f1": None}},
        "local": None,
        "pooled": None,
        "naive": None,
    },
    "metrics_own": None,
    "metrics_external": {"federated": {"brain": {"auroc": None, "auroc_ci": None, "n": 0}}},
    "cross_site": {
        "models": ["federated"],
        "sites": ["A"],
        "metric": "auroc",
        "organ": {"brain": [[None]], "liver": []},
    },
    "model": {"name": None, "parameters": None, "groups": None},
    "privacy": {"A": {"epsilon_spent": 1.25, "epsilon_budget": 3, "delta": 1e-5, "unit": "patient"}},
    "communication": {"bytes_down": None, "bytes_up": None, "bytes_full_model": None},
    "timing": {"wall_s": None, "train_s": None, "overhead_share": None, "rounds": []},
}
# What a deployed run leaves: no test scores, no partition, no examples; sites that no word of a scanner was heard of.
DEPLOYED = {
    "schema_version": 1,
    "status": "completed",
    "seed": 0,
    "engine": "flower",
    "data": {"kind": "manifest", "note": "Each hospital brought patients of its own."},
    "sites": [
        {"name": s, "modalities": ["T1"], "organs": ["brain"], "studies": {"train": 9}} for s in ("north", "south")
    ],
    "model": {"name": "tiny", "groups": [{"name": f"encoder/{m}", "megabytes": 1.0} for m in ("T1", "T2", "DWI")]},
    "stages": {"finetune": {"rounds": 1, "loss": [0.7], "val_score": [0.913]}},
    "participation": [{"stage": "finetune", "round": 1, "returned": ["north", "south"]}],
    "communication": {"bytes_up": 2e6, "bytes_down": 2e6, "bytes_full_model": 3e6, "per_group": {"encoder/T1": 2e6}},
    "timing": {"rounds": [65.0]},
    "private_updates": False,
    "privacy": None,
    "validation": None,
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("report") / "run")
    write_report(folder)
    return folder


def page_of(summary: dict[str, Any], folder: Path) -> str:
    (folder / "summary.json").write_text(json.dumps(summary))
    return write_report(folder).read_text(encoding="utf-8")


def plain(page: str) -> str:
    """What a reader reads: no style, no tags, single spaces."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def test_says_first_what_a_reader_must_not_miss(run_dir: Path) -> None:
    text = plain((run_dir / "report.html").read_text(encoding="utf-8"))
    top = text[: text.index("Learning curves")]
    assert "Simulated PHANTOM data." in top
    assert "Lesion regions of a brain and an abdomen phantom." in top
    assert "scanner strength 0.4, lesion scale 1.25, confounders 1.0" in top
    assert "Privacy is off." in top
    assert "Federated 0.94 [0.91–0.97] against 0.97 pooled, 0.92 naive and 0.83 local-only" in top
    assert "local-only (brain AUROC, common test set, n = 168)." in top


def test_says_where_others_win(run_dir: Path, tmp_path: Path) -> None:
    text = plain((run_dir / "report.html").read_text(encoding="utf-8"))
    assert "On the sites' own patients, federated is ahead for liver, the average local-only model for brain." in text
    assert "the site's own model is ahead at 4 of 4 on its own patients" in text
    assert "On everyone's patients, federated is better than the average local-only model." in text
    assert "On everyone's patients, no clear gain over naive averaging." in text
    summary = full_summary()
    summary["metrics"]["naive"] = summary["metrics"]["federated"]
    summary["metrics"]["pooled"] = {"brain": entry(0.6, 168), "liver": entry(0.99, 168, 0.005)}
    text = plain(page_of(summary, tmp_path))
    assert "On everyone's patients, naive averaging is as good." in text
    assert "On everyone's patients, federated is ahead for brain, pooling all data for liver." in text


@pytest.mark.parametrize(
    ("kind", "title"), [("real", "Partly simulated PHANTOM data."), ("manifest", "Data from a manifest.")]
)
def test_says_where_the_data_come_from(kind: str, title: str, tmp_path: Path) -> None:
    assert title in page_of({**BARE, "data": {"kind": kind, "note": "A note."}}, tmp_path)


def test_is_self_contained_and_escapes_what_sites_wrote(run_dir: Path) -> None:
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "policy &lt;i&gt;no" in page
    sources = re.findall(r"""(?:src|href)="([^"#]{1,40})""", page)
    assert len(sources) == 14 + 3
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert "schema_version" not in page  # the slice that points outside the examples is not followed
    assert "no picture" in page


def test_missing_is_a_dash_never_zero(tmp_path: Path) -> None:
    text = plain(page_of(BARE, tmp_path))
    assert "Not a finished run." in text
    assert "Federated 0.80 (brain AUROC, common test set)." in text
    assert "Privacy is off" not in text
    assert "1.25 3.00 patient 1e-05" in text
    assert "Server to sites –" in text
    assert not re.search(r"\b0\.0+\b", text)
    nothing = "Subgroups, Learning curves, Cross-site, Who has what, Shift, Participation, Examples, Module groups, Timing and Configuration."
    assert f"{nothing} The run's folder holds nothing of it." in text
    unmeasured = "Zero-shot, Missing modalities, Corruptions and What mattered."
    assert f"{unmeasured} This run did not measure it; evaluation=full does." in text


@pytest.mark.parametrize("summary", [{"status": "completed"}, BARE, DEPLOYED, full_summary()])
def test_a_section_is_there_with_content_or_not_at_all(summary: dict[str, Any], tmp_path: Path) -> None:
    page = page_of(summary, tmp_path)
    sections = dict(re.findall(r'<section aria-labelledby="([\w-]+)">(.*?)</section>', page, re.DOTALL))
    assert list(sections) == re.findall(r'<a href="#([\w-]+)">', page), "the list of sections is that of the sections"
    assert all(plain(re.sub("<h2.*?</h2>", "", text)).strip() for text in sections.values())


def test_a_deployed_run_says_what_it_knows_and_which_command_fills_the_rest(tmp_path: Path) -> None:
    page = page_of(DEPLOYED, tmp_path)
    text = plain(page)
    assert "Each hospital brought patients of its own." in text and "Privacy is off." in text
    assert "Validation AUROC 0.91 after round 1 of stage 2, on the sites' own validation patients." in text
    assert (
        "Results, Subgroups, Cross-site, Zero-shot, Missing modalities, Corruptions, What mattered and Examples."
        in text
    )
    assert "medmap-server validate RUN -o RUN --kit KIT" in text
    assert "Who has what" not in text and "Scanner" not in text and "Methods run side by side" not in text
    assert "Round, median of 1 1 min 05 s" in text and "Whole run" not in text
    assert "Left out: 2 that no site has sent" in text and "encoder/DWI" not in text
    assert set(re.findall(r'id="[^"]*-xtick_\d+".*?<text[^>]*>(.*?)</text>', page, re.DOTALL)) == {"1"}
    (tmp_path / "validation.json").write_text(json.dumps({"epsilon": 1.0, "organs": {}, "split": "test"}))
    later = plain(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Validation from noisy histograms" in later and "medmap-server validate" not in later


def test_a_run_without_scores_has_a_report(tmp_path: Path) -> None:
    text = plain(page_of({"status": "completed"}, tmp_path))
    assert "Data of unknown origin." in text
    assert "This run holds no test scores." in text
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "nowhere")


def test_headline_figure(run_dir: Path, tmp_path: Path) -> None:
    path = headline_figure(run_dir, tmp_path / "headline.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert struct.unpack(">II", path.read_bytes()[16:24])[0] > 1200
    assert list(tmp_path.iterdir()) == [path]


FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium(profile: Path, *arguments: str) -> str:
    assert CHROMIUM
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    command = [CHROMIUM, *flags, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


PROBE = """<script>
addEventListener("load", () => parent.postMessage(JSON.stringify({
  inner: innerWidth,
  width: document.documentElement.scrollWidth,
  requests: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
  over: [...document.querySelectorAll("body *")]
    .filter(e => !e.closest(".box, pre") && e.getBoundingClientRect().right > innerWidth + 0.5)
    .map(e => e.tagName + "." + e.className),
}), "*"))
</script></body>"""
FRAME = """<!doctype html>
<iframe src="probe.html" style="border: 0; width: {width}px; height: 900px"></iframe><pre id="out"></pre>
<script>addEventListener("message", e => document.getElementById("out").textContent = e.data)</script>"""


@needs_chromium
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("bare", [False, True])
def test_fits_its_window(run_dir: Path, tmp_path: Path, width: int, bare: bool) -> None:
    """In a frame, as a headless window is never narrower than 500 pixels; without the policy, for the probe."""
    page = page_of(BARE, tmp_path) if bare else (run_dir / "report.html").read_text(encoding="utf-8")
    page, policies = re.subn(r"<meta http-equiv=[^>]*>", "", page)
    assert policies == 1
    (tmp_path / "probe.html").write_text(page.replace("</body>", PROBE), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    dom = chromium(tmp_path / "profile", "--window-size=1300,1000", "--dump-dom", (tmp_path / "frame.html").as_uri())
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-500:]
    seen = json.loads(found[1])
    assert seen["inner"] == width
    assert seen["width"] <= width
    assert seen["over"] == []
    assert seen["requests"] == []


@needs_chromium
def test_chromium_shows_every_part_and_prints(run_dir: Path, tmp_path: Path) -> None:
    url = (run_dir / "report.html").as_uri()
    dom = chromium(tmp_path / "profile", "--dump-dom", url)
    for name, count in {
        "scores": 2,
        "details": 2 + 6,
        "zero-shot": 1,
        "retrieval": 1,
        "missing": 6,
        "corruptions": 2,
        "importance": 1,
        "grid heat": 2,
        "grid owners": 1,
        "sites": 1,
        "participation": 1,
        "grid rounds": 1,
        "predictions": 3,
        "communication": 1,
        "groups": 1,
        "timing": 1,
    }.items():
        assert dom.count(f'<table class="{name}">') == count, name
    assert dom.count('<svg role="img"') == 6 + 3
    assert dom.count("<img src=") == 14 + 3
    assert dom.count("<script") == 0
    pdf = tmp_path / "report.pdf"
    chromium(tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={pdf}", url)
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert 3 <= pages <= 12
