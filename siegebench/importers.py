"""Readers of other benchmarks' result files. Each returns published figures; the files are data and may be wrong.

A format knows as much as its files say. The user adds what they leave out: the norm of a RobustBench file is that of
its folder, and a CSV of BackdoorBench names neither data nor attack.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from siegebench import strictjson
from siegebench.errors import ConfigError, did_you_mean, shortened
from siegebench.published import Format, Published, checked
from siegebench.strictjson import Refused
from siegebench.threat import Norm, parse_number

MOST = 2**24  # bytes of a file
NORMS = {"linf": "linf", "l2": "l2", "l1": "l1", "l0": "l0"}
Figures = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Known:
    """What the user says about a file; empty where the file says it.

    Attributes:
        data: the name of the data set here.
        norm, eps: the threat.
        model, defense, backdoor: names of the entries here.
        source: who published it; the name of the benchmark by default.
    """

    data: str = ""
    norm: str = ""
    eps: str = ""
    model: str = ""
    defense: str = ""
    backdoor: str = ""
    source: str = ""


def figures(format: str, path: Path, known: Known | None = None) -> list[Published]:
    """The figures of a file.

    Raises:
        ConfigError: unknown format, or a file that is not of this format, with the field.
    """
    if format not in READERS:
        raise ConfigError(f"unknown format {shortened(format)}. {did_you_mean(format, READERS)}")
    known = known or Known()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; expected a result file of {format}") from None
    if len(content) > MOST:
        raise ConfigError(f"{path}: found {len(content):,} bytes, expected at most {MOST:,}")
    title, read = READERS[format]
    try:
        found = [_about(figure, format, title, path, known) for figure in read(content, path, known)]
        if not found:
            raise Refused("found no figure")
        return checked(found)
    except (Refused, ConfigError) as error:
        where = "".join(f"{step}: " for step in (".".join(map(str, getattr(error, "loc", ()))),) if step)
        raise ConfigError(f"{path}: {where}{error}; expected {EXPECTED[format]}") from None


def _about(figure: dict[str, Any], format: str, title: str, path: Path, known: Known) -> dict[str, Any]:
    """A figure with what the user says, and its source."""
    named = {slot: getattr(known, slot) for slot in ("model", "defense", "backdoor")}
    given = {**figure, **{k: v for k, v in named.items() if v}, **({"data": known.data} if known.data else {})}
    given |= {"norm": _norm(known.norm)} if known.norm else {}
    given |= {"eps": _eps(known.eps)} if known.eps else {}
    return {"format": format, "source": f"{known.source or title}, {path.name}", **given}


def _norm(text: str) -> str:
    if text.lower() not in NORMS or NORMS[text.lower()] not in get_args(Norm):
        raise Refused(f"norm: found {shortened(text)}, expected one of {', '.join(NORMS)}")
    return NORMS[text.lower()]


def _eps(value: Any) -> float:
    try:
        return parse_number(value)
    except ValueError as error:
        raise Refused(str(error), "eps") from None


def _json(content: bytes, kind: type) -> Any:
    value = strictjson.loads(content)
    if not isinstance(value, kind):
        raise Refused(f"expected a {'mapping' if kind is dict else 'list'}, found {shortened(value)}")
    return value


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    return " ".join(str(found).split())[:300] if isinstance(found, (str, int, float)) else ""


def _number(value: Any, *loc: Any, top: float) -> float:
    """A number, or text of one, between 0 and `top`."""
    if isinstance(value, str) and len(value) <= 40:
        with suppress(ValueError):
            value = float(value.strip().rstrip("%"))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= top:
        raise Refused(f"found {shortened(value)}, expected a number from 0 to {top:g}", *loc)
    return float(value)


def robustbench(content: bytes, path: Path, known: Known) -> Figures:
    """`model_info/DATASET/THREAT/MODEL.json`: accuracies in per cent, as text; the norm is that of the folder."""
    info = _json(content, dict)
    folder = path.absolute().parent.name
    about: dict[str, Any] = {
        "entry": path.stem,
        "data": _text(info, "dataset") or path.absolute().parents[1].name,
        "track": "white_box",
        "paper": "; ".join(filter(None, (_text(info, k) for k in ("name", "authors", "venue", "link"))))[:300],
        "note": "unreliable, says its source" if info.get("unreliable") is True else "",
    }
    if not known.norm and folder.lower() in NORMS:
        about["norm"] = NORMS[folder.lower()]
    if not known.eps and isinstance(info.get("eps"), (str, int, float)) and not isinstance(info["eps"], bool):
        about["eps"] = _eps(info["eps"])
    columns = {
        "clean_acc": ("clean_acc", ""),
        "autoattack_acc": ("robust_acc", "AutoAttack"),
        "reported": ("robust_acc", "the attack of its paper"),
        "external": ("robust_acc", "the strongest known attack"),
    }
    for name, (metric, attack) in columns.items():
        if info.get(name) not in (None, ""):
            value = round(_number(info[name], name, top=100.0) / 100, 6)
            yield {**about, "metric": metric, "attack": attack, "value": value}


def backdoorbench(content: bytes, path: Path, known: Known) -> Figures:
    """A CSV with one line an epoch and the columns test_acc, test_asr, test_ra in [0, 1]; the last line counts."""
    for option in ("data", "backdoor"):
        if not getattr(known, option):
            raise Refused(f"the file does not say the {option}: add --{option} NAME")
    try:
        lines = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"not a CSV file: {error}") from None
    done = [line for line in lines if str(line.get("test_acc") or "").strip()]
    if not done:
        raise Refused("no line with a value in the column test_acc")
    last = done[-1]
    about = {
        "entry": known.defense or "no defense",
        "data": known.data,
        "track": "backdoor",
        "attack": known.backdoor,
        "note": f"epoch {shortened(last['epoch'])}" if last.get("epoch") else "",
    }
    for name, metric in (("test_acc", "ca"), ("test_asr", "asr"), ("test_ra", "ra")):
        if str(last.get(name) or "").strip():
            yield {**about, "metric": metric, "value": _number(last[name], f"line {len(lines) + 1}", name, top=1.0)}


def attackbench(content: bytes, path: Path, known: Known) -> Figures:
    """A list of records: dataset, attack, library, model, threat_model, ASR, optimality, n_forwards, n_backwards.

    Attacks search for the smallest perturbation there, so that ASR is the rate without a limit on it.
    """
    for i, record in enumerate(_json(content, list)):
        if not isinstance(record, dict) or not _text(record, "attack"):
            raise Refused("expected a mapping with attack, model, threat_model, ASR", i)
        norm = _text(record, "threat_model").lower()
        if norm not in NORMS:
            raise Refused(
                f"found {shortened(record.get('threat_model'))}, expected one of {', '.join(NORMS)}", i, "threat_model"
            )
        about = {
            "entry": f"{_text(record, 'library')} {_text(record, 'attack')}".strip(),
            "data": _text(record, "dataset"),
            "norm": NORMS[norm],
            "attack": _text(record, "attack"),
            "note": f"on {_text(record, 'model') or 'an unnamed model'}, perturbations of any size",
        }
        for name, metric in (("ASR", "asr"), ("optimality", "optimality")):
            if record.get(name) is not None:
                yield {**about, "metric": metric, "value": _number(record[name], i, name, top=1.0)}


def lm_eval(content: bytes, path: Path, known: Known) -> Figures:
    """`{"results": {TASK: {"acc,none": 0.5, "acc_stderr,none": 0.01, "alias": ...}}}`, as `report` writes it too."""
    value = _json(content, dict)
    results, config = value.get("results"), value.get("config")
    if not isinstance(results, dict):
        raise Refused("missing or not a mapping", "results")
    model = _text(value, "model_name") or (_text(config, "model") if isinstance(config, dict) else "")
    for task, found in results.items():
        if not isinstance(found, dict):
            raise Refused(f"expected a mapping, found {shortened(found)}", "results", shortened(task))
        for name, number in found.items():
            metric, _, kind = name.partition(",")
            if isinstance(number, bool) or not isinstance(number, (int, float)) or metric.endswith("_stderr"):
                continue
            stderr = found.get(f"{metric}_stderr,{kind}")
            yield {
                "entry": (_text(found, "alias") or task)[:300],
                "data": task[:300],
                "metric": metric[:300],
                "value": float(number),
                "stderr": float(stderr) if isinstance(stderr, (int, float)) else None,
                "note": f"model {model}"[:300] if model else "",
            }


READERS: dict[str, tuple[str, Callable[[bytes, Path, Known], Figures]]] = {
    "robustbench": ("RobustBench", robustbench),
    "backdoorbench": ("BackdoorBench", backdoorbench),
    "attackbench": ("AttackBench", attackbench),
    "lm_eval": ("lm-eval", lm_eval),
}
EXPECTED = {
    "robustbench": "a file of model_info/DATASET/THREAT/ with clean_acc and autoattack_acc in per cent",
    "backdoorbench": "a CSV with the columns test_acc, test_asr and test_ra, one line an epoch",
    "attackbench": "a JSON list of records with dataset, attack, model, threat_model and ASR",
    "lm_eval": 'a JSON file with results: {TASK: {"METRIC,FILTER": number}}',
}
assert set(READERS) == set(get_args(Format))
