"""ONNX files answer as the network they were made from, give no gradients, and run no code of others."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import siegebench as sb
from siegebench import registry
from siegebench.errors import MissingExtra, ModelError, NotApplicable
from siegebench.testing import check_entry

from .building import model
from .exported import graph, helper, net, onnx, onnx_file


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def load(path: Path, size: int = 32, **parameters: Any) -> Any:
    return sb.load_model("onnx", num_classes=10, size=size, file=str(path), **parameters)


def test_it_answers_as_the_network(tmp_path: Path, x: Tensor) -> None:
    loaded = load(onnx_file(tmp_path))
    torch.testing.assert_close(loaded(x), net()(x), atol=1e-5, rtol=0)
    assert loaded(x.double()).dtype == torch.float64
    torch.testing.assert_close(copy.deepcopy(loaded)(x), loaded(x))
    assert loaded.scores_only


def test_normalisation_is_before_the_graph(tmp_path: Path, x: Tensor) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    loaded = load(onnx_file(tmp_path), mean=mean, std=std)
    given = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(loaded(x), net()(given), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [1, 4, 5])
def test_a_fixed_batch_is_filled_up(tmp_path: Path, x: Tensor, n: int) -> None:
    loaded = load(onnx_file(tmp_path, shape=(4, 3, 32, 32)))
    torch.testing.assert_close(loaded(x[:n]), net()(x[:n]), atol=1e-5, rtol=0)


def test_images_are_resized_to_the_graph(tmp_path: Path, x: Tensor) -> None:
    loaded = load(onnx_file(tmp_path, shape=("n", 3, 16, 24)))
    assert loaded.size == (16, 24)
    resized = torch.nn.functional.interpolate(x, (16, 24), mode="bilinear", antialias=True)
    torch.testing.assert_close(loaded(x), net()(resized), atol=1e-5, rtol=0)


def test_a_gradient_is_refused_in_one_line(tmp_path: Path, x: Tensor) -> None:
    loaded = load(onnx_file(tmp_path))
    with pytest.raises(NotApplicable, match=r"onnx net\.onnx gives scores and no gradients.*square"):
        loaded(x.requires_grad_(True))
    y = loaded(x.detach()).argmax(1)
    with pytest.raises(NotApplicable, match="no gradients"):
        sb.attack("pgd", steps=2)(loaded, x.detach(), y, norm="linf", eps="8/255")
    assert sb.attack("square", queries=5)(loaded, x.detach(), y, norm="linf", eps="8/255").shape == x.shape


def test_the_file_is_part_of_the_key_and_its_folder_is_not(tmp_path: Path) -> None:
    one, two, three = (onnx_file(tmp_path, f"{i}.onnx") for i in range(3))
    other = net()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    onnx.save(graph(other), str(three))
    first, same, changed = (model({"name": "onnx", "file": str(path)}) for path in (one, two, three))
    assert first.identity() == same.identity() != changed.identity()
    assert "file" not in registry.description_of("model", first)
    weights = [load(path).state_dict() for path in (one, three)]
    assert not torch.equal(weights[0]["net.digest"], weights[1]["net.digest"])


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no\.onnx: there is no such file; expected an ONNX file"):
        load(tmp_path / "no.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match=r"text\.onnx: not a readable ONNX file"):
        load(tmp_path / "text.onnx")
    with pytest.raises(
        ModelError, match=r"takes x: .*expected one input, \(float\) \[n, 3, H, W\].*channels come last"
    ):
        load(onnx_file(tmp_path, shape=("n", 32, 32, 3)))
    with pytest.raises(ModelError, match="a network with 10 scores, the data has 7 classes"):
        sb.load_model("onnx", num_classes=7, size=32, file=str(onnx_file(tmp_path)))


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, found = onnx_file(tmp_path), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(MissingExtra, match=r"an ONNX network needs onnxruntime.*pip install 'siegebench\[onnx\]'"):
        load(path)


def test_operators_of_a_library_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Evil", ["scores"], ["y"], domain="my.ops")
    path = onnx_file(tmp_path, nodes=[node], outputs={"y": ["n", 10]}, opsets=["my.ops"])
    with pytest.raises(ModelError, match=r"contains 'my\.ops\.Evil', an operator of a library"):
        load(path)


def test_the_output_is_named_when_several_could_be_it(tmp_path: Path, x: Tensor) -> None:
    nodes = [helper.make_node("Neg", ["scores"], ["minus"])]
    path = onnx_file(tmp_path, nodes=nodes, outputs={"minus": ["n", 10], "flat": ["n", 8]})
    with pytest.raises(ModelError, match=r"has the outputs scores .*minus .*say which has the scores"):
        load(path)
    torch.testing.assert_close(load(path, output="minus")(x), -net()(x), atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match=r"no output 'minos'\. Did you mean minus"):
        load(path, output="minos")


def external(path: Path, location: str) -> None:
    made = graph(net())
    onnx.save(made, str(path), save_as_external_data=True, location="data.bin", size_threshold=0)
    made = onnx.load(str(path), load_external_data=False)
    for tensor in made.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(made.SerializeToString())


def test_tensors_in_other_files_are_read_from_the_same_folder_only(tmp_path: Path, x: Tensor) -> None:
    path = tmp_path / "net.onnx"
    external(path, "data.bin")
    torch.testing.assert_close(load(path)(x), net()(x), atol=1e-5, rtol=0)
    before = model({"name": "onnx", "file": str(path)}).identity()
    data = tmp_path / "data.bin"
    data.write_bytes(bytes(len(data.read_bytes())))
    assert model({"name": "onnx", "file": str(path)}).identity() != before
    for location in ("../data.bin", "/etc/passwd"):
        external(path, location)
        with pytest.raises(ModelError, match="outside of its folder; that is refused"):
            load(path)
    external(path, "gone.bin")
    with pytest.raises(ModelError, match=r"gone\.bin, and there is no such file"):
        load(path)


def test_it_keeps_the_contract_of_models(tmp_path: Path) -> None:
    checks = check_entry({"name": "onnx", "file": str(onnx_file(tmp_path))}, "model")
    assert [f"{c.name}: {c.detail}" for c in checks if not c.passed] == []
    assert {c.name.partition(":")[0] for c in checks if c.skipped} == {
        "lets gradients reach the image", "gives features of each image", "builds anew from a seed",
    }  # fmt: skip
