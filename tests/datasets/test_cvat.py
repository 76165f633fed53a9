"""CVAT's XML: every shape, subsets, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from data_sets import save_images

from prompt_tune.datasets.cvat import is_cvat, read_cvat
from prompt_tune.datasets.named import Found
from prompt_tune.datasets.samples import Reason
from prompt_tune.errors import DataError


def read(tmp_path: Path, shapes: str, name: str = "a.png") -> Found:
    save_images(tmp_path / "images", ["a"])
    text = f'<annotations><version>1.1</version><image id="0" name="{name}" width="100" height="80">{shapes}</image>'
    (tmp_path / "annotations.xml").write_text(f"<?xml version='1.0' encoding='utf-8'?>{text}</annotations>")
    assert is_cvat(tmp_path)
    return read_cvat(tmp_path)["train"]


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ('<box label="lorry" xtl="10.5" ytl="20" xbr="50" ybr="60"/>', (10.5, 20, 50, 60)),
        ('<box label="lorry" xtl="10" ytl="30" xbr="50" ybr="50" rotation="90.0"/>', (20, 20, 40, 60)),
        ('<polygon label="lorry" points="10,20;50,30;30,60"/>', (10, 20, 50, 60)),
        ('<polyline label="lorry" points="10,20;50,30;30,60"/>', (10, 20, 50, 60)),
        ('<ellipse label="lorry" cx="30" cy="40" rx="20" ry="10"/>', (10, 30, 50, 50)),
    ],
)
def test_the_box_around_each_shape(tmp_path: Path, shape: str, box: tuple[float, ...]) -> None:
    (image,) = read(tmp_path, f"{shape}<tag label='day'/>").images
    assert [row.name for row in image.rows] == ["lorry"] and image.size_wh == (100, 80)
    np.testing.assert_allclose(image.rows[0].box_xyxy, box)
    assert image.left_out == []


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<points label="lorry" points="1,2"/>', "`<points>` has no box"),
        ('<mask label="lorry" rle="1, 2" left="0" top="0" width="2" height="2"/>', "`<mask>` has no box"),
        ('<box xtl="1" ytl="2" xbr="3" ybr="4"/>', "it has no `label`"),
        ('<box label="lorry" xtl="x" ytl="2" xbr="3" ybr="4"/>', "`xtl` must be a number. Received: 'x'"),
        ('<polygon label="lorry" points="1,2;x"/>', "`points` must be x,y;x,y"),
    ],
)
def test_a_bad_shape_is_left_out(tmp_path: Path, shape: str, message: str) -> None:
    (image,) = read(tmp_path, shape).images
    assert image.rows == [] and [entry.reason for entry in image.left_out] == [Reason.ROW]
    assert message in image.left_out[0].what and "image 1, shape 1" in image.left_out[0].what


def test_a_missing_image_tracks_and_a_doctype(tmp_path: Path) -> None:
    assert [entry.reason for entry in read(tmp_path, "", "../../etc/gone.png").left_out] == [Reason.IMAGE]
    file = tmp_path / "annotations.xml"
    file.write_text('<annotations><track id="0" label="lorry"/></annotations>')
    with pytest.raises(DataError, match=r"has tracks of a video.* `CVAT for images 1.1`"):
        read_cvat(tmp_path)
    file.write_text('<!DOCTYPE x [<!ENTITY a "ha">]><annotations></annotations>')
    with pytest.raises(DataError, match="is not valid XML: it has a DOCTYPE"):
        read_cvat(tmp_path)
