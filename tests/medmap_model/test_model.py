"""The whole model: absent slots have no say, the label never enters the prediction, seeds decide, losses learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call, grad

from configs.schema import EncoderConfig, FusionConfig, ModelConfig
from configs.stages import FinetuneConfig, PretrainConfig
from medmap_model.batch import Batch
from medmap_model.encoders import ModelError
from medmap_model.fusion import FusionInput, build_fusion, drop_modalities
from medmap_model.model import MedMAP, build_model

Make = Callable[..., Batch]
SOME = [[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1]]
NO_DROPOUT = FinetuneConfig(modality_dropout=0.0)


def _everything(model: MedMAP, batch: Batch) -> list[torch.Tensor]:
    """Outputs and gradients of both losses and the logits, with the same random numbers each time."""
    out = [model.logits(batch)]
    for loss in (
        lambda: model.pretrain_loss(batch, PretrainConfig())["loss"],
        lambda: model.finetune_loss(batch, FinetuneConfig(), progress=0.7)["loss"],
    ):
        torch.manual_seed(0)
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        out += [value, *[torch.zeros(1) if p.grad is None else p.grad.clone() for p in model.parameters()]]
    return out


def test_content_of_an_absent_slot_changes_nothing(model: MedMAP, make_batch: Make) -> None:
    model.eval()
    batch = make_batch("liver", SOME)
    reference = _everything(model, batch)
    for garbage in (7.0, float("nan")):
        volumes = batch.volumes.clone()
        volumes[~batch.present] = garbage
        changed = _everything(model, replace(batch, volumes=volumes))
        assert all(torch.equal(a, b) for a, b in zip(reference, changed, strict=True))


def test_content_of_a_present_slot_changes_everything(model: MedMAP, make_batch: Make) -> None:
    model.eval()
    batch = make_batch("liver", SOME)
    reference = _everything(model, batch)
    volumes = batch.volumes.clone()
    volumes[0, 2, 4:12, 4:12, 4:12] += 3
    changed = _everything(model, replace(batch, volumes=volumes))
    assert not torch.allclose(reference[0][0], changed[0][0])
    assert not torch.allclose(reference[1], changed[1])


def test_absent_modalities_get_no_gradient_and_are_never_computed(
    model: MedMAP, make_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.encoders["C-pre"], "forward", lambda volume: pytest.fail("computed"))
    batch = make_batch("liver", [[1, 1, 0], [1, 0, 0]])
    embedding = model.encode(batch.volumes, batch.present, "liver").pooled
    assert embedding.shape == (2, 3, 16)
    assert embedding[~batch.present].abs().sum() == 0
    model.pretrain_loss(batch, PretrainConfig())["loss"].backward()
    assert all(p.grad is None for p in model.encoders["C-pre"].parameters())
    assert all(p.grad is None for p in model.encoders["FLAIR"].parameters())
    assert all(p.grad is not None for p in model.encoders["C+A"].parameters())


def test_a_volume_is_encoded_alike_alone_and_in_a_batch(model: MedMAP, make_batch: Make) -> None:
    batch = make_batch("liver", SOME)
    together = model.encode(batch.volumes, batch.present, "liver").pooled
    for i in range(4):
        alone = model.encode(batch.volumes[i : i + 1], batch.present[i : i + 1], "liver").pooled
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_dense_encoding_equals_the_sparse_one(model: MedMAP, make_batch: Make) -> None:
    batch = make_batch("liver", SOME)
    volumes = batch.volumes.clone()
    volumes[~batch.present] = float("nan")
    sparse = model.encode(batch.volumes, batch.present, "liver")
    dense = model.encode_dense(volumes, batch.present, "liver")
    for a, b in zip(sparse, dense, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-5)


def test_organs_that_name_the_same_modality_share_its_encoder(model: MedMAP, make_batch: Make) -> None:
    brain, liver = make_batch("brain", [[1, 0]] * 2), make_batch("liver", [[1, 0, 0]] * 2)
    volumes = liver.volumes.clone()
    volumes[:, 0] = brain.volumes[:, 0]
    a = model.encode(brain.volumes, brain.present, "brain").pooled[:, 0]
    b = model.encode(volumes, liver.present, "liver").pooled[:, 0]
    assert torch.equal(a, b)


def test_the_label_and_the_report_never_enter_the_prediction(model: MedMAP, make_batch: Make) -> None:
    model.eval()
    batch = make_batch("liver", SOME)
    other = replace(
        batch,
        label=(batch.label + 1) % 3,
        report=torch.zeros_like(batch.report),
        has_report=torch.zeros_like(batch.has_report),
    )
    assert torch.equal(model.logits(batch), model.logits(other))
    assert not torch.equal(model.texts.query("brain"), model.texts.query("liver"))


def test_text_stays_frozen(model: MedMAP, make_batch: Make) -> None:
    batch = make_batch("liver", SOME)
    assert not any(k.startswith("texts") for k in model.state_dict())
    assert not any(b.requires_grad for b in model.buffers())
    for loss in (
        model.pretrain_loss(batch, PretrainConfig()),
        model.finetune_loss(batch, NO_DROPOUT, progress=0.5),
    ):
        model.zero_grad(set_to_none=True)
        loss["loss"].backward()
        weight = model.text_projection.linear.weight.grad
        assert weight is not None
        assert weight.abs().sum() > 0


def test_alignment_does_not_train_the_text_it_aims_at(model: MedMAP, make_batch: Make) -> None:
    batch = make_batch("liver", SOME)
    terms = model.finetune_loss(batch, replace(NO_DROPOUT, supervised_floor=0.0), progress=1.0)
    terms["loss"].backward()
    gradient = model.text_projection.linear.weight.grad
    assert gradient is not None
    entered = torch.cat([model.texts.query("liver")[None], model.texts.modalities("liver")])
    basis = torch.linalg.qr(entered.T).Q  # the gradient is a sum of outer products with the texts that entered
    assert torch.allclose(gradient, gradient @ basis @ basis.T, atol=1e-7)
    aim = model.texts.of_labels(batch.label, "liver")
    assert (aim - aim @ basis @ basis.T).norm() > 0.1  # which the label's own text is not among


def test_same_seed_same_weights_and_the_global_generator_is_left_alone(
    vocabulary, text, model_config: ModelConfig
) -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    models = [build_model(model_config, vocabulary, text, seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.randn(3), expected)
    a, b, c = [torch.cat([p.flatten() for p in m.parameters()]) for m in models]
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_terms_add_up(model: MedMAP, make_batch: Make) -> None:
    batch = make_batch("liver", SOME)
    config = PretrainConfig(image_to_text=0.6)
    t = model.pretrain_loss(batch, config)
    forward = (t["image_to_reports"] + t["image_to_bank"]) / 2
    assert t["loss"].item() == pytest.approx((0.6 * forward + 0.4 * t["reports_to_image"]).item())
    assert t["temperature"].item() == pytest.approx(0.1)
    without = model.pretrain_loss(batch, replace(config, bank="none"))
    assert "image_to_bank" not in without
    f = model.eval().finetune_loss(batch, NO_DROPOUT, progress=1.0)
    assert f["loss"].item() == pytest.approx((0.5 * f["supervised"] + 0.5 * f["alignment"]).item())
    assert all(v.ndim == 0 for v in {**t, **f}.values())
    assert [k for k, v in {**t, **f}.items() if v.requires_grad] == ["loss"]


def test_a_batch_without_labels_or_reports_is_harmless(model: MedMAP, make_batch: Make) -> None:
    batch = make_batch("liver", SOME, labels=[-1] * 4, reports=[None] * 4)
    for loss in (
        model.pretrain_loss(batch, PretrainConfig())["loss"],
        model.finetune_loss(batch, FinetuneConfig(), progress=0.5)["loss"],
    ):
        loss.backward()
        assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    reported = make_batch("liver", SOME, labels=[-1] * 4)
    assert model.pretrain_loss(reported, PretrainConfig())["image_to_reports"] > 0


def test_a_study_without_any_volume_is_harmless(model: MedMAP, make_batch: Make) -> None:
    batch = make_batch("liver", [[0, 0, 0], [1, 0, 1]])
    assert model.logits(batch).isfinite().all()
    model.pretrain_loss(batch, PretrainConfig())["loss"].backward()
    none = make_batch("liver", [[0, 0, 0]] * 2)
    assert model.encode(none.volumes, none.present, "liver").pooled.abs().sum() == 0
    assert model.logits(none).isfinite().all()


def test_modality_dropout_hides_but_never_everything() -> None:
    torch.manual_seed(0)
    present = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool().repeat(500, 1)
    kept = drop_modalities(present, rate=0.5)
    assert (kept <= present).all()
    assert kept.any(1).all()
    assert kept[1::2, 0].all()
    assert 0.6 < kept[::2, :3].float().mean() < 0.65  # 1/2, and 1/8 of the rows restored
    assert drop_modalities(present, rate=0.0) is present
    torch.manual_seed(0)
    assert torch.equal(kept, drop_modalities(present, rate=0.5))


@pytest.mark.parametrize("kind", ["compact", "medmap"])
def test_fusion_listens_to_the_query_and_to_which_modalities_are_there(kind: str) -> None:
    torch.manual_seed(0)
    fusion = build_fusion(FusionConfig(kind=kind, heads=2, dropout=0.0), dim=16)
    z, tokens = torch.randn(1, 3, 16), torch.randn(1, 3, 8, 16)
    modality, words, query = torch.randn(3, 16), torch.randn(3, 16), torch.randn(16)
    present = torch.tensor([[True, True, False]])
    given = FusionInput(z, tokens, present, modality, words, query)
    out = fusion(given)
    assert out.shape == (1, 16)
    assert not torch.allclose(out, fusion(given._replace(query=-query)), atol=1e-3)
    other = torch.tensor([[True, False, True]])
    assert not torch.allclose(out, fusion(given._replace(present=other)), atol=1e-3)
    with pytest.raises(ModelError, match="embed_dim=10"):
        build_fusion(FusionConfig(kind=kind, heads=4), dim=10)


def test_losses_work_under_functional_call(model: MedMAP, make_batch: Make) -> None:
    model.eval()
    batch = make_batch("brain", [[1, 0], [1, 1]])
    weights = {n: p.detach() for n, p in model.named_parameters()}

    def loss(w: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(_Loss(model), {f"model.{n}": p for n, p in w.items()}, (batch,))

    functional = grad(loss)(weights)
    model.finetune_loss(batch, NO_DROPOUT, progress=0.5)["loss"].backward()
    for name, p in model.named_parameters():
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        assert torch.allclose(functional[name], expected, atol=1e-5), name


class _Loss(torch.nn.Module):
    def __init__(self, model: MedMAP) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.model.finetune_loss(batch, NO_DROPOUT, progress=0.5)["loss"]


def test_bf16_autocast_stays_close(model: MedMAP, make_batch: Make) -> None:
    model.eval()
    batch = make_batch("liver", SOME)
    exact = model.pretrain_loss(batch, PretrainConfig())["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.pretrain_loss(batch, PretrainConfig())["loss"]
        logits = model.logits(batch)
        model.finetune_loss(batch, FinetuneConfig(), progress=0.5)["loss"].backward()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)
    assert torch.allclose(logits.float(), model.logits(batch), atol=0.1)


def test_both_stages_learn(vocabulary, text, model_config: ModelConfig, make_batch: Make) -> None:
    """A bright ball in one class: twenty steps of each stage bring the loss well below chance."""
    torch.manual_seed(0)
    model = build_model(model_config, vocabulary, text, seed=0)
    batch = make_batch("brain", [[1, 1]] * 8, reports=["Normal brain.", "Brain mass."] * 4)
    batch.volumes[1::2, :, 5:10, 5:10, 5:10] += 3
    for loss, config in ((model.pretrain_loss, PretrainConfig()), (model.finetune_loss, FinetuneConfig())):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        extra = {"progress": 0.0} if loss == model.finetune_loss else {}
        first = None
        for _ in range(20):
            value = loss(batch, config, **extra)["loss"]
            first = first or value.item()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert value.item() < 0.6 * first
    model.eval()
    assert (model.logits(batch).argmax(1) == batch.label).all()


def test_swin_model_trains(vocabulary, text, make_batch: Make) -> None:
    config = ModelConfig(encoder=EncoderConfig(kind="swin_unetr", width=12), embed_dim=16, fusion=FusionConfig(heads=2))
    model = build_model(config, vocabulary, text, seed=0)
    batch = make_batch("brain", [[1, 0], [1, 1]])
    model.finetune_loss(batch, FinetuneConfig(), progress=0.5)["loss"].backward()
    assert all(p.grad is not None for p in model.encoders["T1"].parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bf16_on_a_gpu_stays_close_to_the_cpu(model: MedMAP, make_batch: Make) -> None:
    model.eval()
    batch = make_batch("liver", SOME)
    expected = model.logits(batch)
    model.to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits = model.logits(batch.to("cuda"))
        model.pretrain_loss(batch.to("cuda"), PretrainConfig())["loss"].backward()
    assert torch.allclose(logits.float().cpu(), expected, atol=0.1)
