"""CPU time of the detectors of `annotate`: faces, and text in images."""

from __future__ import annotations

from dataprep.annotate_config import AnnotateConfig
from dataprep.download.config import DownloadConfig
from pipeline.planner.catalog import Assumptions
from pipeline.planner.rates import count_stored_pixels

CASCADE_WINDOW = 24  # pixels of the side of a face that the cascade knows; larger ones it finds by shrinking the image


def estimate_detector_seconds(config: AnnotateConfig, stored: DownloadConfig, assumptions: Assumptions) -> float:
    """Returns seconds of one core per image that is ``stored``; 0 without detectors."""
    seconds = 0.0
    if config.faces is not None:
        pixels = count_stored_pixels(stored, assumptions)
        if config.faces.detector == "cascade":
            pixels *= _shrink_for_cascade(config.faces.min_side, stored.image_size)
        seconds += pixels / (list_face_speeds(assumptions)[config.faces.detector] * 1e6)
    if config.text is not None:
        seconds += config.text.side**2 / (list_text_speeds(assumptions)[config.text.detector] * 1e6)
    return seconds


def list_face_speeds(assumptions: Assumptions) -> dict[str, float]:
    """Returns the million pixels that a core searches for faces per second, by detector."""
    return {"cascade": assumptions.cascade_mpixels, "yunet": assumptions.yunet_mpixels}


def list_text_speeds(assumptions: Assumptions) -> dict[str, float]:
    """Returns the million pixels of the network's square input per second and core, by detector."""
    return {"db": assumptions.db_mpixels, "east": assumptions.east_mpixels}


def _shrink_for_cascade(min_side: float, image_size: int) -> float:
    """Returns the share of an image's pixels that is searched: it is shrunk until the smallest face fits the window."""
    return (CASCADE_WINDOW / max(CASCADE_WINDOW, min_side * image_size)) ** 2
