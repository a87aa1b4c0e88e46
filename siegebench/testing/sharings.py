"""The contract of rules of sharing gradients, one function per clause; on gradients of a small network."""

from __future__ import annotations

import torch

from siegebench.draws import Draws
from siegebench.per_image import Gradients, flat
from siegebench.testing.specimens import Case, other_global_numbers, require

M, N = 4, 3  # clients, and images of each


def gradients(m: int = M) -> Gradients:
    """Gradients of m clients, of very different lengths; entries of both signs."""
    draws = Draws(11, torch.arange(m))
    size = 10.0 ** (torch.arange(m * N).view(m, N).float() % 3 - 1)
    weight, bias = draws.normal((N, 5, 7), purpose="weight"), draws.normal((N, 5), purpose="bias")
    return {"layer.weight": weight * size[..., None, None], "layer.bias": bias * size[..., None]}


def _released(case: Case, index: torch.Tensor, seed: int = 0) -> Gradients:
    out: Gradients = case.quick({k: g[index] for k, g in gradients().items()}, Draws(seed, index))
    return out


def _equal(a: Gradients, b: Gradients) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


EVERY = torch.arange(M)


def releases_a_tensor_for_each_parameter(case: Case) -> None:
    case.kept["released"] = _released(case, EVERY)  # its __call__ checks the rest


def gives_the_same_release_for_the_same_draws(case: Case) -> None:
    with other_global_numbers(99):
        again = _released(case, EVERY)
    require(_equal(again, case.kept["released"]), "a second release differs")


def declares_whether_it_is_random(case: Case) -> None:
    differs = not _equal(_released(case, EVERY, seed=1), case.kept["released"])
    told = f"{'another' if differs else 'the same'} release"
    require(differs == case.entry.randomized, f"declares randomized = {case.entry.randomized}; other draws give {told}")


def treats_a_client_alone_as_among_others(case: Case) -> None:
    for index in (torch.tensor([2]), torch.tensor([3, 1])):
        alone = _released(case, index)
        far = max(float((alone[k] - g[index]).abs().max()) for k, g in case.kept["released"].items())
        require(far < 1e-6, f"client {int(index[0])} releases another gradient among other clients")


def says_which_entries_it_shows(case: Case) -> None:
    released = case.kept["released"]
    shown = case.quick.shown(released)
    fits = list(shown) == list(released) and all(
        s.dtype == torch.bool and s.shape == released[k].shape for k, s in shown.items()
    )
    require(fits, "`shown` is not a bool for each released entry")
    require(flat(shown).any(), "`shown` says that no entry is to be compared")


def declares_its_noise(case: Case) -> None:
    noise = case.quick.noise(N)
    require((noise > 0) <= case.entry.randomized, f"declares noise {noise:g} and that nothing is random")
    if noise == 0:
        return
    many = torch.arange(200) % M
    each = {k: g[many] for k, g in gradients().items()}
    a, b = (flat(case.quick(each, Draws(seed, torch.arange(200)))) for seed in (0, 1))
    spread = float((a - b).std() / 2**0.5)
    require(abs(spread / noise - 1) < 0.1, f"declares noise {noise:.4g}; the spread of releases is {spread:.4g}")


CLAUSES = (
    releases_a_tensor_for_each_parameter,
    gives_the_same_release_for_the_same_draws,
    declares_whether_it_is_random,
    treats_a_client_alone_as_among_others,
    says_which_entries_it_shows,
    declares_its_noise,
)
