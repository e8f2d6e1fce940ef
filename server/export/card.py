"""The model card: model.json and, where there is one, the run's summary in; README.md with YAML front matter out.

It says only what is known: a number that no file holds is not mentioned, or said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SETS = {
    "metrics": "patients of every site's scanner and modalities",
    "metrics_own": "each site's own patients, mean over sites",
    "metrics_external": "a site that was never trained on",
}
_SHOWN = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy", "sensitivity": "sensitivity", "specificity": "specificity",
          "ece": "ECE"}  # fmt: skip
_DATA = {
    "phantom": "Simulated patients (a phantom). **No real patient was in the training or in the test.**",
    "real": "A few real scans that ship inside Python packages, and simulated patients. Every test patient is simulated.",
    "manifest": "Patients of the participating sites, described by the sites' own manifests.",
}
_STEPS = (  # in the order in which a site does them (client/preprocess/steps.py)
    ("skull_strip", "hook", "skulls stripped by each site's own tool"),
    ("bias_correction", "n4", "bias fields corrected by N4 (SimpleITK)"),
    ("register", "rigid", "a study's volumes registered rigidly to its reference (SimpleITK)"),
)
_INTENSITY = {
    "zscore": "z-scores of the foreground",
    "nyul": "brought to Nyul's standard scale of each modality, {whose}, by landmarks of the foreground",
}
_USES = {
    "safetensors": "```python\nfrom medmap_model import load\n\nmodel = load(\"THIS_FOLDER\")\n```\n\n"
    "or `medmap-client predict -c THIS_FOLDER T1=a.nii.gz FLAIR=b.nii.gz`.",
    "bundle": "```\npython -m monai.bundle run --config_file configs/inference.json \\\n"
    "    --studies \"['T1=a.nii.gz', 'FLAIR=b.nii.gz']\" --output result.json\n```\n\n"
    "in this folder; or `monai.bundle.load(name=\"THIS_FOLDER\", bundle_dir=\"..\", workflow_type=\"inference\")`. It needs the "
    "packages in configs/metadata.json, MedMAP-FL among them.",
    "onnx": "`ORGAN.onnx` takes `volumes` (B, M, D, H, W) float32 and `present` (B, M) bool, and gives `probabilities` (B, C). "
    "`ORGAN.json` names modality slots, classes and how volumes are prepared. What an absent slot holds does not matter. "
    "It was held against the model in torch before it was written; the largest difference stands in `ORGAN.json`.",
}  # fmt: skip


def write_card(info: Mapping[str, Any], summary: Mapping[str, Any] | None, *, kind: str) -> str:
    """The card's text. info: as `read_info`. summary: of the run, None where the checkpoint came without it."""
    parts = [
        f"---\n{_front_matter(info, summary)}---\n",
        f"# MedMAP: {info['model']['name']}\n",
        "Detects abnormalities in 3D MRI from whatever modalities a study has; trained across sites with MedMAP-FL, after "
        "MedMAP (arXiv 2602.23652).\n",
        "## Intended use\n",
        "Research on federated learning and on multi-modal MRI. **Not a medical device**: not for diagnosis, treatment or "
        "triage of patients.\n",
        "## Data\n",
        *_data(info, summary),
        "## Training\n",
        *_training(info),
        "## Results\n",
        *_results(info, summary),
        "## Privacy\n",
        *_privacy(info, summary),
        "## Limits\n",
        *_limits(info, summary),
        "## Use\n",
        _USES[kind] + "\n",
    ]
    return "\n".join(parts)


def _front_matter(info: Mapping[str, Any], summary: Mapping[str, Any] | None) -> str:
    import yaml

    tags = [
        "medical",
        "mri",
        "federated-learning",
        "vision-language",
        *(["phantom"] if info["data"] == "phantom" else []),
    ]
    content: dict[str, Any] = {
        "library_name": "medmap-fl",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "data": info["data"],
        "sites": info["sites"],
        "rounds": info["rounds"],
        "modalities": info["modalities"],
        "organs": info["organs"],
        "privacy": info["privacy"],
    }
    scores = (summary or {}).get("metrics", {}).get("federated")
    if scores:
        content["metrics"] = {
            organ: {m: values[m] for m in _SHOWN if values.get(m) is not None} for organ, values in scores.items()
        }
    return yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False, allow_unicode=True)


def _data(info: Mapping[str, Any], summary: Mapping[str, Any] | None) -> Iterator[str]:
    yield _DATA.get(info["data"], "Not known.") + "\n"
    rows = [s for s in (summary or {}).get("sites", []) if not s.get("external")]
    if rows:  # sites are numbered: whether a hospital is named is its own decision
        yield "| site | modalities | training studies | validation | test |\n|---|---|---|---|---|"
        for number, site in enumerate(rows, 1):
            counts = [str(site["studies"].get(k, 0)) for k in ("train", "val", "test")]
            yield f"| {number} | {', '.join(site['modalities'])} | {' | '.join(counts)} |"
        yield ""
    volumes = info["volumes"]
    whose = (
        "the same at all sites" if volumes.get("landmarks") else "which each site learnt of its own training patients"
    )
    yield (
        f"Volumes are cubes of {volumes['size']} voxels of {volumes['spacing_mm']:g} mm, cut out around the {volumes['crop']}; "
        f"intensities are {_INTENSITY[volumes.get('standardise', 'zscore')].format(whose=whose)}.\n"
    )
    done = [said for key, value, said in _STEPS if volumes.get(key) == value]
    yield f"Before that: {', '.join(done)}. A volume to be predicted needs the same.\n" if done else ""


def _training(info: Mapping[str, Any]) -> Iterator[str]:
    rounds = (
        "a number of rounds that is not known"
        if info["rounds"] is None
        else f"{info['rounds']} rounds over both stages"
    )
    yield f"- {info['sites']} sites, {rounds}, aggregation `{info['strategy']}`, seed {info['seed']}."
    yield f"- Modalities: {', '.join(info['modalities']) or 'none'}. Organs: {', '.join(info['organs']) or 'none'}."
    if info["stage"] == "pretrain":
        yield "- **It ends with stage 1 (alignment with text): it detects nothing yet.**"
    text = info["text"]
    yield f"- Text encoder (frozen): {text['model'] if text['kind'] == 'transformers' else text['kind']}, hash `{text['hash']}`."
    yield f"- Vocabulary `{info['vocabulary']['name']}`, hash `{info['vocabulary']['hash']}`; MedMAP-FL {info['medmap_fl']}.\n"


def _results(info: Mapping[str, Any], summary: Mapping[str, Any] | None) -> Iterator[str]:
    rows = [(organ, place, scores) for key, place in _SETS.items()
            for organ, scores in (((summary or {}).get(key) or {}).get("federated") or {}).items() if scores]  # fmt: skip
    if not rows:
        yield "Not known: the checkpoint came without the summary of a finished run.\n"
        return
    if info["data"] == "phantom":
        yield "On simulated patients: these numbers say nothing about real ones.\n"
    yield f"| organ | test set | {' | '.join(_SHOWN.values())} |\n|---|---|{'---|' * len(_SHOWN)}"
    for organ, place, scores in rows:
        yield f"| {organ} | {place} | {' | '.join(_cell(scores, m) for m in _SHOWN)} |"
    yield "\nIn brackets: 95 % bootstrap interval over patients. –: not defined, or not measured."
    for organ, point in (info["operating_points"] or {}).items():
        chosen = ", ".join(f"{c} {t:.3f}" for c, t in point["thresholds"].items())
        where = (
            f"Youden's J on {point['patients']} validation patients"
            if point["rule"] == "validation"
            else "by the settings"
        )
        yield f"\nOperating point, {organ}: {chosen} ({where})."
    yield ""


def _cell(scores: Mapping[str, Any], metric: str) -> str:
    value, interval = scores.get(metric), scores.get(f"{metric}_ci")
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _privacy(info: Mapping[str, Any], summary: Mapping[str, Any] | None) -> Iterator[str]:
    spent = (summary or {}).get("privacy")
    if info["privacy"] == "none":
        yield (
            "Scans and reports stayed at the sites; model updates travelled. **The updates were not made differentially "
            "private**: weights may hold traces of training patients.\n"
        )
        return
    yield f"Mechanism: {info['privacy']}."
    if spent:
        yield "\n| site | epsilon spent | delta | unit |\n|---|---|---|---|"
        for number, row in enumerate(spent.values(), 1):
            delta = "not told" if row["delta"] is None else f"{row['delta']:.1e}"
            yield f"| {number} | {row['epsilon_spent']:.3g} | {delta} | {row['unit']} |"
    elif summary is not None:
        yield "What was spent stands in the sites' own ledgers; they did not tell."
    else:
        yield "What was spent is not known: the checkpoint came without the summary of a finished run."
    yield ""


def _limits(info: Mapping[str, Any], summary: Mapping[str, Any] | None) -> Iterator[str]:
    known = {m for o in info["vocabulary"]["organs"].values() for m in o["modalities"]}
    if never := [m for m in known if m not in info["modalities"]]:
        yield f"- Never trained, and ignored when given: {', '.join(sorted(never))}."
    if untrained := [o for o in info["vocabulary"]["organs"] if o not in info["organs"]]:
        yield f"- It detects nothing in: {', '.join(untrained)}."
    if info["volumes"]["crop"] == "lesion":
        yield "- It expects cubes centred on a lesion: it classifies what somebody has found, and does not search."
    yield "- It names one of its classes for every study, whatever the study shows: it does not know what it does not know."
    yield "- Detection per study only; nothing is outlined."
    if info["data"] == "phantom":
        yield "- Nothing here has been tried on a real patient."
    elif not (summary or {}).get("metrics_external"):
        yield "- No score from outside the participating sites is known."
    yield ""
