"""Frames of videos, by the second; broken ones are messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glip_model.images import ImageError
from glip_model.video import frame_name, is_video, read_frames

av = pytest.importorskip("av", reason="the extra video is not installed")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Two seconds of ten frames each, that grow brighter."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * number, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("per_second", "times"), [(1.0, [0.0, 1.0]), (2.0, [0.0, 0.5, 1.0, 1.5]), (0.1, [0.0]), (100.0, None)]
)
def test_so_many_frames_of_a_second_are_taken(clip: Path, per_second: float, times: list[float] | None) -> None:
    found = list(read_frames(str(clip), per_second))
    expected = [number / 10 for number in range(20)] if times is None else times
    assert [seconds for seconds, _ in found] == pytest.approx(expected)
    for seconds, frame in found:
        assert frame.size == (64, 48)
        assert abs(np.asarray(frame).mean() - 100 * seconds) < 8


def test_what_is_no_video_is_a_message(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as gone:
        next(read_frames(str(tmp_path / "gone.mp4"), 1))
    assert gone.value.reason == "image_missing"
    (tmp_path / "text.mp4").write_bytes(b"no video at all")
    with pytest.raises(ImageError) as text:
        next(read_frames(str(tmp_path / "text.mp4"), 1))
    assert text.value.reason == "image_unreadable"
    with pytest.raises(ImageError) as large:
        next(read_frames(str(clip), 1, max_pixels=100))
    assert large.value.reason == "image_too_large"
    with pytest.raises(ValueError, match="more than 0"):
        next(read_frames(str(clip), 0))


def test_frames_are_called_by_their_second() -> None:
    assert frame_name("a/clip.mp4", 12.5) == "a/clip.mp4#t=12.500"
    assert is_video("CLIP.MOV")
    assert not is_video("clip.jpg")
