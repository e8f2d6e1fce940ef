"""What the federated model can do beyond the comparison: `summary["evaluation"]`, from a trained model and its test patients.

Zero-shot detection, retrieval, missing and degraded modalities, corruptions, which modality mattered. Every part is
switched by `config.evaluation`; docs/evaluation.md defines them. On the external hospital's test patients, else on the
common ones. A part that cannot be told is None, or absent, and says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from client.manifest import Study
from client.records import SiteRecords
from client.site import open_records
from client.training import Trainer
from configs.schema import Config
from medmap_model.batch import Batch
from medmap_model.evaluation import scores
from medmap_model.evaluation.degraded import lost_signal, noisy
from medmap_model.evaluation.missing import Encodings, encode_all, missing_modalities
from medmap_model.groups import layout, pack, unpack
from medmap_model.text import build_text_encoder
from server import checkpoint
from simulation.conditions import Hospital, cache_dir


@dataclass(frozen=True)
class TestSet:
    """Test patients: `external` (of a hospital never trained on) or `common`. known: modalities that were trained on."""

    name: str
    members: tuple[tuple[SiteRecords, str], ...]
    organs: tuple[str, ...]
    known: frozenset[str]

    def batches(self, organ: str) -> Iterator[Batch]:
        """Every patient of the organ once, always in the same order."""
        for records, split in self.members:
            yield from records.eval_batches(split=split, organ=organ)

    def studies(self, organ: str) -> list[Study]:
        """The studies, in the order of `batches`."""
        return [s for records, split in self.members for s in records.studies(split=split, organ=organ)]


def evaluate(config: Config, trainer: Trainer, hospitals: Sequence[Hospital], run_dir: Path) -> dict[str, Any]:
    """`summary["evaluation"]` of the trainer's model, which is left as it was; only what is asked for is measured."""
    asked = config.evaluation
    if not any((asked.zero_shot, asked.retrieval, asked.missing, asked.corruptions, asked.interpret)):
        return {}
    torch.set_num_threads(config.engine.threads)
    test = choose_test_set(config, hospitals, run_dir)
    result: dict[str, Any] = {"test_set": test.name}
    with torch.autocast(trainer.device.type, dtype=torch.bfloat16, enabled=trainer.bf16):
        final = {o: encode_all(trainer.model, test.batches(o), known=test.known) for o in test.organs}
        if asked.zero_shot or asked.retrieval:
            result |= _aligned(config, trainer, test, final, run_dir)
        if asked.missing:
            result["missing"] = {o: _missing(config, trainer, test, e) for o, e in final.items()}
        if asked.corruptions:
            from medmap_model.evaluation.corruptions import robustness

            result["corruptions"] = {
                o: robustness(trainer.model, partial(test.batches, o), known=test.known, seed=config.seed)
                for o in final
            }
        if asked.interpret:
            from medmap_model.evaluation.interpret import mean_importance

            result["importance"] = {o: mean_importance(trainer.model, e) for o, e in final.items()}
    return result


def choose_test_set(config: Config, hospitals: Sequence[Hospital], run_dir: Path) -> TestSet:
    """The external hospital's patients, else the common ones; organs and modalities that somebody trains on alone."""
    cache = cache_dir(config, run_dir)
    opened = [(h, open_records(config, h.entry.manifests, cache)) for h in hospitals]
    counts = [records.counts("train") for h, records in opened if not h.external]
    known = frozenset(m for volumes, _ in counts for m, n in volumes.items() if n)
    external = tuple((records, "test") for h, records in opened if h.external)
    members = external or tuple((records, "common") for _, records in opened)
    there = {o for records, split in members for o in records.organs(split)}
    trained = {o for _, studies in counts for o, n in studies.items() if n}
    organs = tuple(o for o in opened[0][1].vocabulary.organs if o in there & trained) if opened else ()
    return TestSet("external" if external else "common", members, organs, known)


def _missing(config: Config, trainer: Trainer, test: TestSet, encodings: Encodings) -> dict[str, Any]:
    def batches() -> Iterator[Batch]:
        return test.batches(encodings.organ)

    how: dict[str, Any] = {"known": test.known, "seed": config.seed}
    return missing_modalities(trainer.model, encodings) | {
        "random": lost_signal(trainer.model, encodings, batches, **how),
        "noisy": noisy(trainer.model, batches, **how),
    }


def _aligned(
    config: Config, trainer: Trainer, test: TestSet, final: Mapping[str, Encodings], run_dir: Path
) -> dict[str, Any]:
    """Zero-shot scores and retrieval per organ, of the model after stage 1 (None when it is not kept) and of the last."""
    measures: dict[str, Callable[[Encodings], Any]] = {}
    if config.evaluation.zero_shot:
        measures["zero_shot"] = lambda e: _zero_shot(config, trainer, e)
    if config.evaluation.retrieval:
        texts = {o: _reports(config, test.studies(o)) for o in final}
        measures["retrieval"] = lambda e: _retrieval(trainer, e, *texts[e.organ])
    result: dict[str, Any] = {
        name: {o: {"pretrained": None, "final": of(e)} for o, e in final.items()} for name, of in measures.items()
    }
    kept = pretrained_checkpoint(run_dir)
    if kept is not None:
        with _weights(trainer, kept):
            for organ in final:
                encodings = encode_all(trainer.model, test.batches(organ), known=test.known)
                for name, of in measures.items():
                    result[name][organ]["pretrained"] = of(encodings)
    return result


def _zero_shot(config: Config, trainer: Trainer, encodings: Encodings) -> dict[str, Any]:
    from medmap_model.evaluation.zero_shot import zero_shot

    p = zero_shot(trainer.model, encodings, config.stage.pretrain)
    organ = trainer.model.vocabulary.organs[encodings.organ]
    return scores(
        encodings.label, p, bootstrap=config.bootstrap, seed=config.seed, multi_label=organ.multi_label,
        classes=organ.abnormalities,
    )  # fmt: skip


def _reports(config: Config, studies: Sequence[Study]) -> tuple[list[int], list[str], torch.Tensor]:
    """Which studies have a report, the reports, and their frozen embeddings (R, E).

    The one place where a test patient's report is read: retrieval asks for it. No prediction sees it.
    """
    rows = [i for i, s in enumerate(studies) if s.report]
    reports = [str(studies[i].report) for i in rows]
    return rows, reports, build_text_encoder(config.text).embed(reports)


def _retrieval(
    trainer: Trainer, encodings: Encodings, rows: list[int], reports: list[str], embedding: torch.Tensor
) -> dict[str, Any]:
    from medmap_model.evaluation.retrieval import retrieval
    from medmap_model.evaluation.zero_shot import study_embeddings

    image, valid = study_embeddings(trainer.model, encodings)
    seen = [k for k, i in enumerate(rows) if valid[i]]
    with torch.no_grad():
        text = trainer.model.text_embeddings(embedding[seen].to(trainer.device))
    return retrieval(image[[rows[k] for k in seen]], text, [reports[k] for k in seen])


def pretrained_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint that stage 1 ended with; None when there was no stage 1 or it is not kept."""
    latest = checkpoint.latest(run_dir / "checkpoints")
    if latest is None:
        return None
    state = json.loads((latest / "state.json").read_text(encoding="utf-8"))
    name = state.get("pretrained") or (latest.name if state["stage"] == "pretrain" else None)
    path = latest.with_name(name) if name else None
    return path if path is not None and (path / "state.json").is_file() else None


@contextmanager
def _weights(trainer: Trainer, path: Path) -> Iterator[None]:
    """The model with a checkpoint's weights, and afterwards with its own."""
    plan = layout(trainer.model)
    own = pack(trainer.model, plan)
    unpack(trainer.model, checkpoint.load(path, plan)[0])
    try:
        yield
    finally:
        unpack(trainer.model, own)
