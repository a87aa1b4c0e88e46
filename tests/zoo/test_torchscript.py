"""TorchScript files answer as the network they were made from; code that touches files is refused before it runs."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import siegebench as sb
from siegebench.errors import ModelError, NotApplicable

from .building import model
from .exported import net


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def saved(path: Path, how: str = "trace") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        made = torch.jit.trace(net(), torch.rand(2, 3, 16, 16)) if how == "trace" else torch.jit.script(net())
        torch.jit.save(torch.jit.freeze(made) if how == "freeze" else made, str(path))
    return path


def load(path: Path, **parameters: Any) -> Any:
    return sb.load_model("torchscript", num_classes=10, size=16, file=str(path), **parameters)


@pytest.mark.parametrize("how", ["trace", "script", "freeze"])
def test_it_answers_as_the_network_with_scores_only(tmp_path: Path, x: Tensor, how: str) -> None:
    path = saved(tmp_path / "net.pt", how)
    loaded = load(path)
    torch.testing.assert_close(loaded(x), net()(x), atol=1e-5, rtol=0)
    with pytest.raises(NotApplicable, match=r"torchscript net\.pt gives scores and no gradients"):
        loaded(x.requires_grad_(True))


def test_gradients_can_be_asked_for(tmp_path: Path, x: Tensor) -> None:
    loaded = load(saved(tmp_path / "net.pt"), gradients=True)
    leaf, other = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    loaded(leaf).logsumexp(1).sum().backward()
    net()(other).logsumexp(1).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)
    assert not loaded.scores_only


def test_preprocessing_is_given(tmp_path: Path, x: Tensor) -> None:
    loaded = load(saved(tmp_path / "net.pt"), input_size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    resized = nn.functional.interpolate(x, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(loaded(x), net()((resized - 0.5) / 0.25), atol=1e-5, rtol=0)


def test_frozen_networks_are_told_apart_by_their_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", "freeze")
    assert "net.digest" in load(path).state_dict()
    assert set(model({"name": "torchscript", "file": str(path)}).identity()) == {"sha256"}


class Reads(nn.Module):
    """Reads a file when it is called."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + torch.from_file("/etc/hostname", False, 1)


class Writes(nn.Module):
    """Writes a file when it is called."""

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "stolen")
        return x.flatten(1)


@pytest.mark.parametrize(("hostile", "said"), [(Reads(), r"torch\.from_file"), (Writes(), r"(torch|ops\.aten)\.save")])
def test_code_that_touches_files_is_refused(tmp_path: Path, hostile: nn.Module, said: str) -> None:
    path = tmp_path / "evil.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(hostile), str(path))
    with pytest.raises(ModelError, match=rf"its code calls {said}; expected operators of torch that touch no files"):
        load(path)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    """One reader might check the first, and another one run the second."""
    path = saved(tmp_path / "net.pt")
    with zipfile.ZipFile(path, "a") as archive:
        code = next(name for name in archive.namelist() if name.endswith(".py"))
        archive.writestr(code.upper(), "torch")
    with pytest.raises(ModelError, match="contains two files of one name"):
        load(path)


def test_files_that_are_no_torchscript(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"contains no code\. For a file of weights, name its architecture"):
        load(tmp_path / "weights.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ModelError, match=r"expected a TorchScript file.*found no zip archive"):
        load(tmp_path / "text.pt")
    with pytest.raises(ModelError, match="there is no such file; expected a TorchScript file"):
        load(tmp_path / "gone.pt")
