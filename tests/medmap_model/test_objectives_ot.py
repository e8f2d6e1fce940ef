"""Partial optimal transport: the plan's masses, who is believed, and that the published form would not do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from configs.stages import PretrainConfig
from medmap_model import objectives as o


def _sharp(tau: float = 1.0) -> o.Sharpness:
    return o.Sharpness(torch.tensor(tau), torch.zeros(()))


def test_the_plan_keeps_within_its_capacities_and_moves_what_it_should() -> None:
    g = torch.Generator().manual_seed(0)
    for r, t, mass in ((2, 2, 0.9), (16, 16, 0.7), (16, 48, 0.5), (5, 3, 0.9)):
        cost = torch.rand(2, r, t, generator=g) * 2
        rows, columns = torch.full((2, r), 1 / r), torch.full((2, t), 1 / r)
        rows[1, 0] = columns[1, -1] = 0  # an absent image, an absent report
        plan = o.partial_plan(cost, rows, columns, mass=mass, epsilon=0.05)
        total = mass * torch.minimum(rows.sum(1), columns.sum(1))
        assert plan.sum((1, 2)).numpy() == pytest.approx(total.numpy(), abs=2e-3)
        assert (plan.sum(2) <= rows * 1.02).all()
        assert (plan.sum(1) <= columns * 1.02).all()
        assert plan[1, 0].sum() == 0
        assert plan[1, :, -1].sum() == 0
    nothing = o.partial_plan(torch.rand(3, 3), torch.zeros(3), torch.ones(3), mass=0.9, epsilon=0.05)
    assert nothing.sum() == 0
    sharp = o.partial_plan(1 - torch.eye(4), torch.full((4,), 0.25), torch.full((4,), 0.25), mass=1.0, epsilon=0.01)
    assert torch.allclose(sharp, torch.eye(4) / 4, atol=1e-3)


def _noisy(b: int, wrong: int, *, within: bool) -> tuple[Tensor, o.Texts]:
    """Images near their reports, but for the first `wrong` pairs: reports of each other, or of nobody here."""
    g = torch.Generator().manual_seed(1)
    text = F.normalize(torch.randn(b, 32, generator=g), dim=1)
    image = F.normalize(text + 0.1 * torch.randn(b, 32, generator=g), dim=1)
    other = text.clone()
    other[:wrong] = text[:wrong].roll(1, 0) if within else F.normalize(torch.randn(wrong, 32, generator=g), dim=1)
    return image[:, None], o.Texts(other, torch.eye(b, dtype=torch.bool), torch.ones(b, dtype=torch.bool))


def _pull(loss: Callable[[Tensor, o.Texts], Tensor], image: Tensor, texts: o.Texts) -> Tensor:
    """(B,): how hard each image is drawn to its declared report: norm of the loss's gradient on the image."""
    image = image.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(image, texts), image)
    return g.norm(dim=(1, 2))


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("form", ["weights", "cost"])
def test_mismatched_reports_get_no_gradient_and_clean_ones_keep_theirs(form: str, within: bool) -> None:
    image, texts = _noisy(32, 3, within=within)
    valid = torch.ones(32, 1, dtype=torch.bool)
    settings = PretrainConfig(ot_form=form, image_to_text=1.0, positives="abnormality", ot_mass=0.9)

    def ot(x: Tensor, t: o.Texts) -> Tensor:
        return o.partial_ot(x, valid, t, None, _sharp(0.5), settings)["loss"]

    def info_nce(x: Tensor, t: o.Texts) -> Tensor:
        return o.asymmetric(x, valid, t, None, _sharp(0.5), settings)["loss"]

    def published(x: Tensor, t: o.Texts) -> Tensor:
        """-sum_i log pi_ii / B, differentiated through the plan (Med3DInsight's form)."""
        cost = 1 - x[:, 0] @ t.embedding.T
        plan = o.partial_plan(cost, torch.full((32,), 1 / 32), torch.full((32,), 1 / 32), mass=0.9, epsilon=0.05)
        return -plan.diagonal().clamp(min=1e-30).log().mean()

    ours, plain, theirs = (_pull(loss, image, texts) for loss in (ot, info_nce, published))
    ratio = ours / plain
    assert (ratio[:3] < 0.05).all()
    assert ratio[3:].min() > 0.9
    assert ratio[3:].max() < 1.05
    # Negative control: the published form pulls the wrong pairs harder than the right ones.
    assert theirs[:3].mean() > 3 * theirs[3:].mean()
    assert (theirs[:3] / plain[:3] > 0.05).any()


def test_any_of_several_positives_earns_belief() -> None:
    """Two kinds of patient; every report of the own kind is declared. A patient filed under the other kind is not believed."""
    kind = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    image = F.one_hot(kind, 4).float()[:, None]
    said = kind.clone()
    said[0] = 1  # patient 0 shows kind 0; label and report say 1
    texts = o.Texts(F.one_hot(said, 4).float(), said[:, None] == said[None], torch.ones(8, dtype=torch.bool))
    plan = o.believed(image, torch.ones(8, 1, dtype=torch.bool), texts, None, mass=0.75, epsilon=0.05)
    assert plan.image[0] < 0.01
    assert plan.image[1:].min() > 0.6


@pytest.mark.parametrize("form", ["weights", "cost"])
def test_while_nothing_is_learned_the_weights_are_flat(form: str) -> None:
    """Images all alike: the plan knows nothing, so every pair counts alike and the loss is ot_mass times InfoNCE."""
    texts = _noisy(8, 0, within=False)[1]
    image = F.normalize(torch.ones(8, 1, 32), dim=2)
    valid = torch.ones(8, 1, dtype=torch.bool)
    settings = PretrainConfig(ot_form=form, ot_mass=0.6, ot_epsilon=10.0)
    ot = o.partial_ot(image, valid, texts, None, _sharp(), settings)["loss"]
    assert ot.item() == pytest.approx(
        0.6 * o.asymmetric(image, valid, texts, None, _sharp(), settings)["loss"].item(), rel=0.05
    )


def test_past_records_widen_the_plan() -> None:
    """Two wrong pairs in a batch of two: alone they must be believed; among thirty past records they are not."""
    image, texts = _noisy(32, 2, within=True)
    batch, rest = image[:2], image[2:]
    valid = torch.ones(2, 1, dtype=torch.bool)
    two = o.Texts(texts.embedding[:2], torch.eye(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
    wide = o.Texts(texts.embedding, torch.eye(2, 32, dtype=torch.bool), torch.ones(32, dtype=torch.bool))
    past = o.Past(rest, torch.ones(30, 1, dtype=torch.bool), torch.eye(32, dtype=torch.bool)[2:])
    settings = PretrainConfig(image_to_text=1.0, bank="none")
    alone = _pull(lambda x, t: o.partial_ot(x, valid, t, None, _sharp(0.5), settings)["loss"], batch, two)
    among = _pull(lambda x, t: o.partial_ot(x, valid, t, None, _sharp(0.5), settings, past)["loss"], batch, wide)
    plain = _pull(lambda x, t: o.asymmetric(x, valid, t, None, _sharp(0.5), settings)["loss"], batch, wide)
    assert (among / plain < 0.05).all()
    assert (alone > 0.1).all()
