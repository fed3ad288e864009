"""Settings of sections ``model`` and ``train``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from glip_model.config import PRESETS, GLIPConfig
from pipeline.errors import ConfigError
from pipeline.settings import Amount, Count, Natural, Share, section


@section
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
            raise ConfigError(f"preset is {self.preset!r}; expected one of {', '.join(sorted(PRESETS))}")
        self.glip_config()

    def glip_config(self) -> GLIPConfig:
        """Return the preset with the overrides applied."""
        try:
            return GLIPConfig.from_dict(_merge(PRESETS[self.preset]().to_dict(), self.overrides))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"overrides: {error}") from error


@section
class OptimConfig:
    """Section ``train.optim``: shared by all trainings."""

    ADDED: ClassVar[tuple[str, ...]] = (
        "fp16",
        "accumulate",
        "warmup_from",
        "weight_decay_drops",
        "plateau_patience",
        "plateau_stop",
        "plateau_min_rate",
        "saved_weights",
    )

    batch_size: Count
    """Pictures per optimiser step over all workers."""
    learning_rate: Amount
    text_learning_rate: Amount
    """For the text encoder, where it is trained."""
    backbone_learning_rate: Amount
    weight_decay: Amount
    warmup_steps: Natural
    decay_at: tuple[float, ...]
    """Shares of all steps at which the learning rate drops to a tenth (``schedule: steps``)."""
    schedule: Literal["steps", "cosine", "plateau"]
    """``plateau``: the learning rate drops to a tenth when evaluations of the dev set get no better, see the settings
    that begin with plateau, and training stops before its last step when that is of no use any more."""
    max_grad_norm: Amount
    ema_decay: Share
    """Decay of the moving average of the weights that is saved as the model; 0 saves the raw weights."""
    bf16: bool
    """Autocast to bfloat16; losses and deformable convolutions stay in float32."""
    fp16: bool
    """Autocast to float16 instead, with a loss scale that finds itself, as published. Its search skips steps."""
    accumulate: Count
    """Parts in which a worker computes its share of a step, one after the other: as many times less memory. Every part
    weighs the same and is normalised by its own boxes."""
    warmup_from: Share | None
    """Share of the learning rate at the first step, from where it rises in a line until ``warmup_steps``; 0.001 as
    published. null starts at one part in ``warmup_steps``."""
    weight_decay_drops: Share
    """Weight decay drops to a tenth at this share of the way to each of ``decay_at``, 0.667 as published for GLIP-L; 0
    keeps it."""
    plateau_patience: Natural
    """Evaluations without gain that are put up with; the learning rate drops at the one after (``schedule: plateau``).
    As published for few shots; 2 for all data."""
    plateau_stop: Natural
    """Evaluations in a row that score below the best one before training stops; 0 never stops. As published for few
    shots; 4 for all data."""
    plateau_min_rate: Amount
    """No learning rate drops below this, as published."""
    saved_weights: Literal["average", "raw"]
    """What is saved as the model where there is a moving average. ``raw``, as published, saves the average beside it,
    in the folder ``average``."""

    def __post_init__(self) -> None:
        """Check what depends on another setting."""
        if self.bf16 and self.fp16:
            raise ConfigError("bf16 and fp16 are both true; set one of them to false")


@section
class AugmentConfig:
    """Section ``train.samples.augment``: what varies few pictures besides flips and sizes; the paper has none."""

    colour: Share
    """Brightness, contrast and saturation change by up to this share, and hue by up to a tenth of it; 0 keeps them."""
    crop: Share
    """Probability of a part of the picture that holds all of its boxes whole."""
    shrink: Annotated[float, Field(ge=1, le=10)]
    """The picture stands, up to so many times smaller, somewhere in a frame of one colour; 1 keeps it."""
    mosaic: Share
    """Probability of four pictures side by side in one, where pictures have category boxes of the same vocabulary."""


@section
class SamplesConfig:
    """Section ``train.samples``: how records become training samples."""

    ADDED: ClassVar[tuple[str, ...]] = (
        "augment",
        "pseudo_phrase_prompts",
        "pack_human_captions",
        "group_by_orientation",
        "shuffle_window",
        "shuffle_lanes",
        "pseudo_weight",
        "pseudo_shape_weight",
    )

    short_sides: tuple[Count, ...] | None
    """Training picks one of these sizes in pixels for the short side of each batch; null takes the model's
    test_short_side."""
    long_side: Count | None
    """Pixels of the long side at most; null takes the model's test_long_side."""
    flip: Share
    """Probability of a horizontal flip."""
    augment: AugmentConfig
    max_prompt_tokens: Annotated[int, Field(ge=8, le=512)]
    """Token budget of a training prompt, at most ``model`` text.max_tokens."""
    detection_prompts: Literal["sampled", "all", "all_shuffled"]
    """What pictures with category boxes are asked for. ``sampled``: what they show and sampled negatives, as published
    for pre-training. ``all``: every category in the order of the vocabulary, as published for fine-tuning;
    ``all_shuffled``: in random order. A vocabulary beyond the token budget is sampled with all its negatives."""
    max_negatives: Natural
    """Negative category names drawn into a detection prompt; 85 as published."""
    full_negatives: Share
    """Probability of drawing all ``max_negatives``; else a uniform number from 1 on. 0.5 as published."""
    caption_negatives: Natural
    """Most captions (or their phrases) of other rows packed into a caption prompt; 0 turns packing off."""
    caption_negatives_none: Share
    """Probability that a caption stands alone."""
    phrase_prompts: Share
    """Probability that a caption row is shown as the list of its phrases, like a detection prompt."""
    pseudo_phrase_prompts: Share | None
    """The same of pseudo-labelled rows; null shows them as those of human data."""
    ignore_unlocated: bool
    """Leave the tokens of phrases without boxes in pseudo-labels out of the token loss."""
    pack_human_captions: bool
    """Pack captions of human data too; false, as published, packs those of pseudo-labels alone."""
    group_by_orientation: bool
    """Make batches of wide pictures and batches of tall ones, as published: less padding. Where shards are streamed, of
    what each lane gives to a batch."""
    shuffle_window: Natural
    """Rows that are shuffled together, over all workers; shards are then streamed and no more than the row groups of
    these rows is in memory. Rows of ``reviewed`` are besides, all in each worker, at most as many. 0 loads all rows and
    shuffles them all."""
    shuffle_lanes: Count
    """Parts of a batch, each of which reads rows of its own where data is streamed; a multiple of ``train.num_workers``
    lets every worker read its share of the data alone. Must divide ``batch_size``; the order depends on it."""
    pseudo_weight: Literal["one", "score", "precision"]
    """How much a pseudo-labelled box counts in the losses: ``one`` as much as a human one; ``score`` its score;
    ``precision`` how often boxes of its score were right where ``calibrate`` compared them with human ones. With the
    last two a lower ``pseudo_label.min_score`` makes soft labels of a hard threshold."""
    pseudo_shape_weight: Share
    """How much a pseudo-labelled box counts in the losses of shape and centerness besides. 0 learns from people alone
    where objects end, and from pseudo-labels what they are called, as in Unbiased Teacher (Liu et al., ICLR 2021)."""

    def __post_init__(self) -> None:
        """Check what depends on another setting."""
        if self.augment.mosaic and self.shuffle_window:
            raise ConfigError(
                "augment.mosaic shows rows from anywhere in the data; set shuffle_window to 0, or it to 0"
            )

    def sizes(self, model: GLIPConfig) -> tuple[tuple[int, ...], int]:
        """Return short sides and the longest side in pixels: the model's where the settings name none."""
        return self.short_sides or (model.test_short_side,), self.long_side or model.test_long_side


SOURCES = ("detection", "grounding", "pseudo", "reviewed", "replay")
"""Of samples; ``pseudo`` and ``reviewed`` are rows of the labels, those that people judged apart where ``reviewed`` has
weight; ``replay`` is other data."""


@section
class RunConfig:
    """Section ``train.runs.NAME``: what one of the trained models learns from, and for how long.

    A run stands in a params file as a whole; what it does not say has its default here.
    """

    init: Literal["pretrained", "teacher"]
    """Start from pretrained backbone and text weights, or from the teacher's weights."""
    steps: Natural = 0
    """Optimiser steps; 0 goes by ``epochs``."""
    epochs: Amount = 0.0
    """Passes over all rows of the mixture, repeats counted; 0 goes by ``steps``."""
    mixture: Mapping[str, Amount]
    """Sampling weights of ``detection``, ``grounding``, ``pseudo``, ``reviewed``, ``replay``; they need not sum to 1.
    With ``reviewed`` the rows that people judged (``glip merge``) are a source of their own, and no pseudo-labels.
    ``replay`` is other data that a tuned model is not to forget."""
    mixture_by: Literal["share", "rows"] = "share"
    """``share`` takes the weights as shares of the samples. ``rows`` weighs every row: with equal weights all data
    simply follow one another, as published."""
    tuning: Literal["full", "linear", "prompt", "lora"] = "full"
    """What is trained: ``full`` as the model has it; ``linear`` the last layers of the head alone; ``prompt`` an offset
    to the text of the prompt alone; ``lora`` those last layers and low-rank changes of the layers before them."""
    lora_rank: Count = 8
    """Rank of these changes."""
    other_names: Natural = 0
    """Names of other data that join the prompt of a picture with category boxes, where they fit: as what it does not
    show, or else, with ``distillation``, as what nobody knows of."""
    distillation: Amount = 0.0
    """Weight of a loss that keeps tokens nobody has labels of, see ``other_names``, where the starting model has them;
    0 does without that model."""
    frozen_stages: Natural | None = None
    """Freeze the backbone's stem and so many stages, 0 none; null as the model has it."""

    def __post_init__(self) -> None:
        """Check what depends on another setting."""
        if (self.steps > 0) == (self.epochs > 0):
            raise ConfigError(f"steps is {self.steps} and epochs is {self.epochs:g}; one of them must be above 0")
        wrong = set(self.mixture) - set(SOURCES)
        if wrong:
            raise ConfigError(f"mixture names {sorted(wrong)[0]!r}; expected {', '.join(SOURCES)}")
        if self.distillation and not self.other_names:
            raise ConfigError("distillation is set, but no other_names are, whose tokens it keeps; set both or neither")
        if not any(weight > 0 for weight in self.mixture.values()):
            raise ConfigError("mixture has no weight above 0: nothing to train on")

    @property
    def learns_from_labels(self) -> bool:
        """Whether samples come from pseudo-labels, reviewed or not."""
        return any(self.mixture.get(name, 0) > 0 for name in ("pseudo", "reviewed"))


@section
class TrainConfig:
    """Section ``train``."""

    ADDED: ClassVar[tuple[str, ...]] = (
        "keep_last",
        "evaluate_every",
        "evaluate_epochs",
        "evaluate_rows",
        "sample_pictures",
        "trackers",
        "distribution",
        "compile",
        "loader_processes",
        "recompute_activations",
    )

    optim: OptimConfig
    samples: SamplesConfig
    runs: Mapping[str, RunConfig]
    num_workers: Natural
    """Ray Train workers, one process each; on a CPU the cores are shared out among them. 0 trains in the process of the
    command, without starting Ray: at once, and where a debugger can follow, but nobody goes on when it dies."""
    checkpoint_every: Count
    """Optimiser steps between checkpoints from which an interrupted run resumes."""
    log_every: Count
    keep_last: Count
    """Newest checkpoints that are kept, the last one and those to fall back to where it is damaged; the one of the best
    score is kept besides."""
    evaluate_every: Natural
    """Optimiser steps between evaluations of the dev set; 0 evaluates never, or by ``evaluate_epochs``."""
    evaluate_epochs: Amount
    """The same in passes over the data, for runs that are given in epochs; 1 as published for ODinW."""
    evaluate_rows: Count
    """Rows of each benchmark of the dev set that are asked about, from the first on. One worker does it; the others
    wait, half an hour at most."""
    sample_pictures: Natural
    """Pictures of each benchmark that are drawn at every evaluation, labelled boxes beside those found."""
    trackers: tuple[Literal["tensorboard", "dvclive", "wandb", "mlflow"], ...]
    """Experiment trackers that follow the training; the packages of the same names must be installed."""
    distribution: Literal["ddp", "fsdp"]
    """What several workers share: ``ddp`` their gradients; ``fsdp`` weights, gradients and optimiser state as well, so
    that each holds a part. The losses are the same; checkpoints of one continue with the other."""
    compile: bool
    """Compile the layers of the model: faster steps after minutes of compilation. Needs a C++ compiler on a CPU."""
    loader_processes: Natural
    """Processes of each worker that read, decode and augment; 0 does so in one thread. Batches are the same either
    way. Each has its own copy of rows in memory, or its own window where ``samples.shuffle_window`` streams them."""
    recompute_activations: Literal["model", "memory"]
    """What the backward pass computes anew instead of keeping it, slower and in far less memory: ``model`` as
    ``model.overrides.activation_checkpointing`` says; ``memory`` the tower and Swin where what a step keeps would not
    fit into the free memory of a worker's device."""

    def __post_init__(self) -> None:
        """Check what depends on another setting."""
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


@section
class TrainingSettings:
    """All that a training depends on."""

    seed: int
    model: ModelConfig
    train: TrainConfig


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``overrides`` laid over it, section by section."""
    merged = dict(base)
    for name, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if both else value
    return merged
