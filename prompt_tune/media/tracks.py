"""Numbers for objects that move through a video: ByteTrack of Roboflow's `trackers`, for each class by itself.

It removes no detection and changes none. Each class of each vocabulary has a tracker and numbers of its own, so what
else is loaded changes no number.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from prompt_tune.errors import PromptTuneError
from prompt_tune.media.sources import Frame
from prompt_tune.privacy import quiet_imports
from prompt_tune.runtime.detections import Detections
from prompt_tune.version import install

LOST_FRAMES = 30  # looked at: an object that is not found for longer gets a new number


class Tracks:
    """Follows objects from frame to frame of a video, camera or stream."""

    def __init__(self) -> None:
        """Load the package.

        Raises:
            PromptTuneError: trackers is not installed.
        """
        try:
            with quiet_imports():
                from supervision import Detections as Boxes
                from trackers import ByteTrackTracker
        except ModuleNotFoundError as error:
            raise PromptTuneError(f"trackers is not installed, and tracking needs it: {install('track')}") from error
        self._boxes: Callable[..., Any] = Boxes
        # all that is here is above its class's own threshold, so that all may begin a track
        self._tracker: Callable[[], Any] = lambda: ByteTrackTracker(
            lost_track_buffer=LOST_FRAMES, track_activation_threshold=0.0, high_conf_det_threshold=0.0
        )
        self._video: str | None = None
        self._trackers: dict[tuple[str, int], Any] = {}  # (vocabulary label, class id) -> its tracker

    def follow(self, frame: Frame, found: Detections) -> Detections:
        """The detections of the next frame with `track_ids`. Those of an image, which is no frame, stay without.

        Numbers begin at 1 in each video, for each class of each vocabulary. 0 means that the object was not in the
        frame before: its number comes with the second frame in a row.

        Args:
            frame: Where they were found. Frames of one video follow one another.
            found: With vocabularies. Hidden ones are followed too.
        """
        if frame.index is None:
            return found
        if frame.name != self._video:
            self._video, self._trackers = frame.name, {}
        rows_of: dict[tuple[str, int], list[int]] = {key: [] for key in self._trackers}  # all age, found or not
        for row, key in enumerate(zip(found.vocabularies, found.class_ids.tolist(), strict=True)):
            rows_of.setdefault(key, []).append(row)
        track_ids = np.zeros(len(found), np.int64)
        for key, rows in rows_of.items():
            if key not in self._trackers:
                self._trackers[key] = self._tracker()
            boxes = self._boxes(
                xyxy=found.boxes_xyxy[rows].astype(np.float64),
                confidence=found.scores[rows].astype(np.float64),
                data={"row": np.array(rows, np.int64)},
            )
            followed = self._trackers[key].update(boxes)
            if len(followed):
                track_ids[followed.data["row"]] = followed.tracker_id + 1  # from 0, and -1 for none
        return replace(found, track_ids=track_ids)
