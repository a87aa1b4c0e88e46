"""The base class of each kind of entry.

Images are float32 NCHW RGB in [0, 1]; labels are int64. Entries are frozen keyword-only dataclasses whose fields are
their parameters. Authors write `run`, `wrap` and `fit`, `trigger`, `score`; the final methods enforce the contract.
"""

from siegebench.types.attacks import Attack, Lesson, Measure, MinimalAttack, Probe, WrappingAttack
from siegebench.types.backdoors import BackdoorAttack, Material, Poisoned, Poisoning, Role, Source
from siegebench.types.base import Class, Count, Entry, Number, Positive, Share
from siegebench.types.camouflages import Camouflage
from siegebench.types.certifiers import Certificate, Certifier
from siegebench.types.corruptions import Corruption
from siegebench.types.defenses import Defense
from siegebench.types.detectors import (
    DatasetDetector,
    Detector,
    InputDetector,
    ModelDetector,
    Scorer,
    TrainedDetector,
    Verdict,
)
from siegebench.types.leaks import Leak, Recovered, Shared
from siegebench.types.sharings import Sharing
from siegebench.types.studies import Figures, Study
from siegebench.types.thefts import Attacker, Theft
from siegebench.types.zoo import DataSource, ModelSource, ObjectDetectorSource, SceneSource

__all__ = [
    "Attack", "Attacker", "BackdoorAttack", "Camouflage", "Certificate", "Certifier", "Class", "Corruption", "Count",
    "DataSource", "DatasetDetector", "Defense", "Detector", "Entry", "Figures", "InputDetector", "Leak", "Lesson",
    "Material", "Measure", "MinimalAttack", "ModelDetector", "ModelSource", "Number", "ObjectDetectorSource",
    "Poisoned", "Poisoning", "Positive", "Probe", "Recovered", "Role", "SceneSource", "Scorer", "Share", "Shared",
    "Sharing", "Source", "Study", "Theft", "TrainedDetector", "Verdict", "WrappingAttack",
]  # fmt: skip
