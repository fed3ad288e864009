"""Reading raw data against bare loops over the same files, and memory against the number of rows.

Run: make bench, or: python tests/benchmarks/data_speed.py --json out.json

    tar          pairs of tar shards through the reader, over a bare tarfile loop and over webdataset's own pipeline
    annotations  boxes of a COCO file through reader, validation and shards, one core, pictures not opened; again with
                 polygons of 25 points, about COCO's own
    memory       peak of a process over the same with ten thousand and a million rows

Every figure is taken in a process of its own; the best of several counts.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.prepare.raw import SourceContext, Url
from pipeline.prepare.readers.coco import read_coco_detection
from pipeline.prepare.readers.pair_tables import read_captions_jsonl
from pipeline.prepare.readers.webdataset import read_tar
from pipeline.prepare.validation import Rules, to_records
from pipeline.settings import load_all
from pipeline.store.records import CaptionRecord, DetectionRecord
from pipeline.store.shards import ShardWriter

ROOT = Path(__file__).resolve().parents[2]


def write_tars(folder: Path, shards: int = 4, pairs: int = 1000) -> None:
    """Write tars as img2dataset does, pictures of 30 to 60 kB of noise."""
    rng = np.random.default_rng(0)
    for number in range(shards):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as archive:
            for i in range(pairs):
                key, data = f"{number:05d}{i:04d}", rng.bytes(int(rng.integers(30_000, 60_000)))
                fields = json.dumps({"key": key, "caption": "a dog", "url": "https://example.org/" + "x" * 60}).encode()
                for suffix, content in (("jpg", data), ("json", fields), ("txt", b"a dog on a lawn")):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def tar_by_reader(folder: Path) -> int:
    """Read all pairs by the project's reader."""
    return sum(1 for path in sorted(folder.glob("*.tar")) for _ in read_tar(str(path), "txt"))


def tar_by_tarfile(folder: Path) -> int:
    """Read all members by the standard library, as simply as can be."""
    count = 0
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                file.read()
                count += member.name.endswith(".jpg")
    return count


def tar_by_webdataset(folder: Path) -> int:
    """Read all samples by webdataset."""
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False))


def write_coco(folder: Path, pictures: int, points: int = 0, boxes_each: int = 8) -> int:
    """Write an instances file, of Objects365's shape without points of polygons; return its boxes."""
    with (folder / "coco.json").open("w") as file:
        categories = [{"id": i, "name": f"thing {i}"} for i in range(80)]
        file.write(f'{{"categories": {json.dumps(categories)}, "images": [')
        for i in range(pictures):
            row = {"id": i, "file_name": f"images/v1/patch8/objects365_v1_{i:08d}.jpg", "height": 480, "width": 640}
            file.write((", " if i else "") + json.dumps(row))
        file.write('], "annotations": [')
        for i in range(pictures * boxes_each):
            box = [1.5 + i % 300, 2.25, 30.125, 40.5]
            row = {
                "id": i,
                "image_id": i // boxes_each,
                "category_id": i % 80,
                "bbox": box,
                "area": 1220.0,
                "iscrowd": 0,
            }
            if points:
                row["segmentation"] = [[round(100 + 1.37 * k, 2) for k in range(2 * points)]]
            file.write((", " if i else "") + json.dumps(row))
        file.write("]}")
    return pictures * boxes_each


def write_jsonl(folder: Path, rows: int) -> int:
    """Write captions as JSON lines."""
    with (folder / "captions.jsonl").open("w") as file:
        for i in range(rows):
            file.write(json.dumps({"file_name": f"{i:09d}.jpg", "caption": f"a dog and {i} cats on a lawn"}) + "\n")
    return rows


def through(folder: Path, kind: str) -> int:
    """Take every row through reader, validation and shards of a thousand rows, without pictures."""
    context = SourceContext(role="human", name="bench", config=load_all(ROOT / "params.yaml").prepare, seed=0)
    if kind == "boxes":
        (table,) = read_coco_detection(context, annotations=Url(folder / "coco.json"), images=Url(folder))
    else:
        (table,) = read_captions_jsonl(context, captions=Url(folder / "captions.jsonl"), images=Url(folder))
    ids = frozenset(category.id for category in table.categories)
    rules = Rules("bench", "unread", 10**8, ids, roots=(str(folder),))
    count = 0
    for number, part in enumerate(table.parts(1000)):
        with ShardWriter(folder / f"{number % 2}.parquet", table.record_type) as shard:
            for record in to_records(part.rows(), rules):
                if isinstance(record, DetectionRecord | CaptionRecord):
                    shard.append(record)
                count += len(record.objects) if isinstance(record, DetectionRecord) else 1
    return count


TASKS = {
    "tar": lambda folder: tar_by_reader(folder),
    "tarfile": lambda folder: tar_by_tarfile(folder),
    "webdataset": lambda folder: tar_by_webdataset(folder),
    "boxes": lambda folder: through(folder, "boxes"),
    "lines": lambda folder: through(folder, "lines"),
}


def in_own_process(task: str, folder: Path, repeats: int) -> dict[str, float]:
    """Run a task in fresh processes; return the best rows per second and the least peak of memory in MB."""
    results = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--only", task, "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "rows": results[0]["rows"],
        "rows_per_s": max(result["rows_per_s"] for result in results),
        "peak_mb": min(result["peak_mb"] for result in results),
    }


def measure(task: str, folder: Path) -> dict[str, float]:
    """Run a task in this process."""
    start = time.perf_counter()
    rows = TASKS[task](folder)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"rows": rows, "rows_per_s": rows / seconds, "peak_mb": peak}


def benchmarks(folder: Path, repeats: int) -> Iterator[tuple[str, dict[str, float], str]]:
    """Yield a name, its figures, and what they are compared with."""
    write_tars(folder)
    tars = {task: in_own_process(task, folder, repeats) for task in ("tar", "tarfile", "webdataset")}
    for task, figures in tars.items():
        yield task, figures, f"tar is {tars['tar']['rows_per_s'] / figures['rows_per_s']:.2f} × of it"
    for name, points in (("annotations", 0), ("with polygons", 25)):
        write_coco(folder, 40_000, points)
        figures = in_own_process("boxes", folder, repeats)
        yield name, figures, f"{figures['rows_per_s'] / 30_000:.2f} × of 30,000 boxes/s"
    for task, small, large in (("boxes", 1_250, 125_000), ("lines", 10_000, 1_000_000)):
        peaks = []
        for count in (small, large):
            (write_coco if task == "boxes" else write_jsonl)(folder, count)
            peaks.append(in_own_process(task, folder, 1))
            ratio = f"{peaks[-1]['peak_mb'] / peaks[0]['peak_mb']:.2f} × the memory of {peaks[0]['rows']:,.0f} rows"
            yield f"memory, {task}", peaks[-1], ratio


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--only", choices=sorted(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.folder)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, figures, remark in benchmarks(Path(folder), args.repeats):
            rows, speed, peak = (figures[key] for key in ("rows", "rows_per_s", "peak_mb"))
            print(f"{name:16s} {rows:10,.0f} rows {speed:10,.0f} rows/s {peak:6.0f} MB   {remark}", flush=True)
            results[f"{name} {rows:.0f}"] = figures
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
