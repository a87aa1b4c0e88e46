"""`siegebench evaluate`: how robust is this network on these images?"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from siegebench.cli import complete
from siegebench.cli.options import DEFAULT_STORE, Json, StorePath, as_value
from siegebench.errors import ConfigError, did_you_mean


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="The network: a file of weights, .onnx, TorchScript, or a folder.")],
    data: Annotated[
        str, typer.Option(help="Images: a folder with one folder for each class, or a data set such as gtsrb.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Architecture of a file of weights: timm/resnet50, torchvision/resnet50, '{name: ..., ...}'."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many images are evaluated.")] = 200,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side to which images of a folder are resized; default: the network's.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="Only this norm: linf, l2, l1 or l0.")] = None,
    eps: Annotated[str | None, typer.Option(help="Budget, such as 8/255; the norm is linf if none is given.")] = None,
    suite: Annotated[
        str, typer.Option(help="Suite whose boards are run: bundled or a YAML file.", autocompletion=complete.suites)
    ] = "evaluate",
    store: StorePath = DEFAULT_STORE,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one on a GPU, else one per core.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; compute nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Evaluate one network on images of yours: white-box attacks, a query attack and corruptions.

    Says first what it will do and how long that takes. The suite is written into the store, so that `siegebench run`
    can run it again with other values; rows, tables and page are those of `siegebench run`.
    """
    import siegebench.cli as command
    from siegebench.cli.dryrun import show
    from siegebench.config import load_suite
    from siegebench.environment import device as device_of
    from siegebench.evaluating import described, expected_seconds, job, trial
    from siegebench.files import write_atomic
    from siegebench.plan import plan
    from siegebench.progress import about
    from siegebench.settings import Settings
    from siegebench.threat import NORMS, ThreatModel
    from siegebench.titles import titles

    if norm is not None and norm not in NORMS:
        raise ConfigError(f"--norm {norm}: unknown norm. {did_you_mean(norm, NORMS)}")
    if eps is not None:
        try:
            ThreatModel.parse({"norm": norm or "linf", "eps": eps, "access": "gradient"})
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"--eps {eps}: {error}") from None
    on = device_of(device)
    command._check_folder(store)
    given = None if model is None else as_value("--model", model)
    found = job(
        checkpoint, given, data if Path(data).expanduser().is_dir() else as_value("--data", data),
        suite=suite, norm=norm, eps=eps, images=images, size=size,
    )  # fmt: skip
    path = _own(store, found.content)
    write_atomic(path, yaml.safe_dump(found.content, sort_keys=False, allow_unicode=True).encode())
    wanted = load_suite(str(path))
    seen = trial(found, on)
    for line in described(found, wanted, seen, on, about(expected_seconds(found, wanted, seen))):
        print(line, file=sys.stderr)
    print(f"suite: {path}; again with other values: siegebench run {path} --store {store}", file=sys.stderr)
    at_once = slots or (1 if on.type == "cuda" else os.cpu_count() or 1)
    if dry_run:
        planned, tracks = plan(wanted), [board.track for board in wanted.boards]
        settings = Settings(root=str(store), device=device)
        # the time has been said, and that of stored rows is not known for a new network
        show(planned, tracks, titles(planned.cells), settings, at_once, False, as_json, times=False)
        return
    command.run(
        str(path), store=store, executor=command.How.serial if at_once == 1 else command.How.local, slots=at_once,
        device=device, as_json=as_json,
    )  # fmt: skip
    if not as_json:
        print(f"rows: {store}")


def _own(store: Path, content: dict[str, Any]) -> Path:
    """Where the suite is written. The suite of another network or of other images keeps its file and its page."""
    name = content["suite"]
    for number in itertools.count(2):
        path = store / f"{content['suite']}.yaml"
        try:
            there = yaml.safe_load(path.read_text(encoding="utf-8"))
            same = all(
                (there["models"], there["data"][key]) == (content["models"], content["data"][key])
                for key in ("set", "split")
            )
        except FileNotFoundError:
            return path
        except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
            same = False
        if same:
            return path
        content["suite"] = f"{name}_{number}"
    raise AssertionError
