"""A network in an ONNX file, run by ONNX Runtime: scores only."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, ModelCard, ScoresOnly
from siegebench.data import Size
from siegebench.errors import MissingExtra, ModelError, did_you_mean, shortened
from siegebench.types import ModelSource

from ._files import OF_MORE, sha256
from ._whole import Channels, find_network, normalisation, shown

KIND = "an ONNX file"
# operators that ONNX Runtime itself has; all others would be code of a library
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


@dataclass(frozen=True, kw_only=True)
class OnnxNetwork(ModelSource):
    """A network in an ONNX file, run by ONNX Runtime on a GPU if it can, else on the CPU.

    Attacks get its scores and no gradients: query and corruption boards rank it, white-box boards say that it is not
    applicable. The graph has one input, float32 [n, channels, H, W], and gives scores [n, classes]. Images are resized
    to the H and W of the graph. If the graph has a fixed n, batches are filled up to it.

    No code of the file is run: operators that are not ONNX Runtime's own are refused. Tensors in other files are read
    from the folder of the file only. Nothing is random.

    Attributes:
        file: a path, or a file below `weights/` in the folder named by SIEGEBENCH_DATA.
        mean, std: normalisation of pixels in [0, 1] before the graph; default: none, as if the graph contains it.
        output: name of the output with the scores, for a graph with several.
    """

    local: ClassVar[tuple[str, ...]] = ("file",)

    file: str = ""
    mean: Channels | None = None
    std: Channels | None = None
    output: str | None = None

    def pretrained(self) -> bool:
        return True

    def identity(self) -> dict[str, Any]:
        path = find_network(self.file, KIND)
        return {"sha256": _digest(path, _external(path))}

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Classifier:
        path = find_network(self.file, KIND)
        others = _external(path)
        mean, std = normalisation(self.mean, self.std, channels)
        session = _session(path)
        shape = _input_shape(session, path, channels)
        net = OnnxModule(session, _output(session, path, self.output, num_classes), shape[0], _digest(path, others))
        height, width = shape[2:]
        inside = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        card = ModelCard(
            name=f"onnx {path.name}", architecture="an ONNX graph", source=path.name, weights=_digest(path, others),
            preprocessing={"mean": mean, "std": std, "input_size": shown(inside)},
        )  # fmt: skip
        return ScoresOnly(net, num_classes=num_classes, mean=mean, std=std, size=inside, card=card).eval()


class OnnxModule(nn.Module):
    """A session of ONNX Runtime as a module; copies share the session, whose weights cannot change.

    Args:
        batch: the number of images of every pass, if the graph fixes it.
        digest: sha256 of the file; a buffer, so that the hash of the module's state tells networks apart.
    """

    digest: Tensor

    def __init__(self, session: Any, output: str, batch: Any, digest: str) -> None:
        super().__init__()
        self.held, self.output = _Shared(session), output
        self.batch = batch if isinstance(batch, int) and batch > 0 else None
        self.register_buffer("digest", torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        images = x.detach().float().cpu().contiguous()
        parts = [images] if self.batch is None else images.split(self.batch)
        return torch.cat([self._scores(part) for part in parts]).to(x.device, x.dtype)

    def _scores(self, images: Tensor) -> Tensor:
        n = len(images)
        if self.batch is not None and n < self.batch:
            images = torch.cat([images, images[-1:].expand(self.batch - n, -1, -1, -1)])
        session = self.held.session
        (scores,) = session.run([self.output], {session.get_inputs()[0].name: images.numpy()})
        return torch.from_numpy(scores).float().flatten(1)[:n]


class _Shared:
    """A session that copies share."""

    __slots__ = ("session",)

    def __init__(self, session: Any) -> None:
        self.session = session

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors
    usable = [provider for provider in PROVIDERS if provider in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=usable)
    except Exception as error:  # the runtime raises many types; the cause is in the file
        raise ModelError(f"{path}: ONNX Runtime refuses it ({_first_line(error)})") from None


# --------------------------------------------------------------------------------------------------- what it contains


def _external(path: Path) -> list[Path]:
    """The other files that hold tensors of the graph, after checking that it runs no code.

    Raises:
        ModelError: for a file that is not ONNX, foreign operators, and tensors outside of the file's folder.
    """
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "onnx", "an ONNX network")
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # as above
        raise ModelError(f"{path}: not a readable ONNX file ({_first_line(error)})") from None
    if not model.graph.node:
        raise ModelError(f"{path}: not a readable ONNX file: it has no graph")
    own = DOMAINS | {function.domain for function in model.functions}
    nodes = [*_nodes(model.graph.node), *(n for f in model.functions for n in _nodes(f.node))]
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in own})
    if foreign:
        raise ModelError(
            f"{path}: contains {shortened(foreign[0])}, an operator of a library that ONNX Runtime does not have; "
            "expected standard operators only. Export the network without custom operators"
        )
    found = {}
    for tensor in (*_tensors(model.graph, nodes),):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            named = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            found[named] = _inside(path, named)
    return [found[named] for named in sorted(found)]


def _inside(path: Path, named: str) -> Path:
    """A file of external tensors, in the folder of the graph."""
    folder = path.parent.resolve()
    target = (folder / named).resolve()
    if not named or Path(named).is_absolute() or not target.is_relative_to(folder):
        raise ModelError(
            f"{path}: its tensors are in {shortened(named)}, outside of its folder; that is refused. Put the file "
            "beside it, and save the graph with that name"
        )
    if not target.is_file():
        raise ModelError(f"{path}: its tensors are in {target}, and there is no such file; copy it beside the graph")
    return target


def _nodes(nodes: Any) -> Iterator[Any]:
    """The nodes, also of graphs inside nodes (If, Loop)."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _tensors(graph: Any, nodes: list[Any]) -> Iterator[Any]:
    """The tensors of a graph and of its nodes."""
    yield from graph.initializer
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from inner.initializer


def _digest(path: Path, others: list[Path]) -> str:
    """sha256 of the file; with external tensors, of the hashes of all files."""
    if not others:
        return sha256(path)
    return hashlib.sha256("".join(sha256(file) for file in (path, *others)).encode()).hexdigest()


def _input_shape(session: Any, path: Path, channels: int) -> list[Any]:
    """[n, channels, H, W] of the input; what is not fixed is text or None.

    Raises:
        ModelError: when the graph takes something else.
    """
    inputs = session.get_inputs()
    told = ", ".join(f"{i.name}: {i.type.removeprefix('tensor')} {i.shape}" for i in inputs)
    expected = f"expected one input, (float) [n, {channels}, H, W]"
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        raise ModelError(f"{path}: takes {told}; {expected}")
    shape = list(inputs[0].shape)
    if isinstance(shape[1], int) and shape[1] != channels:
        last = "; the channels come last: export it with channels first" if shape[3] == channels else ""
        raise ModelError(f"{path}: takes {told}; {expected}{last}")
    return shape


def _output(session: Any, path: Path, wanted: str | None, classes: int) -> str:
    """The name of the output with the scores.

    Raises:
        ModelError: when there is none, or several could be it.
    """
    outputs = {o.name: o for o in session.get_outputs()}
    if wanted is not None:
        if wanted not in outputs:
            raise ModelError(f"{path}: has no output {wanted!r}. {did_you_mean(wanted, outputs)}")
        return wanted
    if len(outputs) == 1:
        (only,) = outputs.values()
        last = only.shape[1] if len(only.shape) > 1 else None
        if isinstance(last, int) and last != classes:
            raise ModelError(f"{path}: a network with {last} scores, the data has {classes} classes; {OF_MORE}")
        return str(only.name)
    fitting = [n for n, o in outputs.items() if o.type == "tensor(float)" and list(o.shape[1:]) == [classes]]
    if len(fitting) != 1:
        told = ", ".join(f"{n} {o.shape}" for n, o in outputs.items())
        raise ModelError(f"{path}: has the outputs {told}; say which has the scores, `output: {next(iter(outputs))}`")
    return fitting[0]


def _first_line(error: Exception) -> str:
    return shortened(" ".join(str(error).split())[:200] or type(error).__name__)
