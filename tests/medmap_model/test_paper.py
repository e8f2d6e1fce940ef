"""`model=paper` is real: both stages' losses go forward and backward once at the paper's sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from configs import load, load_vocabulary
from configs.schema import Config, TextConfig
from medmap_model import groups
from medmap_model.batch import Batch
from medmap_model.model import build_model
from medmap_model.text import build_text_encoder


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def paper() -> Config:
    return load(["model=paper", "data.volumes.size=96"])


def test_the_paper_s_sizes() -> None:
    m = paper().model
    assert (m.encoder.kind, m.encoder.width, m.encoder.size, m.encoder.checkpointing) == ("swin_unetr", 48, 96, True)
    assert (m.fusion.kind, m.fusion.layers, m.fusion.heads, m.fusion.width) == ("medmap", 6, 8, 256)
    assert m.embed_dim == 768


@pytest.mark.slow
def test_both_stages_go_forward_and_backward_once(one_thread: None) -> None:
    """About 30 seconds of one CPU core and 4 GB, most of it the one volume's attention in windows of 7^3."""
    config, vocabulary = paper(), load_vocabulary("medmom")
    model = build_model(config.model, vocabulary, build_text_encoder(TextConfig(kind="hash", dim=768)), seed=0)
    assert sum(p.numel() for p in model.encoders["T1"].parameters()) == 8_062_002
    assert len(model.encoders) == 12
    present = torch.tensor([[True, False, False, False]])
    volumes = torch.zeros(1, 4, 96, 96, 96)
    volumes[:, 0].normal_()
    batch = Batch(
        organ="brain",
        volumes=volumes,
        present=present,
        label=torch.tensor([1]),
        report=torch.nn.functional.normalize(torch.randn(1, 768), dim=1),
        has_report=torch.tensor([True]),
    )
    embedded = []
    model.encoders["T1"].register_forward_hook(lambda module, given, out: embedded.append(out.tokens.shape))
    owned = groups.owned(vocabulary, {"T1": 1}, {"brain": 1}, "finetune")
    for stage, loss in (
        ("pretrain", lambda: model.pretrain_loss(batch, config.stage.pretrain)["loss"]),
        ("finetune", lambda: model.finetune_loss(batch, config.stage.finetune, progress=0.5)["loss"]),
    ):
        model.zero_grad(set_to_none=True)
        value = loss()
        assert value.isfinite()
        value.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert all(g.isfinite().all() for g in grads.values()), stage
        assert {n for n in grads if n.startswith("encoders")} == {
            f"encoders.T1.{n}" for n, _ in model.encoders["T1"].named_parameters()
        }
        assert {groups.group_of(n) for n, g in grads.items() if g.abs().sum() > 0} <= set(owned)
    assert embedded == [(1, 27, 768)] * 2
