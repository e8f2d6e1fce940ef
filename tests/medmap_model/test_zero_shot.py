"""Detection from prompts alone: what decides, what must not enter, and what happens with nothing to look at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.stages import PretrainConfig
from medmap_model.evaluation import scores
from medmap_model.evaluation.missing import Encodings, encode_all
from medmap_model.evaluation.zero_shot import study_embeddings, zero_shot
from medmap_model.model import Embedded

CONFIG = PretrainConfig()


def test_a_study_that_points_at_a_class_prompt_is_given_that_class(model, vocabulary):
    for organ in vocabulary.organs.values():
        prompts = model.class_embeddings(organ.name).detach()
        pooled = prompts[:, None].expand(-1, len(organ.modalities), -1).clone()
        present = torch.ones(pooled.shape[:2], dtype=torch.bool)
        labels = np.arange(len(prompts))
        p = zero_shot(model, Encodings(organ.name, Embedded(pooled, None), present, labels), CONFIG)
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
        assert (p.argmax(1) == labels).all()
        turned = zero_shot(model, Encodings(organ.name, Embedded(-pooled, None), present, labels), CONFIG)
        assert scores(labels, p)["balanced_accuracy"] == 1 > scores(labels, turned)["balanced_accuracy"]


def test_probabilities_are_a_softmax_of_cosine_over_temperature(model, make_batch):
    encodings = encode_all(model, [make_batch()])
    image, _ = study_embeddings(model, encodings)
    cosine = image @ model.class_embeddings("liver").T
    expected = (cosine / CONFIG.temperature).softmax(1).detach().numpy()  # an untrained temperature is at its start
    np.testing.assert_allclose(zero_shot(model, encodings, CONFIG), expected, atol=1e-5)
    sharper = zero_shot(model, encodings, replace(CONFIG, temperature=0.03))
    assert (sharper.max(1) > expected.max(1)).all()


def test_no_report_and_no_label_enters(model, make_batch):
    seen = make_batch()
    other = replace(seen, report=torch.randn_like(seen.report), label=1 - seen.label)
    one, two = (zero_shot(model, encode_all(model, [b]), CONFIG) for b in (seen, other))
    np.testing.assert_array_equal(one, two)
    volumes = replace(seen, volumes=seen.volumes + torch.randn_like(seen.volumes))
    assert np.abs(zero_shot(model, encode_all(model, [volumes]), CONFIG) - one).max() > 1e-4, "the volumes do enter"


def test_a_study_of_unknown_modalities_alone_gets_equal_probabilities(model, make_batch):
    batch = make_batch(present=[[1, 1, 1], [0, 1, 0]])
    p = zero_shot(model, encode_all(model, [batch], known={"T1", "C-pre"}), CONFIG)
    np.testing.assert_allclose(p[1], 1 / 3)
    assert np.ptp(p[0]) > 1e-4


@pytest.mark.parametrize("multi_label", [False, True])
def test_several_abnormalities_may_all_be_there(model, make_batch, monkeypatch, multi_label):
    organ = replace(model.vocabulary.organs["liver"], multi_label=multi_label)
    monkeypatch.setitem(model.vocabulary.organs, "liver", organ)
    total = zero_shot(model, encode_all(model, [make_batch()]), CONFIG).sum(1)
    assert np.allclose(total, 1, atol=1e-5) != multi_label
