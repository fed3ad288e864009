"""Pack emoji art into the one file that the embedded data set draws from; for maintenance, using the data needs none.

Run: python -m pipeline.prepare.embedded.pack_sprites GOOGLE.tgz TWITTER.tgz --out sprites.parquet

The arguments are the npm packages emoji-datasource-google and emoji-datasource-twitter, version 16.0.0, as the npm
registry gives them (``npm pack NAME@16.0.0``). They are read as archives and never unpacked to disk. Which emoji become
concepts, and under which names, stands in concepts.txt.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.cli import run_stage
from pipeline.errors import ConfigError, MissingInputError
from pipeline.prepare.embedded.sprites import SPRITES_FILE, SPRITES_SCHEMA, STYLES

CONCEPTS_FILE = Path(__file__).with_name("concepts.txt")
PALETTE_COLOURS = 128
"""Colours that a sprite keeps; the art is flat, more are not seen and cost a third of the file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("google", type=Path, help="emoji-datasource-google-16.0.0.tgz")
    parser.add_argument("twitter", type=Path, help="emoji-datasource-twitter-16.0.0.tgz")
    parser.add_argument("--out", type=Path, default=SPRITES_FILE, help="Parquet file to write (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write the file."""
    concepts = read_concepts(CONCEPTS_FILE)
    emoji = {entry["short_name"]: entry for entry in json.loads(_read_members(args.google, ["package/emoji.json"])[0])}
    unknown = [concept["short_name"] for concept in concepts if concept["short_name"] not in emoji]
    if unknown:
        raise ConfigError(f"{CONCEPTS_FILE}: no emoji is called {', '.join(unknown)}; see short_name in emoji.json")
    for style, archive in zip(STYLES, (args.google, args.twitter), strict=True):
        names = [f"package/img/{style}/64/{emoji[concept['short_name']]['image']}" for concept in concepts]
        for concept, data in zip(concepts, _read_members(archive, names), strict=True):
            concept[style] = _compact(data)
    for concept in concepts:
        entry = emoji[concept.pop("short_name")]
        concept["keywords"] = sorted({*entry["short_names"], entry["name"].lower()})
    table = pa.Table.from_pylist(sorted(concepts, key=lambda concept: str(concept["name"])), SPRITES_SCHEMA)
    pq.write_table(table, args.out, compression="zstd")


def read_concepts(path: Path) -> list[dict[str, Any]]:
    """Read concepts.txt: short name, name, plural and group of each concept; names must be unique."""
    concepts: list[dict[str, Any]] = []
    group = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            group = line.strip("[] ")
        elif not line.startswith("#"):
            concepts += [{**_parse_concept(word), "group": group} for word in line.split()]
    names = [concept["name"] for concept in concepts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: names given twice: {', '.join(twice)}")
    return concepts


def _parse_concept(word: str) -> dict[str, str]:
    rest, _, plural = word.partition("/")
    short_name, _, name = rest.partition("=")
    name = (name or short_name).replace("_", " ")
    return {"short_name": short_name, "name": name, "plural": plural.replace("_", " ") or _pluralise(name)}


def _pluralise(name: str) -> str:
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")


def _read_members(archive: Path, names: list[str]) -> list[bytes]:
    """Read files out of a package archive, in one pass."""
    if not archive.is_file():
        raise MissingInputError(f"{archive}: no such file; get it with: npm pack NAME@16.0.0 (names: --help)")
    wanted = set(names)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.name in wanted and member.isfile() else None
                if stream is not None:
                    found[member.name] = stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise MissingInputError(f"{archive}: not a readable package ({error}); get it again") from error
    missing = sorted(wanted - set(found))
    if missing:
        raise MissingInputError(f"{archive}: holds no {missing[0]} ({len(missing)} missing); is it version 16.0.0?")
    return [found[name] for name in names]


def _compact(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGBA").quantize(PALETTE_COLOURS, method=Image.Quantize.FASTOCTREE)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    run_stage(__doc__, add_arguments, run)
