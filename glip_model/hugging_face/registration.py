"""Tells transformers of the classes here as soon as it loads its own registers, and not before.

``import glip_model`` must not cost the seconds that transformers takes to load. So nothing of it is loaded here: an
import hook waits for the modules that hold its registers.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_REGISTERS = "transformers.models.auto."


def _class(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"glip_model.hugging_face.{module}"), name)


def _register_config(register: Any) -> None:
    config = _class("configuration_glip", "GLIPPreTrainedConfig")
    register.AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_image_processor(register: Any) -> None:
    config = _class("configuration_glip", "GLIPPreTrainedConfig")
    processor = _class("image_processing_glip", "GLIPImageProcessor")
    # One for both of its kinds: it is Pillow's, and asked for the other transformers would warn.
    both = {"torchvision": processor, "pil": processor}
    register.AutoImageProcessor.register(config, image_processor_classes=both, exist_ok=True)


def _register_processor(register: Any) -> None:
    config = _class("configuration_glip", "GLIPPreTrainedConfig")
    register.AutoProcessor.register(config, _class("processing_glip", "GLIPProcessor"), exist_ok=True)


def _register_model(register: Any) -> None:
    config = _class("configuration_glip", "GLIPPreTrainedConfig")
    model = _class("modeling_glip", "GLIPForZeroShotObjectDetection")
    register.AutoModelForZeroShotObjectDetection.register(config, model, exist_ok=True)
    # The pipeline holds models against this list of names, and calls others unsupported.
    register.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES.setdefault(config.model_type, model.__name__)


REGISTRATIONS: dict[str, Callable[[Any], None]] = {
    _REGISTERS + "configuration_auto": _register_config,
    _REGISTERS + "image_processing_auto": _register_image_processor,
    _REGISTERS + "processing_auto": _register_processor,
    _REGISTERS + "modeling_auto": _register_model,
}
"""Module of transformers to what is done once it is loaded."""


class _AfterImport(MetaPathFinder):
    """Finds nothing by itself; what others find of the awaited modules registers our classes when it has been run."""

    def __init__(self) -> None:
        self.awaited = dict(REGISTRATIONS)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of an awaited module, changed to register afterwards; None for any other."""
        register = self.awaited.pop(fullname, None)
        spec = importlib.util.find_spec(fullname) if register else None  # asks the finders behind this one
        if register is None or spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            register(module)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register with the registers of transformers that are loaded, and with others once they are."""
    finder = _AfterImport()
    for name in [name for name in REGISTRATIONS if name in sys.modules]:
        finder.awaited.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, finder)
