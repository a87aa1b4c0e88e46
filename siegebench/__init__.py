"""siegebench: how robust is this model, really, and which defense survives an honest attack?

>>> import siegebench as sb
>>> model = sb.load_model("timm/resnet18.a1_in1k")
>>> sb.evaluate(model, suite="suites/cifar10_jpeg.yaml")
>>> sb.attack("pgd", steps=20)(model, images, labels, norm="linf", eps="8/255")

Nothing heavy is imported until one of these names is used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = [
    "Classifier", "Network", "attack", "evaluate", "load_checkpoint", "load_data", "load_model", "report", "run",
    "to_pandas",
]  # fmt: skip

# In a checkout the five folders lie beside this package and are imported as siegebench.attacks etc.;
# in a wheel they are inside it already and this does nothing.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "attacks").is_dir():
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from siegebench.api import evaluate, load_data, load_model, run
    from siegebench.checkpoints import load_checkpoint
    from siegebench.classifier import Classifier, Network
    from siegebench.direct import attack
    from siegebench.reporting import report, to_pandas


_HOMES = {  # else api
    "Classifier": "classifier",
    "Network": "classifier",
    "attack": "direct",
    "load_checkpoint": "checkpoints",
    "report": "reporting",
    "to_pandas": "reporting",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'siegebench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"siegebench.{_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
