"""The exceptions that a user can cause and mend.

    PipelineError
    ├── ConfigError         params.yaml or a command line says something that cannot be
    ├── MissingInputError   a file or folder that a stage needs is not there
    ├── ShardError          a Parquet shard is broken or has another schema than promised
    ├── StorageError        a place cannot be used: no room, no right, no answer from the store
    ├── OwnershipError      a place holds what another run made
    ├── RejectLimitError    too large a share of rows was rejected
    ├── TrainingError       training cannot go on (diverged, checkpoint of another model)
    └── BenchmarkError      predictions and ground truth of a benchmark do not fit together

A stage prints the message of a PipelineError and exits with status 2. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all errors that a message can mend: what was expected, what was found, where, and what to do next."""


class ConfigError(PipelineError, ValueError):
    """A setting is unknown, missing, of the wrong type or out of range."""


class MissingInputError(PipelineError):
    """An input does not exist."""


class ShardError(PipelineError):
    """A shard cannot be read or does not follow its schema."""


class StorageError(PipelineError):
    """A place cannot be written to, or its store gives no answer."""


class OwnershipError(PipelineError):
    """A place belongs to another run."""


class RejectLimitError(PipelineError):
    """More rows were rejected than the configured share allows."""


class TrainingError(PipelineError):
    """Training cannot continue."""


class BenchmarkError(PipelineError):
    """Predictions and ground truth do not belong together."""
