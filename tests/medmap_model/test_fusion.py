"""CSA, CCT and the fusions whole: absent slots have no say, text has, and the streams are what their names say."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from configs.schema import EncoderConfig, FusionConfig, ModelConfig
from medmap_model.fusion import FusionInput, build_fusion
from medmap_model.fusion.cct import CCT
from medmap_model.fusion.csa import CSA, LocalStream
from medmap_model.fusion.medmap import pool_tokens
from medmap_model.model import build_model

D, W, M, N = 16, 8, 3, 8
MEDMAP = FusionConfig(kind="medmap", heads=2, layers=2, width=W, dropout=0.0)
KINDS = {
    "full": MEDMAP,
    "no_csa": replace(MEDMAP, csa=False),
    "no_cct": replace(MEDMAP, cct=False),
    "neither": replace(MEDMAP, csa=False, cct=False),
    "compact": FusionConfig(kind="compact", heads=2, dropout=0.0),
}
# Every subset of three modalities, the empty one among them.
SUBSETS = torch.tensor(list(itertools.product([False, True], repeat=M)))
each_kind = pytest.mark.parametrize("kind", KINDS)


def fusion_of(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_fusion(KINDS[kind], dim=D).double()


def given(present: Tensor = SUBSETS) -> FusionInput:
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    b = len(present)
    return FusionInput(draw(b, M, D), draw(b, M, N, W), present, draw(M, D), draw(M, D), draw(D))


def with_gradients(fusion: torch.nn.Module, x: FusionInput) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    """The feature; the gradients of pooled, tokens and every parameter for a loss in which every row counts."""
    assert x.tokens is not None
    pooled, tokens = x.pooled.clone().requires_grad_(), x.tokens.clone().requires_grad_()
    fusion.zero_grad()
    out = fusion(x._replace(pooled=pooled, tokens=tokens))
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    assert pooled.grad is not None
    token_gradient = torch.zeros_like(tokens) if tokens.grad is None else tokens.grad
    return out.detach(), pooled.grad, token_gradient, [p.grad for p in fusion.parameters()]


@each_kind
@pytest.mark.parametrize("content", [1e30, float("nan"), float("-inf")])
def test_what_an_absent_slot_holds_reaches_neither_result_nor_gradient(kind: str, content: float) -> None:
    fusion, x = fusion_of(kind), given()
    assert x.tokens is not None
    absent = ~x.present
    pooled, tokens = x.pooled.clone(), x.tokens.clone()
    pooled[absent], tokens[absent] = content, content
    before, after = with_gradients(fusion, x), with_gradients(fusion, x._replace(pooled=pooled, tokens=tokens))
    for a, b in zip(before[:3], after[:3], strict=True):
        assert torch.equal(a, b)
    for p, q in zip(before[3], after[3], strict=True):
        assert (p is None) == (q is None) and (p is None or q is None or torch.equal(p, q))
    assert after[1][absent].abs().sum() == 0 and after[2][absent].abs().sum() == 0
    assert (after[1][x.present].abs().sum(-1) > 0).all(), "what is there has a gradient: the check above is not empty"


@each_kind
def test_a_present_slot_matters_in_every_subset(kind: str) -> None:
    fusion, x = fusion_of(kind), given()
    for slot in range(M):
        pooled = x.pooled.clone()
        pooled[:, slot] += torch.linspace(-1, 1, D, dtype=pooled.dtype)
        moved = (fusion(x._replace(pooled=pooled)) - fusion(x)).abs().amax(1) > 1e-6
        assert torch.equal(moved, x.present[:, slot])


@each_kind
def test_an_absent_slot_is_the_same_as_none(kind: str) -> None:
    """Zeros would still be tokens to attend to: only a mask makes a study of two slots that of a two-slot organ."""
    fusion, x = fusion_of(kind), given()
    assert x.tokens is not None
    for row, present in enumerate(x.present):
        if not present.any():  # an organ has a slot at least
            continue
        at = slice(row, row + 1)
        without = FusionInput(
            x.pooled[at][:, present], x.tokens[at][:, present], x.present[at][:, present],
            x.modality[present], x.modality_text[present], x.query,
        )  # fmt: skip
        assert torch.allclose(fusion(without), fusion(x)[at], atol=1e-12), present
    zeros = x._replace(pooled=x.pooled * x.present[..., None], tokens=x.tokens * x.present[..., None, None])
    seen = fusion(zeros._replace(present=torch.ones_like(x.present)))
    assert not torch.allclose(seen[1], fusion(x)[1], atol=1e-3), "with zeros in place of a mask the result is another"


@each_kind
def test_the_order_of_the_slots_does_not_matter(kind: str) -> None:
    fusion, x = fusion_of(kind), given()
    assert x.tokens is not None
    order = torch.tensor([2, 0, 1])
    turned = FusionInput(
        x.pooled[:, order], x.tokens[:, order], x.present[:, order], x.modality[order], x.modality_text[order], x.query
    )
    assert torch.allclose(fusion(x), fusion(turned), atol=1e-12)
    half = turned._replace(modality=x.modality)
    assert not torch.allclose(fusion(x), fusion(half), atol=1e-3), "but which modality a slot is does"


@each_kind
def test_nothing_present_is_finite_and_so_are_its_gradients(kind: str) -> None:
    out, *_, gradients = with_gradients(fusion_of(kind), given(torch.zeros(2, M, dtype=torch.bool)))
    assert out.isfinite().all()
    assert all(g is None or g.isfinite().all() for g in gradients)
    assert torch.allclose(out[0], out[1]), "with nothing to see, all studies look alike"


@pytest.mark.parametrize("kind", ["full", "no_csa", "no_cct", "neither"])
def test_grid_tokens_summary_and_texts_all_count(kind: str) -> None:
    fusion, x = fusion_of(kind), given(torch.ones(2, M, dtype=torch.bool))
    assert x.tokens is not None
    for other in (
        {"tokens": x.tokens.flip(3)},
        {"pooled": x.pooled.flip(2)},
        {"query": x.query.flip(0)},
        {"modality_text": x.modality_text.flip(1)},
    ):
        assert not torch.allclose(fusion(x), fusion(x._replace(**other)), atol=1e-4), list(other)
    with pytest.raises(ValueError, match="needs tokens"):
        fusion(x._replace(tokens=None))


def test_leaving_a_part_out_leaves_out_its_weights() -> None:
    names = {kind: {n.split(".")[0] for n, _ in fusion_of(kind).named_parameters()} for kind in KINDS}
    assert {"csa", "cct"} <= names["full"]
    assert names["full"] - names["no_csa"] == {"csa"}
    assert names["full"] - names["no_cct"] == {"cct"}


# --- CSA ------------------------------------------------------------------------------------------------------------


def csa_case() -> tuple[CSA, Tensor, Tensor]:
    torch.manual_seed(0)
    return CSA(MEDMAP, dim=D, width=W).double(), torch.randn(8, M, N + 1, W).double(), torch.randn(M, D).double()


def test_csa_by_itself_hides_absent_slots() -> None:
    csa, tokens, text = csa_case()
    other = torch.where(SUBSETS[..., None, None], tokens, torch.full_like(tokens, 1e3))
    a, b = csa(tokens, SUBSETS, text), csa(other, SUBSETS, text)
    assert torch.allclose(a[SUBSETS], b[SUBSETS], atol=1e-12)
    everything = torch.ones_like(SUBSETS)
    assert not torch.allclose(csa(tokens, everything, text), csa(other, everything, text), atol=1e-2)


def test_csa_gates_follow_each_modality_s_own_text() -> None:
    csa, tokens, text = csa_case()
    everything, changed = torch.ones_like(SUBSETS), text.clone()
    changed[1] = -changed[1]
    moved = (csa(tokens, everything, text) - csa(tokens, everything, changed)).abs().amax((0, 2, 3))
    assert moved[1] > 1e-3 and moved[0] == moved[2] == 0
    torch.nn.init.zeros_(csa.gates.weight)
    torch.nn.init.constant_(csa.gates.bias, -1e3)
    assert torch.allclose(csa(tokens, everything, text), tokens), "shut gates let neither stream pass"


def test_csa_has_a_local_and_a_global_stream() -> None:
    csa, tokens, text = csa_case()
    everything, changed = torch.ones_like(SUBSETS), tokens.clone()
    changed[:, 0, 0] += torch.linspace(-1, 1, W).double()
    torch.nn.init.zeros_(csa.gates.weight)
    for near, far, reached in ((1e3, -1e3, False), (-1e3, 1e3, True)):
        with torch.no_grad():
            csa.gates.bias.copy_(torch.tensor([near] * W + [far] * W))
        moved = (csa(tokens, everything, text) - csa(changed, everything, text)).abs().amax((0, 3))
        assert (moved[1:].max() > 1e-6) == reached, "only the global stream reaches another modality"
        assert (moved[0, -1] > 1e-6) == reached, "and the summary, which has no place in the grid"


def test_the_local_stream_is_local() -> None:
    torch.manual_seed(0)
    stream, edge = LocalStream(W).double(), 4
    grid = torch.randn(2, 2, edge**3, W).double()
    changed = grid.clone()
    changed[0, 0, 0] += torch.linspace(-1, 1, W).double()
    moved = ((stream(grid) - stream(changed)).abs().amax(-1) > 0).view(2, 2, edge, edge, edge)
    assert moved[0, 0, :2, :2, :2].any()
    assert not moved[0, 0, 2:].any() and not moved[0, 0, :, 2:].any() and not moved[0, 0, :, :, 2:].any()
    assert not moved[1].any() and not moved[0, 1].any()


# --- CCT ------------------------------------------------------------------------------------------------------------


def test_the_streams_of_cct_see_each_other_and_nothing_masked() -> None:
    torch.manual_seed(0)
    cct = CCT(MEDMAP, width=W).double()
    vision, language = torch.randn(2, 5, W).double(), torch.randn(2, 4, W).double()
    see, say = torch.tensor([[1, 1, 1, 1, 0]] * 2).bool(), torch.tensor([[1, 1, 1, 0]] * 2).bool()
    before = cct(vision, see, language, say)
    for stream, visible in ((0, True), (0, False), (1, True), (1, False)):
        changed = [vision.clone(), language.clone()]
        changed[stream][:, 0 if visible else -1] += 3 * torch.linspace(-1, 1, W).double()
        after = cct(changed[0], see, changed[1], say)
        for out, (a, b, mask) in enumerate(zip(before, after, (see, say), strict=True)):
            moved = (a - b)[mask].abs().max() > 1e-6
            assert moved == visible, (stream, visible, out)


# --- tokens, and hiding modalities ------------------------------------------------------------------------------------------


def test_tokens_are_pooled_to_the_largest_cube_that_fits() -> None:
    place = torch.arange(64.0).view(1, 64, 1)
    assert pool_tokens(place, 64) is place
    pooled = pool_tokens(place, 26)  # 27 do not fit: 2^3
    corner = place.view(4, 4, 4)[:2, :2, :2].mean()
    assert pooled.shape == (1, 8, 1)
    assert pooled[0, 0, 0] == corner and pooled[0, -1, 0] == 63 - corner
    assert torch.all(pooled[0, 1:, 0] > pooled[0, :-1, 0]), "raster order is kept"
    assert pool_tokens(place, 1).item() == place.mean()
    assert pool_tokens(place, 27).shape == (1, 27, 1)


def test_hiding_a_modality_from_the_fusion_alone_is_hiding_it(vocabulary, text, make_batch) -> None:
    """What modality dropout, and every evaluation over subsets, stands on: encode once, then hide."""
    config = ModelConfig(encoder=EncoderConfig(width=8), embed_dim=D, fusion=MEDMAP)
    model = build_model(config, vocabulary, text, seed=0).double().eval()
    batch = make_batch("liver", [[1, 1, 1]] * 2)
    volumes, fewer = batch.volumes.double(), torch.tensor([[True, False, True], [False, False, True]])
    late = model.fuse(model.encode(volumes, batch.present, "liver"), fewer, "liver")
    early = model.fuse(model.encode(volumes, fewer, "liver"), fewer, "liver")
    assert torch.allclose(late, early, atol=1e-10)
    assert not torch.allclose(late, model.fuse(model.encode(volumes, batch.present, "liver"), batch.present, "liver"))
