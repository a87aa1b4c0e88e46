"""Finds the weights of a network in what a training script stored, wherever they lie.

A file is read as one list of tensors, each named by its full path, such as `state_dict.module.conv1.weight`. Weights
fit where every name of the network is found behind one prefix, with its shape, and nothing else. So dicts in dicts,
lists, DataParallel, Lightning, EMA copies and Sequential need no rules of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from siegebench.contents import IGNORED, MEAN, Channels, Contents, contents_of
from siegebench.errors import ModelError, quoted
from siegebench.weights import check_finite

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # torch puts them into names
USUAL = WRAPPERS | {"state_dict", "model_state_dict", "model_state", "model", "net", "network", "backbone", "weights"}
EMA = re.compile(r"(^|[._])(ema|shadow|swa|averaged?|avg)([._]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Fitted:
    """The weights of a network, found in a file.

    Attributes:
        state: by the names of the network.
        prefix: path in the file in front of these names, such as `model_ema.module.`; often empty.
        paths: paths in the file of the tensors in `state`.
        mean, std: of a normalisation that lies beside the weights, for pixels in [0, 1]; None if there is none.
        normalised_at: where that normalisation lies.
        unused: tensors that lie beside the weights and are not of this network, such as a second head.
        doubtful: those of `unused` that may be a normalisation: one number for each of three channels.
        headless: the prefix ends with the index of a Sequential, and an earlier module of it has no tensors.
    """

    state: dict[str, Tensor]
    prefix: str
    paths: frozenset[str]
    mean: Channels | None = None
    std: Channels | None = None
    normalised_at: str = ""
    unused: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    headless: bool = False

    @property
    def ema(self) -> bool:
        """Whether these are averaged weights."""
        return bool(EMA.search(self.prefix))

    @property
    def usual(self) -> bool:
        """Whether the weights lie where training scripts store them."""
        return all(part in USUAL or part.isdigit() for part in self.prefix.split(".")[:-1])

    def described(self) -> str:
        """What is unusual about where the weights lie; empty if nothing is."""
        said = [] if self.usual else [f"from {self.prefix.rstrip('.')}"]
        if self.normalised_at:
            said.append(f"normalisation from {self.normalised_at}")
        if self.unused:
            said.append(f"{len(self.unused)} tensors not used, such as {self.unused[0]}")
        return "; ".join(said)


class _Naming(NamedTuple):
    """A way to compare names: short name to the network's name, and short path to the file's path."""

    names: dict[str, str]
    paths: dict[str, str]
    exact: bool = False  # the file must contain nothing else


def fit(
    loaded: Any,
    expected: Mapping[str, Tensor],
    where: object,
    *,
    ema: bool = False,
    part: str | None = None,
    classes: str = "the network has {}",
) -> Fitted:
    """The weights of a network, in the contents of a file.

    If several sets of weights fit, the plain one is taken and not an EMA copy, and one at a usual place
    (`state_dict`, `model`, `net`, ...) before others. Sets that these rules do not tell apart are refused. Names must
    agree; weights under other names are never matched by their order.

    Args:
        loaded: from `read_weights`.
        expected: the network's `state_dict()`.
        where: the file, for messages.
        ema: take the exponential moving average of the weights.
        part: take the weights at this path in the file, such as `model_ema` or `state_dict.student`.
        classes: how a message about another number of classes ends.

    Raises:
        ModelError: when none fits; says what was found and what was expected.
    """
    wanted = {name: tensor for name, tensor in expected.items() if isinstance(tensor, Tensor)}
    channels = next((t.shape[1] for t in wanted.values() if t.dim() == 4), None)
    contents = contents_of(loaded, channels)
    if not contents.tensors:
        listed = ", ".join(f"{quoted(k)} ({v})" for k, v in list(contents.other.items())[:4])
        raise ModelError(f"{where}: contains no tensors; found {listed or 'nothing'}; expected {listing(wanted)}")
    if any(MEAN.fullmatch(n.rpartition(".")[2]) for n in wanted):  # the network itself normalises
        contents.pairs = []
    found: dict[frozenset[str], Fitted] = {}
    for naming in _namings(wanted, contents):
        if not (naming.exact and found):
            found = {fitted.paths: fitted for fitted in _fits(naming, wanted, contents)} | found
    if not found:
        raise ModelError(f"{where}: {_misfit(wanted, contents, classes)}")
    chosen = _chosen(list(found.values()), where, ema=ema, part=part)
    twins = frozenset(path for f in found.values() if _same(f, chosen) for path in f.paths)
    unused = tuple(path for path in contents.beside(chosen.paths) if path not in twins)
    chosen = _placed(replace(chosen, unused=unused), contents)
    if part is None:
        _refuse_more(chosen, contents, where)
    _check_numbers(chosen.state, wanted, where)
    check_finite(chosen.state, where)
    return _normalised(chosen, contents, where)


def listing(tensors: Mapping[str, Tensor]) -> str:
    """Names and shapes of the first tensors, and their number."""
    shown = ", ".join(f"{quoted(name)} {tuple(t.shape)}" for name, t in list(tensors.items())[:3])
    return f"{shown}{', ...' if len(tensors) > 3 else ''} ({len(tensors)} tensors)"


# ------------------------------------------------------------------------------------------------------------ what fits


def _namings(wanted: Mapping[str, Tensor], contents: Contents) -> Iterator[_Naming]:
    """Ways to compare names, in their order.

    The names as they are; then, in the file and in the network, without the wrappers of torch anywhere in a name
    (`features.module.0.weight`); then also without a prefix that all names of the network have.
    """
    plain = _Naming({n: n for n in wanted}, {p: p for p in contents.tensors})
    yield plain
    bare = _Naming({_bare(n): n for n in plain.names}, {_bare(p): p for p in plain.paths})
    if len(bare.names) < len(plain.names) or len(bare.paths) < len(plain.paths):
        return
    if bare != plain:
        yield bare
    shared = _shared(list(bare.names))
    if shared:
        yield _Naming({n.removeprefix(shared): raw for n, raw in bare.names.items()}, bare.paths, exact=True)


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _shared(names: list[str]) -> str:
    """The longest prefix of whole parts that all names have."""
    first, last = min(names).split(".")[:-1], max(names).split(".")[:-1]
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return "".join(f"{part}." for part in first[:same])


def _hits(naming: _Naming) -> dict[str, dict[str, str]]:
    """For each prefix, the network's names that were found behind it, and their paths in the file."""
    found: dict[str, dict[str, str]] = {}
    for short, path in naming.paths.items():
        at = 0
        while True:
            if short[at:] in naming.names:
                found.setdefault(short[:at], {})[naming.names[short[at:]]] = path
            at = short.find(".", at) + 1
            if at == 0:
                break
    return found


def _needed(wanted: Mapping[str, Tensor]) -> set[str]:
    return {name for name in wanted if name.rpartition(".")[2] not in IGNORED}


def _behind(prefix: str, naming: _Naming, used: Mapping[str, str], contents: Contents) -> list[str]:
    """Tensors behind a prefix that the network does not have."""
    within = {path for short, path in naming.paths.items() if short.startswith(prefix)}
    return [path for path in contents.beside(frozenset(used.values())) if path in within]


def _fits(naming: _Naming, wanted: Mapping[str, Tensor], contents: Contents) -> Iterator[Fitted]:
    needed = _needed(wanted)
    for prefix, used in _hits(naming).items():
        if not needed <= used.keys() or any(contents.tensors[p].shape != wanted[n].shape for n, p in used.items()):
            continue
        taken = frozenset(used.values())
        if _behind(prefix, naming, used, contents) or (naming.exact and contents.beside(taken)):
            continue
        name, path = next(iter(used.items()))
        raw = path.removesuffix(name) if path.endswith(name) else prefix
        yield Fitted({n: contents.tensors[p] for n, p in used.items()}, raw, taken)


def _same(one: Fitted, two: Fitted) -> bool:
    return all(t is two.state[n] or torch.equal(t, two.state[n]) for n, t in one.state.items() if n in two.state)


def _chosen(found: list[Fitted], where: object, *, ema: bool, part: str | None) -> Fitted:
    places = " and ".join(f"`{f.prefix.rstrip('.') or 'the top level'}`" for f in found[:4])
    if part is not None:
        found = [f for f in found if f"{f.prefix}".startswith(f"{part.rstrip('.')}.")]
        if not found:
            raise ModelError(f"{where}: no weights of this network at `{part}`; they are at {places}")
    elif ema:
        found = [f for f in found if f.ema]
        if not found:
            raise ModelError(f"{where}: no averaged (EMA) weights of this network; its weights are at {places}")
    else:
        found = [f for f in found if not f.ema] or found
        found = [f for f in found if f.usual] or found
    if not all(_same(f, found[0]) for f in found):
        places = " and ".join(f"`{f.prefix.rstrip('.') or 'the top level'}`" for f in found[:4])
        raise ModelError(
            f"{where}: {len(found)} sets of weights fit this network and differ: {places}; say which one, such as "
            f"`part: {found[-1].prefix.rstrip('.')}`"
        )
    return min(found, key=lambda f: len(f.prefix))


def _check_numbers(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: object) -> None:
    """Refuse integers and complex numbers where the network has floats: weights that were quantised by hand."""
    for name, tensor in state.items():
        if wanted[name].is_floating_point() and not tensor.is_floating_point():
            kinds = [str(t.dtype).removeprefix("torch.") for t in (tensor, wanted[name])]
            raise ModelError(
                f"{where}: {quoted(name)} is {kinds[0]}, expected {kinds[1]}. Save the weights as floats; if they are "
                "quantised, those from before"
            )


# ----------------------------------------------------------------------------------------- what lies beside the weights


def _index(fitted: Fitted, contents: Contents) -> tuple[str, int] | None:
    """The prefix without its last part and this part, if it is the index of a Sequential and not of a list."""
    home = contents.homes[min(fitted.paths)]
    inside = fitted.prefix[len(home) :] if fitted.prefix.startswith(home) else ""
    parts = inside.split(".")[:-1]
    while parts and parts[-1] in WRAPPERS:
        parts.pop()
    if not parts or not parts[-1].isdigit():
        return None
    return home + "".join(f"{part}." for part in parts[:-1]), int(parts[-1])


def _placed(fitted: Fitted, contents: Contents) -> Fitted:
    doubtful = tuple(
        path
        for path in fitted.unused
        if contents.tensors[path].is_floating_point() and tuple(contents.tensors[path].shape) in _BY_CHANNEL
    )
    found = _index(fitted, contents)
    before = {_part(path, found[0]) for path in contents.tensors} if found else set()
    headless = found is not None and any(str(i) not in before for i in range(found[1]))
    return replace(fitted, doubtful=doubtful, headless=headless)


_BY_CHANNEL = {(3,), (3, 1, 1), (1, 3, 1, 1)}


def _refuse_more(fitted: Fitted, contents: Contents, where: object) -> None:
    found = _index(fitted, contents)
    more = [p for p in fitted.unused if found and _part(p, found[0]).isdigit() and p not in fitted.doubtful]
    if more:
        at = fitted.prefix.rstrip(".")
        raise ModelError(
            f"{where}: the weights of this network are at `{at}` of a Sequential that also contains {quoted(more[0])} "
            f"{tuple(contents.tensors[more[0]].shape)}, so it computes something else. Give the whole network, or "
            f"`part: {at}` to take this part alone"
        )


def _part(path: str, parent: str) -> str:
    """The part of a path behind its parent; empty if it lies elsewhere."""
    return path[len(parent) :].partition(".")[0] if path.startswith(parent) else ""


def _normalised(fitted: Fitted, contents: Contents, where: object) -> Fitted:
    home = contents.homes[min(fitted.paths)]
    near = [pair for pair in contents.pairs if contents.homes.get(pair.paths[0]) == home]
    # else those farther away; two single numbers only from the dicts around the weights
    near = near or [p for p in contents.pairs if not p.bare or home.startswith(p.paths[0][: p.paths[0].rfind(".") + 1])]
    if not near:
        return fitted
    if any(pair[1:3] != near[0][1:3] for pair in near):
        shown = " and ".join(f"{p.paths[0]} {p.mean}, {p.paths[1]} {p.std}" for p in near[:3])
        raise ModelError(
            f"{where}: contains normalisations that differ: {shown}. Save the state_dict without the wrong one"
        )
    mean, std = near[0].paths
    return replace(fitted, mean=near[0].mean, std=near[0].std, normalised_at=f"{mean} and {std}")


# ---------------------------------------------------------------------------------------------------- what does not fit


def _misfit(wanted: Mapping[str, Tensor], contents: Contents, classes: str) -> str:
    """Why no weights fit: compared with the set of weights that agrees best."""
    needed = _needed(wanted)
    options = [
        (naming, *hit) for naming in _namings(wanted, contents) if not naming.exact for hit in _hits(naming).items()
    ]
    if options:
        naming, prefix, used = max(options, key=lambda o: (len(needed & o[2].keys()), -len(o[1])))
        unknown = _behind(prefix, naming, used, contents)
        home = contents.homes[next(iter(used.values()))]
    else:
        homes = list(contents.homes.values())
        prefix = home = max(dict.fromkeys(homes), key=homes.count)
        used, unknown = {}, [path for path, its in contents.homes.items() if its == home]
    missing = [name for name in wanted if name in needed and name not in used]
    wrong = [n for n, p in used.items() if contents.tensors[p].shape != wanted[n].shape]
    if wrong and not missing and not unknown:
        pairs = [(contents.tensors[used[n]].shape, wanted[n].shape) for n in wrong]
        if len({(h[:1], w[:1]) for h, w in pairs}) == 1 and all(h[1:] == w[1:] for h, w in pairs):
            return f"weights for {pairs[0][0][0]} classes, {classes.format(pairs[0][1][0])}"
        return (
            f"{quoted(used[wrong[0]])} is {tuple(pairs[0][0])}, this network expects {tuple(pairs[0][1])}; "
            f"{len(wrong)} of {len(wanted)} tensors have another shape"
        )
    said = _hint(missing, unknown, wanted, contents)
    held = {path.removeprefix(home): contents.tensors[path] for path, its in contents.homes.items() if its == home}
    shapes = [t.shape for n, t in held.items() if n.rpartition(".")[2] not in IGNORED]
    return (
        f"weights of another architecture: {len(missing)} tensors missing{_such_as(missing)}, {len(unknown)} not of "
        f"this network{_such_as(unknown)}. Found {f'at `{home[:-1]}`: ' if home else ''}{listing(held)}; expected "
        f"{listing(wanted)}"
    ) + (
        ". The shapes agree in their order: if these are the same layers under other names, rename the keys"
        if shapes == [wanted[n].shape for n in wanted if n in needed]
        else said
    )


def _hint(missing: list[str], unknown: list[str], wanted: Mapping[str, Tensor], contents: Contents) -> str:
    """What is probably the matter with a file in which tensors are missing."""
    odd = next(((path, kind) for path, kind in contents.other.items() if " tensor" in kind), None)
    if odd is not None:
        quantised = "; save the weights from before they were quantised" if odd[1].startswith("quantised") else ""
        return f". {quoted(odd[0])} is a {odd[1]}, expected plain tensors{quantised}"
    layer = list(wanted)[-1].rpartition(".")[0]
    if layer and not unknown and missing == [name for name in wanted if name.rpartition(".")[0] == layer]:
        return f". The file lacks only {quoted(layer)}, the last layer: give a checkpoint that contains its classifier"
    return ""


def _such_as(names: list[str]) -> str:
    return f" (such as {quoted(names[0])})" if names else ""
