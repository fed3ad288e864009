"""Config: the sections of params.yaml as frozen dataclasses; the one place that reads that file.

Values stand in params.yaml; the few that have a default here may be left out. Unknown, missing and mistyped settings
and values out of range are ConfigErrors that name the setting; a misspelt one gets a suggestion.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from glip_model.config import PRESETS, GLIPConfig
from pipeline.errors import ConfigError, MissingInputError

_EXTENDS = "extends"
"""Key of a params file: the path, from its own folder, of the file that it says the differences to."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedConfig:
    """Section ``prepare.embedded``: the emoji scenes that ship with the project."""

    base_concepts: int
    """Concepts that human data shows and names."""
    novel_concepts: int
    """Concepts that only web pairs show."""
    image_size: int
    """Side of the square pictures in pixels."""
    min_objects: int
    max_objects: int
    human_detection: int
    """Pictures with category boxes."""
    human_grounding: int
    """Pictures with a caption and boxes for its phrases."""
    web: int
    """Pictures with a caption alone."""
    dev: int
    """Pictures of the dev split: choose settings on it."""
    test: int
    """Pictures of the test split: final numbers alone."""
    novel_share: float
    """Share of objects in web, dev and test pictures that show a novel concept, 0 to 1."""
    omitted_mention_share: float
    """Share of objects in web pictures that the caption leaves out, 0 to 1."""
    absent_mention_share: float
    """Share of web captions that mention something absent, 0 to 1."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_range(self, 1, None, "base_concepts", "novel_concepts", "min_objects", "dev", "test")
        _check_range(self, 0, None, "human_detection", "human_grounding", "web")
        _check_range(self, 0, 1, "novel_share", "omitted_mention_share", "absent_mention_share")
        _check_range(self, self.min_objects, None, "max_objects")
        _check_range(self, 32, 2048, "image_size")


SourceEntry = Mapping[str, Any]
"""One raw data set, ``{reader: NAME, …}`` with the reader's own options beside it, or ``{mixture: NAME}``. Either may
have ``repeat``, how often its rows come in one pass of training, and a reader ``name``, what its records are called."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Section ``prepare``: raw data sets into records."""

    data_root: str
    """Where relative paths and URLs of all sources start: a folder or a URL such as ``s3://bucket/raw``."""
    human: tuple[SourceEntry, ...]
    web: tuple[SourceEntry, ...]
    dev: tuple[SourceEntry, ...]
    test: tuple[SourceEntry, ...]
    held_out: tuple[SourceEntry, ...]
    """Data sets whose pictures are kept out of ``human`` and ``web``, besides ``dev`` and ``test``: by id where both
    sides have one, by perceptual hash otherwise."""
    mixtures: Mapping[str, tuple[SourceEntry, ...]]
    """Named groups of sources."""
    embedded: EmbeddedConfig
    pictures: Literal["embed", "reference", "unread"]
    """``embed`` stores the bytes of pictures in the shards. ``reference`` opens each picture once and stores its URL,
    with a byte range inside of an archive. ``unread`` believes the annotations' sizes and never opens one: for
    annotations alone, without the check by perceptual hash."""
    rows_per_shard: int
    """Records in one Parquet shard at most."""
    shard_mb: int
    """Megabytes of pictures in one Parquet shard, about."""
    max_reject_share: float
    """The stage stops when a larger share of a folder's rows was rejected, 0 to 1. Held-out pictures do not count."""
    max_image_pixels: int
    """Pictures with more pixels are refused before they are decoded."""

    def __post_init__(self) -> None:
        """Check ranges and the form of sources."""
        _check_range(self, 1, None, "rows_per_shard", "shard_mb", "max_image_pixels")
        _check_range(self, 0, 1, "max_reject_share")
        for role in ("human", "web", "dev", "test", "held_out"):
            _check_sources(role, getattr(self, role), self.mixtures)
        for name, sources in self.mixtures.items():
            _check_sources(f"mixtures.{name}", sources, None)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Section ``model``: a preset, what differs from it, and where pretrained weights come from."""

    preset: str
    """``glip_t_a``, ``glip_t_b``, ``glip_t_c``, ``glip_t`` or ``glip_l``."""
    overrides: Mapping[str, Any]
    """Nested settings of ``GLIPConfig`` that replace the preset's."""
    backbone_weights: str | None
    """A timm tag (``timm``), a ``package:NAME/FILE`` path, a local file, or null for random weights."""
    text_weights: str | None
    """``hub`` loads ``overrides.text.name`` from the model hub; or a local folder, ``package:NAME/FOLDER``, or null."""

    def __post_init__(self) -> None:
        """Build the model config once, so that a wrong setting is found at load."""
        if self.preset not in PRESETS:
            raise ConfigError(f"model.preset is {self.preset!r}; expected one of {', '.join(sorted(PRESETS))}")
        self.glip_config()

    def glip_config(self) -> GLIPConfig:
        """Return the preset with the overrides applied."""
        try:
            return GLIPConfig.from_dict(_merge(PRESETS[self.preset]().to_dict(), self.overrides))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"params.yaml: model.overrides: {error}") from error


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Section ``train.optim``: shared by all trainings."""

    batch_size: int
    """Pictures per optimiser step over all workers."""
    learning_rate: float
    text_learning_rate: float
    """For the text encoder, where it is trained."""
    backbone_learning_rate: float
    weight_decay: float
    warmup_steps: int
    decay_at: tuple[float, ...]
    """Shares of all steps at which the learning rate drops to a tenth (``schedule: steps``)."""
    schedule: Literal["steps", "cosine", "plateau"]
    """``plateau``: the learning rate drops to a tenth when evaluations of the dev set get no better, see the settings
    that begin with plateau, and training stops before its last step when that is of no use any more."""
    max_grad_norm: float
    ema_decay: float
    """Decay of the moving average of the weights that is saved as the model; 0 saves the raw weights."""
    bf16: bool
    """Autocast to bfloat16; losses and deformable convolutions stay in float32."""
    fp16: bool = False
    """Autocast to float16 instead, with a loss scale that finds itself, as published. Its search skips steps."""
    accumulate: int = 1
    """Parts in which a worker computes its share of a step, one after the other: as many times less memory. Every part
    weighs the same and is normalised by its own boxes."""
    warmup_from: float | None = None
    """Share of the learning rate at the first step, from where it rises in a line until ``warmup_steps``; 0.001 as
    published. null starts at one part in ``warmup_steps``."""
    weight_decay_drops: float = 0.0
    """Weight decay drops to a tenth at this share of the way to each of ``decay_at``, 0.667 as published for GLIP-L; 0
    keeps it."""
    plateau_patience: int = 3
    """Evaluations without gain that are put up with; the learning rate drops at the one after (``schedule: plateau``).
    As published for few shots; 2 for all data."""
    plateau_stop: int = 8
    """Evaluations in a row that score below the best one before training stops; 0 never stops. As published for few
    shots; 4 for all data."""
    plateau_min_rate: float = 1e-6
    """No learning rate drops below this, as published."""
    saved_weights: Literal["average", "raw"] = "average"
    """What is saved as the model where there is a moving average. ``raw``, as published, saves the average beside it,
    in the folder ``average``."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_range(self, 1, None, "batch_size", "accumulate")
        _check_range(self, 0, 1, "weight_decay_drops")
        if self.warmup_from is not None:
            _check_range(self, 0, 1, "warmup_from")
        if self.bf16 and self.fp16:
            raise ConfigError("bf16 and fp16 are both true; set one of them to false")
        _check_range(self, 0, None, "learning_rate", "text_learning_rate", "backbone_learning_rate", "weight_decay")
        _check_range(self, 0, None, "warmup_steps", "max_grad_norm")
        _check_range(self, 0, None, "plateau_patience", "plateau_stop", "plateau_min_rate")
        _check_range(self, 0, 1, "ema_decay")


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Section ``train.samples``: how records become training samples."""

    short_sides: tuple[int, ...]
    """Training picks one of these sizes for the short side of each batch."""
    long_side: int
    flip: float
    """Probability of a horizontal flip."""
    max_prompt_tokens: int
    """Token budget of a training prompt, at most ``model`` text.max_tokens."""
    detection_prompts: Literal["sampled", "all", "all_shuffled"]
    """What pictures with category boxes are asked for. ``sampled``: what they show and sampled negatives, as published
    for pre-training. ``all``: every category in the order of the vocabulary, as published for fine-tuning;
    ``all_shuffled``: in random order. A vocabulary beyond the token budget is sampled with all its negatives."""
    max_negatives: int
    """Negative category names drawn into a detection prompt; 85 as published."""
    full_negatives: float
    """Probability of drawing all ``max_negatives``; else a uniform number from 1 on. 0.5 as published."""
    caption_negatives: int
    """Most captions (or their phrases) of other rows packed into a caption prompt; 0 turns packing off."""
    caption_negatives_none: float
    """Probability that a caption stands alone."""
    phrase_prompts: float
    """Probability that a caption row is shown as the list of its phrases, like a detection prompt."""
    ignore_unlocated: bool
    """Leave the tokens of phrases without boxes in pseudo-labels out of the token loss."""
    pack_human_captions: bool = True
    """Pack captions of human data too; false, as published, packs those of pseudo-labels alone."""
    group_by_orientation: bool = False
    """Make batches of wide pictures and batches of tall ones, as published: less padding."""
    shuffle_window: int = 0
    """Rows that are shuffled together, over all workers; shards are then streamed and no more than the row groups of
    these rows is in memory. 0 loads all rows and shuffles them all."""
    shuffle_lanes: int = 1
    """Parts of a batch, each of which reads rows of its own where data is streamed; a multiple of ``train.num_workers``
    lets every worker read its share of the data alone. Must divide ``batch_size``; the order depends on it."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_range(self, 0, None, "shuffle_window")
        _check_range(self, 1, None, "shuffle_lanes")
        if self.shuffle_window and self.group_by_orientation:
            raise ConfigError("group_by_orientation needs all rows in memory; set it to false or shuffle_window to 0")
        _check_range(self, 0, 1, "flip", "full_negatives", "caption_negatives_none", "phrase_prompts")
        _check_range(self, 0, None, "max_negatives", "caption_negatives")
        _check_range(self, 8, 512, "max_prompt_tokens")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Section ``train.runs.NAME``: what one of the trained models learns from, and for how long."""

    init: Literal["pretrained", "teacher"]
    """Start from pretrained backbone and text weights, or from the teacher's weights."""
    steps: int = 0
    """Optimiser steps; 0 goes by ``epochs``."""
    epochs: float = 0.0
    """Passes over all rows of the mixture, repeats counted; 0 goes by ``steps``."""
    mixture: Mapping[str, float]
    """Sampling weights of ``detection``, ``grounding`` and ``pseudo``; they need not sum to 1."""
    mixture_by: Literal["share", "rows"] = "share"
    """``share`` takes the weights as shares of the samples. ``rows`` weighs every row: with equal weights all data
    simply follow one another, as published."""
    tuning: Literal["full", "linear", "prompt"] = "full"
    """What is trained: ``full`` as the model has it; ``linear`` the last layers of the head alone; ``prompt`` an offset
    to the text of the prompt alone."""
    frozen_stages: int | None = None
    """Freeze the backbone's stem and so many stages, 0 none; null as the model has it."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_range(self, 0, None, "steps", "epochs")
        if (self.steps > 0) == (self.epochs > 0):
            raise ConfigError(f"steps is {self.steps} and epochs is {self.epochs:g}; one of them must be above 0")
        if self.frozen_stages is not None:
            _check_range(self, 0, None, "frozen_stages")
        wrong = set(self.mixture) - {"detection", "grounding", "pseudo"}
        if wrong:
            raise ConfigError(f"mixture names {sorted(wrong)[0]!r}; expected detection, grounding, pseudo")
        if not any(weight > 0 for weight in self.mixture.values()):
            raise ConfigError("mixture has no weight above 0: nothing to train on")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Section ``train``."""

    optim: OptimConfig
    samples: SamplesConfig
    runs: Mapping[str, RunConfig]
    num_workers: int
    """Ray Train workers, one process each; on a CPU the cores are shared out among them."""
    checkpoint_every: int
    """Optimiser steps between checkpoints from which an interrupted run resumes."""
    log_every: int
    evaluate_every: int = 0
    """Optimiser steps between evaluations of the dev set; 0 evaluates never, or by ``evaluate_epochs``."""
    evaluate_epochs: float = 0.0
    """The same in passes over the data, for runs that are given in epochs; 1 as published for ODinW."""
    evaluate_rows: int = 500
    """Rows of each benchmark of the dev set that are asked about, from the first on. One worker does it; the others
    wait, half an hour at most."""
    sample_pictures: int = 4
    """Pictures of each benchmark that are drawn at every evaluation, labelled boxes beside those found."""
    trackers: tuple[Literal["tensorboard", "dvclive", "wandb", "mlflow"], ...] = ()
    """Experiment trackers that follow the training; the packages of the same names must be installed."""
    distribution: Literal["ddp", "fsdp"] = "ddp"
    """What several workers share: ``ddp`` their gradients; ``fsdp`` weights, gradients and optimiser state as well, so
    that each holds a part. The losses are the same; checkpoints of one continue with the other."""
    compile: bool = False
    """Compile the layers of the model: faster steps after minutes of compilation. Needs a C++ compiler on a CPU."""
    loader_processes: int = 0
    """Processes of each worker that read, decode and augment; 0 does so in one thread. Batches are the same either
    way. Each has its own copy of rows in memory, or its own window where ``samples.shuffle_window`` streams them."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_range(self, 1, None, "num_workers", "checkpoint_every", "log_every", "evaluate_rows")
        _check_range(self, 0, None, "loader_processes", "evaluate_every", "evaluate_epochs", "sample_pictures")
        if self.optim.batch_size % self.samples.shuffle_lanes:
            raise ConfigError(
                f"samples.shuffle_lanes (={self.samples.shuffle_lanes}) must divide optim.batch_size "
                f"(={self.optim.batch_size})"
            )
        if self.evaluate_every and self.evaluate_epochs:
            raise ConfigError("evaluate_every and evaluate_epochs are both set; set one of them to 0")
        if self.evaluate_epochs and any(run.steps for run in self.runs.values()):
            raise ConfigError("evaluate_epochs is set, but a run is given in steps; set evaluate_every instead")
        if self.optim.schedule == "plateau" and not (self.evaluate_every or self.evaluate_epochs):
            raise ConfigError(
                "optim.schedule is plateau; set evaluate_every or evaluate_epochs, whose scores it follows"
            )


@dataclass(frozen=True, kw_only=True)
class PhrasesConfig:
    """Section ``phrases``: noun phrases of captions."""

    spacy_model: str
    """Importable spaCy pipeline package."""
    extractor: Literal["noun_chunks", "grammar"] = "noun_chunks"
    """spaCy's noun chunks, cleaned; or the grammar of GLIP's published demo, as it is, to compare with."""
    batch_size: int
    max_caption_chars: int
    """Longer captions are rejected as ``caption_too_long``."""
    max_words: int
    """Longer phrases are left out."""
    stop_heads: tuple[str, ...]
    """Head nouns that name a medium or nothing to point at, in lower case; they are cut off a phrase."""
    abstract_heads: tuple[str, ...] = ()
    """Head nouns that nobody can draw a box around, in lower case; phrases that end in one are left out."""
    merge_repeats: bool = True
    """Make one phrase with several spans of those that differ by case, hyphens or number alone."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_range(self, 1, None, "batch_size", "max_caption_chars", "max_words")


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """Section ``pseudo_label``: what of the teacher's output is kept."""

    min_score: float = 0.5
    """Boxes below this score are dropped, 0 to 1. Higher is cleaner and sparser; the paper's is the default."""
    min_score_by_source: Mapping[str, float] = field(default_factory=dict)
    """Other values for the rows of some sources."""
    flip_agreement: bool = False
    """Ask about the mirrored picture too; a box's score is then the mean of what it and its mirror image got. Costs
    twice the time, and is of no use where captions tell left from right."""
    nms_threshold: float
    """IoU above which boxes of one phrase suppress one another."""
    compete_threshold: float
    """IoU above which boxes of different phrases compete and the better score stays; 1 turns it off."""
    one_box_per_singular: bool
    """Keep only the best box of a phrase whose head is singular."""
    max_boxes_per_phrase: int
    min_box_side: float
    """Pixels; smaller boxes are dropped."""
    max_area_share: float
    """Boxes that cover a larger share of the picture are dropped, 0 to 1."""
    batch_size: int
    decode_timeout_s: float
    """A picture that takes longer to decode is rejected as ``image_timeout``."""
    num_actors: int
    """Labelling processes at most; Ray starts as many as the cluster carries."""
    max_reject_share: float
    """The stage stops when a larger share of rows is rejected as broken, 0 to 1."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_range(self, 0, 1, "min_score", "nms_threshold", "compete_threshold", "max_area_share")
        _check_range(self, 0, 1, "max_reject_share")
        for source, score in self.min_score_by_source.items():
            if not 0 <= score <= 1:
                raise ConfigError(f"min_score_by_source.{source} is {score}; expected 0 to 1")
        _check_range(self, 1, None, "max_boxes_per_phrase", "batch_size", "num_actors")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Section ``evaluate``."""

    splits: tuple[Literal["dev", "test"], ...]
    batch_size: int
    num_actors: int
    max_prompt_categories: int
    """Category names in one prompt at most, 40 as published for LVIS; prompts are also cut at the token limit."""
    max_detections: int
    """Per picture; 100 as published."""
    max_detections_lvis: int
    """Per picture and prompt where LVIS's protocol judges; 300 as published."""
    referring_target: Literal["expression", "phrase"]
    """What of a referring expression names its object: ``expression``, all of it, or ``phrase``, what the data marks in
    it, such as the head that MDETR's files name."""
    max_prompt_categories_by_source: Mapping[str, int] = field(default_factory=dict)
    """Instead of ``max_prompt_categories`` for single data sets: COCO's 80 names were asked for in one prompt."""

    def __post_init__(self) -> None:
        """Check ranges."""
        limits = ("max_prompt_categories", "max_detections", "max_detections_lvis")
        _check_range(self, 1, None, "batch_size", "num_actors", *limits)
        for source, count in self.max_prompt_categories_by_source.items():
            if count < 1:
                raise ConfigError(f"max_prompt_categories_by_source.{source} is {count}; expected at least 1")

    def names_a_prompt(self, source: str) -> int:
        """Return how many category names of a data set go into one prompt at most."""
        return self.max_prompt_categories_by_source.get(source, self.max_prompt_categories)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Section ``report``."""

    gallery_rows: int
    """Pictures shown side by side."""
    bootstrap_samples: int
    """Resamplings of the test pictures for the confidence intervals."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_range(self, 1, None, "gallery_rows", "bootstrap_samples")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of params.yaml."""

    seed: int
    prepare: PrepareConfig
    model: ModelConfig
    train: TrainConfig
    phrases: PhrasesConfig
    pseudo_label: PseudoLabelConfig
    evaluate: EvaluateConfig
    report: ReportConfig


def load_config(path: Path) -> Config:
    """Read and check params.yaml, or a file that ``extends`` it and says only what differs.

    Sections are merged setting by setting. What is no section (a list, ``model.overrides``, ``train.runs``, a mixture)
    replaces what stood there as a whole.

    Raises:
        MissingInputError: there is no such file.
        ConfigError: it is not YAML, a setting is unknown, missing, of the wrong type or out of range, or files extend
            one another in a circle or one that is not there.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such params file; pass --params FILE")
    values: Any = {}
    for file, layer in reversed(_layers(path)):
        try:
            values = _extend(Config, values, layer, "")
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
    try:
        return typing.cast(Config, _parse(Config, values, ""))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def extended_files(path: Path) -> list[Path]:
    """Return a params file and those that it extends, the last of which extends none; raises as ``load_config``."""
    return [file for file, _ in _layers(path)]


def _layers(path: Path) -> list[tuple[Path, Any]]:
    """Read a params file and, following ``extends``, those beneath it."""
    layers: list[tuple[Path, Any]] = []
    while True:
        if any(path.resolve() == file.resolve() for file, _ in layers):
            raise ConfigError(f"{layers[-1][0]}: extends {path}, which extends it in turn")
        if not path.is_file():
            raise ConfigError(f"{layers[-1][0]}: extends {path}, which is not there")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not readable as YAML: {error}") from error
        below = values.pop(_EXTENDS, None) if isinstance(values, dict) else None
        layers.append((path, values))
        if below is None:
            return layers
        if not isinstance(below, str):
            raise ConfigError(f"{path}: {_EXTENDS} is {below!r}; expected the path of a params file")
        path = path.parent / below


def _extend(section: Any, base: Mapping[str, Any], layer: Any, where: str) -> dict[str, Any]:
    """Lay the settings of a file over those of a section beneath; ConfigError on one that is unknown."""
    hints = typing.get_type_hints(section)
    _check_names(hints, layer, where)
    merged = dict(base)
    for name, value in layer.items():
        inner = f"{where}.{name}" if where else name
        is_section = dataclasses.is_dataclass(hints[name])
        merged[name] = _extend(hints[name], merged.get(name, {}), value, inner) if is_section else value
    return merged


def _parse(kind: Any, value: Any, where: str) -> Any:
    """Turn a YAML value into ``kind``; ``where`` is its dotted name for messages."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_section(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        present = next(arg for arg in args if arg is not type(None))
        return None if value is None else _parse(present, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} is {value!r}; expected one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}; expected a list")
        return tuple(_parse(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}; expected a mapping")
        return {key: _parse(args[1], item, f"{where}.{key}") for key, item in value.items()}
    return value if kind is Any else _parse_scalar(kind, value, where)


def _parse_scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if issubclass(kind, str) and isinstance(value, str):
        return kind(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        # YAML 1.1 reads 1e-4 as a string; say so instead of leaving the reader puzzled.
        hint = " (write 1.0e-4 rather than 1e-4)" if kind is float and isinstance(value, str) else ""
        raise ConfigError(f"{where} is {value!r}; expected {kind.__name__}{hint}")
    return value


def _parse_section(cls: Any, value: Any, where: str) -> Any:
    fields, absent = dataclasses.fields(cls), dataclasses.MISSING
    defaults = {each.name: each.default for each in fields if each.default is not absent}
    defaults |= {each.name: each.default_factory() for each in fields if each.default_factory is not absent}
    parsed = parse_options(typing.get_type_hints(cls), defaults, value, where)
    try:
        return cls(**parsed)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}" if where else str(error)) from None


def parse_options(hints: Mapping[str, Any], defaults: Mapping[str, Any], values: Any, where: str) -> dict[str, Any]:
    """Check a mapping of settings against types.

    Args:
        hints: setting to type, as in the dataclasses of this module; subclasses of str are made of strings.
        defaults: settings that may be left out, with what they are then.
        values: what params.yaml says.
        where: dotted name for messages.

    Raises:
        ConfigError: a setting is unknown, missing or mistyped.
    """
    prefix = f"{where}." if where else ""
    _check_names(hints, values, where)
    missing = [name for name in hints if name not in values and name not in defaults]
    if missing:
        raise ConfigError(f"{prefix}{missing[0]} is missing; add it to params.yaml")
    return {
        name: _parse(kind, values[name], prefix + name) if name in values else defaults[name]
        for name, kind in hints.items()
    }


def _check_names(hints: Mapping[str, Any], values: Any, where: str) -> None:
    """See that ``values`` is a mapping of settings that there are."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the file'} is {values!r}; expected a mapping of settings")
    for name in values:
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            known = f"did you mean {close[0]}?" if close else f"settings here: {', '.join(hints)}"
            raise ConfigError(f"{where}{'.' if where else ''}{name} is not a setting; {known}")


def _check_sources(where: str, sources: tuple[SourceEntry, ...], mixtures: Mapping[str, Any] | None) -> None:
    """Check the form of sources; with ``mixtures`` None they are those of a mixture, which names readers alone."""
    for i, source in enumerate(sources):
        place = f"{where}[{i}]"
        if ("reader" in source) == ("mixture" in source) or ("mixture" in source and mixtures is None):
            wanted = "a reader" if mixtures is None else "a reader or a mixture"
            raise ConfigError(f"{place} must name {wanted}, found {dict(source)!r}")
        if mixtures is not None and "mixture" in source:
            if source["mixture"] not in mixtures:
                raise ConfigError(f"{place} names mixture {source['mixture']!r}; mixtures: {', '.join(mixtures)}")
            parse_options({"mixture": str, "repeat": int}, {"repeat": 1}, source, place)
        repeat = source.get("repeat", 1)
        if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
            raise ConfigError(f"{place}.repeat is {repeat!r}; expected a whole number of at least 1")


def _check_range(section: Any, low: float, high: float | None, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if value < low or (high is not None and value > high):
            expected = f"at least {low}" if high is None else f"{low} to {high}"
            raise ConfigError(f"{name} is {value}; expected {expected}")


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``overrides`` laid over it, section by section."""
    merged = dict(base)
    for name, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if both else value
    return merged
