"""What a trainer says of its patients: how many modalities it used, and the loss of an organ of several labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.site import open_records
from client.training import Trainer
from configs import load_vocabulary
from medmap_model.batch import Batch
from medmap_model.contract import Task
from medmap_model.model import build_model
from medmap_model.text import build_text_encoder
from medmap_model.vocabulary import Vocabulary
from tests.conftest import small_config


def trainer(vocabulary: Vocabulary) -> Trainer:
    config = small_config()
    return Trainer(build_model(config.model, vocabulary, build_text_encoder(config.text), seed=0), config)


def test_predictions_count_the_modalities_that_the_model_could_use(hospitals, cache):
    records = open_records(small_config(), (hospitals["east"],), cache)
    t = trainer(load_vocabulary("medmom"))
    everything = t.predictions(records, split="test", organ="brain")
    present = torch.cat([b.present for b in records.eval_batches(split="test", organ="brain")])
    np.testing.assert_array_equal(everything.modalities, present.sum(1))
    hidden = t.predictions(records, split="test", organ="brain", known={"T1"})
    np.testing.assert_array_equal(hidden.modalities, present[:, 0])
    labels, p = t.predict(records, split="test", organ="brain")
    np.testing.assert_array_equal(labels, everything.labels)
    np.testing.assert_array_equal(p, everything.probabilities)
    nobody = t.predictions(records, split="nowhere", organ="brain")
    assert (len(nobody.labels), nobody.probabilities.shape, len(nobody.modalities)) == (0, (0, 2), 0)


class Patients:
    """Records of six patients whose labels are bit sets, the last unknown."""

    def __init__(self) -> None:
        self.label = torch.tensor([1, 2, 3, 0, 3, -1])

    def organs(self, split: str) -> tuple[str, ...]:
        return ("brain",)

    def eval_batches(self, *, split: str, organ: str):
        volumes = torch.randn(6, 4, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        present = torch.ones(6, 4, dtype=torch.bool)
        present[4] = False
        yield Batch(organ, volumes, present, self.label, torch.zeros(6, 64), torch.zeros(6, dtype=torch.bool))


def test_validation_of_several_labels_is_their_mean_log_likelihood_and_auroc():
    spec = load_vocabulary("medmom").to_dict()
    spec["organs"]["brain"]["multi_label"] = True
    t = trainer(Vocabulary.from_dict(spec))
    labels, p = t.predict(Patients(), split="val", organ="brain")
    assert p[4] == pytest.approx([0.5, 0.5]), "nothing to see: each label as likely as not"
    figures = t.validate(Patients(), Task("finetune", 0, 1, 0))
    truth = (labels[:5, None] >> np.arange(2)) & 1
    expected = -np.log(np.where(truth == 1, p[:5], 1 - p[:5])).mean()
    assert figures.val_loss == pytest.approx(expected, rel=1e-5)
    assert figures.val_studies == 5
    from sklearn.metrics import roc_auc_score

    assert figures.val_score == pytest.approx(
        np.mean([roc_auc_score(truth[:, c], p[:5, c]) for c in range(2)]), abs=1e-6
    )
