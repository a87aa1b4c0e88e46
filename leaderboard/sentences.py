"""The outcome of a board in one or two sentences, for readers who read nothing else.

Entries that share the first rank are named together. Entries without a defense are the yardstick where there are any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from .board import Line, Number
from .words import shown

NONE = "none"  # the defense that does nothing
LITTLE = 0.10  # an entry with a lower rate counts as broken
NAMED = 3  # more entries than these are counted instead of named
TIED = "too close to tell apart"
LONG = 80  # letters of a reason that is left to the table
IDLE = "Nothing is ranked yet"
NOTHING = f"{IDLE}; the table says why."


def nothing(lines: Sequence[Line]) -> str:
    """Of boards on which nothing is ranked: why, if one short reason holds for all entries or for most."""
    mine = [line for line in lines if not line.control]
    reasons = Counter(reason for line in mine for reason in line.reasons if len(reason) <= LONG)
    if not reasons:
        return NOTHING
    ((reason, count),) = reasons.most_common(1)
    if count == len(mine):
        return f"{IDLE} ({reason})."
    return f"{IDLE} ({count} of {len(mine)} entries: {reason})." if 2 * count > len(mine) else NOTHING


def leaders(lines: Sequence[Line]) -> list[Line]:
    """The ranked entries that may be the first."""
    return [line for line in lines if line.rank is not None and line.rank[0] == 1]


def _called(line: Line, lines: Sequence[Line]) -> str:
    """A name without what all lines share."""
    names = dict(line.names)
    model = names.pop("model", "")
    several = len({other.names.get("model") for other in lines}) > 1
    rest = " / ".join(name for name in names.values() if name != NONE)
    if names and not rest and not several:
        return "the undefended network"
    if names and not rest:
        defended = any(other.names.get("defense", NONE) != NONE for other in lines)
        return f"{model} without a defense" if defended else model
    return f"{rest} on {model}" if rest and model and several else rest or model


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _span(values: Sequence[float], unit: str) -> str:
    """`49.0 %`, or `44.5 to 49.0 %`."""
    low, high = (shown(v, "rate" if unit else "score") for v in (min(values), max(values)))
    return (low if low == high else f"{low} to {high}") + unit


def first(
    lines: Sequence[Line], column: str, verbs: tuple[str, str, str], unit: str = " %", of: str = ""
) -> str:  # fmt: skip
    """`trades keeps 49.0 %`, or who shares the first rank.

    Args:
        verbs: singular, plural, and plural without a number, such as `keep the most`.
        of: what the numbers are a share of, such as ` of the views`; said once.
    """
    top = leaders(lines)
    values = [line.value(column) or 0.0 for line in top]
    if len(top) == 1:
        return f"{_called(top[0], lines)} {verbs[0]} {_span(values, unit)}{of}"
    if len(top) <= NAMED:
        each = [f"{_called(line, lines)} ({_span([v], unit)})" for line, v in zip(top, values, strict=True)]
        return f"{_and(each)} {verbs[2]}{of}, {TIED}"
    return f"{len(top)} entries {verbs[1]} {_span(values, unit)}{of}, {TIED}"


def _told(*parts: str) -> str:
    """The parts as one sentence; names of entries keep their small letters."""
    text = "; ".join(filter(None, parts)) + "."
    return text[:1].upper() + text[1:] if text.startswith("the ") else text


def _bare(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.rank is not None and line.names.get("defense") == NONE]


def _behind(lines: Sequence[Line], top: Sequence[Line]) -> list[Line]:
    """Entries without a defense, if none of them is among the first."""
    bare = _bare(lines)
    return [] if any(line in top for line in bare) else bare


def survival(lines: Sequence[Line], column: str, *, of: str = "") -> str:
    """Of boards that rank what is left under attack: who survives, and what undefended networks keep.

    Args:
        of: what the rate is a share of, such as ` of the views`.
    """
    ranked = [line for line in lines if line.rank is not None]
    if not ranked:
        return nothing(lines)
    values = [line.value(column) or 0.0 for line in ranked]
    if max(values) < LITTLE:
        every = "The only ranked entry does not survive" if len(ranked) == 1 else "Nothing survives"
        return f"{every}: {_span(values, ' %')}{of} left."
    bare, top = _bare(lines), leaders(lines)
    kept = [line.value(column) or 0.0 for line in bare]
    before = ""
    if bare and max(kept) < LITTLE:
        who = "No undefended network survives" if len(bare) > 1 else "The undefended network does not survive"
        before = f"{who} ({_span(kept, ' %')} left)"
    elif bare and not any(line in top for line in bare):
        who = "Undefended networks keep" if len(bare) > 1 else "The undefended network keeps"
        before = f"{who} {_span(kept, ' %')}"
    gain = top[0].value("gain") if len(top) == 1 else None
    more = "" if gain is None else f" ({shown(gain, 'points')} points against the same network without a defense)"
    most = "keep the largest part" if of.startswith(" of ") else "keep the most"
    return _told(before, first(lines, column, ("keeps", "keep", most), of=of) + more)


def proof(lines: Sequence[Line], column: str) -> str:
    """Of boards that rank what is certified: who proves most, and what undefended networks allow to prove."""
    top = leaders(lines)
    if not top:
        return nothing(lines)
    of = " of the images, on average over the radii"
    if max(line.value(column) or 0.0 for line in top) == 0.0:
        return "No certifier proves anything at these radii."
    bare = [line.value(column) or 0.0 for line in _behind(lines, top)]
    least = f"at most {_span([max(bare)], ' %')} are" if any(bare) else "nothing is"
    before = f"Without a defense {least} certified" if bare else ""
    return _told(before, first(lines, column, ("certifies", "certify", "certify the largest part"), of=of))


def copying(lines: Sequence[Line], column: str) -> str:
    """Of boards of victims that thieves copy: how often copies agree, without a defense and with the best one."""
    top = leaders(lines)
    if not top:
        return nothing(lines)
    bare = [line.value(column) or 0.0 for line in _behind(lines, top)]
    of = " of the images"
    who = "an undefended victim" if len(bare) != 1 else "the undefended victim"
    before = f"Copies of {who} agree with it on {_span(bare, ' %')}{of}" if bare else ""
    verbs = ("has copies that agree on", "have copies that agree on", "have the copies that agree the least")
    return _told(before, first(lines, column, verbs, of=of))


def loot(lines: Sequence[Line], column: str) -> str:
    """Of boards of thefts: what the answers of the victim are worth to the best one."""
    if not leaders(lines):
        return nothing(lines)
    verbs = ("gains", "gain", "gain the most")
    return _told(first(lines, column, verbs, " points of agreement", of=" above the control"))


def privacy(lines: Sequence[Line]) -> str:
    """Of boards of sharing rules: what the plain gradients reveal, and what the best rule still reveals."""
    if not leaders(lines):
        return nothing(lines)
    ranked = [line for line in lines if line.rank]
    plain = [line.value("identified") or 0.0 for line in ranked if line.names["sharing"] == "plain"]
    before = f"From plain gradients {_span(plain, ' %')} of the images are identified" if plain else ""
    if len(plain) == len(ranked):
        return _told(before)
    if any(line.names["sharing"] == "plain" for line in leaders(lines)):
        return _told(before, "no rule reveals less")
    return _told(before, first(lines, "identified", ("reveals", "reveal", "reveal the least"), " %"))


def resistance(lines: Sequence[Line], column: str) -> str:
    """Of boards with a target class: how often it is reached."""
    if not leaders(lines):
        return nothing(lines)
    bare = [line.value(column) or 0.0 for line in _bare(lines)]
    before = f"Without a defense the target class is reached for {_span(bare, ' %')} of the images" if bare else ""
    return _told(before, first(lines, column, ("lets through", "let through", "let through the least"), " %"))


def repair(lines: Sequence[Line]) -> str:
    """Of backdoor boards: what the triggers do before and after the best defense."""
    bare = next((line.value("asr") for line in lines if line.names["defense"] == NONE), None)
    before = (
        "" if bare is None else f"Without a defense {shown(bare, 'rate')} % of the triggered images reach the target"
    )
    top = leaders(lines)
    if not top:
        return nothing(lines)
    if any(line.names["defense"] == NONE for line in top):
        return _told(before, "no defense is ranked above doing nothing")
    asr, clean = ([v for line in top if (v := line.value(name)) is not None] for name in ("asr", "ca"))
    if not asr or not clean:
        return _told(
            before,
            first(lines, "fidelity", ("has a fidelity of", "have fidelities of", "have the highest fidelity"), ""),
        )
    kept = f"{_span(asr, ' %')}, with {_span(clean, ' %')} clean accuracy"
    if len(top) == 1:
        return _told(before, f"after {_called(top[0], lines)} {kept}")
    names = _and([_called(line, lines) for line in top]) if len(top) <= NAMED else f"any of {len(top)} defenses"
    return _told(before, f"after {names} {kept}, {TIED}")


def recovery(lines: Sequence[Line]) -> str:
    """Of poisoning boards: the clean accuracy with the poison, and with the best defense."""
    if not leaders(lines):
        return nothing(lines)
    bare = next((line for line in lines if line.names["defense"] == NONE), None)
    before = ""
    if bare is not None and bare.value("ca") is not None:
        clean = bare.value("ca_clean_model")
        fall = "" if clean is None else f" from {shown(clean, 'rate')}"
        before = f"Without a defense the poisons lower the accuracy{fall} to {shown(bare.value('ca'), 'rate')} %"
    return _told(before, first(lines, "ca", ("reaches", "reach", "reach the highest accuracy"), " %"))


def detection(lines: Sequence[Line], column: str, chance: float = 0.5) -> str:
    """Of boards of detectors, by AUROC."""
    top = leaders(lines)
    if not top:
        return nothing(lines)
    best = max(line.value(column) or 0.0 for line in top)
    if best < chance - LITTLE:
        return f"Every detector is worse than guessing: the highest AUROC is {shown(best, 'score')}."
    if best < chance + LITTLE:
        return f"No detector is much better than guessing: the highest AUROC is {shown(best, 'score')}."
    said = first(
        lines, column, ("separates best, with an AUROC of", "separate best, with AUROCs of", "separate best"), ""
    )
    return _told(f"{said} ({'AUROC; ' if len(top) > 1 else ''}guessing: {chance:g})")


def verdicts(lines: Sequence[Line]) -> str:
    """Of boards of detectors that judge whole models."""
    top = leaders(lines)
    if not top:
        return nothing(lines)
    found, alarms = ([line.value(name) or 0.0 for line in top] for name in ("found", "false_alarms"))
    who = _and([_called(line, lines) for line in top]) if len(top) <= NAMED else f"{len(top)} detectors"
    tie = f", {TIED}" if len(top) > 1 else ""
    verb = "find" if len(top) > 1 else "finds"
    return _told(
        f"{who} {verb} {_span(found, ' %')} of the backdoored models at {_span(alarms, ' %')} false alarms{tie}"
    )


def gained(lines: Sequence[Line], column: str) -> tuple[Line, ...]:
    """The lines with a number `gain`: how much more they have of a rate than the same network without a defense."""
    twins = {line.names["model"]: line.number(column) for line in _bare(lines)}
    return tuple(_with_gain(line, line.number(column), twins.get(line.names["model"], Number(None))) for line in lines)


def _with_gain(line: Line, own: Number, twin: Number) -> Line:
    if line.rank is None or line.names["defense"] == NONE or own.value is None or twin.value is None:
        return line
    return replace(line, numbers={**line.numbers, "gain": Number(own.value - twin.value, keys=own.keys)})
