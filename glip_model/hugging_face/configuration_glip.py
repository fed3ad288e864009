"""GLIPConfig as transformers keeps configs."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import PreTrainedConfig

from glip_model.config import GLIPConfig
from glip_model.hugging_face.files import KEYS, MODEL_TYPE
from glip_model.trained_on import TRAINED_ON

SETTINGS = tuple(field.name for field in dataclasses.fields(GLIPConfig))


class GLIPPreTrainedConfig(PreTrainedConfig):
    """The settings of a ``GLIPConfig`` as attributes, its sections as dicts, beside what transformers knows of models.

    Settings that are left out have the published values.
    """

    model_type = MODEL_TYPE

    def glip_config(self) -> GLIPConfig:
        """Return the settings; ValueError where one is none or out of range."""
        return GLIPConfig.from_dict({name: getattr(self, name) for name in SETTINGS if hasattr(self, name)})

    @classmethod
    def of(cls, config: GLIPConfig, **further: Any) -> GLIPPreTrainedConfig:
        """Return the config of a model with these settings."""
        return cls(**config.to_dict(), **further)

    def to_dict(self) -> dict[str, Any]:
        """Return what stands in config.json: nothing that ``GLIP.from_pretrained`` does not know."""
        values: dict[str, Any] = super().to_dict()
        return {name: value for name, value in values.items() if name in {*SETTINGS, *KEYS, TRAINED_ON}}
