"""The contract of studies, one function per clause."""

from __future__ import annotations

from siegebench.errors import DataError
from siegebench.testing.specimens import Case, NotChecked, one_draw, other_global_numbers, planted_set, require
from siegebench.types.studies import Figures


def _figures(case: Case) -> Figures:
    found: Figures = case.quick(planted_set(), case.granted(), one_draw())
    return found


def returns_finite_figures_with_a_baseline(case: Case) -> None:
    try:
        case.kept["figures"] = _figures(case)  # its __call__ checks the rest
    except DataError as error:  # it reads files that the user provides
        raise NotChecked(str(error)) from None


def finds_the_same_for_the_same_draws(case: Case) -> None:
    with other_global_numbers(99):
        again = _figures(case)
    require(again == case.kept["figures"], "a second run gave other figures")


CLAUSES = (returns_finite_figures_with_a_baseline, finds_the_same_for_the_same_draws)
