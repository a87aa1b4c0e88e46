"""Entries of another package, as a stranger would bring them: `tests.runs` makes them known as `outsider/NAME`."""
