"""`model.init`: what a checkpoint holds arrives exactly, and the report says what did not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from configs.schema import EncoderConfig, FusionConfig, ModelConfig, TextConfig
from medmap_model.encoders import ModelError
from medmap_model.initialise import canonical, initialise
from medmap_model.model import MedMAP, build_model
from medmap_model.text import TextEncoder, build_text_encoder
from medmap_model.vocabulary import Vocabulary

CONV = ModelConfig(encoder=EncoderConfig(width=8), embed_dim=16, fusion=FusionConfig(heads=2))
SWIN = ModelConfig(
    encoder=EncoderConfig(kind="swin_unetr", width=12), embed_dim=16, fusion=FusionConfig(heads=2), sharing="shared"
)


@pytest.fixture
def make(vocabulary: Vocabulary, text: TextEncoder) -> Callable[..., MedMAP]:
    return lambda config=CONV, seed=0, text=text: build_model(config, vocabulary, text, seed=seed)


def state(model: MedMAP) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def published(body: torch.nn.Module, layout: str) -> dict[str, Tensor]:
    """A MONAI SwinTransformer's weights under the names of a published file (MONAI's SwinUNETR.load_from, filter_swinunetr)."""
    tensors = {}
    for name, tensor in body.state_dict().items():
        if layout == "model_swinvit.pt":
            tensors["module." + name.replace(".mlp.linear", ".mlp.fc")] = tensor
        elif layout == "ssl_pretrained_weights.pth":
            stage, rest = name[:9], name[9:]
            tensors["encoder." + (f"{stage}.0{rest}" if name.startswith("layers") else name)] = tensor
        else:
            tensors["swinViT." + name] = tensor
    return tensors


@pytest.mark.parametrize(
    ("layout", "key", "extra"),
    [
        ("model_swinvit.pt", "state_dict", "module.rotation_head.weight"),
        ("ssl_pretrained_weights.pth", "model", "encoder.mask_token"),
        ("swin_unetr.pt", "state_dict", "decoder5.conv_block.conv1.conv.weight"),
    ],
)
def test_published_swin_weights_round_trip_exactly(
    layout: str, key: str, extra: str, make: Callable[..., MedMAP], tmp_path: Path
) -> None:
    from monai.networks.nets.swin_unetr import SwinTransformer

    torch.manual_seed(3)
    body = SwinTransformer(1, 12, (7, 7, 7), (2, 2, 2), (2, 2, 2, 2), (3, 6, 12, 24))
    torch.save({"epoch": 7, key: published(body, layout) | {extra: torch.zeros(2)}}, tmp_path / layout)
    model = make(SWIN)
    before = state(model)
    report = initialise(model, str(tmp_path / layout))
    assert report.scope == "encoder" and report.missing == report.wrong_shape == ()
    assert report.unexpected == (extra,)
    given = dict(body.named_parameters())
    assert len(report.matched) == len(given)
    for name, p in model.named_parameters():
        inside = name.removeprefix("encoders.shared.body.")
        assert torch.equal(p, given[inside] if inside in given else before[name]), name


def test_every_encoder_starts_from_an_encoders_checkpoint(make: Callable[..., MedMAP], tmp_path: Path) -> None:
    source, model = make(seed=1), make(seed=0)
    before = state(model)
    encoder = source.encoders["FLAIR"]
    save_file({f"module.backbone.{n}": p.detach() for n, p in encoder.named_parameters()}, tmp_path / "e.safetensors")
    report = initialise(model, str(tmp_path / "e.safetensors"))
    assert (report.missing, report.unexpected) == ((), ())
    assert str(report).splitlines() == [
        f"init={tmp_path / 'e.safetensors'}: {len(report.matched)} of every encoder's {len(report.matched)} "
        "parameter tensors set"
    ]
    for trunk in model.encoders.values():
        assert all(torch.equal(p, dict(encoder.named_parameters())[n]) for n, p in trunk.named_parameters())
    others = [n for n in before if not n.startswith("encoders.")]
    assert all(torch.equal(before[n], state(model)[n]) for n in others)


def test_a_checkpoint_of_ours_with_another_text_width(make: Callable[..., MedMAP], tmp_path: Path) -> None:
    source = make(seed=1, text=build_text_encoder(TextConfig(kind="hash", dim=48)))
    model = make(seed=0)
    before, given = state(model), state(source)
    save_file(given, tmp_path / "model.safetensors")
    report = initialise(model, str(tmp_path))
    odd = "text_projection.linear.weight"
    assert report.scope == "model"
    assert report.wrong_shape == report.missing == (odd,)
    assert set(report.matched) == set(before) - {odd}
    after = state(model)
    assert all(torch.equal(after[n], given[n]) for n in report.matched)
    assert torch.equal(after[odd], before[odd])
    lines = str(report).splitlines()
    assert len(lines) == 2 and "1 of another shape (text_projection.linear.weight)" in lines[1]


def test_parts_of_a_checkpoint_of_ours(make: Callable[..., MedMAP], tmp_path: Path) -> None:
    """Another federation had fewer organs: what it knows arrives, the report names the rest."""
    model = make(seed=0)
    known = {n: p for n, p in state(make(seed=1)).items() if "liver" not in n and "C+A" not in n}
    torch.save({"model": known | {"encoders.T9.stem.bias": torch.zeros(8)}}, tmp_path / "part.pt")
    report = initialise(model, str(tmp_path / "part.pt"))
    assert set(report.matched) == set(known)
    assert {n.split(".")[1] for n in report.missing} == {"liver", "C+A"}
    assert report.unexpected == ("encoders.T9.stem.bias",)
    assert "left random" in str(report) and "encoders.T9.stem.bias" in str(report)


def test_shapes_that_differ_are_left_alone(make: Callable[..., MedMAP], tmp_path: Path) -> None:
    model = make(seed=0)
    tensors = {n: p.detach().clone() for n, p in model.encoders["T1"].named_parameters()}
    tensors["stem.weight"] = torch.zeros(8, 4, 3, 3, 3)  # four input channels
    tensors["stem.bias"] = tensors["stem.bias"].half() + 1
    torch.save(tensors, tmp_path / "four.pth")
    before = state(model)
    report = initialise(model, str(tmp_path / "four.pth"))
    assert report.wrong_shape == ("stem.weight",)
    after = state(model)
    assert torch.equal(after["encoders.T1.stem.weight"], before["encoders.T1.stem.weight"])
    assert after["encoders.FLAIR.stem.bias"].dtype == torch.float32
    assert torch.equal(after["encoders.FLAIR.stem.bias"], tensors["stem.bias"].float())


def test_random_changes_nothing(make: Callable[..., MedMAP]) -> None:
    model = make()
    before = state(model)
    assert str(initialise(model, "random")).startswith("init=random")
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def test_garbage_is_refused_in_one_sentence_and_changes_nothing(
    make: Callable[..., MedMAP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make()
    before = state(model)
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "empty").mkdir()
    torch.save({"weights": Payload()}, tmp_path / "code.pt")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    torch.save({"conv9.weight": torch.zeros(3), "conv9.bias": torch.zeros(3)}, tmp_path / "other.pt")
    for name, message in {
        "text.pt": "cannot be read as plain tensors",
        "cut.safetensors": r"cannot be read as plain tensors \(SafetensorError\)",
        "code.pt": r"cannot be read as plain tensors \(UnpicklingError\)",
        "empty": "there is no file",
        "nowhere.pt": "there is no file",
        "list.pt": "holds no named tensors",
        "other.pt": r"none of its 2 tensors \(conv9.weight, conv9.bias\) fits this model",
    }.items():
        with pytest.raises(ModelError, match=message) as caught:
            initialise(model, str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("module.layers1.0.blocks.0.mlp.fc1.weight", "layers1.0.blocks.0.mlp.linear1.weight"),
        ("encoder.layers3.0.0.blocks.1.attn.qkv.bias", "layers3.0.blocks.1.attn.qkv.bias"),
        ("swinViT.layers2.0.downsample.norm.weight", "layers2.0.downsample.norm.weight"),
        ("body.patch_embed.proj.weight", "patch_embed.proj.weight"),
        ("blocks.0.mlp.linear1.weight", "blocks.0.mlp.linear1.weight"),
        ("module.layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("encoder1.layer.conv1.weight", "encoder1.layer.conv1.weight"),
    ],
)
def test_names_of_the_same_thing(name: str, plain: str) -> None:
    assert canonical(name) == plain
