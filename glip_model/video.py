"""Frames of videos, by PyAV (the extra ``video``)."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from glip_model.images import MAX_PIXELS, ImageError

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg")


def is_video(name: str) -> bool:
    """Tell videos by their names."""
    return name.lower().endswith(SUFFIXES)


def frame_name(name: str, seconds: float) -> str:
    """Return what a frame of a video is called: the video with the time, as in URLs of parts of media."""
    return f"{name}#t={seconds:.3f}"


def read_frames(url: str, per_second: float, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[float, Image.Image]]:
    """Yield frames of a video with their time in seconds, so many of a second; the first one is always among them.

    Args:
        url: path or URL of any file system that fsspec knows.
        per_second: frames; more than there are yields all.
        max_pixels: of a frame.

    Raises:
        ImageError: it is not there, is no video, or breaks off; frames before that were yielded.
        ValueError: no frames a second were asked for.
    """
    import av
    import fsspec

    if not per_second > 0:
        raise ValueError(f"{per_second} frames a second; expected more than 0")
    due = 0
    try:
        with fsspec.open(url, "rb") as file, av.open(file, "r") as container:
            if not container.streams.video:
                raise ImageError("image_unreadable", f"{url}: no video in it")
            stream = container.streams.video[0]
            if stream.width * stream.height > max_pixels:
                raise ImageError("image_too_large", f"{url}: frames of {stream.width}×{stream.height} pixels")
            for number, frame in enumerate(container.decode(stream)):
                seconds = frame.time if frame.time is not None else number / float(stream.average_rate or 1)
                if seconds * per_second >= due - 1e-6:
                    due = int(seconds * per_second + 1e-6) + 1
                    yield seconds, frame.to_image()
    except FileNotFoundError as error:
        raise ImageError("image_missing", f"{url}: cannot be read: {error}") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("image_unreadable", f"{url}: no video, or a broken one: {error}") from error
