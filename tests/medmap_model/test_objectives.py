"""Losses against values worked out by hand, and the rules of who is a positive."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from configs.stages import FinetuneConfig
from medmap_model import objectives as o
from medmap_model.vocabulary import Organ

E = math.e
TAU = torch.tensor(1.0)


def _unit(*rows: list[float]) -> Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def test_multi_positive_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.0]])
    one = torch.tensor([[True, False, False]])
    every = torch.tensor([True, True, True])
    assert o.multi_positive(logits, one, every).item() == pytest.approx(-math.log(E / (E + 2)))
    two = torch.tensor([[True, True, False]])
    assert o.multi_positive(logits, two, every).item() == pytest.approx(-math.log((E + 1) / (E + 2)))
    fewer = torch.tensor([True, True, False])
    assert o.multi_positive(logits, one, fewer).item() == pytest.approx(-math.log(E / (E + 1)))


def test_image_to_text_by_hand() -> None:
    image = _unit([1.0, 0.0], [0.0, 1.0])[:, None]  # (2, 1, 2): one slot
    text = _unit([1.0, 0.0], [0.0, 1.0])
    valid, candidate = torch.ones(2, 1, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    own = torch.eye(2, dtype=torch.bool)
    loss = o.image_to_text(image, valid, o.Texts(text, own, candidate), TAU)
    assert loss.item() == pytest.approx(-math.log(E / (E + 1)))
    sharp = o.image_to_text(image, valid, o.Texts(text, own, candidate), torch.tensor(0.5))
    assert sharp.item() == pytest.approx(-math.log(E**2 / (E**2 + 1)))


def test_reports_that_say_the_same_are_positives_not_negatives() -> None:
    image = _unit([1.0, 0.0], [1.0, 0.0])[:, None].requires_grad_()
    text = _unit([1.0, 0.2], [1.0, -0.2])
    valid, candidate = torch.ones(2, 1, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    same = torch.ones(2, 2, dtype=torch.bool)
    assert o.image_to_text(image, valid, o.Texts(text, same, candidate), TAU).item() == pytest.approx(0, abs=1e-6)
    assert o.text_to_image(image, valid, o.Texts(text, same, candidate), TAU).item() == pytest.approx(0, abs=1e-6)
    own = torch.eye(2, dtype=torch.bool)
    assert o.image_to_text(image, valid, o.Texts(text, own, candidate), TAU).item() > 0.5


def test_text_to_image_chooses_within_a_slot() -> None:
    image = torch.stack([_unit([1.0, 0.0], [0.0, 1.0]), _unit([0.0, 1.0], [1.0, 0.0])])  # (2, 2 slots, 2)
    text = _unit([1.0, 0.0], [0.0, 1.0])
    valid, candidate = torch.tensor([[True, True], [True, False]]), torch.tensor([True, True])
    own = torch.eye(2, dtype=torch.bool)
    loss = o.text_to_image(image, valid, o.Texts(text, own, candidate), TAU)
    # slot 0: each report has its own image at cosine 1 and the other at 0; slot 1: one image, nothing to choose.
    slot0 = -math.log(E / (E + 1))
    assert loss.item() == pytest.approx((slot0 + 0) / 2)


def test_rows_without_a_positive_do_not_count_nor_break_the_gradient() -> None:
    image = _unit([1.0, 0.0], [0.0, 1.0])[:, None].requires_grad_()
    text = _unit([1.0, 0.0], [0.0, 1.0])
    valid = torch.ones(2, 1, dtype=torch.bool)
    own = torch.eye(2, dtype=torch.bool)
    unwritten = torch.tensor([True, False])
    loss = o.image_to_text(image, valid, o.Texts(text, own, unwritten), TAU)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    for candidate in (unwritten, torch.zeros(2, dtype=torch.bool)):
        for term in (o.image_to_text, o.text_to_image):
            (gradient,) = torch.autograd.grad(term(image, valid, o.Texts(text, own, candidate), TAU), image)
            assert gradient.isfinite().all()
    nothing = o.image_to_text(image, torch.zeros(2, 1, dtype=torch.bool), o.Texts(text, own, unwritten), TAU)
    assert nothing.item() == 0


def test_report_positives() -> None:
    report = torch.cat([_unit([1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [1.0, 0.0]), torch.zeros(1, 2)])
    label = torch.tensor([1, 0, 1, -1, 1])
    has = torch.tensor([True, True, True, True, False])
    by_label = o.report_positives(label, report, has, positives="abnormality", same_text=0.95)
    assert by_label.tolist() == [
        [True, False, True, True, False],  # 1: same words, another abnormality; 3: unknown label, same words
        [False, True, False, True, False],
        [True, False, True, False, False],
        [True, True, False, True, False],
        [True, False, True, False, False],  # no report of its own, but those of its abnormality
    ]
    by_text = o.report_positives(label, report, has, positives="text", same_text=0.95)
    assert by_text.tolist() == [
        [True, True, False, True, False],
        [True, True, False, True, False],
        [False, False, True, False, False],
        [True, True, False, True, False],
        [False] * 5,
    ]


def test_prompt_positives() -> None:
    prompt = _unit([1.0, 0.0], [0.0, 1.0], [1.0, 0.0])
    prompt_label = torch.tensor([0, 1, -2])  # the last is another organ's, whatever it says
    report = torch.cat([_unit([1.0, 0.0], [1.0, 0.0]), torch.zeros(1, 2)])
    label, has = torch.tensor([1, -1, -1]), torch.tensor([True, True, False])
    rule = {"same_text": 0.95}
    by_label = o.prompt_positives(label, report, has, prompt, prompt_label, positives="abnormality", **rule)
    assert by_label.tolist() == [[False, True, False], [True, False, False], [False] * 3]
    by_text = o.prompt_positives(label, report, has, prompt, prompt_label, positives="text", **rule)
    assert by_text.tolist() == [[True, False, False], [True, False, False], [False] * 3]


def test_every_slot_counts_alike() -> None:
    values = torch.tensor([[1.0, 10.0], [3.0, float("nan")]])
    valid = torch.tensor([[True, True], [True, False]])
    assert o.slot_mean(values, valid).item() == pytest.approx((2 + 10) / 2)


@pytest.mark.parametrize("position", [-1e4, -3.0, 0.0, 3.0, 1e4])
@pytest.mark.parametrize("start", [0.02, 0.1, 0.5])
def test_temperature_stays_within_its_bounds(position: float, start: float) -> None:
    tau = o.bounded_temperature(torch.tensor(position), start=start, bounds=(0.02, 0.5)).item()
    assert 0.02 * (1 - 1e-6) <= tau <= 0.5 * (1 + 1e-6)
    if position == 0:
        assert tau == pytest.approx(start, rel=5e-3)


def test_temperature_learns_and_refuses_nonsense() -> None:
    position = torch.zeros((), requires_grad=True)
    o.bounded_temperature(position, start=0.1, bounds=(0.02, 0.5)).backward()
    assert position.grad is not None
    assert position.grad > 0
    for start, bounds in ((0.1, (0.2, 0.5)), (0.1, (0.5, 0.02)), (0.1, (0.0, 0.5))):
        with pytest.raises(ValueError, match="temperature_bounds"):
            o.bounded_temperature(position, start=start, bounds=bounds)


def test_supervised_share_runs_from_one_to_its_floor() -> None:
    shares = [o.supervised_share(p / 10, floor=0.4) for p in range(11)]
    assert shares[0] == 1
    assert shares[5] == pytest.approx(0.7)
    assert shares[10] == pytest.approx(0.4)
    assert shares == sorted(shares, reverse=True)
    assert o.supervised_share(0.8, floor=1.0) == 1


def test_unknown_labels_add_nothing() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 5.0]], requires_grad=True)
    loss = o.cross_entropy(logits, torch.tensor([0, -1]), smoothing=0.0)
    assert loss.item() == pytest.approx(-math.log(E**2 / (E**2 + 1)))
    assert o.cross_entropy(logits, torch.tensor([-1, -1]), smoothing=0.1).item() == 0
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1].abs().sum() == 0
    smooth = o.cross_entropy(logits, torch.tensor([0, -1]), smoothing=0.2)
    by_hand = -0.9 * math.log(E**2 / (E**2 + 1)) - 0.1 * math.log(1 / (E**2 + 1))
    assert smooth.item() == pytest.approx(by_hand)


def test_alignment_by_hand_and_its_target_gets_no_gradient() -> None:
    feature = torch.tensor([[0.0, 0.0], [9.0, 0.0]], requires_grad=True)
    target = torch.tensor([[1.0, 0.0], [0.0, 9.0]], requires_grad=True)
    p = E / (E + 1 / E)  # [1, 0] normalised is [1, -1]
    by_hand = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    loss = o.alignment(feature, target, torch.tensor([0, -1]))["loss"]
    assert loss.item() == pytest.approx(by_hand, abs=1e-4)
    loss.backward()
    assert target.grad is None
    assert feature.grad is not None
    assert feature.grad[0].abs().sum() > 0
    assert feature.grad[1].abs().sum() == 0
    scaled = torch.nn.functional.layer_norm(target, (2,))
    assert o.alignment(scaled, 0.01 * target, torch.tensor([0, 1]))["loss"].item() == pytest.approx(0, abs=0.05)
    assert o.alignment(scaled, target, torch.tensor([0, 1]))["loss"].item() == pytest.approx(0, abs=1e-6)


# Stage 2: what the labels teach


def _organ(multi_label: bool = False) -> Organ:
    return Organ("liver", ("T1",), "q", {c: (c,) for c in "abc"}, multi_label=multi_label)


def test_focal_by_hand_and_without_focus_it_is_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 5.0, 1.0], [9.0, 0.0, 0.0]])
    label = torch.tensor([0, 2, -1])
    p = logits.softmax(1)[[0, 1], [0, 2]]
    by_hand = -((1 - p) ** 2 * p.log()).mean().item()
    assert o.focal(logits, label, gamma=2.0).item() == pytest.approx(by_hand, rel=1e-5)
    plain = o.cross_entropy(logits, label, smoothing=0.0).item()
    assert o.focal(logits, label, gamma=0.0).item() == pytest.approx(plain, rel=1e-5)
    easy = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    for gamma in (0.0, 0.5, 2.0):
        (g,) = torch.autograd.grad(o.focal(easy, torch.tensor([0]), gamma=gamma), easy)
        assert g.isfinite().all()


def test_multi_label_losses_are_binary_by_class() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [1.0, 1.0, 1.0]])
    label = torch.tensor([0b101, -1])
    p = logits[0].sigmoid()
    right = torch.stack([p[0], 1 - p[1], p[2]])
    assert o.binary_cross_entropy(logits, label, smoothing=0.0).item() == pytest.approx(
        -right.log().mean().item(), rel=1e-5
    )
    focal = -((1 - right) ** 2 * right.log()).mean().item()
    assert o.focal(logits, label, gamma=2.0, multi_label=True).item() == pytest.approx(focal, rel=1e-5)
    wanted = torch.tensor([0.9, 0.1, 0.9])
    smooth = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean().item()
    assert o.binary_cross_entropy(logits, label, smoothing=0.2).item() == pytest.approx(smooth, rel=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "mixed"])
def test_supervised_takes_the_loss_that_is_asked_for(kind: str, multi_label: bool) -> None:
    organ, settings = _organ(multi_label), FinetuneConfig(supervised=kind, label_smoothing=0.1)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = torch.tensor([1, 2, -1, 5 if multi_label else 0])
    terms = o.supervised(logits, label, organ, settings)
    entropy = o.binary_cross_entropy if multi_label else o.cross_entropy
    parts = {
        "cross_entropy": entropy(logits, label, smoothing=0.1),
        "focal": o.focal(logits, label, gamma=2.0, multi_label=multi_label),
    }
    share = {"cross_entropy": (1, 0), "focal": (0, 1), "mixed": (0.4, 0.6)}[kind]
    expected = share[0] * parts["cross_entropy"] + share[1] * parts["focal"]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(terms) == {"loss", *(n for n, s in zip(parts, share, strict=True) if s)}
    terms["loss"].backward()
    assert logits.grad is not None
    assert logits.grad[2].abs().sum() == 0
    assert logits.grad[[0, 1, 3]].abs().sum(1).min() > 0
    unknown = o.supervised(logits, torch.full((4,), -1), organ, settings)["loss"]
    assert unknown.item() == 0
