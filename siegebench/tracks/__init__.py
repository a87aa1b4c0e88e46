"""Tracks: each file defines the boards, cells and measurement of a track. `leaderboard/` ranks the rows."""

from __future__ import annotations

from siegebench.tracks.backdoor import BackdoorBoard
from siegebench.tracks.base import BoardSpec
from siegebench.tracks.camouflage import CamouflageBoard
from siegebench.tracks.certified import CertifiedBoard
from siegebench.tracks.corruption import CorruptionBoard
from siegebench.tracks.detection import InputDetectionBoard, ModelDetectionBoard
from siegebench.tracks.evasion import PatchBoard, QueryBoard, TransferBoard, WhiteBoxBoard
from siegebench.tracks.extraction import ExtractionBoard
from siegebench.tracks.poisoning import PoisoningBoard
from siegebench.tracks.privacy import PrivacyBoard
from siegebench.tracks.study import StudyBoard

TRACKS: dict[str, type[BoardSpec]] = {
    "white_box": WhiteBoxBoard,
    "query": QueryBoard,
    "transfer": TransferBoard,
    "patch": PatchBoard,
    "backdoor": BackdoorBoard,
    "poisoning": PoisoningBoard,
    "input_detection": InputDetectionBoard,
    "model_detection": ModelDetectionBoard,
    "corruption": CorruptionBoard,
    "camouflage": CamouflageBoard,
    "certified": CertifiedBoard,
    "extraction": ExtractionBoard,
    "privacy": PrivacyBoard,
    "study": StudyBoard,
}
