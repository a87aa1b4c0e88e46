"""Small suites for tests of whole runs: entries of another package, the command in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from siegebench import registry, signatures, sources
from siegebench.store import Store

Call = Callable[..., tuple[int, str, str]]  # words of the command to its exit code, stdout and stderr
ROOT = Path(__file__).resolve().parent.parent
MODEL = "outsider/tiny"
SCENES = {"name": "vehicle_scenes", "train": 24, "test": 30, "size": 24, "meshes": 2}
SEARCH = {"name": "adaptive_search", "passes": 20, "images": 2, "trial": 4}  # too short to find anything


def announce(folder: Path) -> Path:
    """What pip would write for a package that brings the cards in tests/outsider; goes onto the import path."""
    info = folder / "outsider-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[siegebench.cards]\noutsider = tests.outsider\n")
    return folder


def forget() -> None:
    """Make the registry look for cards again."""
    registry.cards.cache_clear()
    registry.entry_class.cache_clear()
    signatures._source.cache_clear()
    sources.forget()


@contextmanager
def known(folder: Path, monkeypatch: Any) -> Iterator[None]:
    """The outsider's entries are registered in this process."""
    monkeypatch.syspath_prepend(str(announce(folder)))
    forget()
    try:
        yield
    finally:
        monkeypatch.undo()
        forget()


def board(**changes: Any) -> dict[str, Any]:
    """An attack board with nothing heavy in it."""
    return {
        "track": "white_box",
        "attacks": ["fgsm"],
        "threats": [{"norm": "linf", "eps": "16/255"}],
        "measures": ["outsider/quiet"],
        **({} if changes.get("track", "white_box") != "white_box" else {"search": SEARCH}),
        **changes,
    }


def suite(path: Path, *boards: dict[str, Any], **changes: Any) -> Path:
    """A suite file."""
    whole = {
        "suite": "small",
        "data": {"set": "digits", "count": 40},
        "models": [MODEL],
        "boards": list(boards) or [board()],
        **changes,
    }
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return path


def every_track() -> list[dict[str, Any]]:
    """Boards of all tracks, as small as they can be: one of each kind of row, also a failure and a planted control."""
    ball = [{"norm": "linf", "eps": "16/255"}]
    other = {"name": MODEL, "recipe": {"epochs": 2}}
    poison = [{"name": "badnets", "side": 10, "rate": 0.2}]
    longer = {"models": [{"name": MODEL, "recipe": {"epochs": 8, "lr": 0.01, "augment": "none"}}]}  # learns the trigger
    attacks = ["fgsm", {"name": "pgd", "steps": 3}, {"name": "fmn", "steps": 5}]
    return [
        {
            "track": "white_box", "threats": [*ball, {"norm": "linf", "eps": "4/255"}], "attacks": attacks,
            "measures": [],
        },
        {"track": "white_box", "threats": ball, "attacks": ["fgsm"], "measures": ["outsider/quiet", "flatness"]},
        {
            "track": "white_box", "threats": ball, "attacks": ["fgsm", {"name": "pgd", "steps": 3}],
            "defenses": ["outsider/noise", {"name": "logit_scaling", "factor": 1e7}],
            "measures": [{"name": "masking", "samples": 1}], "search": SEARCH,
        },
        {
            "track": "white_box", "threats": [{**ball[0], "target": "next"}], "attacks": [{"name": "pgd", "steps": 3}],
            "measures": [],
        },
        {"track": "query", "threats": ball, "attacks": ["square"], "queries": 120},
        {"track": "transfer", "threats": ball, "attacks": ["fgsm"], "surrogates": [other]},
        {"track": "patch", "threats": [{"norm": "l0", "eps": 0.1}], "attacks": [{"name": "loap", "steps": 3}]},
        {
            "track": "backdoor", **longer, "backdoors": poison,
            "defenses": ["none", {"name": "fine_tuning", "epochs": 1}],
        },
        {
            "track": "backdoor", **longer,
            "backdoors": [{"name": "badnets", "target": {"1": 0}, "side": 10, "rate": 0.05, "cover": 0.02}],
        },
        {
            "track": "poisoning", "poisons": ["label_flipping"],
            "defenses": ["none", {"name": "fine_tuning", "epochs": 1}],
        },
        {"track": "input_detection", **longer, "backdoors": poison, "detectors": ["strip", "activation_clustering"]},
        {
            "track": "input_detection", "detectors": ["strip"], "inputs": [
                {"kind": "adversarial", "attack": "fgsm", "threat": ball[0]},
                {"kind": "corrupted", "corruption": "gaussian_noise"},
            ],
        },
        {
            "track": "model_detection", **longer, "backdoors": poison,
            "detectors": [{"name": "neural_cleanse", "steps": 3}],
        },
        {"track": "corruption", "corruptions": ["gaussian_noise", "contrast"], "severities": [1, 2, 3, 4, 5]},
        {
            "track": "certified", "threats": [{"norm": "linf", "eps": "1/255"}, *ball], "attacks": ["fgsm"],
            "certifiers": ["ibp", {"name": "randomized_smoothing", "n0": 10, "n": 20, "votes": 10, "m": 2}],
        },
        {
            "track": "extraction", "pool": {"set": "digits", "split": "train", "count": 40}, "threats": ball,
            "thefts": ["knockoff", "label_knockoff", {"name": "noise_theft", "cell": 4}, "own_labels", "self_copy"],
            "queries": [40], "attack": "fgsm",
        },
        {
            "track": "privacy", "data": {"set": "digits", "count": 4},
            "leaks": [{"name": "dlg", "steps": 5, "restarts": 1}], "sharings": ["plain", "dp"],
            "client": {"gallery": 50},
        },
        {
            "track": "camouflage", "data": {"set": SCENES, "count": 20}, "scenes": 6, "ss": 1,
            "camouflages": [{"name": "active", "steps": 3}, *({"name": "area_camouflage", "covered": c, "steps": 1}
                                                             for c in (0.125, 0.25, 0.5, 1.0))],
            "controls": ["flat", "random_texture"], "transfer": [other],
        },
        {
            "track": "study", "data": {"set": "digits", "count": 40},
            "studies": [{"name": "controlled_caption", "steps": 2, "scenes": 64, "epochs": 1, "tested": 4}],
        },
    ]  # fmt: skip


def environment(path: Path) -> dict[str, str]:
    """For a process of its own: it sees the checkout and the outsider."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(announce(path)), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def command(*words: object, folder: Path) -> list[str]:
    return [sys.executable, "-m", "siegebench", *map(str, words)]


def run(*words: object, folder: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    """The command, to its end, in `folder`."""
    env = {**environment(folder / "site"), **changes.pop("env", {})}
    return subprocess.run(
        command(*words, folder=folder), cwd=folder, env=env, capture_output=True, text=True, timeout=300, **changes
    )


def start(*words: object, folder: Path) -> subprocess.Popen[str]:
    """The command, as the leader of a process group of its own."""
    return subprocess.Popen(
        command(*words, folder=folder),
        cwd=folder,
        env=environment(folder / "site"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell lets its background jobs ignore Ctrl-C, and a child of such a job inherits that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the command and all its workers."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def children(pid: int) -> list[int]:
    """Processes that a process started, by /proc."""
    out = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            out.append(int(entry.parent.name))
    return out


def workers(pid: int) -> list[int]:
    """The workers of a local executor, without multiprocessing's own helper."""
    out = []
    for child in children(pid):
        try:
            line = (Path("/proc") / str(child) / "cmdline").read_bytes()
        except OSError:
            continue
        if b"spawn_main" in line:
            out.append(child)
    return out


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def numbers(store: Path) -> dict[str, Any]:
    """Everything in a store that must not depend on how it was computed: by key, without timing and environment."""
    out = {}
    for row in Store(store).rows():
        kept = {k: v for k, v in row.as_dict().items() if k not in ("env", "timing", "attempts", "errors")}
        arrays = {k: np.asarray(v).tolist() for k, v in Store(store).arrays(row.cell).items()}
        assert row.cell.key not in out, "one cell has two rows"
        out[row.cell.key] = json.loads(json.dumps({**kept, "arrays": arrays}))
    return out


def leftovers(store: Path) -> list[Path]:
    """Files that a writer did not finish."""
    return [p for p in store.rglob("*") if p.name.endswith((".tmp", ".corrupt"))]


def with_artifacts(store: Path, target: Path) -> Path:
    """A new store that has the trained weights of another one, and none of its rows."""
    shutil.copytree(store / "artifacts", target / "artifacts")
    return target
