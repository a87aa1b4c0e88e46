"""Published object detectors find what their authors' find; files that do not fit are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from siegebench import registry
from siegebench.errors import ConfigError, ModelError
from siegebench.ncnn import NcnnNet
from siegebench.object_detector import Found, ObjectDetector, average_precision, kept, matched
from siegebench.render.compose import compose
from siegebench.types import DataSource, ObjectDetectorSource, SceneSource
from tests.kit import data_folder

# one photograph of each of these in imagenet-sample160: ambulance, beach wagon, cab, convertible, ...
VEHICLES = (
    407, 436, 468, 511, 555, 569, 609, 627, 654, 656, 661, 675, 717, 734, 751, 757, 779, 817, 864, 867, 874,
)  # fmt: skip


def detector(name: str, size: int | tuple[int, int] = 160, **given: object) -> ObjectDetector:
    return registry.build(ObjectDetectorSource, {"name": name, **given}).detector(size=size)


def picture(file: str) -> Tensor:
    with Image.open(data_folder() / "weights" / file) as image:
        return torch.tensor(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255


@torch.no_grad()
def found_in(name: str, file: str) -> Found:
    return kept(detector(name).find(picture(file)))


@pytest.mark.parametrize("name", ["fastest_det", "yolox_nano"])
def test_the_bus_is_found(name: str) -> None:
    found = found_in(name, "FastestDet/images/1.jpg")
    assert found.scores[0, 0].item() == pytest.approx(0.96, abs=0.005)
    assert matched(found, torch.tensor([[45.0, 81.0, 592.0, 419.0]]), overlap=0.9).item() == found.scores[0, 0]


def test_parked_cars_are_found() -> None:
    found = found_in("yolox_nano", "yolox-nano/parking.jpg")
    assert found.scores[0, :3].tolist() == pytest.approx([0.86, 0.81, 0.777], abs=0.005)


@pytest.mark.parametrize(
    ("name", "extra", "seen"),
    [("fastest_det", (), 19), pytest.param("yolox_nano", (6,), 17, marks=pytest.mark.slow)],
)
def test_vehicles_are_found_in_photographs_and_hidden_by_small_changes(
    name: str, extra: tuple[int, ...], seen: int
) -> None:
    data_folder()
    photos = registry.build(DataSource, {"name": "parquet", "prefix": "imagenet", "num_classes": 1000}).scan(
        "sample160"
    )
    x = photos.select(torch.isin(photos.labels, torch.tensor(VEHICLES)).nonzero().squeeze(1)).in_memory().pixels()
    model = detector(name, vehicles=[2, 5, *extra, 7])
    with torch.no_grad():
        scores = model.find(x).best
    assert int((scores >= 0.3).sum()) == seen
    few = x[scores >= 0.6][:1]
    changed = few.clone()
    for _ in range(4):
        changed.requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(changed)[:, 1].sum(), changed)
        changed = (few + (changed.detach() - 2 / 255 * gradient.sign() - few).clamp(-8 / 255, 8 / 255)).clamp(0, 1)
    with torch.no_grad():
        assert model.find(changed).best.item() < scores[scores >= 0.6][0].item() - 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("fastest_det", 0.7), ("yolox_nano", 0.9)])
def test_rendered_vehicles_are_found(name: str, least: float) -> None:
    """On 100 scenes in grey, the average precision was 0.874 and 0.991."""
    data_folder()
    scenes = registry.build(DataSource, {"name": "vehicle_scenes", "train": 2, "test": 24})
    assert isinstance(scenes, SceneSource)
    maps = scenes.scenes("test", range(24))
    with torch.no_grad():
        found = kept(detector(name).find(compose(maps, torch.full((3, 1, 1), 0.5), 2.0)))
    assert average_precision(found, maps.box * (maps.labels == 1)[:, None]) > least


def test_fewer_classes_find_less() -> None:
    bus = picture("FastestDet/images/1.jpg")
    with torch.no_grad():
        assert detector("fastest_det", vehicles=[2]).find(bus).best < 0.6
        assert detector("fastest_det", vehicles=[5]).find(bus).best > 0.9


def test_choices_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="vehicles: expected classes of COCO, 0 to 79"):
        detector("fastest_det", vehicles=[80])
    with pytest.raises(ConfigError, match="side: expected a multiple of 32, found 300"):
        detector("fastest_det", side=300)


def test_missing_weights_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIEGEBENCH_DATA", raising=False)
    with pytest.raises(ModelError, match=r"or give `checkpoint: PATH`$"):
        detector("fastest_det")


# ------------------------------------------------------------------------------------------------- the format of ncnn

TINY = """7767517
9 10
Input in 0 1 x
YoloV5Focus focus 1 1 x f
Split split 1 2 f f0 f1
Convolution conv 1 1 f0 c 0=2 1=1 5=1 6=24 9=4
ConvolutionDepthWise deep 1 1 f1 d 0=12 1=3 3=1 4=1 5=0 6=108 7=12
Swish swish 1 1 d s
Concat both 2 1 c s t
Interp up 1 1 t u 0=1 1=2 2=2
Pooling pool 1 1 u out 0=0 1=2 2=2 3=0
"""


def written(folder: Path, param: str = TINY, cut: int = 0) -> tuple[Path, dict[str, Tensor]]:
    """A tiny network in this format, float16 and float32, and its weights."""
    numbers = np.random.default_rng(0)
    conv, bias, deep = (numbers.normal(size=n).astype("f4") for n in (24, 2, 108))
    half = conv.astype("<f2")
    parts = [b"\x47\x6b\x30\x01", half.tobytes(), bias.tobytes(), bytes(4), deep.tobytes()]
    path = folder / "tiny.param"
    path.write_text(param)
    content = b"".join(parts)
    path.with_suffix(".bin").write_bytes(content[: len(content) - cut] if cut >= 0 else content + bytes(-cut))
    weights = {"conv": torch.tensor(half.astype("f4")).view(2, 12, 1, 1), "bias": torch.tensor(bias)}
    return path, {**weights, "deep": torch.tensor(deep).view(12, 1, 3, 3)}


def test_layers_of_ncnn_compute_what_they_say(tmp_path: Path) -> None:
    path, w = written(tmp_path)
    x = torch.rand(2, 3, 6, 8)
    f = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], dim=1)
    one = torch.nn.functional.conv2d(f, w["conv"], w["bias"]).sigmoid()
    two = torch.nn.functional.silu(torch.nn.functional.conv2d(f, w["deep"], padding=1, groups=12))
    net = NcnnNet(path, path.with_suffix(".bin"))
    torch.testing.assert_close(net(x), torch.cat([one, two], dim=1))  # enlarging and pooling cancel


def test_attention_and_two_inputs_of_ncnn(tmp_path: Path) -> None:
    """Squeeze and excitation, a product of features, and two outputs."""
    path = tmp_path / "two.param"
    path.write_text("""7767517
15 16
Input z 0 1 z
Input s 0 1 s
Split both 1 2 s s0 s1
Pooling mean 1 1 s0 m 0=1 4=1
InnerProduct full 1 1 m f 0=3 1=1 2=9 9=1
HardSigmoid gate 1 1 f g 0=1.666667e-01
BinaryOp times 2 1 s1 g t 0=2
HardSwish swish 1 1 t h 0=1.666667e-01
Reshape rows 1 1 z r 0=-1 1=3
Permute turned 1 1 r p 0=1
Reshape columns 1 1 h c 0=-1 1=3
Gemm product 2 1 p c q
Reshape map 1 1 q a 0=5 1=4 2=-1
Convolution conv 1 1 a out1 0=1 1=1 5=0 6=4 9=3 -23310=2,0.0,6.0
UnaryOp exp 1 1 z out2 0=7
""")
    numbers = np.random.default_rng(0)
    full, bias, conv = (numbers.normal(size=n).astype("f4") for n in (9, 3, 4))
    path.with_suffix(".bin").write_bytes(bytes(4) + full.tobytes() + bias.tobytes() + bytes(4) + conv.tobytes())
    z, s = torch.rand(2, 3, 2, 2), 3 * torch.randn(2, 3, 4, 5)
    net = NcnnNet(path, path.with_suffix(".bin"), inputs=2, outputs=2)
    one, two = net(z, s)
    f = torch.nn.functional
    g = f.hardsigmoid((s.mean(dim=(2, 3)) @ torch.tensor(full).view(3, 3).T + torch.tensor(bias)).relu())
    h = f.hardswish(s * g[:, :, None, None])
    a = torch.einsum("nci,ncj->nij", z.flatten(2), h.flatten(2)).view(2, 4, 4, 5)
    expected = (a * torch.tensor(conv)[:, None, None]).sum(dim=1, keepdim=True).clamp(0, 6)
    torch.testing.assert_close(one, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(two, z.exp())
    assert all(p.requires_grad for p in net.parameters())
    with pytest.raises(ModelError, match="inputs z, s and outputs out1, out2; expected 1 and 1"):
        NcnnNet(path, path.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("change", "cut", "message"),
    [
        (("7767517", "7767518"), 0, "begins with 7767517"),
        (("9 10", "8 10"), 0, "9 layers, its second line says 8"),
        (("Swish", "Mish"), 0, "layer swish: Mish is not known"),
        (("9=4", "9=2"), 0, "layer conv: activation 2 is not known"),
        (("0=0 1=2", "0=2 1=2"), 0, "layer pool: Pooling with 0=2 is not known"),
        (("0=0 1=2", "0=1 1=2"), 0, "layer pool: an average that is not of the whole image is not known"),
        (("9=4", "9=3"), 0, "layer conv: a clip without its two limits"),
        (("9=4", "9=3 -23310=2,0.0"), 0, "damaged: -23310=2,0.0: 1 numbers, expected 2"),
        (("6=24", "6=25"), 0, "layer conv has 25 weights, expected 24"),
        (("Swish swish 1 1", "Swish swish one 1"), 0, "damaged"),
        (("", ""), 4, "the layers have more"),
        (("", ""), -4, "is it of another network"),
    ],
)
def test_damaged_files_of_ncnn_are_refused(tmp_path: Path, change: tuple[str, str], cut: int, message: str) -> None:
    path, _ = written(tmp_path, TINY.replace(*change) if change[0] else TINY, cut)
    with pytest.raises(ModelError, match=message):
        NcnnNet(path, path.with_suffix(".bin"))


def test_another_network_is_no_yolox(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    with pytest.raises(ModelError, match="YOLOX for COCO returns"):
        detector("yolox_nano", checkpoint=str(path))


def test_the_key_has_both_files(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    entry = registry.build(ObjectDetectorSource, {"name": "yolox_nano", "checkpoint": str(path)})
    first = entry.identity()
    shutil.copy(path, path.with_suffix(".bin"))
    assert entry.identity() != first
