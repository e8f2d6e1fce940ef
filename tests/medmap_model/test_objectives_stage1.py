"""Objectives of stage 1: each against values worked out by hand or a loop without tricks, and against absent slots."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from configs.schema import EncoderConfig, FusionConfig, ModelConfig
from configs.setting import ConfigError
from configs.stages import PretrainConfig
from medmap_model import objectives as o
from medmap_model.batch import Batch
from medmap_model.model import MedMAP, build_model
from medmap_model.text import TextEncoder
from medmap_model.vocabulary import Vocabulary

Make = Callable[..., Batch]
NAMES = tuple(o.STAGE1)
SOME = [[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1]]


@pytest.fixture
def make_batch(make_batch: Make) -> Make:
    """Small cubes: nothing here is about what an encoder sees."""
    return partial(make_batch, size=8)


@pytest.fixture(scope="module")
def small(vocabulary: Vocabulary, text: TextEncoder) -> MedMAP:
    config = ModelConfig(encoder=EncoderConfig(width=8), embed_dim=16, fusion=FusionConfig(heads=2))
    return build_model(config, vocabulary, text, seed=0)


def _sharp(tau: float = 1.0, bias: float = 0.0) -> o.Sharpness:
    return o.Sharpness(torch.tensor(tau), torch.tensor(bias))


def _random(b: int = 5, s: int = 3, t: int = 7, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, o.Texts]:
    """Images, which are valid, and texts with several positives, some of no one and some no candidate."""
    g = torch.Generator().manual_seed(seed)
    image = F.normalize(torch.randn(b, s, d, generator=g), dim=2)
    valid = torch.rand(b, s, generator=g) < 0.7
    positive = (torch.rand(b, t, generator=g) < 0.25) | torch.eye(b, t, dtype=torch.bool)
    candidate = torch.rand(t, generator=g) < 0.8
    return image, valid, o.Texts(F.normalize(torch.randn(t, d, generator=g), dim=1), positive, candidate)


def _slots(image: Tensor, valid: Tensor, texts: o.Texts, row: Callable[[list[float], list[float]], float]) -> float:
    """Mean over slots of the mean over images of row(cosines of positives, of negatives), as a loop."""
    slots = []
    for s in range(image.shape[1]):
        rows = []
        for i in range(len(image)):
            cosine = [float(image[i, s] @ t) for t in texts.embedding]
            at = [j for j in range(len(cosine)) if texts.candidate[j]]
            yes = [cosine[j] for j in at if texts.positive[i, j]]
            no = [cosine[j] for j in at if not texts.positive[i, j]]
            if valid[i, s] and yes:
                rows.append(row(yes, no))
        if rows:
            slots.append(sum(rows) / len(rows))
    return sum(slots) / len(slots)


# SigLIP


@pytest.mark.parametrize("seed", range(3))
def test_siglip_equals_a_loop_over_pairs(seed: int) -> None:
    def row(yes: list[float], no: list[float]) -> float:
        b = math.log(len(yes) / max(1, len(no))) + 0.3
        return sum(math.log1p(math.exp(-(c / 0.2 + b))) for c in yes) + sum(
            math.log1p(math.exp(c / 0.2 + b)) for c in no
        )

    image, valid, texts = _random(seed=seed)
    found = o.pairs(image, valid, texts, _sharp(0.2, 0.3)).item()
    assert found == pytest.approx(_slots(image, valid, texts, row), rel=1e-5)


def test_siglip_starts_with_positives_and_negatives_in_balance() -> None:
    """At cosine 0 the pull of one positive equals the push of seven negatives; the paper's -10 pulls alone."""
    logits = torch.zeros(8, requires_grad=True)
    sign = torch.tensor([1.0] + [-1.0] * 7)
    for b, ratio in ((math.log(1 / 7), 1.0), (-10.0, 3000.0)):
        (g,) = torch.autograd.grad(F.softplus(-sign * (logits + b)).sum(), logits)
        assert -g[0] / g[1:].sum() == pytest.approx(ratio, rel=0.05)
    nowhere = torch.zeros(1, 1, 8)  # cosine 0 with every text
    texts = o.Texts(torch.eye(8), torch.eye(1, 8, dtype=torch.bool), torch.ones(8, dtype=torch.bool))
    loss = o.pairs(nowhere, torch.ones(1, 1, dtype=torch.bool), texts, _sharp())
    assert loss.item() == pytest.approx(math.log1p(7) + 7 * math.log1p(1 / 7))


# DHN-NCE


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_dhn_nce_equals_a_loop(beta: float) -> None:
    tau = 0.3

    def row(yes: list[float], no: list[float]) -> float:
        if not no:
            return 0.0
        total = sum(math.exp(beta * c / tau) for c in no)
        weight = [len(no) * math.exp(beta * c / tau) / total for c in no]
        push = sum(w * math.exp(c / tau) for w, c in zip(weight, no, strict=True))
        return math.log(push) - math.log(sum(math.exp(c / tau) for c in yes))

    image, valid, texts = _random()
    terms = o.dhn_nce(image, valid, texts, None, _sharp(tau), PretrainConfig(hardness=beta))
    assert terms["image_to_reports"].item() == pytest.approx(_slots(image, valid, texts, row), rel=1e-4)


def test_dhn_nce_by_hand_and_masked_entries_count_nothing() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0, 5.0]])
    positive = torch.tensor([[True, False, False, False]])
    candidate = torch.tensor([[True, True, True, False]])
    decoupled = math.log(math.e + math.exp(-1)) - 2
    assert o.decoupled(logits, positive, candidate, hardness=0.0).item() == pytest.approx(decoupled, rel=1e-5)
    # A product with the mask before the exponential, as the published code has it, counts exp(0) for each masked entry.
    leaky = (logits * (candidate & ~positive)).exp().sum().log().item() - 2
    assert leaky > decoupled + 0.3
    alone = torch.tensor([[True, False, False, False]])
    assert o.decoupled(logits, positive, alone, hardness=0.5).item() == 0


def test_hard_negatives_are_pushed_harder_and_easy_ones_never_pulled() -> None:
    positive, every = torch.tensor([True, False, False, False]), torch.ones(4, dtype=torch.bool)
    gradients = []
    for beta in (0.0, 1.0):
        logits = torch.tensor([3.0, 2.0, 0.0, -4.0], requires_grad=True)
        o.decoupled(logits, positive, every, hardness=beta).backward()
        assert logits.grad is not None
        assert logits.grad[0] == pytest.approx(-1)
        assert (logits.grad[1:] >= 0).all()
        gradients.append(logits.grad[1])
    assert gradients[1] > gradients[0]


# All of them, on a model


@pytest.mark.parametrize("name", NAMES)
def test_absent_records_and_slots_are_harmless(small: MedMAP, make_batch: Make, name: str) -> None:
    config = PretrainConfig(objective=name, label_weight=0.5, consistency=0.1)
    for form in ("weights", "cost") if name == "partial_ot" else ("weights",):
        for batch, zero in (
            (make_batch("liver", SOME, labels=[0, 1, -1, 2], reports=["a", None, "b", None]), False),
            (make_batch("liver", [[1, 1, 0], [0, 0, 0]]), False),
            (make_batch("liver", [[1, 0, 1]] * 2, labels=[-1, -1], reports=[None, None]), True),
            (make_batch("liver", [[0, 0, 0]] * 2), True),
        ):
            small.zero_grad(set_to_none=True)
            terms = small.pretrain_loss(batch, replace(config, ot_form=form, consistency=0.0 if zero else 0.1))
            assert all(v.isfinite() for v in terms.values())
            assert not zero or terms["loss"].item() == 0
            if terms["loss"].requires_grad:
                terms["loss"].backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in small.parameters())
            assert [k for k, v in terms.items() if v.requires_grad] in (["loss"], [])


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_learns_to_tell_two_kinds_apart(name: str) -> None:
    """Free image vectors and two reports: after some steps each image is nearer to its own kind's report."""
    g = torch.Generator().manual_seed(0)
    kind = torch.tensor([0, 1] * 4)
    text = F.normalize(torch.randn(2, 16, generator=g), dim=1)
    reports = o.Texts(text[kind], kind[:, None] == kind[None], torch.ones(8, dtype=torch.bool))
    bank = o.Texts(text, kind[:, None] == torch.arange(2)[None], torch.ones(2, dtype=torch.bool))
    free = (0.1 * torch.randn(8, 1, 16, generator=g)).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.05)
    valid, settings = torch.ones(8, 1, dtype=torch.bool), PretrainConfig(objective=name)
    for _ in range(40):
        loss = o.STAGE1[name](F.normalize(free, dim=2), valid, reports, bank, _sharp(0.2), settings)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cosine = F.normalize(free.detach()[:, 0], dim=1) @ text.T
    assert (cosine.gather(1, kind[:, None])[:, 0] - cosine.gather(1, 1 - kind[:, None])[:, 0]).min() > 0.5


def test_the_bank_objective_says_what_it_lacks(small: MedMAP, make_batch: Make) -> None:
    with pytest.raises(ConfigError, match=r"stage\.pretrain\.bank=prompts"):
        small.pretrain_loss(make_batch("liver", SOME), PretrainConfig(objective="bank", bank="none"))


@pytest.mark.parametrize("name", NAMES)
def test_turned_reports_are_candidates_of_their_own_record_alone(small: MedMAP, make_batch: Make, name: str) -> None:
    batch = make_batch("liver", SOME, reports=["a left lesion", "b", "c", "d"])
    with_own = replace(batch, negatives=torch.zeros(4, 2, 32))
    with_own.negatives[0, 1] = batch.report[0]  # as near to the record's report as can be
    config = PretrainConfig(objective=name, positives="text", image_to_text=1.0)
    on = replace(config, hard_negatives=True)

    def gradient(b: Batch, c: PretrainConfig) -> Tensor:
        image, valid = small.image_embeddings(small.encode(b.volumes, b.present, "liver"), b.present)
        image = image.detach().requires_grad_()
        loss = o.pretrain(small, b, image, valid, small.sharpness(c), c, None)["loss"]
        return torch.autograd.grad(loss, image)[0]

    without, off = gradient(batch, on), gradient(with_own, config)
    assert torch.equal(without, off)
    changed = (gradient(with_own, on) - without).abs().sum((1, 2)) > 1e-4
    assert changed.tolist() == [True, False, False, False]
    empty = replace(batch, negatives=torch.zeros(4, 2, 32))
    assert torch.allclose(gradient(empty, on), without, atol=1e-5)
