"""The past of a video: windows, how they are cut, and how training makes them imperfect."""

from helios.history.corruption import (
    CorruptionConfig,
    DropConfig,
    Granularity,
    corrupt,
    drop_history,
    start_noise,
)
from helios.history.drift import (
    DriftConfig,
    DriftMonitor,
    DriftReading,
    LatentStatistics,
    remembered,
)
from helios.history.history import History, cut_window
from helios.history.window import (
    CHUNK_POSITIONS,
    HISTORY_FRAMES,
    LONG_POSITIONS,
    MID_POSITIONS,
    PAST_FRAMES,
    SHORT_POSITIONS,
    HistoryWindow,
)

__all__ = [
    "CHUNK_POSITIONS",
    "HISTORY_FRAMES",
    "LONG_POSITIONS",
    "MID_POSITIONS",
    "PAST_FRAMES",
    "SHORT_POSITIONS",
    "CorruptionConfig",
    "DriftConfig",
    "DriftMonitor",
    "DriftReading",
    "DropConfig",
    "Granularity",
    "History",
    "HistoryWindow",
    "LatentStatistics",
    "corrupt",
    "cut_window",
    "drop_history",
    "remembered",
    "start_noise",
]
