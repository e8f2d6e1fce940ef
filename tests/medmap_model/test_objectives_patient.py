"""What is said of one patient alone: separability (which privacy rests on), labels, agreement of modalities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from configs.schema import EncoderConfig, FusionConfig, ModelConfig
from configs.stages import PretrainConfig
from medmap_model import objectives as o
from medmap_model.batch import Batch
from medmap_model.model import MedMAP, build_model
from medmap_model.text import TextEncoder
from medmap_model.vocabulary import Vocabulary
from tests.medmap_model.conftest import SPEC

Make = Callable[..., Batch]
SOME = [[1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]]
SEPARABLE = PretrainConfig(objective="bank", label_weight=0.5, consistency=0.5, hard_negatives=True)


@pytest.fixture(scope="module")
def small(vocabulary: Vocabulary, text: TextEncoder) -> MedMAP:
    config = ModelConfig(encoder=EncoderConfig(width=8), embed_dim=16, fusion=FusionConfig(heads=2))
    return build_model(config, vocabulary, text, seed=0)


@pytest.fixture
def records(make_batch: Make) -> Batch:
    """Four patients: all there; unknown label; nothing there; no report. The first has a turned report."""
    batch = make_batch("liver", SOME, labels=[0, -1, 1, 2], reports=["a", "b", "c", None], size=8)
    turned = torch.zeros(4, 2, 32)
    turned[0, 0] = F.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)
    return replace(batch, negatives=turned)


@pytest.mark.parametrize("positives", ["abnormality", "text"])
@pytest.mark.parametrize("bank", ["prompts", "both"])
def test_the_separable_loss_is_the_mean_of_its_records_alone(
    small: MedMAP, records: Batch, positives: str, bank: str
) -> None:
    config = replace(SEPARABLE, positives=positives, bank=bank)
    alone = [small.pretrain_loss(records.rows(slice(i, i + 1)), config)["loss"].item() for i in range(4)]
    together = small.pretrain_loss(records, config)["loss"].item()
    assert together == pytest.approx(sum(alone) / 4, rel=1e-5)
    assert alone[2] == 0  # no volume
    coupled = replace(config, objective="asymmetric")  # negative control
    alone = [small.pretrain_loss(records.rows(slice(i, i + 1)), coupled)["loss"].item() for i in range(4)]
    assert small.pretrain_loss(records, coupled)["loss"].item() != pytest.approx(sum(alone) / 4, rel=1e-2)


def test_no_record_s_loss_depends_on_another_s_images_or_report(small: MedMAP, records: Batch) -> None:
    image, valid = small.image_embeddings(small.encode(records.volumes, records.present, "liver"), records.present)
    bank_rows = small.texts.bank("liver", "prompts")
    positive = o.prompt_positives(records.label, records.report, records.has_report, bank_rows.embedding, bank_rows.label,
                                  positives="abnormality", same_text=0.95)  # fmt: skip
    bank = o.Texts(small.text_embeddings(bank_rows.embedding), positive, torch.ones(len(bank_rows.label)).bool())
    tau, classes = torch.tensor(0.1), small.class_embeddings("liver")
    own = torch.eye(4, dtype=torch.bool)

    def losses(x: Tensor, report: Tensor) -> Tensor:
        """(3, B): the terms by record."""
        texts = o.Texts(small.text_embeddings(report), own, records.has_report)
        return torch.stack([
            o.bank_by_record(x, valid, texts, bank, tau),
            o.label_by_record(x, valid, classes, records.label, tau, multi_label=False),
            o.consistency_by_record(x, valid),
        ])  # fmt: skip

    for of_input in torch.autograd.functional.jacobian(losses, (image.detach(), records.report)):
        size = of_input.flatten(3).abs().sum(3)  # (3, B loss, B input)
        assert size[:, ~own].sum() == 0
    assert size[0, 0, 0] > 0  # the own report matters to the own loss

    def coupled(x: Tensor) -> Tensor:  # negative control: rows of the in-batch contrast
        texts = small.text_embeddings(records.report)
        logits = x[:, -1] @ texts.T / tau
        return o.multi_positive(logits.T, own, torch.ones(4, dtype=torch.bool))

    size = torch.autograd.functional.jacobian(coupled, image.detach()).flatten(2).abs().sum(2)
    assert size[~own].sum() > 0


def test_an_asymmetric_loss_lets_one_patient_move_another_s_gradient(small: MedMAP, records: Batch) -> None:
    """The gradient on patient 0 while patient 3 changes: the same bits if separable, another if not."""

    def of_first(batch: Batch, config: PretrainConfig) -> Tensor:
        volumes = batch.volumes.clone().requires_grad_()
        small.pretrain_loss(replace(batch, volumes=volumes), config)["loss"].backward()
        assert volumes.grad is not None
        return volumes.grad[0]

    volumes = records.volumes.clone()
    volumes[3] += 1
    other = replace(records, volumes=volumes, label=torch.tensor([0, -1, 1, 1]), report=records.report[[0, 1, 3, 2]])
    assert torch.allclose(of_first(records, SEPARABLE), of_first(other, SEPARABLE), atol=1e-8)
    coupled = replace(SEPARABLE, objective="asymmetric")
    change = (of_first(records, coupled) - of_first(other, coupled)).norm() / of_first(records, coupled).norm()
    assert change > 0.01


def test_per_record_gradients_by_vmap_equal_a_loop(small: MedMAP, records: Batch) -> None:
    """What private training does with the separable loss."""
    config = replace(SEPARABLE, hard_negatives=False)
    weights = {n: p.detach() for n, p in small.named_parameters()}

    def loss(
        w: dict[str, Tensor], volumes: Tensor, present: Tensor, label: Tensor, report: Tensor, has: Tensor
    ) -> Tensor:
        one = Batch("liver", *(t[None] for t in (volumes, present, label, report, has)))
        return functional_call(_Loss(small, config), {f"model.{n}": p for n, p in w.items()}, (one,))

    tensors = (records.volumes, records.present, records.label, records.report, records.has_report)
    together = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0, 0))(weights, *tensors)
    for i in (0, 3):
        small.zero_grad(set_to_none=True)
        small.pretrain_loss(records.rows(slice(i, i + 1)), config, dense=True)["loss"].backward()
        for name, p in small.named_parameters():
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            assert torch.allclose(together[name][i], expected, atol=1e-4, rtol=1e-3), name


class _Loss(torch.nn.Module):
    def __init__(self, model: MedMAP, config: PretrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: Batch) -> Tensor:
        return self.model.pretrain_loss(batch, self.config, dense=True)["loss"]


def test_bank_by_hand_the_own_report_is_nobody_else_s_negative() -> None:
    image = torch.eye(3)[[0, 1]][:, None]
    reports = o.Texts(torch.eye(3)[[0, 0]], torch.eye(2, dtype=torch.bool), torch.tensor([True, True]))
    bank = o.Texts(torch.eye(3)[[1, 2]], torch.tensor([[False, False], [True, False]]), torch.ones(2, dtype=torch.bool))
    loss = o.bank_by_record(image, torch.ones(2, 1, dtype=torch.bool), reports, bank, torch.tensor(1.0))
    e = math.e
    # Image 0 has no prompt of its own: its report at cosine 1, two public negatives at 0. Image 1: a prompt at 1 against one
    # at 0; and its report at 0 against that negative alone.
    second = (-math.log(e / (e + 1)) + math.log(2)) / 2
    assert loss.tolist() == pytest.approx([-math.log(e / (e + 2)), second])


def test_the_own_report_does_not_answer_for_the_class() -> None:
    """A report that is told from prompts at once still leaves the class to be learned."""
    image = torch.tensor([[[1.0, 0.0, 0.0]]], requires_grad=True)
    reports = o.Texts(torch.eye(3)[:1], torch.ones(1, 1, dtype=torch.bool), torch.ones(1, dtype=torch.bool))
    bank = o.Texts(torch.eye(3)[1:], torch.tensor([[True, False]]), torch.ones(2, dtype=torch.bool))
    loss = o.bank_by_record(image, torch.ones(1, 1, dtype=torch.bool), reports, bank, torch.tensor(0.05))
    (g,) = torch.autograd.grad(loss.sum(), image)
    assert (g[0, 0, 2] - g[0, 0, 1]) > 1  # towards the prompt of its class, away from the other's


def test_labels_by_hand() -> None:
    image = torch.tensor([[[9.0, 9.0], [1.0, 0.0]]] * 3)  # the mean image is the last slot
    valid = torch.tensor([[True, True], [True, True], [False, False]])
    classes, tau = torch.eye(2), torch.tensor(0.5)
    label = torch.tensor([0, -1, 0])
    one = o.label_by_record(image, valid, classes, label, tau, multi_label=False)
    assert one.tolist() == pytest.approx([math.log1p(math.exp(-2)), 0, 0])
    bits = o.label_by_record(image, valid, classes, torch.tensor([0b11, 0b10, -1]), tau, multi_label=True)
    assert bits.tolist() == pytest.approx(
        [(math.log1p(math.exp(-2)) + math.log(2)) / 2, (math.log1p(math.exp(2)) + math.log(2)) / 2, 0]
    )


def test_consistency_by_hand() -> None:
    a, b = [1.0, 0.0], [0.0, 1.0]
    image = torch.tensor([[a, b, a], [a, a, a], [a, b, a]]).requires_grad_()  # two modalities and the mean
    valid = torch.tensor([[True, True, True], [True, True, True], [True, False, True]])
    loss = o.consistency_by_record(image, valid)
    assert loss.tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    loss.sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert image.grad[0, 0].tolist() == pytest.approx([0, -0.5])  # towards the other, which stands still
    assert image.grad[:, 2].abs().sum() == 0
    three = torch.tensor([[a, a, b, a]])
    by_hand = (2 * (1 - 1 / math.sqrt(2)) + 1) / 3
    assert o.consistency_by_record(three, torch.ones(1, 4, dtype=torch.bool)).item() == pytest.approx(by_hand)


def test_terms_beside_the_contrast_are_weighed_and_named(small: MedMAP, records: Batch) -> None:
    plain = small.pretrain_loss(records, PretrainConfig())
    both = small.pretrain_loss(records, PretrainConfig(label_weight=0.5, consistency=0.25))
    assert {"labels", "consistency"} & set(plain) == set()
    expected = plain["loss"] + 0.5 * both["labels"] + 0.25 * both["consistency"]
    assert both["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert both["labels"] > 0 and both["consistency"] > 0


def test_bit_sets_decide_the_positives_of_a_multi_label_organ(text: TextEncoder, make_batch: Make) -> None:
    spec = {**SPEC, "organs": {**SPEC["organs"], "liver": {**SPEC["organs"]["liver"], "multi_label": True}}}  # type: ignore[dict-item]
    config = ModelConfig(encoder=EncoderConfig(width=8), embed_dim=16, fusion=FusionConfig(heads=2))
    model = build_model(config, Vocabulary.from_dict(spec), text, seed=0)
    label = torch.tensor([0b101, 0b100, 0b101, -1])
    report, has = torch.zeros(4, 2), torch.ones(4, dtype=torch.bool)
    rule = {"positives": "abnormality", "same_text": 0.95}
    assert o.report_positives(label, report, has, **rule)[0].tolist() == [True, False, True, False]
    prompts = (torch.zeros(4, 2), torch.tensor([0, 1, 2, -2]))
    found = o.prompt_positives(label, report, has, *prompts, **rule, multi_label=True)
    assert found.tolist() == [
        [True, False, True, False],
        [False, False, True, False],
        [True, False, True, False],
        [False] * 4,
    ]
    batch = make_batch("liver", [[1, 1, 1]] * 4, labels=label.tolist(), size=8)
    for name in o.STAGE1:
        terms = model.pretrain_loss(batch, PretrainConfig(objective=name, label_weight=1.0))
        assert terms["loss"].isfinite() and terms["labels"] > 0
