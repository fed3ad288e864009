"""Sources: what params.yaml names, resolved to readers, their options and their tables."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from glip_model.images import ImageError
from pipeline.errors import ConfigError
from pipeline.prepare.embedded import tables as embedded
from pipeline.prepare.embedded import target
from pipeline.prepare.raw import RawTable, Reader, SourceContext, Url
from pipeline.prepare.readers import (
    coco,
    flickr30k,
    glip_tsv,
    grit,
    lvis,
    mdetr,
    objects365,
    odinw,
    odvg,
    openimages,
    own_records,
    pair_tables,
    pictures,
    refcoco,
    url_lists,
    visual_genome,
    voc,
    webdataset,
    yolo,
)
from pipeline.prepare.settings import PrepareConfig, SourceEntry
from pipeline.settings import parse_options
from pipeline.store.image_roots import IMAGE_ROOTS, check_inside
from pipeline.store.records import CaptionRecord, DetectionRecord, GroundingRecord
from pipeline.store.shards import KIND
from pipeline.store.urls import has_credentials, join, redact
from pipeline.store.web import PUBLIC_WEB

logger = logging.getLogger(__name__)

Role = Literal["human", "web", "dev", "test", "held_out"]
_BOXES = (DetectionRecord, GroundingRecord)
_ROLE_TYPES: dict[Role, tuple[type, ...]] = {
    "human": _BOXES,
    "web": (CaptionRecord,),
    "dev": _BOXES,
    "test": _BOXES,
    "held_out": (*_BOXES, CaptionRecord),
}

READERS: dict[str, Reader] = {
    "embedded": embedded.read_embedded,
    "embedded_target": target.read_embedded_target,
    # Category boxes
    "coco_detection": coco.read_coco_detection,
    "lvis": lvis.read_lvis,
    "objects365": objects365.read_objects365,
    "open_images": openimages.read_open_images,
    "visual_genome_objects": visual_genome.read_visual_genome_objects,
    "imagenet_boxes": voc.read_imagenet_boxes,
    "pascal_voc": voc.read_pascal_voc,
    "odinw": odinw.read_odinw,
    "yolo": yolo.read_yolo,
    "detection_records": own_records.read_detection_records,
    # Captions with boxes
    "flickr30k_entities": flickr30k.read_flickr30k_entities,
    "mdetr": mdetr.read_mdetr,
    "refcoco": refcoco.read_refcoco,
    "visual_genome_regions": visual_genome.read_visual_genome_regions,
    "grit": grit.read_grit,
    # Either, as the file has it
    "glip_tsv": glip_tsv.read_glip_tsv,
    "odvg": odvg.read_odvg,
    # No annotations
    "pictures": pictures.read_pictures,
    # Captions alone
    "coco_captions": coco.read_coco_captions,
    "webdataset": webdataset.read_webdataset,
    "img2dataset_files": pair_tables.read_img2dataset_files,
    "image_parquet": pair_tables.read_image_parquet,
    "url_list": url_lists.read_url_list,
    "captions_jsonl": pair_tables.read_captions_jsonl,
}
"""Reader by name; ``package.module:function`` in params.yaml names one that is not here."""

_PICTURE_OPTIONS = ("images", "folder", "shards")
"""Of readers, those that name where pictures are; in what the others name there are none, or they are copied."""


@dataclass(frozen=True)
class Source:
    """One raw data set with the tables that its reader promises."""

    name: str
    repeat: int
    description: str
    """Reader and options, for the metadata of shards."""
    reader: Reader
    tables: tuple[RawTable, ...]
    data_set: str
    """What sources have in common that are parts of one data set; empty where the settings name none."""
    pictures: tuple[str, ...]
    """Folders, URLs and patterns that its pictures lie below, as the settings name them."""


def open_sources(role: Role, config: PrepareConfig, seed: int) -> list[Source]:
    """Return the sources of a role, mixtures resolved.

    Raises:
        ConfigError: there is no such reader, it has other options, or it reads what the role has no use for.
        MissingInputError: a raw file is not there or has another structure.
    """
    sources = []
    for i, entry in enumerate(getattr(config, role)):
        where = f"prepare.{role}[{i}]"
        if "mixture" not in entry:
            sources.append(open_source(entry, role, where, config, seed))
            continue
        repeat = entry.get("repeat")
        for k, inner in enumerate(config.mixtures[entry["mixture"]]):
            inner_where = f"prepare.mixtures.{entry['mixture']}[{k}]"
            sources.append(open_source(inner, role, inner_where, config, seed, repeat))
    names = Counter(source.name for source in sources)
    if role in ("dev", "test") and names and max(names.values()) > 1:
        raise ConfigError(
            f"prepare.{role}: {names.most_common(1)[0][0]!r} is the name of several sources; give each a name of its "
            "own, by which its scores are told"
        )
    return sources


def warn_of_scenes_beside_own_data(sources: Mapping[Role, Sequence[Source]]) -> None:
    """Warn where some roles are filled by the emoji scenes and others by a user's data: scores would be of emoji."""
    readers = {role: [source.reader is embedded.read_embedded for source in group] for role, group in sources.items()}
    scenes = [role for role, are_scenes in readers.items() if any(are_scenes)]
    own = [role for role, are_scenes in readers.items() if not all(are_scenes)]
    if scenes and own:
        logger.warning(
            "prepare: %s: your own data, but %s: the embedded emoji scenes that ship with the project, so that %s; set "
            "%s to your own data, or to [] for none. model.overrides of the project's params.yaml, its sizes above all,"
            " are made for these small scenes as well",
            _named(own),
            _named(scenes),
            "models are judged by emoji" if {"dev", "test"} & set(scenes) else "models learn from emoji too",
            _named(scenes),
        )


def _named(roles: Iterable[Role]) -> str:
    return ", ".join(f"prepare.{role}" for role in roles)


def open_source(
    entry: SourceEntry, role: Role, where: str, config: PrepareConfig, seed: int, repeat: int | None = None
) -> Source:
    """Return the source that an entry names; errors as ``open_sources``.

    Args:
        entry: its reader and options.
        role: that it fills.
        where: dotted name of the entry, for messages.
        config: of all sources.
        seed: of what it draws.
        repeat: in place of the entry's own.
    """
    repeat = entry.get("repeat", 1) if repeat is None else repeat
    reader = find_reader(entry["reader"], where)
    signature = inspect.signature(reader, eval_str=True)
    _, *parameters = signature.parameters.values()  # the first is the context
    hints: dict[str, Any] = {"reader": str, "name": str, "data_set": str, "repeat": int}
    hints |= {p.name: p.annotation for p in parameters}
    defaults = {"name": entry["reader"], "data_set": "", "repeat": 1}
    defaults |= {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    options = parse_options(hints, defaults, entry, where)
    name, own = options["name"], {p.name: _rooted(options[p.name], config.data_root, where) for p in parameters}
    tables = tuple(reader(SourceContext(role, name, config, seed), **own))
    for table in tables:
        if table.record_type not in _ROLE_TYPES[role]:
            wanted = " or ".join(KIND[record_type] for record_type in _ROLE_TYPES[role])
            raise ConfigError(
                f"{where}: reader {entry['reader']!r} reads {KIND[table.record_type]} records; expected one that reads "
                f"{wanted} records"
            )
    described = ", ".join(f"{key}: {_public(value)}" for key, value in entry.items() if key != "repeat")
    return Source(name, repeat, described, reader, tables, options["data_set"], tuple(_pictures(reader, own)))


def _pictures(reader: Reader, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield where the options of a reader say that pictures are."""
    for name in _PICTURE_OPTIONS:
        value = options.get(name)
        yield from filter(None, value.values() if isinstance(value, Mapping) else [value])
    if reader is url_lists.read_url_list and options["images"] is None:
        yield from PUBLIC_WEB


def check_references(sources: Mapping[Role, Sequence[Source]], roots: Sequence[str]) -> None:
    """Refuse sources whose pictures no later stage would read where records refer to them.

    Raises:
        ConfigError: the message names what to add to ``image_roots``.
    """
    outside: dict[str, str] = {}
    for source in (source for role, group in sources.items() if role != "held_out" for source in group):
        for place in source.pictures:
            try:
                check_inside(place, roots)
            except ImageError:
                outside[redact(place)] = source.name
    if outside:
        places = ", ".join(f"{place} ({name})" for place, name in outside.items())
        raise ConfigError(
            f"prepare.pictures lets records refer to pictures where no later stage may read them: {places}; add these, "
            f"or a folder or URL above them, to image_roots in params.yaml (now: {', '.join(roots) or 'none'}) or to "
            f"{IMAGE_ROOTS} in the environment, or set prepare.pictures to embed"
        )


def find_reader(name: str, where: str) -> Reader:
    """Return a reader by its name here or as ``package.module:function``; ConfigError when there is none."""
    if name in READERS:
        return READERS[name]
    module, _, function = name.partition(":")
    if not function:
        raise ConfigError(f"{where}: no reader {name!r}; readers: {', '.join(sorted(READERS))}, or module:function")
    try:
        found: Callable[..., list[RawTable]] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}: no reader {name!r}: {error}") from error
    return found


def _rooted(value: Any, root: str, where: str) -> Any:
    """Let every relative URL among the options start at the root; refuse those that carry a password.

    Raises:
        ConfigError: a URL has credentials in it, which would end up in shards that refer to pictures.
    """
    if isinstance(value, Url):
        url = Url(join(root, value))
        if has_credentials(url):
            raise ConfigError(f"{where}: {redact(url)} has credentials in it; leave them to the environment")
        return url
    if isinstance(value, tuple):
        return tuple(_rooted(item, root, where) for item in value)
    if isinstance(value, Mapping):
        return {key: _rooted(item, root, where) for key, item in value.items()}
    return value


def _public(value: Any) -> str:
    """Return an option as it may be shown to everybody."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_public(item)}" for key, item in value.items()) + "}"
    return redact(value) if isinstance(value, str) else str(value)
