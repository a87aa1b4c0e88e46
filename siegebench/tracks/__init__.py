"""Tracks: each file holds the boards of one track, their cells and their measuring. `leaderboard/` has its reader."""

from __future__ import annotations

from siegebench.tracks.backdoor import BackdoorBoard
from siegebench.tracks.base import BoardSpec
from siegebench.tracks.corruption import CorruptionBoard
from siegebench.tracks.detection import InputDetectionBoard, ModelDetectionBoard
from siegebench.tracks.evasion import PatchBoard, QueryBoard, TransferBoard, WhiteBoxBoard

TRACKS: dict[str, type[BoardSpec]] = {
    "white_box": WhiteBoxBoard,
    "query": QueryBoard,
    "transfer": TransferBoard,
    "patch": PatchBoard,
    "backdoor": BackdoorBoard,
    "input_detection": InputDetectionBoard,
    "model_detection": ModelDetectionBoard,
    "corruption": CorruptionBoard,
}
