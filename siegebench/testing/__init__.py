"""The contract as tests that anyone can run on an entry, registered or not; needs no test framework.

>>> from siegebench.testing import check_entry
>>> [c for c in check_entry("pgd") if not c.passed]
[]

Each clause is a small function in the module of its kind. The name of the function is the name shown.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from siegebench import registry
from siegebench.cells import canonical
from siegebench.data import IMAGE
from siegebench.data import KINDS as KINDS_OF_DATA
from siegebench.errors import ConfigError, MissingExtra, NotApplicable, SiegeError, did_you_mean
from siegebench.kinds import KINDS
from siegebench.testing import cards
from siegebench.testing.binarisation import binarisation
from siegebench.testing.specimens import Case, NotChecked, network, of_kind, one_draw, planted_set
from siegebench.titles import display
from siegebench.types import Attack, Defense, Entry

Clause = Callable[[Case], None]
CLAUSES: dict[str, tuple[Clause, ...]] = {
    kind.name: importlib.import_module(f"siegebench.testing.{kind.plural}").CLAUSES for kind in KINDS.values()
}

# values for required parameters that are entries
STAND_INS: dict[str, Any] = {"attack": {"name": "pgd", "steps": 5}, "backdoor": "badnets", "defense": "none"}


@dataclass(frozen=True)
class Check:
    """One clause, and whether the entry satisfies it.

    Attributes:
        name: the clause; ends in `not checked (reason)` if it could not be tested here.
        passed: false only when the clause was violated.
        detail: what was found.
    """

    name: str
    passed: bool
    detail: str = ""

    @property
    def skipped(self) -> bool:
        """Whether the clause could not be tested here; `detail` says why."""
        return ": not checked (" in self.name


def check_entry(name: str | Mapping[str, Any], kind: str | None = None) -> list[Check]:
    """Run the contract on a registered entry with tiny models; under a minute on a CPU.

    Args:
        name: as in a suite: `pgd`, `pgd.strong`, `{name: pgd, steps: 5}`.
        kind: attack, defense, backdoor, detector, measure, model or dataset; by default, all kinds with this name.

    Raises:
        ConfigError: unknown name or parameter.
    """
    spec = registry.normal(name)
    kinds = [kind] if kind is not None else [k for k in KINDS if _known(k, spec["name"])]
    if not kinds:
        known = {n for _, n in registry.cards()}
        raise ConfigError(f"no entry is called {spec['name']!r}. {did_you_mean(spec['name'], known)}")
    return [check for k in kinds for check in _check_registered(k, spec)]


def check_instance(kind: str, entry: Entry, *, sees: tuple[str, ...] = (), control: bool = False) -> list[Check]:
    """Run the contract on an entry that has no card.

    Args:
        sees: the data that it may use, as its card would list it.
        control: it is a planted control and does not have to work.
    """
    if kind not in CLAUSES:
        raise ConfigError(f"unknown kind {kind!r}. {did_you_mean(kind, CLAUSES)}")
    return _check(Case(kind, entry, sees=sees, control=control))


def check_attacks(name: str | Mapping[str, Any], samples: int = 8, inner: int = 199) -> list[Check]:
    """Whether the attacks that evaluate a defense find adversarial images that are known to exist; some minutes.

    The attacks are AutoAttack (`rand` for a randomised defense) and those that the defense declares as `adaptive`. The
    network and the images are tiny, and a defense is trained as the contract tests do it; for your own network and the
    full size call `siegebench.testing.binarisation.binarisation`.

    Args:
        name: a registered defense, as in a suite.
        samples: number of images.
        inner: points around each image that keep its class.

    Raises:
        ConfigError: unknown name or parameter, or not a defense.
    """
    spec = registry.normal(name)
    if not _known("defense", spec["name"]):
        defenses = {n for kind, n in registry.cards() if kind == "defense"}
        hint = did_you_mean(spec["name"], defenses)
        raise ConfigError(f"{spec['name']!r} is no defense, and only the attacks of a defense are tested. {hint}")
    title = "attacks find planted adversarial images"
    try:
        complete = _complete("defense", spec)
        entry = registry.build(Defense, complete)
        case = Case("defense", entry, sees=registry.find("defense", complete["name"])[0].card.sees, spec=complete)
        defended = case.quick.apply(network(), case.granted(), one_draw())
        required = {"name": "autoattack", **({"variant": "rand"} if defended.randomized else {})}
        specs = [registry.normal(attack) for attack in (required, *entry.adaptive)]
        names = display("attack", specs)
        attacks = {names[canonical(attack)]: registry.build(Attack, attack) for attack in specs}
        found = binarisation(defended, planted_set().pixels(slice(0, samples)), attacks, inner=inner)
    except (NotChecked, NotApplicable, MissingExtra) as reason:
        return [Check(f"{title}: not checked ({reason})", True, str(reason))]
    out = [Check(f"{k} finds a planted image: not checked ({why})", True, why) for k, why in found.refused.items()]
    for attack, rate in found.rates.items():
        hits = f"found {round(rate * found.samples)} of {found.samples}, random search {found.random:.0%} of them"
        advice = "it cannot show that this defense works; look at its loss, steps and gradients"
        out.append(Check(f"{attack} finds a planted image", attack not in found.failed, f"{hits}: {advice}"))
    return out


def _known(kind: str, name: str) -> bool:
    try:
        return registry.find(kind, name)[0].card.kind == kind
    except ConfigError:
        return False


def _check_registered(kind: str, spec: dict[str, Any]) -> list[Check]:
    try:
        complete = _complete(kind, spec)
        entry = registry.build(kind, complete)
    except (NotChecked, MissingExtra) as reason:
        return [Check(f"is built: not checked ({reason})", True, str(reason))]
    except SiegeError:
        raise
    except Exception as error:  # an annotation that cannot be resolved, a __post_init__ that fails
        return [Check("is built", False, _told(error))]
    card = registry.find(kind, complete["name"])[0].card
    data = next((KINDS_OF_DATA[k] for k in card.takes if k in KINDS_OF_DATA), IMAGE)
    return _check(Case(kind, entry, sees=card.sees, control=card.control, data=data, spec=complete))


def _complete(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The spec with a value for every required parameter: of the card's `expect` or a preset, or a stand-in."""
    found, params = registry.find(kind, spec["name"])
    if found.card.family and spec["name"] == found.name:
        member = next(iter(found.card.members), None)
        if member is None:
            raise NotChecked(f"a family; check a member of it, {found.name}/NAME")
        return {**spec, "name": f"{found.name}/{member}"}
    cls = registry.entry_class(kind, spec["name"])
    hints, out = get_type_hints(cls), dict(spec)
    for f in fields(cls):
        if f.default is MISSING and f.default_factory is MISSING and f.name not in {**params, **out}:
            known = [values for values in (found.card.expect, *found.card.presets.values()) if f.name in values]
            nested = registry._nested_kind(hints[f.name])
            if not known and nested not in STAND_INS:
                raise NotChecked(f"the parameter {f.name!r} has no default; give a value, --set {f.name}=VALUE")
            out[f.name] = known[0][f.name] if known else STAND_INS[nested or ""]
    return out


def _check(case: Case) -> list[Check]:
    """All clauses of the kind; if the first fails, only those of the card, because the others depend on it."""
    with of_kind(case.data):
        return _checked(case)


def _checked(case: Case) -> list[Check]:
    clauses = [*CLAUSES[case.kind], *(cards.CLAUSES if case.spec is not None else ())]
    first = _try(clauses[0], case)
    if first.skipped:
        return [first]
    if not first.passed:  # what the card and the docstring say can be tested all the same
        return [first, *(_try(clause, case) for clause in (cards.CLAUSES if case.spec is not None else ()))]
    return [first, *(_try(clause, case) for clause in clauses[1:])]


def _try(clause: Clause, case: Case) -> Check:
    name = clause.__name__.replace("_", " ")
    try:
        clause(case)
    except (NotChecked, NotApplicable, MissingExtra) as reason:
        return Check(f"{name}: not checked ({reason})", True, str(reason))
    except SiegeError as error:
        return Check(name, False, str(error))
    except Exception as error:  # an entry may raise anything; it is reported, and the other clauses are tested
        return Check(name, False, _told(error))
    return Check(name, True)


def _told(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
