"""Classifiers of transformers and timm from a folder: the same logits, their preprocessing, no code of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import siegebench as sb
from siegebench import registry
from siegebench.errors import ConfigError, ModelError
from siegebench.testing import check_instance

from .building import model

pytest.importorskip("transformers")
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vit(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A tiny ViT for five classes and its image processor, as save_pretrained writes them."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ViTForImageClassification(config).eval()
        nn.init.normal_(net.classifier.weight)
    net.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    return tmp_path, net


def load(folder: Path, classes: int = 5, **parameters: Any) -> Any:
    return sb.load_model("huggingface", num_classes=classes, size=32, folder=str(folder), **parameters)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def normalised(x: Tensor, mean: list[float] = MEAN, std: list[float] = STD) -> Tensor:
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def resized(x: Tensor, size: int) -> Tensor:
    return nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)


def test_a_vit_answers_as_in_transformers(vit: tuple[Path, nn.Module], x: Tensor) -> None:
    folder, net = vit
    loaded = load(folder)
    assert loaded.size == (16, 16)
    with torch.no_grad():
        expected = net(pixel_values=normalised(resized(x, 16))).logits
        torch.testing.assert_close(loaded(x), expected, atol=1e-5, rtol=0)
    assert float(expected.std()) > 0.01
    leaf = x.clone().requires_grad_(True)
    loaded(leaf).sum().backward()
    assert leaf.grad is not None
    assert bool((leaf.grad != 0).any())


def test_it_keeps_the_contract_of_models(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    small = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10)
    ResNetForImageClassification(small).save_pretrained(tmp_path)
    spec = {"name": "huggingface", "folder": str(tmp_path), "mean": MEAN, "std": STD}
    checks = check_instance("model", registry.build("model", spec))
    assert len(checks) >= 5
    assert [f"{c.name}: {c.detail}" for c in checks if not c.passed] == []
    assert not [c.name for c in checks if c.skipped]


@pytest.mark.parametrize(
    ("changes", "size", "mean", "std"),
    [
        ({}, 16, MEAN, STD),
        ({"rescale_factor": 1 / 127.5}, 16, [0.05, 0.1, 0.15], [0.2, 0.25, 0.3]),
        ({"do_normalize": False}, 16, [0, 0, 0], [1, 1, 1]),
        ({"do_normalize": False, "do_rescale": False}, 16, [0, 0, 0], [1 / 255] * 3),
        ({"size": {"shortest_edge": 24}}, 24, MEAN, STD),
        ({"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 24}, 24, MEAN, STD),
        ({"image_mean": 0.5, "image_std": 0.25}, 16, [0.5] * 3, [0.25] * 3),
        ({"include_top": True}, 16, MEAN, [0.16, 0.25, 0.36]),
    ],
)
def test_preprocessing_is_read(changes: dict[str, Any], size: int, mean: list[float], std: list[float]) -> None:
    from siegebench.zoo._processor import preprocessing

    written = {"do_resize": True, "size": {"height": 16, "width": 16}, "image_mean": MEAN, "image_std": STD}
    found = preprocessing({**written, "do_rescale": True, "rescale_factor": 1 / 255, **changes}, "here")
    assert found.size == (size, size)
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(std)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order is True, which is not known here; give `mean`"),
        ({"image_mean": [0.5]}, r"image_mean is \[0\.5\], expected three numbers"),
        ({"size": {"longest_edge": 3}}, "size is .*expected height and width"),
    ],
)
def test_preprocessing_that_is_not_known_is_refused(
    vit: tuple[Path, nn.Module], changes: dict[str, Any], said: str
) -> None:
    edit(vit[0] / "preprocessor_config.json", **changes)
    with pytest.raises(ModelError, match=said):
        load(vit[0])
    assert load(vit[0], mean=MEAN, std=STD, input_size=16).size == (16, 16)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_of_the_repository_is_refused(vit: tuple[Path, nn.Module], file: str) -> None:
    folder = vit[0]
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    edit(folder / file, auto_map={"AutoModelForImageClassification": "evil.Net"}, model_type="evil")
    with pytest.raises(ModelError, match=rf"{file}: has `auto_map`, which names code .* never run"):
        load(folder)


def test_what_cannot_be_used_is_refused(vit: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, net = vit
    with pytest.raises(ModelError, match="a network for 5 classes, the data has 7"):
        load(folder, classes=7)
    with pytest.raises(ConfigError, match=r"expected huggingface/OWNER/NAME, or \{name: huggingface, folder: FOLDER\}"):
        model("huggingface")
    with pytest.raises(ModelError, match=r"has no config\.json; expected an image classifier"):
        load(folder / "nowhere")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json, so the normalisation is not known"):
        load(folder)
    given = {"mean": MEAN, "std": STD, "input_size": 16}
    headless = {k: v for k, v in net.state_dict().items() if not k.startswith("classifier")}
    net.save_pretrained(folder, state_dict=headless)
    with pytest.raises(ModelError, match=r"2 tensors of the network are not in the weights \(such as classifier\.bias"):
        load(folder, **given)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        load(folder, **given)
    outside = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(outside))
    with pytest.raises(ModelError, match="expected names of files in this folder"):
        load(folder, **given)


def test_weights_and_preprocessing_are_part_of_the_key(vit: tuple[Path, nn.Module]) -> None:
    source = model({"name": "huggingface", "folder": str(vit[0])})
    before = source.identity()
    assert "folder" not in registry.description_of("model", source)
    edit(vit[0] / "preprocessor_config.json", image_mean=STD)
    assert source.identity() != before


def test_a_folder_of_timm(tmp_path: Path, x: Tensor) -> None:
    import timm
    from timm.models import save_for_hf

    described = {"mean": tuple(MEAN), "std": tuple(STD), "input_size": (3, 64, 64)}
    net = timm.create_model("test_resnet", num_classes=4, pretrained_cfg_overlay=described).eval()
    save_for_hf(net, tmp_path)
    loaded = load(tmp_path, classes=4)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), net(normalised(resized(x, 64))), atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="a network for 4 classes, the data has 5"):
        load(tmp_path)


def test_from_the_cache_of_the_hub(
    vit: tuple[Path, nn.Module], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, x: Tensor
) -> None:
    from huggingface_hub import constants

    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    commit = "0" * 40
    repo = cache / "models--someone--vit"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    (repo / "snapshots" / commit).symlink_to(vit[0])
    loaded = sb.load_model("huggingface/someone/vit", num_classes=5, size=32)
    torch.testing.assert_close(loaded(x), load(vit[0])(x))
    with pytest.raises(ModelError, match=r"someone/other in the hub's cache: has no config\.json"):
        sb.load_model("huggingface/someone/other")
