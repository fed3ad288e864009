"""URLs a second of ``glip download`` beside img2dataset, from one server on loopback, in the same run.

img2dataset wants older packages and gets an environment of its own:

    python -m venv /tmp/img2dataset && /tmp/img2dataset/bin/pip install img2dataset
    python tests/benchmarks/download_speed.py --img2dataset /tmp/img2dataset/bin/python

The server is a process of its own on the same cores: both pay for it alike. A third of the URLs are 404, as of old
lists, pictures are JPEGs of 300 × 400. Neither resizes; limits of hosts, which img2dataset has not, are off.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image

from pipeline.download.job import download
from pipeline.ray_session import ray_session
from pipeline.settings import PROJECT_PARAMS, load_all

SHARD_ROWS = 500
_IMG2DATASET = """
import sys
from img2dataset import download
if __name__ == "__main__":
    table, out, rows, threads, processes = sys.argv[1:]
    download(
        url_list=table, input_format="parquet", url_col="url", caption_col="caption", output_folder=out,
        output_format="webdataset", resize_mode="no", disable_all_reencoding=True, retries=0, timeout=20,
        number_sample_per_shard=int(rows), thread_count=int(threads), processes_count=int(processes),
        enable_wandb=False,
    )
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img2dataset", help="Python of an environment with img2dataset; left out, only ours runs")
    parser.add_argument("--urls", type=int, default=6000, help="(default: %(default)s)")
    parser.add_argument("--connections", type=int, default=64, help="of each process (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name, served() as port:
        folder = Path(name)
        table = write_list(folder, port, args.urls)
        found = {"ours": ours(folder, port, args.connections)}
        if args.img2dataset:
            found["img2dataset"] = theirs(args.img2dataset, folder, table, args.connections, cores)
    report = {"cores": cores, "urls": args.urls, "load_before": os.getloadavg()[0], "runs": found}
    if args.json:
        print(json.dumps(report, indent=2))
        return
    for name, run in found.items():
        print(f"{name:12} {run['pictures']} pictures, {args.urls / run['seconds']:,.0f} URLs/s, {run['seconds']:.1f} s")


def ours(folder: Path, port: int, connections: int) -> dict[str, Any]:
    """Download by this project; Ray's start is not counted, as little as that of Python is for the other."""
    settings = load_all(PROJECT_PARAMS)
    config = replace(
        settings.download,
        lists=({"reader": "url_list", "tables": str(folder / "list.parquet"), "name": "list"},),
        rows_per_shard=SHARD_ROWS,
        connections=connections,
        connections_per_host=10**6,
        host_pause_s=0.0,
        retries=0,
        robots_txt=False,  # img2dataset asks for none
    )
    with ray_session():
        start = time.perf_counter()
        metrics, _ = download(config, settings.prepare, 0, folder / "ours", [f"http://127.0.0.1:{port}"])
        return {"pictures": metrics["pictures"], "seconds": time.perf_counter() - start}


def theirs(python: str, folder: Path, table: Path, connections: int, cores: int) -> dict[str, Any]:
    """Download by img2dataset, its own start taken off."""
    program = folder / "img2dataset_run.py"
    program.write_text(_IMG2DATASET, encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    quiet = {"capture_output": True, "text": True, "env": clean | {"NO_ALBUMENTATIONS_UPDATE": "1"}, "check": True}
    start = time.perf_counter()
    subprocess.run([python, "-c", "import img2dataset"], **quiet)  # type: ignore[call-overload]
    begun = time.perf_counter() - start
    start = time.perf_counter()
    words = [str(table), str(folder / "theirs"), str(SHARD_ROWS), str(connections), str(cores)]
    subprocess.run([python, str(program), *words], **quiet)  # type: ignore[call-overload]
    seconds = time.perf_counter() - start - begun
    stats = [json.loads(path.read_text()) for path in (folder / "theirs").glob("*_stats.json")]
    return {"pictures": sum(each["successes"] for each in stats), "seconds": seconds}


def write_list(folder: Path, port: int, urls: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {
        "url": [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(urls)],
        "caption": [f"a picture of number {number}" for number in range(urls)],
    }
    pq.write_table(pa.Table.from_pydict(rows), folder / "list.parquet")
    return folder / "list.parquet"


@contextmanager
def served() -> Iterator[int]:
    """Run the server in a process of its own; yield its port."""
    parent, child = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_serve, args=(child,), daemon=True)
    server.start()
    try:
        yield parent.recv()
    finally:
        server.terminate()
        server.join()


def _serve(pipe: Any) -> None:
    import asyncio

    pixels = random.Random(0).randbytes(30 * 40 * 3)
    out = io.BytesIO()
    Image.frombytes("RGB", (40, 30), pixels).resize((400, 300)).save(out, "JPEG", quality=90)
    body = out.getvalue()

    async def answer(request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        return web.Response(status=404) if number % 3 == 0 else web.Response(body=body, content_type="image/jpeg")

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{number}.jpg", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
