"""GeoDA: probes of low frequency."""

from __future__ import annotations

import torch
from siegebench.attacks.geoda import GeoDA, cosines


def test_geoda_probes_are_smooth() -> None:
    for size, waves in ((8, 8), (9, 3)):
        rows = cosines(size, waves)
        torch.testing.assert_close(rows @ rows.T, torch.eye(waves, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(cosines(8, 1).std()) < 1e-12


def test_frequencies_follow_the_granted_queries() -> None:
    granted = torch.tensor([2, 100, 1000, 4000, 10_000])
    assert GeoDA().frequencies(granted).tolist() == [1, 3, 10, 20, 20]
    assert GeoDA(waves=7).frequencies(granted).tolist() == [7] * 5
