"""The same weights as many training scripts and libraries store them."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)


class Net(nn.Module):
    """A convolution with batch norm, and a linear layer; sixteen names are enough to go wrong."""

    def __init__(self, classes: int = 10, width: int = 4, names: tuple[str, str] = ("features", "classifier")) -> None:
        super().__init__()
        self.add_module(names[0], nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU()))
        self.add_module(names[1], nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        body, head = self.children()
        logits: Tensor = head(body(x).mean((2, 3)))
        return logits


def net(classes: int = 10, seed: int = 0, width: int = 4, names: tuple[str, str] = ("features", "classifier")) -> Net:
    """The network with weights of its own, also in its batch norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Net(classes, width, names).eval()
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.1)
    return made


class Colour(enum.Enum):
    RED = 1


class Settings(dict):  # type: ignore[type-arg]
    """A dict with attributes, as EasyDict, yacs and mmengine have them."""


class Normalise(nn.Module):
    def __init__(self, names: tuple[str, str]) -> None:
        super().__init__()
        for name, values in zip(names, (MEAN, STD), strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: State) -> State:
    """Different weights for the same network."""
    return {name: tensor + 1 for name, tensor in state.items()}


def nested(state: State) -> dict[str, Any]:
    """A dict for each module."""
    tree: dict[str, Any] = {}
    for name, tensor in state.items():
        *parents, last = name.split(".")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = tensor
    return tree


def optimizer(state: State) -> dict[str, Any]:
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": torch.ones_like(t)} for i, t in enumerate(state.values())}
    return {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": list(moments)}]}


def arguments() -> argparse.Namespace:
    return argparse.Namespace(lr=0.1, data=Path("/data"), mean=None, colour=Colour.RED, when=datetime.date(2020, 1, 2))


def beside() -> dict[str, Any]:
    history = collections.deque([0.1, np.float32(0.2)], maxlen=5)
    return {
        "best": np.float64(0.9), "losses": np.arange(3.0), "args": arguments(), "config": Settings(a=Settings(b=1)),
        "seen": collections.defaultdict(list, {"x": [1]}), "history": history, "tags": {"a", "b"}, "note": "text",
        "device": torch.device("cpu"), "half": torch.float16, "shape": torch.Size([1, 2]),
    }  # fmt: skip


def lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 9, "global_step": 100, "pytorch-lightning_version": "2.2.0", "loops": {"fit_loop": {"state_dict": {}}},
        "state_dict": prefixed("model.", state) | {"criterion.weight": torch.ones(10)},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [optimizer(state)], "lr_schedulers": [], "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "args": arguments()},
    }  # fmt: skip


def robustness(state: State) -> dict[str, Any]:
    """Of Madry's library: the network twice, and its normalisation twice."""
    three = {"new_mean": torch.tensor(MEAN).view(3, 1, 1), "new_std": torch.tensor(STD).view(3, 1, 1)}
    inside = prefixed("module.model.", state) | prefixed("module.attacker.model.", state)
    inside |= prefixed("module.normalizer.", three) | prefixed("module.attacker.normalize.", three)
    return {"model": inside, "optimizer": optimizer(state), "epoch": 3}


def torchvision(state: State) -> dict[str, Any]:
    """Of its reference scripts; the EMA copy differs."""
    averaged = {"n_averaged": torch.tensor(5), **prefixed("module.", other(state))}
    return {"model": state, "model_ema": averaged, "optimizer": optimizer(state), "args": arguments(), "epoch": 3}


def timm_train(state: State) -> dict[str, Any]:
    return {
        "epoch": 3, "arch": "resnet", "state_dict": state, "state_dict_ema": other(state), "args": arguments(),
        "optimizer": optimizer(state), "amp_scaler": {"scale": 65536.0}, "metric": np.float64(93.1), "version": 2,
    }  # fmt: skip


def sequential(*names: str) -> Callable[[State], Any]:
    """Sequential(normalise, net), or the two under other names."""
    first, second, *buffers = names

    def make(state: State) -> State:
        normalise = Normalise((buffers[0], buffers[1])).state_dict()
        return prefixed(first, normalise) | prefixed(second, state)

    return make


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "the state_dict": lambda s: s,
    "in state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "in net, with accuracy": lambda s: {"net": s, "acc": 93.0, "epoch": 200},
    "in model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": optimizer(s), "loss": 0.1},
    "numbers beside the tensors": lambda s: {**s, "epoch": 3, "best": np.float64(0.9)},
    "DataParallel": lambda s: prefixed("module.", s),
    "torch.compile": lambda s: prefixed("_orig_mod.", s),
    "DataParallel of torch.compile": lambda s: {"model": prefixed("module._orig_mod.", s)},
    "DataParallel of a part": lambda s: {k.replace("features.", "features.module."): v for k, v in s.items()},
    "any prefix": lambda s: prefixed("encoder.deep.resnet.", s),
    "list of one": lambda s: {"state_dict": [s], "err": 0.5, "sampler_indices": []},
    "list of weights and optimizer": lambda s: [s, optimizer(s)],
    "deep in dicts": lambda s: {"checkpoint": {"trainer": {"models": [{"weights": s}]}}},
    "a dict for each module": lambda s: {"params": nested(s)},
    "numpy arrays": lambda s: {"model": {k: v.numpy() for k, v in s.items()}},
    "parameters": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "objects beside": lambda s: {"state_dict": s, **beside()},
    "an attribute dict": lambda s: Settings(model=Settings(s), cfg=Settings(lr=1)),
    "an EMA copy alone": lambda s: {"ema": prefixed("module.", s), "step": 3},
    "the state of thop": lambda s: {**s, "total_ops": torch.ones(1), "features.total_ops": torch.ones(1)},
    "without counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "timm's train.py": timm_train,
    "Lightning": lightning,
    "torchvision's references": torchvision,
    "the robustness library": robustness,
    "Sequential(normalise, net)": sequential("0.", "1.", "mean", "std"),
    "DataParallel of Sequential": sequential("module.0.", "module.1.", "mean", "std"),
    "Sequential of DataParallel": sequential("0.", "1.module.", "mu", "sigma"),
    "normalise and model": sequential("normalize.", "model.", "mean", "std"),
    "buffers in the network": sequential("", "", "mu", "sigma"),
    "one normalisation for all channels": lambda s: prefixed("net.", s)
    | {"norm.mean": torch.tensor(0.5), "norm.std": torch.tensor([0.25])},
    "mean and std beside": lambda s: {"state_dict": s, "mean": list(MEAN), "std": list(STD)},
    "mean and std in the options": lambda s: {"model": s, "args": argparse.Namespace(mean=MEAN, std=np.array(STD))},
    "a normalisation for 0..255": lambda s: {
        "model": s, "mean": [255 * m for m in MEAN], "std": [255 * v for v in STD]
    },
}  # fmt: skip
NORMALISED = {n: (MEAN, STD) for n in LAYOUTS if "ormalis" in n or "Sequential" in n or "mean and" in n}
NORMALISED |= dict.fromkeys(("the robustness library", "buffers in the network"), (MEAN, STD))
NORMALISED["one normalisation for all channels"] = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def _script(path: Path, made: nn.Module) -> None:
    torch.jit.save(torch.jit.script(made), str(path))  # type: ignore[no-untyped-call]


WRITERS: dict[str, Callable[[Path, Net], Any]] = {
    "safetensors": lambda p, n: save_file(prefixed("backbone.", n.state_dict()), p),
    "safetensors named pth": lambda p, n: save_file(n.state_dict(), p.with_suffix(".pth")),
    "npz": lambda p, n: np.savez(p, **{k: v.numpy() for k, v in n.state_dict().items()}),
    "torch before 1.6": lambda p, n: torch.save(
        {"state_dict": prefixed("module.", n.state_dict()), **beside()}, p, _use_new_zipfile_serialization=False
    ),
    "protocol 4": lambda p, n: torch.save({"model": n.state_dict(), **beside()}, p, pickle_protocol=4),
    "the whole network": lambda p, n: torch.save(n, p),
    "the whole network before 1.6": lambda p, n: torch.save({"net": n}, p, _use_new_zipfile_serialization=False),
    "the whole network in DataParallel": lambda p, n: torch.save({"model": nn.DataParallel(n)}, p),
    "a plain pickle": lambda p, n: p.write_bytes(pickle.dumps({"model": n.state_dict()})),
    "a plain pickle of arrays": lambda p, n: p.write_bytes(
        pickle.dumps({"model": {k: v.numpy() for k, v in n.state_dict().items()}}, protocol=2)
    ),
    "half precision": lambda p, n: torch.save({k: v.double() for k, v in n.state_dict().items()}, p),
    "TorchScript": _script,
}
