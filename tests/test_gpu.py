"""What must also hold on a GPU: the numbers of the CPU, the same cells, passes that do not fit, two runs on one GPU.

`pytest -m gpu` on a machine with CUDA. SIEGEBENCH_TEST_DEVICE=cpu runs those that need no GPU, to see that they run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench import api
from siegebench.classifier import Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.prepare import in_batches
from siegebench.registry import build
from siegebench.settings import Settings
from siegebench.store import Store
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack
from tests import kit, runs

EPS: dict[Norm, float] = {"linf": 0.005, "l2": 0.05}  # about half of the images fall
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def device() -> torch.device:
    """The GPU; without one these tests fail, since somebody asked for them."""
    found = torch.device(os.environ.get("SIEGEBENCH_TEST_DEVICE", "cuda"))
    assert found.type == "cpu" or torch.cuda.is_available(), "tests marked gpu need a CUDA device"
    return found


@pytest.fixture
def small_gpu(device: torch.device) -> Iterator[int]:
    """The GPU with one GiB for this process; yields the bytes."""
    if device.type == "cpu":
        pytest.skip("SIEGEBENCH_TEST_DEVICE is the CPU, whose memory has no such limit")
    size = 2**30
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)
    yield size
    torch.cuda.set_per_process_memory_fraction(1.0)


class Mixed(nn.Module):
    """A random network of two layers that gives random images many labels, so that attacks by labels find a start."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.first, self.last = (nn.Parameter(torch.randn(shape, generator=g)) for shape in ((192, 64), (64, 10)))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - 0.5).flatten(1) @ self.first).relu() @ self.last


def test_draws_are_those_of_the_cpu(device: torch.device) -> None:
    here, there = (Draws(3, torch.arange(7, device=d)).child("noise") for d in (torch.device("cpu"), device))
    for kind in ("normal", "uniform"):
        assert torch.equal(getattr(here, kind)((3, 8, 8)), getattr(there, kind)((3, 8, 8)).cpu())


@pytest.mark.parametrize(
    "name",
    ["fgsm", "pgd", "apgd", "cw", "fmn", "deepfool", "fab", "autoattack", "square", "nes", "rays", "hopskipjump"],
)
def test_attacks_find_what_they_find_on_the_cpu(name: str, device: torch.device) -> None:
    n = 64
    norm: Norm = "l2" if name in ("cw", "deepfool", "hopskipjump") else "linf"
    entry = build(Attack, name)
    threat = ThreatModel(
        norm=norm, eps=EPS[norm], access=entry.access(),
        queries=None if entry.access() == "gradient" else 200,
    )  # fmt: skip
    model, x = Network(Mixed(), num_classes=10).eval().double(), kit.grey_images(n).double()
    y, found = model(x).argmax(dim=1), []
    for where in (torch.device("cpu"), device):
        draws = Draws(0, torch.arange(n, device=where))
        oracle = Oracle(model.to(where), threat, draws)
        x_adv = build(Attack, name)(oracle, x.to(where), y.to(where), threat, draws).cpu()
        model.to("cpu")
        found.append((model(x_adv).argmax(dim=1) != y) & (threat.size(x_adv, x) <= threat.limit))
    here, there = found
    assert int((here != there).sum()) <= 1, (here.sum(), there.sum())  # a rounding may decide about one image
    assert 0 < int(here.sum()) < n


def test_every_track_has_the_same_cells_and_the_numbers_of_the_cpu(
    device: torch.device, real_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the networks that the CPU has trained: a training on another device gives another network."""
    store = tmp_path / "store"
    shutil.copytree(real_store, store)
    shutil.rmtree(store / "rows")
    with runs.known(tmp_path / "site", monkeypatch):
        suite = runs.suite(tmp_path / "every.yaml", *runs.every_track(), data={"set": "digits", "count": 20})
        assert not api.run(str(suite), Settings(root=str(store), threads=1, device=str(device))).failed
    rows = ({row.cell.key: row for row in Store(root).rows()} for root in (real_store, store))
    here, there = rows
    assert here.keys() == there.keys()
    outside = []
    for key, row in here.items():
        assert (row.status, row.metrics.keys()) == (there[key].status, there[key].metrics.keys()), row.cell.labels
        for name, metric in row.metrics.items():
            value = there[key].metrics[name]["value"]
            if "low" in metric and not metric["low"] - 1e-6 <= value <= metric["high"] + 1e-6:
                outside.append((row.cell.labels, name, metric, value))
    assert not outside


class Wide(nn.Module):
    """A network whose activations take 12 MiB for an image of 224 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 64, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.conv(x).relu().mean(dim=(2, 3)))
        return z


def test_a_pass_that_does_not_fit_is_halved(small_gpu: int) -> None:
    torch.manual_seed(0)
    net, x = Wide().cuda().eval(), torch.rand(160, 3, 224, 224)
    sizes: list[int] = []

    def part(which: slice) -> Tensor:
        with torch.no_grad():
            z: Tensor = net(x[which].cuda())
        sizes.append(len(z))
        return z.cpu()

    out = torch.cat(in_batches(part, len(x), len(x)))
    assert len(sizes) > 1, small_gpu  # 160 images at once take two GiB
    assert sum(sizes) == len(x)
    torch.testing.assert_close(out, torch.cat([part(slice(i, i + 8)) for i in range(0, len(x), 8)]))


def test_two_processes_on_one_gpu(device: torch.device, tmp_path: Path) -> None:
    suite = runs.suite(tmp_path / "s.yaml", runs.board(attacks=["fgsm", "pgd", {"name": "fmn", "steps": 20}]))
    found: dict[str, Any] = {}
    for how in (("--executor", "serial"), ("--executor", "local", "--slots", 2)):
        store = tmp_path / str(how[1])
        if found:  # the same networks
            shutil.copytree(tmp_path / "serial", store)
            shutil.rmtree(store / "rows")
        done = runs.run("run", suite, *how, "--device", device, "--store", store, "--threads", 1, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        found[str(how[1])] = {
            row.cell.key: {name: m["value"] for name, m in row.metrics.items()} for row in Store(store).rows()
        }
    serial, local = found.values()
    assert serial.keys() == local.keys()
    for key, values in serial.items():
        assert values == pytest.approx(local[key], abs=0.03)  # one image of forty: sums on a GPU have no fixed order
