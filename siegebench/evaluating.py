"""`siegebench evaluate`: a suite for one network and images of the user, and what it will do.

The network is an entry of the zoo with the user's file, the images a folder or a data set. The suite is written beside
the rows and run like any other.
"""

from __future__ import annotations

import copy
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from PIL import Image

from siegebench import registry
from siegebench.bundled import suite_path
from siegebench.classifier import Classifier
from siegebench.config import Suite, load_suite
from siegebench.data import ImageSet, subset
from siegebench.errors import ConfigError, DataError, shortened
from siegebench.inputs import blamed, checked
from siegebench.threat import Norm
from siegebench.tracks import TRACKS
from siegebench.types import Attack, DataSource, ModelSource

SPLITS = ("test", "val", "valid", "validation", "dev")  # the split that is evaluated: the first that exists
FILES = ("checkpoint", "file", "folder")  # the parameter of a model that takes the user's file, the first that it has
LARGE = 64  # pixels; above, budgets are those that are usual for ImageNet
BUDGETS: dict[str, str | float] = {"linf": "4/255", "l2": 3.0}  # for large images
ATTACK = 2.0  # time of an attack relative to that of its passes
OWN = "--model '{name: python_file, file: FILE.py, make: CLASS}'"
TRIED, TIMED, HEADERS = 64, 16, 200  # images for the accuracy, for the time, and whose sizes are compared


@dataclass(frozen=True)
class Job:
    """What `siegebench evaluate` will do.

    Attributes:
        content: the suite, as in YAML.
        left_out: tracks of the suite that cannot be evaluated on a network that is given.
        model: the network.
        images: those that are evaluated.
        of: number of images of the split.
    """

    content: dict[str, Any]
    left_out: tuple[str, ...]
    model: Classifier
    images: ImageSet
    of: int


@dataclass(frozen=True)
class Trial:
    """A first look at a network: its accuracy on some images, and seconds for a pass of one image."""

    right: int
    count: int
    forward: float
    backward: float | None


def job(
    checkpoint: str,
    model: Any,
    data: Any,
    *,
    suite: str = "evaluate",
    norm: Norm | None = None,
    eps: str | None = None,
    images: int = 200,
    size: int | None = None,
) -> Job:
    """Find the network and the images, and fill them into a suite.

    Args:
        checkpoint: file or folder of the network.
        model: an entry of the zoo, as in a suite; None for files that contain the whole network.
        data: a folder of images, or a data set as in a suite.
        suite: bundled, or a YAML file; its networks and images are replaced.
        norm, eps: one threat in place of those of the suite; only one of its norms if eps is left out.
        images: how many of them, by class.
        size: images of a folder are resized to this.

    Raises:
        ConfigError, DataError, ModelError: unknown names, weights that do not fit, images of several sizes.
    """
    wanted = load_suite(suite)
    spec = model_spec(checkpoint, model)
    source = _built(ModelSource, "--model", spec)
    chosen, split = data_spec(data)
    network, whole, chosen = _together(source, chosen, split, size)
    count = min(images, len(whole))
    part = subset(whole, count)
    name = re.sub(r"[^a-z0-9_]+", "_", Path(checkpoint).stem.lower()).strip("_") or "network"
    content, left_out = _filled(wanted, suite_path(suite), norm, eps, max(part.shape[1:]))
    content |= {
        "suite": name if name[0].isalpha() else f"net_{name}",
        "data": {"set": chosen, "split": split, "count": count},
        "models": [spec],
    }
    return Job(content, left_out, network, part, len(whole))


def model_spec(checkpoint: str, model: Any) -> dict[str, Any]:
    """The model with its file, as in a suite.

    Raises:
        ConfigError: when no model is named and the file does not contain a whole network; when it names one already.
    """
    path = Path(checkpoint).expanduser()
    if model is None:
        model = _whole(path)
        if model is None:
            what = "a file of weights does not say its architecture" if path.exists() else "there is no such file"
            if path.is_file() and not zipfile.is_zipfile(path):
                with path.open("rb") as file:
                    if file.read(2) == b"PK":
                        raise ConfigError(f"{checkpoint}: the end of the file is missing; copy or download it again")
            if path.suffix == ".py" and path.is_file():
                raise ConfigError(f"{checkpoint}: Python code; give the file of its weights, and {OWN}")
            if path.is_dir():
                what = "a folder without config.json, which a folder of Hugging Face has"
            raise ConfigError(
                f"{checkpoint}: {what}; name it with --model, such as --model timm/resnet50, or a class of "
                f"your own: {OWN}. Without --model: .onnx, TorchScript, and folders of Hugging Face"
            )
    bare = registry.normal(model)
    try:
        registry.find("model", bare["name"], families=True)
        known = {f.name for f in fields(cast(Any, registry.entry_class("model", str(bare["name"]))))}
    except ConfigError as error:
        if ".py" in str(bare["name"]):
            raise ConfigError(f"--model {bare['name']}: for a class in a Python file write {OWN}") from None
        raise ConfigError(f"--model: {error}") from None
    parameter = next((name for name in FILES if name in known), None)
    if parameter is None:
        raise ConfigError(f"--model {bare['name']}: takes no file of yours; expected one such as timm/resnet50")
    if parameter in bare:
        raise ConfigError(f"--model has a {parameter} of its own; give the file as the argument only")
    return {**bare, parameter: str(path.absolute()) if path.exists() else checkpoint}


def _whole(path: Path) -> str | None:
    """The entry for a file that contains a whole network."""
    if path.suffix == ".onnx":
        return "onnx"
    if path.is_dir() and (path / "config.json").is_file():
        return "huggingface"
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return "torchscript" if any("/code/" in name for name in archive.namelist()) else None
    return None


def _built(kind: type[Any], option: str, spec: Mapping[str, Any]) -> Any:
    """The entry of an option."""
    try:
        return registry.build(kind, spec)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None


# --------------------------------------------------------------------------------------------------------------- images


def data_spec(data: Any) -> tuple[dict[str, Any], str]:
    """(the data set, as in a suite; the split to evaluate). A folder is FOLDER/SPLIT/CLASS/IMAGE or FOLDER/CLASS/IMAGE.

    Raises:
        ConfigError: for a name that is neither a folder nor a data set.
    """
    folder = Path(str(data)).expanduser() if isinstance(data, str) else None
    if folder is None or not folder.is_dir():
        try:
            spec = registry.normal(data)
            source = registry.build(DataSource, spec)
        except ConfigError as error:
            raise ConfigError(f"--data: there is no folder {shortened(data)}, and {error}") from None
        return spec, _split(source.known_splits(), str(data))
    folder = folder.absolute()
    inner = [f.name for f in folder.iterdir() if f.is_dir()]
    if any(name in (*SPLITS, "train") for name in inner):
        spec = {"name": "image_folder", "folder": str(folder)}
        return spec, _split(registry.build(DataSource, spec).known_splits(), str(data))
    if not inner:
        raise DataError(
            f"--data {data}: has no folders of classes; expected FOLDER/CLASS/IMAGE, or FOLDER/test/CLASS/IMAGE"
        )
    names = folder / "classes.txt"  # of the folder itself; the data set looks for it beside its splits
    listed = {"classes": str(names)} if names.is_file() else {}
    return {"name": "image_folder", "folder": str(folder.parent), **listed}, folder.name


def _split(known: tuple[str, ...], data: str) -> str:
    found = next((name for name in SPLITS if name in known), None)
    if found is None:
        raise DataError(
            f"--data {data}: has the splits {', '.join(known) or 'none'}, and images for training say nothing of "
            f"robustness; expected one of {', '.join(SPLITS)}"
        )
    return found


def _together(
    source: ModelSource, spec: dict[str, Any], split: str, size: int | None
) -> tuple[Classifier, ImageSet, dict[str, Any]]:
    """(the network, all images of the split, the data set with the size that fits the network)"""
    folder = spec["name"] == "image_folder" and "size" not in spec
    if size is not None:
        if not folder:
            raise ConfigError("--size: is for a folder of images; give a data set its own `size`")
        spec = {**spec, "size": size}
    whole = _built(DataSource, "--data", spec).scan(split)
    if folder and size is None:
        seen = set(islice(_sizes(Path(spec["folder"]) / split), HEADERS))
        network = source.built(whole.num_classes, next(iter(seen), (224, 224)), whole.kind.channels)
        inside = getattr(network, "size", None)
        if inside is not None:
            spec = {**spec, "size": max(inside)}
        elif len(seen) > 1:
            some = " and ".join(f"{w}x{h}" for h, w in sorted(seen)[:2])
            raise DataError(
                f"--data: images of {some} pixels, and the network does not say the size it wants; give --size N (224 "
                "is usual for networks of ImageNet)"
            )
        whole = registry.build(DataSource, spec).scan(split)
    network = source.build_for(whole).eval()
    with torch.no_grad():
        network = checked(network, whole.pixels(slice(0, 2)))
    return network, whole, spec


def _sizes(folder: Path) -> Iterator[tuple[int, int]]:
    """(height, width) of the images of a folder, from their headers."""
    for path in sorted(folder.rglob("*")):
        try:
            with Image.open(path) as image:
                yield image.size[::-1]
        except (OSError, ValueError):  # no image, or one that the data set will name
            continue


# ---------------------------------------------------------------------------------------------------------------- suite


def _filled(
    suite: Suite, path: Path, norm: Norm | None, eps: str | None, pixels: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the suite without its networks and images, and with other threats; the tracks that are left out)"""
    content = copy.deepcopy(yaml.safe_load(path.read_text(encoding="utf-8")))
    boards = [b for b in content["boards"] if TRACKS[b["track"]].takes_model and b["track"] != "camouflage"]
    left_out = tuple(dict.fromkeys(b["track"] for b in content["boards"] if b not in boards))
    usual = suite.origin["name"] == "evaluate"
    for board in boards:
        for key in ("data", "models"):
            board.pop(key, None)
        threats = board.get("threats", ())
        if usual and pixels > LARGE:
            threats = [{**t, "eps": BUDGETS.get(t["norm"], t["eps"])} for t in threats]
        if eps is not None:
            threats = [{"norm": norm or "linf", "eps": eps}] if "threats" in board else ()
        elif norm is not None:
            threats = [t for t in threats if t["norm"] == norm]
        if "threats" in board:
            board["threats"] = threats
    boards = [b for b in boards if b.get("threats", True)]
    if not boards:
        raise ConfigError(f"--suite {suite.suite}: no board for a network of yours{f' in {norm}' if norm else ''}")
    kept = {key: content[key] for key in ("summary", "seeds") if key in content}
    return {**kept, "boards": boards}, left_out


# ---------------------------------------------------------------------------------------------------------------- trial


def trial(job: Job, device: torch.device) -> Trial:
    """Classify some images, and time a pass with and without a gradient.

    Raises:
        ModelError: when the network fails on the device, or when a gradient is asked for.
    """
    model = copy.deepcopy(job.model).to(device).eval()
    few = subset(job.images, min(TRIED, len(job.images)))
    x, y = few.pixels().to(device), few.labels.to(device)
    some = x[:TIMED]
    with torch.no_grad(), blamed(model, x):
        right = int((torch.cat([model(part) for part in x.split(8)]).argmax(dim=1) == y).sum())
        forward = _seconds(lambda: model(some)) / len(some)
    if model.scores_only:
        return Trial(right, len(few), forward, None)

    def step() -> None:
        leaf = some.clone().requires_grad_(True)
        torch.autograd.grad(model(leaf).logsumexp(dim=1).sum(), leaf, allow_unused=True)

    with blamed(model, x), torch.enable_grad():
        return Trial(right, len(few), forward, _seconds(step) / len(some))


def _seconds(call: Any) -> float:
    """Of the faster of two calls, the first of which may be slow."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def expected_seconds(job: Job, suite: Suite, found: Trial) -> float:
    """A rough time on one process if no attack succeeds: every pass of every attack, for the images that are right.

    Measures such as `masking` are not counted.
    """
    n, total = len(job.images), 0.0
    attacked = n * found.right / max(1, found.count)
    for board in suite.filled():
        if board.track == "corruption":
            total += n * found.forward * len(board.corruptions) * len(board.severities)  # type: ignore[attr-defined]
        for spec in getattr(board, "attacks", ()):
            attack = registry.build(Attack, spec)
            queries = board.limit() if hasattr(board, "limit") else None
            cost = attack.cost() if queries is None else min(attack.cost(), queries)
            each = found.forward if queries is not None or attack.access() != "gradient" else found.backward
            if each is None:
                continue  # not applicable
            more = getattr(attack, "queries", 0) * found.forward if hasattr(attack, "steps") else 0.0
            norms = [t for t in getattr(board, "threats", ()) if t.norm in attack.handles()]
            total += attacked * len(norms) * (cost * each + more) * ATTACK
    return total


def described(job: Job, suite: Suite, found: Trial, device: torch.device, about: str) -> list[str]:
    """What will be done, as lines of text.

    Args:
        about: the expected time.
    """
    card, (channels, height, width) = job.model.card, job.images.shape
    wants, chosen = card.preprocessing.get("input_size"), job.content["data"]
    if not isinstance(wants, str):
        wants = "x".join(map(str, (wants, wants) if isinstance(wants, int) else wants or ()))
    own = str(Path(chosen["set"].get("folder", "")) / chosen["split"]) if "folder" in chosen["set"] else ""
    mean, std = (", ".join(f"{v:.3g}" for v in card.preprocessing.get(k, ())) for k in ("mean", "std"))
    lines = [
        f"network: {card.name}{f', weights of {card.source}' if card.source and card.source not in card.name else ''}; "
        f"normalisation: mean {mean}, std {std}" + (f"; input: {wants}" if wants else ""),
        f"images: {len(job.images)} of the {job.of} of {own or job.images.name}, {job.images.num_classes} classes, "
        f"{channels}x{height}x{width}",
        f"accuracy on {found.count} of them: {100 * found.right / found.count:.0f} %",
    ]
    if found.right / found.count <= 2 / job.images.num_classes:
        lines.append(
            "  that is near chance: the labels or the preprocessing may not be those of the network. `siegebench "
            "doctor --data` prints the labels; --model '{name: NAME, mean: [...], std: [...]}' sets the normalisation"
        )
    for board in suite.filled():
        what = ", ".join(_names(getattr(board, "attacks", None) or getattr(board, "corruptions", ())))
        balls = ", ".join(f"{t.norm} {t.eps}" for t in getattr(board, "threats", ()))
        no = (
            " (not applicable: no gradients)"
            if found.backward is None and board.track in ("white_box", "patch")
            else ""
        )
        lines.append(f"{board.track}: {what}{f' at {balls}' if balls else ''}{no}")
    lines += [f"left out: the {track} boards, which train networks" for track in job.left_out]
    return [
        *lines,
        f"time: roughly up to {about} on {device} with one process if the network is robust, much less if it is not: "
        "attacks stop where they succeed",
    ]


def _names(specs: Any) -> list[str]:
    return [str(registry.normal(spec)["name"]) for spec in specs]
