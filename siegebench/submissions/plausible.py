"""Whether the numbers of a row fit each other, and those of rows that differ in their budget only. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from siegebench import registry
from siegebench.cells import ATTACKING, Result, digest, eps_text, rate
from siegebench.metrics import find
from siegebench.stats import der, fidelity
from siegebench.strictjson import Refused

CLOSE = 1e-5  # stored numbers have six digits, and are computed from others that were rounded
MEANS = ("acc",)  # rates that are means of rates, not counts
# per-image outcomes behind a rate, and the images that it is counted on; None for all
COUNTED: dict[str, tuple[str, str | None]] = {
    "clean_acc": ("clean", None),
    "robust_acc": ("robust", None),
    "target_rate": ("target", "attacked"),
    "vehicle_acc": ("seen", "vehicle"),
    "vehicle_acc_grey": ("seen_grey", "vehicle"),
    "acc@": ("right@", None),
    "robust_acc_fpr@": ("safe@", None),
}
WITHIN = ("robust", "safe@")  # outcomes that only images have that are correctly classified without the attack


def check(row: Result) -> None:
    """Refuse a row whose numbers do not fit each other.

    Raises:
        Refused: with the path of the field, what it is and what the others say.
    """
    if row.status != "ok" or row.cell.measure is not None:
        return
    _rates(row)
    _outcomes(row)
    _counts(row)
    if row.cell.track in ATTACKING:
        _attacked(row)
    elif row.cell.track == "backdoor":
        _repaired(row)


def _rates(row: Result) -> None:
    """A rate is a count of n, with its Wilson interval."""
    for name, figure in row.metrics.items():
        metric, value, n = find(name), figure.get("value"), figure.get("n")
        if metric is None or metric.unit != "rate" or value is None or n is None:
            continue
        if name not in MEANS and abs(value * n - round(value * n)) > max(0.01, CLOSE * n):
            raise Refused(f"found {value:g}, expected a count of {n:g} images", "metrics", name, "value")
        expected = rate(value * n, int(n))
        for end in ("low", "high"):
            if figure.get(end) is not None and abs(figure[end] - expected[end]) > CLOSE:
                told = f"found {figure[end]:g}, expected {expected[end]:g}, the Wilson interval of {value:g} on {n:g}"
                raise Refused(told, "metrics", name, end)


def _outcomes(row: Result) -> None:
    """Rates agree with the outcomes of the images, and no image is right under attack that was wrong before."""
    samples = row.samples
    for name in row.metrics:
        family, at, mark = name.partition("@")
        outcome, of = COUNTED.get(f"{family}{at}", ("", None))
        outcome += mark if outcome.endswith("@") else ""
        if outcome not in samples or (of is not None and of not in samples):
            continue
        hits = row.outcome(outcome)
        among = hits if of is None else hits[row.outcome(of)]
        _equal(row, name, int(among.sum()), len(among), f"in samples.{outcome}")
    if "clean" not in samples:
        return
    clean = row.outcome("clean")
    for name in samples:
        if (name in WITHIN or f"{name.partition('@')[0]}@" in WITHIN) and bool((row.outcome(name) & ~clean).any()):
            more = int((row.outcome(name) & ~clean).sum())
            told = f"found {more} images that are right under attack and wrong without it, expected none"
            raise Refused(told, "samples", name)
    labels = row.whole("label")
    if labels is not None and int(labels.max()) >= row.cell.data["classes"]:
        told = f"found class {int(labels.max())}, expected classes below {row.cell.data['classes']}"
        raise Refused(told, "samples", "label@0")


def _equal(row: Result, name: str, k: int, n: int, where: str) -> None:
    """A rate is k of n."""
    value, on = row.metrics[name].get("value"), row.metrics[name].get("n")
    if on is not None and int(on) != n:
        raise Refused(f"found {on:g}, expected {n} images", "metrics", name, "n")
    if value is not None and n and abs(value - k / n) > CLOSE:
        raise Refused(f"found {value:g}, expected {k / n:g}, {k} of {n} {where}", "metrics", name, "value")


def _counts(row: Result) -> None:
    counts = row.counts
    attacked = counts.get("attacked")
    if attacked is None:
        return
    if attacked > row.cell.data["count"]:
        raise Refused(f"found {attacked:g}, expected at most {row.cell.data['count']} images", "counts", "attacked")
    for name in ("forwards", "backwards", "queries"):
        each, total = counts.get(f"{name}_per_sample"), counts.get(name)
        if each is not None and total is not None and abs(each * attacked - total) > max(0.5, 1e-4 * total):
            told = f"found {each:g}, expected {total / max(1, attacked):g}, {total:g} over {attacked:g} images"
            raise Refused(told, "counts", f"{name}_per_sample")


def _attacked(row: Result) -> None:
    """Rates of a row that attacks images follow from the outcomes."""
    missing = next((name for name in ("clean", "robust") if name not in row.samples), None)
    if missing is not None:
        raise Refused("missing, a row of an attack has it", "samples", missing)
    clean, robust = row.outcome("clean"), row.outcome("robust")
    targeted = (row.cell.threat or {}).get("target") is not None
    tried = row.outcome("attacked") if "attacked" in row.samples else clean
    if "attacked" in row.counts and row.counts["attacked"] != tried.sum():
        told = f"found {row.counts['attacked']:g}, expected {int(tried.sum())}, the images that could be attacked"
        raise Refused(told, "counts", "attacked")
    if "asr" in row.metrics:
        _equal(row, "asr", int((tried & ~robust).sum()), int(tried.sum()), "in samples.robust")
    for name in ("clean_acc", "robust_acc"):
        if row.metrics.get(name, {}).get("value") is None:
            raise Refused("missing, a row of an attack has it", "metrics", name)
    marks = sorted(
        (int(name.partition("@")[2]), name)
        for name, figure in row.metrics.items()
        if name.startswith("robust_acc@") and figure.get("value") is not None
    )
    last, upper = "clean_acc", row.metrics["clean_acc"]["value"]
    for _, name in marks:
        value = row.metrics[name]["value"]
        if value > upper + CLOSE:
            raise Refused(f"found {value:g}, expected at most {last}, {upper:g}", "metrics", name, "value")
        last, upper = name, value
    if marks and not targeted and row.metrics["robust_acc"]["value"] > upper + CLOSE:
        value = row.metrics["robust_acc"]["value"]
        raise Refused(f"found {value:g}, expected at most {last}, {upper:g}", "metrics", "robust_acc", "value")
    limit, spent = (row.cell.threat or {}).get("queries"), row.counts.get("queries_per_sample", 0.0)
    if limit is not None and row.cell.threat and row.cell.threat["access"] in ("score", "label") and spent > limit:
        raise Refused(f"found {spent:g}, expected at most the budget, {limit}", "counts", "queries_per_sample")


def _repaired(row: Result) -> None:
    """Fidelity and the defense effectiveness rating follow from the rates."""
    names = ("asr_undefended", "asr", "ca_undefended", "ca")
    values = [row.value(name) for name in names]
    for name, formula in (("fidelity", fidelity), ("der", der)):
        found = row.value(name)
        if found is None or None in values:
            raise Refused("missing, a row of the backdoor track has it", "metrics", name)
        expected = formula(*(float(v) for v in values if v is not None))
        if abs(found - expected) > 1e-4:
            told = f"found {found:g}, expected {expected:g} from {', '.join(names)}"
            raise Refused(told, "metrics", name, "value")


# ------------------------------------------------------------------------------------------------------- between rows


def not_monotone(rows: Mapping[str, Result]) -> tuple[str, Refused] | None:
    """(file, fault) of the first row that is more robust than the same row with a smaller budget, beyond chance.

    Attacks of a single step are left out: a larger step may overshoot.
    """
    same: dict[str, list[tuple[float, str, Result]]] = {}
    for file, row in rows.items():
        if row.cell.track not in ATTACKING or row.cell.attack is None or row.status != "ok" or not row.cell.threat:
            continue
        if "one_step" in registry.traits("attack", str(row.cell.attack["name"])):
            continue
        rest = {k: v for k, v in row.cell.threat.items() if k != "eps"}
        group = digest({**row.cell.as_dict(), "threat": rest})
        same.setdefault(group, []).append((float(row.cell.threat["eps"]), file, row))
    for members in same.values():
        ordered = sorted(members, key=lambda member: member[:2])
        for (small, other, before), (large, file, after) in pairwise(ordered):
            high, low = before.metrics["robust_acc"].get("high"), after.metrics["robust_acc"].get("low")
            if small < large and high is not None and low is not None and low > high:
                told = (
                    f"found {after.metrics['robust_acc']['value']:g} at eps {eps_text(large)}, expected at most "
                    f"{before.metrics['robust_acc']['value']:g}, that of {other} at eps {eps_text(small)}"
                )
                return file, Refused(told, "metrics", "robust_acc", "value")
    return None


def copied(rows: Mapping[str, Result], others: Sequence[Result]) -> tuple[str, str] | None:
    """(file, what it equals) of the first row with the outcomes, counts and metrics of a row of another entry.

    Two entries with one name, an attack and a wrapper around it, and a defense that answers as the undefended model by
    construction may be equal. So may rows in which nearly no image, or nearly every image, is robust.
    """
    known: dict[str, list[Result]] = {}
    for other in others:
        for mark in _marks(other):
            known.setdefault(mark, []).append(other)
    for file, row in rows.items():
        for mark in _marks(row):
            twin = next((o for o in known.get(mark, ()) if _apart(row, o)), None)
            if twin is not None:
                return file, f"{twin.cell.title}, {twin.cell.key[:16]}"
            known.setdefault(mark, []).append(row)
    return None


def _marks(row: Result) -> list[str]:
    """What no two honest rows have in common: their outcomes with the work that was done for them; their clock."""
    if row.status != "ok":
        return []
    out = []
    seconds, ended = row.timing.get("seconds"), row.timing.get("ended")
    if seconds and ended and row.metrics:
        out.append(digest(["clock", row.timing, row.metrics]))
    if "clean" in row.samples and "robust" in row.samples:
        clean, robust = row.outcome("clean"), row.outcome("robust")
        # fewer images, or nearly all alike, can agree by chance
        if min(int(robust.sum()), int((clean & ~robust).sum())) >= 5:
            data = [row.cell.data["digest"], row.cell.track]
            out.append(digest(["outcomes", data, row.samples, row.metrics, row.counts]))
    return out


def _apart(row: Result, other: Result) -> bool:
    """Whether two rows are of different entries that may not be equal."""
    if row.cell.key == other.cell.key:
        return False
    slots = ("model", "defense", "detector", "backdoor")
    differ = any(_name(row, slot) != _name(other, slot) for slot in slots) or not _attacks(row) & _attacks(other)
    identity = any("identity" in registry.traits("defense", _name(r, "defense")) for r in (row, other))
    return differ and not identity


def _name(row: Result, slot: str) -> str:
    return str((getattr(row.cell, slot) or {}).get("name", ""))


def _attacks(row: Result) -> set[str]:
    """The names of an attack and of those inside it: on a plain model, a wrapper does what the inner attack does."""
    found, inner = {_name(row, "attack")}, (row.cell.attack or {}).get("attack")
    while isinstance(inner, Mapping):
        found.add(str(inner.get("name", "")))
        inner = inner.get("attack")
    return found


def outcome_digest(row: Result) -> str:
    """The hash of everything in a row that two runs of its cell on one machine have in common."""
    values = {k: v if (v := figure.get("value")) is None else f"{v:.5g}" for k, figure in row.metrics.items()}
    return digest([row.status, row.samples, values])


def disagreement(claimed: Result, found: Result) -> str:
    """Why a row that was computed again contradicts a claimed one; empty if it does not.

    Rates must lie within the interval of the claimed ones, scores without an interval within 5 %. Times, queries and
    distances are not compared. Every warning and every failed check has to stand in the claimed row too.
    """
    if claimed.status != found.status:
        why = " ".join(str((found.error or {}).get("message", "")).split())[:200]
        return f"status: claimed {claimed.status}, found {found.status}{': ' + why if why else ''}"
    kept = {flag["id"] for flag in claimed.flags}
    if lost := sorted({flag["id"] for flag in found.flags if flag["severity"] != "info"} - kept):
        return f"flags: claimed without {', '.join(lost)}, found {'it' if len(lost) == 1 else 'them'}"
    for name, figure in claimed.metrics.items():
        value, now = figure.get("value"), found.value(name)
        metric = find(name)
        if value is None or (metric is not None and metric.unit in ("count", "distance", "seconds")):
            continue
        if now is None:
            return f"metrics.{name}: claimed {value:g}, found nothing"
        low, high = figure.get("low"), figure.get("high")
        if low is None or high is None:
            slack = 0.05 * max(1.0, abs(value))
            low, high = value - slack, value + slack
        if not low - CLOSE <= now <= high + CLOSE:
            return f"metrics.{name}: claimed {value:g}, expected within [{low:.4g}, {high:.4g}], found {now:g}"
    return ""
