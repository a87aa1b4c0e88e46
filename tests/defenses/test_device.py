"""Defenses are built on the device of the model. `meta` stands for a GPU: a device other than the CPU."""

from __future__ import annotations

import pytest

from siegebench import registry
from siegebench.testing.specimens import network
from siegebench.types import Defense


@pytest.mark.parametrize("name", ["concat_ensemble", "contextual_fusion", "dac", "precortical", "rnd.calibrated"])
def test_what_is_trained_is_on_the_device_of_the_model(name: str) -> None:
    structure = registry.build(Defense, name).structure(network().to("meta"))
    elsewhere = [k for k, v in structure.state_dict(keep_vars=True).items() if v.device.type != "meta"]
    assert not elsewhere
