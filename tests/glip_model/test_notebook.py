"""What a notebook shows of detections."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import torch
from PIL import Image

from glip_model.structures import Detections


def found(source: object = None, count: int = 1) -> Detections:
    boxes = torch.tensor([[10.0, 20.0, 60.0, 80.0]] * count)
    index = torch.zeros(count, dtype=torch.int64)
    return Detections(boxes, torch.full((count,), 0.875), index, ("<b>cat</b>",), source=source)  # type: ignore[arg-type]


def picture_in(page: str) -> Image.Image:
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_detections_show_their_picture_with_boxes_and_a_table(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.new("RGB", (500, 120), "grey").save(path)
    for source in (str(path), Image.open(path)):
        page = found(source)._repr_html_()
        shown = picture_in(page)
        assert shown.size == (500, 120)
        assert sum(abs(a - b) for a, b in zip(shown.getpixel((10, 60)), (213, 94, 0), strict=True)) < 150  # type: ignore[arg-type]
        assert "<td>&lt;b&gt;cat&lt;/b&gt;</td><td>0.88</td><td>10 20 60 80</td>" in page


def test_detections_without_their_picture_are_a_table(tmp_path: Path) -> None:
    page = found(str(tmp_path / "gone.png"))._repr_html_()
    assert "<img" not in page
    assert "gone.png: cannot be read" in page
    assert "<img" not in found()._repr_html_()


def test_many_boxes_are_counted() -> None:
    page = found(count=25)._repr_html_()
    assert page.count("<tr>") == 21
    assert "and 5 more" in page
    assert "nothing found of: " in Detections.none()._repr_html_()
