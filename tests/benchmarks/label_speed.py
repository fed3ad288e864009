"""The labelling stages against bare loops, one worker and two, memory against the number of rows, and a week played.

Run: make bench, or: python tests/benchmarks/label_speed.py --json out.json

    stage     a whole ``pseudo_label`` with one teacher that has all cores, over a loop of the same teacher in one
              process over pictures that are decoded already
    workers   ``pseudo_label`` with two teachers on two cores, over one teacher with all that is around it on one core
    null      the stages on all cores with a teacher that answers at once, over 3,000 pairs/s: read → phrases → write;
              read → decode → label → write; and both, one after the other
    phrases   noun phrases of captions on one core, over spaCy's own ``nlp.pipe`` with the same components
    memory    peak of all processes of ``pseudo_label`` with many rows, over few
    week      24 million pairs over 64 to 512 GPUs of which each is taken away once a day, at --images-per-s

Starting Ray and loading the teacher are left out of speeds, which are taken between shards that were written in the
midst of a run. Every figure is taken in a process of its own; the best of several counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
import yaml
from PIL import Image

from glip_model.prompts import Prompt, caption_prompt
from glip_model.structures import Detections
from pipeline.phrases.job import extract_phrases
from pipeline.phrases.noun_phrases import NounPhraseParser
from pipeline.pseudo_labels.job import Inputs, pseudo_label
from pipeline.pseudo_labels.planning import Interruptions, Rates, Workload, simulate
from pipeline.pseudo_labels.teachers import open_teacher
from pipeline.settings import load_all
from pipeline.store.images import load_image
from pipeline.store.records import CaptionRecord, ImageRef, PhrasesRecord
from pipeline.store.shards import list_shards, read_shard, shard_name, write_shard

ROOT = Path(__file__).resolve().parents[2]
CORES = 2
ROWS, MADE = 256, 8
"""Rows of a shard, and how many are made; the others link to these."""
LABELLED, NULL = 28, 200
"""Shards of a run with a teacher, and of one with none to speak of."""
EDGE = 4
"""Shards at the beginning and at the end of a run that do not count: the first waits for the teacher to load, and while
the last are written some workers have nothing left to do."""
MAX_PIXELS = 10**8
NULL_GOAL = 3000


class NullTeacher:
    """Answers at once that every phrase is a box."""

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Look at nothing."""
        answers = []
        for image, prompt in zip(images, prompts, strict=True):
            count = len(prompt.phrases)
            box = torch.tensor([[0.0, 0.0, image.width / 2, image.height / 2]]).repeat(count, 1)
            answers.append(Detections(box, torch.full((count,), 0.9), torch.arange(count), prompt.phrases))
        return answers


def null_teacher(device: str) -> NullTeacher:
    """Return it: a teacher by the name of ``label_speed:null_teacher``."""
    return NullTeacher()


def write_inputs(folder: Path, rows_per_shard: int = ROWS, **counts: int) -> None:
    """Make records of the embedded run, phrases of its web pairs, and its teacher after two steps.

    Args:
        folder: to be filled.
        rows_per_shard: of records.
        counts: pictures by role; web pairs and a few of each other unless told.
    """
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"].update(rows_per_shard=rows_per_shard)
    few = {"human_detection": 8, "human_grounding": 8, "web": MADE * ROWS, "dev": 4, "test": 4}
    params["prepare"]["embedded"].update(few | counts)
    params["train"].update(num_workers=1)
    params["train"]["optim"].update(batch_size=4)
    params["train"]["runs"]["teacher"].update(steps=2)
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for words in (
        ["prepare", "--out", "records"],
        ["phrases", "--records", "records/web", "--out", "phrases"],
        ["train", "teacher", "--human", "records/human", "--out", "teacher"],
    ):
        subprocess.run([sys.executable, "-m", f"stages.{words[0]}", *words[1:]], cwd=folder, check=True, text=True)


def take(source: Path, count: int, target: Path) -> Path:
    """Make a folder of so many shards by links to those of another, again and again."""
    target.mkdir(parents=True)
    found = list_shards(source)
    for number in range(count):
        os.link(found[number % len(found)], target / shard_name(number))
    return target


def seconds_of(act: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time one call; by ``time.process_time`` what runs in one thread does not depend on who else is at work."""
    start = clock()
    act()
    return clock() - start


@contextmanager
def local_ray(cores: int) -> Iterator[None]:
    """Start Ray with so many cores, whatever the machine has."""
    ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 28)
    yield
    ray.shutdown()


def rows_of(place: Path, record_type: type) -> list[Any]:
    """Read all shards of a folder."""
    return [row for path in list_shards(place) for row in read_shard(path, record_type)]


def steady_speed(out: Path, rows_per_shard: int = ROWS) -> float:
    """Return rows per second of a stage, by the times at which its shards appeared."""
    moments = sorted(path.stat().st_mtime_ns for path in list_shards(out))[EDGE:-EDGE]
    return (len(moments) - 1) * rows_per_shard / ((moments[-1] - moments[0]) / 1e9)


def run_stage(folder: Path, cores: int, actors: int) -> float:
    """Return pairs per second of ``pseudo_label`` and everything around it on so many cores."""
    os.sched_setaffinity(0, range(cores))
    config = dataclasses.replace(load_all(ROOT / "params.yaml").pseudo_label, num_actors=actors)
    with local_ray(cores), tempfile.TemporaryDirectory() as scratch:
        places = [take(folder / name, LABELLED, Path(scratch) / name) for name in ("records/web", "phrases")]
        out = Path(scratch) / "out"
        pseudo_label(Inputs(*places, str(folder / "teacher"), out), config, MAX_PIXELS)
        return steady_speed(out)


def run_loop(folder: Path) -> float:
    """Return pairs per second of the teacher in this process over decoded pictures and finished prompts."""
    config = load_all(ROOT / "params.yaml").pseudo_label
    torch.set_num_threads(CORES)
    teacher = open_teacher(str(folder / "teacher"), "cpu")
    pairs, parsed = rows_of(folder / "records/web", CaptionRecord), rows_of(folder / "phrases", PhrasesRecord)
    asked = [
        (
            load_image(pair.image, MAX_PIXELS, []),
            caption_prompt(pair.caption, [list(p.char_spans) for p in row.phrases]),
        )
        for pair, row in zip(pairs, parsed, strict=True)
        if row.reject_reason is None
    ]

    def label(chosen: Sequence[tuple[Image.Image, Prompt]]) -> None:
        for start in range(0, len(chosen), config.batch_size):
            batch = chosen[start : start + config.batch_size]
            teacher.ground([image for image, _ in batch], [prompt for _, prompt in batch])

    label(asked[: 4 * config.batch_size])
    # All pairs are done when those with phrases are; of the others the stage has nothing to ask either.
    return len(pairs) / seconds_of(lambda: label(asked))


def run_null_phrases(folder: Path) -> float:
    """Return pairs per second of the ``phrases`` stage."""
    with local_ray(CORES), tempfile.TemporaryDirectory() as scratch:
        web = take(folder / "records/web", NULL, Path(scratch) / "web")
        extract_phrases(load_all(ROOT / "params.yaml").phrases, web, Path(scratch) / "phrases")
        return steady_speed(Path(scratch) / "phrases")


def run_null_labels(folder: Path) -> float:
    """Return pairs per second of ``pseudo_label`` with a teacher that costs nothing."""
    config = dataclasses.replace(load_all(ROOT / "params.yaml").pseudo_label, num_actors=CORES)
    with local_ray(CORES), tempfile.TemporaryDirectory() as scratch:
        places = [take(folder / name, NULL, Path(scratch) / name) for name in ("records/web", "phrases")]
        out = Path(scratch) / "out"
        pseudo_label(Inputs(*places, "label_speed:null_teacher", out), config, MAX_PIXELS)
        return steady_speed(out)


def captions(folder: Path) -> list[tuple[str, str]]:
    """Return keys and captions of all pairs, three times over."""
    pairs = rows_of(folder / "records/web", CaptionRecord)
    return [(f"{pair.key}-{again}", pair.caption) for again in range(3) for pair in pairs]


def run_phrases(folder: Path) -> float:
    """Return captions per second of one core from strings to records of phrases."""
    torch.set_num_threads(1)
    parser = NounPhraseParser(load_all(ROOT / "params.yaml").phrases)
    rows = captions(folder)
    parser.parse(rows[:500])
    return len(rows) / seconds_of(lambda: parser.parse(rows), time.process_time)


def run_pipe(folder: Path) -> float:
    """Return captions per second of one core through spaCy, with the components that noun chunks need."""
    torch.set_num_threads(1)
    config = load_all(ROOT / "params.yaml").phrases
    nlp = importlib.import_module(config.spacy_model).load(exclude=["ner", "lemmatizer", "senter"])
    texts = [caption for _, caption in captions(folder)]
    list(nlp.pipe(texts[:500]))
    return len(texts) / seconds_of(lambda: [None for _ in nlp.pipe(texts)], time.process_time)


def run_memory(folder: Path, rows: int) -> float:
    """Return the peak of megabytes that all processes of ``pseudo_label`` held together."""
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "PNG")
    image = ImageRef(bytes=out.getvalue())
    pairs = [
        CaptionRecord(key=str(i), image=image, height=16, width=16, caption="a dog and a cat", source="web")
        for i in range(1000)
    ]
    config = dataclasses.replace(load_all(ROOT / "params.yaml").pseudo_label, num_actors=CORES, batch_size=64)
    peak, is_over = [0.0], threading.Event()

    def watch() -> None:
        own = psutil.Process()
        while not is_over.wait(0.5):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    memory = process.memory_info()
                    total += memory.rss - memory.shared
                except psutil.NoSuchProcess:
                    continue
            peak[0] = max(peak[0], total / 1e6)

    with tempfile.TemporaryDirectory(dir=folder) as scratch, local_ray(CORES):
        one = Path(scratch) / "one"
        write_shard(one / "web" / shard_name(0), pairs, CaptionRecord)
        extract_phrases(load_all(ROOT / "params.yaml").phrases, one / "web", one / "phrases")
        places = [take(one / name, rows // 1000, Path(scratch) / name) for name in ("web", "phrases")]
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            inputs = Inputs(places[0], places[1], "label_speed:null_teacher", Path(scratch) / "out")
            assert pseudo_label(inputs, config, MAX_PIXELS)["rows"] == rows
        finally:
            is_over.set()
            thread.join()
    return peak[0]


TASKS: dict[str, Callable[[Path], float]] = {
    "stage": lambda folder: run_stage(folder, CORES, 1),
    "loop": run_loop,
    "one worker": lambda folder: run_stage(folder, 1, 1),
    "two workers": lambda folder: run_stage(folder, 2, 2),
    "null phrases": run_null_phrases,
    "null labels": run_null_labels,
    "phrases": run_phrases,
    "pipe": run_pipe,
}


def in_own_process(script: str, folder: Path, task: str, repeats: int, *more: str) -> list[float]:
    """Run a task of a benchmark in fresh processes; return what each measured."""
    words = [sys.executable, script, "--only", task, "--folder", str(folder), *more]
    places = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    found = []
    for _ in range(repeats):
        done = subprocess.run(
            words, stdout=subprocess.PIPE, text=True, check=True, cwd=folder, env=os.environ | {"PYTHONPATH": places}
        )
        found.append(float(done.stdout.splitlines()[-1]))
    return found


def in_rounds(script: str, folder: Path, tasks: Iterable[str], repeats: int) -> list[dict[str, float]]:
    """Run tasks of a benchmark one after the other, again and again: a machine that slows down slows all of them."""
    return [{task: in_own_process(script, folder, task, 1)[0] for task in tasks} for _ in range(repeats)]


def benchmarks(folder: Path, repeats: int, rows: Sequence[int]) -> Iterator[tuple[str, float, str]]:
    """Yield a name, pairs per second or megabytes, and what they are compared with."""

    def best(task: str) -> float:
        return max(in_own_process(__file__, folder, task, repeats))

    write_inputs(folder)
    phrases, pipe = best("phrases"), best("pipe")
    yield "phrases", phrases, f"captions/s, {phrases / pipe:.2f} × of nlp.pipe, {pipe:,.0f}"
    loop, stage = best("loop"), best("stage")
    yield "stage", stage, f"pairs/s, {stage / loop:.2f} × of the bare loop, {loop:,.1f}"
    one, two = best("one worker"), best("two workers")
    yield "workers", two, f"pairs/s, {two / one:.2f} × of one worker, {one:,.1f}"
    parsed, labelled = best("null phrases"), best("null labels")
    for name, speed in (
        ("null, phrases", parsed),
        ("null, labels", labelled),
        ("null, both", 1 / (1 / parsed + 1 / labelled)),
    ):
        yield name, speed, f"pairs/s, {speed / NULL_GOAL:.2f} × of {NULL_GOAL:,}/s"
    peaks = [in_own_process(__file__, folder, "memory", 1, "--rows", str(count))[0] for count in rows]
    for count, peak in zip(rows, peaks, strict=True):
        yield f"memory {count:,}", peak, f"MB, {peak / peaks[0]:.2f} × of {rows[0]:,} rows"


def play_a_week(images_per_s: float, parsed: float, labelled: float) -> Iterator[str]:
    """Yield what 24 million pairs take of the CPUs, then a line for each number of GPUs.

    Args:
        images_per_s: of a teacher on one GPU.
        parsed: pairs per second of the phrases stage on all cores of this machine.
        labelled: of all that is around the teacher.
    """
    workload = Workload(pairs=24_000_000, shards=24_000, bytes=0)
    yield f"week, phrases {workload.pairs / parsed * CORES / 3600:,.1f} core-hours, before"
    yield f"week, around a teacher {images_per_s / labelled * CORES:.3f} cores a GPU, at {images_per_s:g} images/s"
    for gpus in (64, 128, 256, 512):
        calm = simulate(workload, Rates(images_per_s), gpus)
        spot = simulate(workload, Rates(images_per_s), gpus, Interruptions(mean_hours=24))
        yield (
            f"week, {gpus} GPUs  {spot.wall_hours:6.2f} h, {spot.wall_hours / calm.wall_hours:.3f} × of machines that "
            f"stay, {spot.interruptions} interruptions, {100 * spot.wasted_share:.2f} % of the work lost"
        )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--memory-rows", type=int, nargs="+", default=[20_000, 200_000], help="(default: %(default)s)")
    parser.add_argument("--images-per-s", type=float, default=20.0, help="of one GPU, for the week (default: 20)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(run_memory(args.folder, args.rows) if args.only == "memory" else TASKS[args.only](args.folder))
        return
    results: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="label-speed-"))
    try:
        for name, value, remark in benchmarks(folder, args.repeats, args.memory_rows):
            print(f"{name:18s} {value:10,.1f} {remark}", flush=True)
            results[name] = {"value": value, "remark": remark}
    finally:
        shutil.rmtree(folder)
    parsed, labelled = (results[f"null, {name}"]["value"] for name in ("phrases", "labels"))
    for line in play_a_week(args.images_per_s, parsed, labelled):
        print(line)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
