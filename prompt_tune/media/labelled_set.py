"""What sinks share that write a folder of images with their labels, to be corrected in an annotation tool."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from prompt_tune.errors import DataError
from prompt_tune.files import MAX_NAME, saving, shortened, told
from prompt_tune.media.sinks import OTHER_OUT, Places, Sink, with_suffix
from prompt_tune.media.sources import Frame
from prompt_tune.runtime.detections import ClassKey, Detections
from prompt_tune.runtime.image_files import WRITTEN_SUFFIXES
from prompt_tune.runtime.images import save_image

LABEL_QUALITY = 95  # JPEG quality of frames that a detector will be trained on
MOST_ADDED = 20  # characters that the number and the suffix of a frame add to the name of its video


class LabelledSet(Sink):
    """A folder of images with labels. An image is copied as it is, and a frame of a video becomes a JPEG.

    All images lie in one folder, since many tools look into no subfolder. A class name that is in two vocabularies
    becomes "LABEL:NAME".

    Attributes:
        root: The folder.
        names: The names of the classes that get labels.
        labelled: The same by (vocabulary label, class name).
    """

    def __init__(
        self,
        root: Path,
        classes: Sequence[ClassKey],
        *,
        images: str = "images",
        label: Callable[[Path], Path] = lambda image: image,
        tidy: bool = False,
    ) -> None:
        """Prepare the folder.

        Args:
            root: The folder.
            classes: (vocabulary label, class name) of every class that gets labels.
            images: The folder of the images in it.
            label: The label file of an image; no two images share one.
            tidy: Whether characters that cannot stand in XML or JSON text become underscores in the names of images.

        Raises:
            DataError: There is such a folder already, no class is shown, or the place cannot be read.
        """
        super().__init__()
        self.root = root
        with told(root, DataError, cure=OTHER_OUT):
            is_taken = root.exists()
        if is_taken:
            raise DataError(
                f"`{root}` is there already, and its labels would mix with the new ones. Remove it, or choose another "
                "--out."
            )
        if not classes:
            raise DataError("Labels need a class: all are hidden. Show one.")
        names = [name for _, name in classes]
        self.names = [name if names.count(name) == 1 else f"{label}:{name}" for label, name in classes]
        self.labelled = dict(zip(classes, self.names, strict=True))
        self._class_ids = {key: number for number, key in enumerate(classes)}
        self._folder, self._label, self._tidy = root / images, label, tidy
        self._images, self._videos = Places(label), Places()  # a.png and a.jpg would share the label a.txt
        self._video = ""

    def save_image(self, frame: Frame) -> Path:
        """Write the image of a frame under a name of its own; return its path."""
        image = self._place(frame)
        with saving(image, DataError, cure=OTHER_OUT) as temporary:
            if frame.path is not None and image.suffix == frame.path.suffix:
                shutil.copyfile(frame.path, temporary)
            else:
                save_image(temporary, Image.fromarray(frame.whole()), quality=LABEL_QUALITY)
        return image

    def save_text(self, path: Path, text: str) -> None:
        """Write a UTF-8 text file, whole or not at all."""
        with saving(path, DataError, cure=OTHER_OUT) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def rows(self, found: Detections) -> Iterator[tuple[int, int, tuple[float, float, float, float]]]:
        """Row, class number and box in pixels of each detection that is not hidden and whose class gets labels."""
        keys = zip(found.vocabularies, found.class_names, strict=True)
        for row, (box, key) in enumerate(zip(found.boxes_xyxy, keys, strict=True)):
            if key in self._class_ids and (found.hidden is None or not found.hidden[row]):
                left, top, right, bottom = (float(value) for value in box)
                yield row, self._class_ids[key], (left, top, right, bottom)

    def _place(self, frame: Frame) -> Path:
        """Where the image goes. The name of a frame begins with that of its video."""
        flat = "_".join(Path(frame.name).parts)
        if self._tidy:
            flat = "".join(letter if letter.isprintable() else "_" for letter in flat)
        if frame.index is None:
            image = self._images.take(with_suffix(self._folder / flat, WRITTEN_SUFFIXES, ".png"))
        else:
            if frame.name != self._video:  # the frames of one video follow one another
                stem = shortened(Path(flat).stem, MAX_NAME - MOST_ADDED)
                self._video, self._stem = frame.name, self._videos.take(Path(stem)).name
            image = self._folder / f"{self._stem}_{frame.index:06}.jpg"
        while self._label(image).exists():  # an image may have the name of a frame
            image = image.with_stem(f"{image.stem}-2")
        return image
