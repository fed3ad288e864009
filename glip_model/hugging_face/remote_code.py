"""The detector's own code in a model's folder, for ``trust_remote_code`` where this package is not installed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from glip_model.checkpoint import CONFIG_FILE
from glip_model.hugging_face.files import MODEL_CLASS, PROCESSOR_FILE
from glip_model.whole_files import whole_file

ENTRANCES = {
    "AutoConfig": "configuration_glip.GLIPPreTrainedConfig",
    "AutoModelForZeroShotObjectDetection": f"modeling_glip.{MODEL_CLASS}",
    "AutoImageProcessor": "image_processing_glip.GLIPImageProcessor",
    "AutoProcessor": "processing_glip.GLIPProcessor",
}
"""What transformers asks for, and the module and class that it gets."""
_IMPORT = re.compile(r"^(?P<before>\s*from )glip_model\.(?:hugging_face\.)?(?P<module>\w+)(?= import )", re.MULTILINE)
_OWN = re.compile(r"^\s*from (glip_model(?:\.\w+)+) import ", re.MULTILINE)


def modules() -> dict[str, str]:
    """Return the modules that the entrances need, by file name, made to import one another from one folder.

    transformers copies no folders of modules, so all are side by side.
    """
    open_ones = [f"glip_model.hugging_face.{entrance.split('.')[0]}" for entrance in ENTRANCES.values()]
    found: dict[str, str] = {}
    seen: set[str] = set()
    while open_ones:
        name = open_ones.pop()
        if name in seen:
            continue
        seen.add(name)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ValueError(f"{name}: no such module of the project; its files are not whole, install it anew")
        source = Path(spec.origin).read_text(encoding="utf-8")
        open_ones += _OWN.findall(source)
        found[f"{name.rpartition('.')[2]}.py"] = _IMPORT.sub(r"\g<before>.\g<module>", source)
    return found


def add_remote_code(folder: Path) -> list[str]:
    """Write the code into a model's folder, and into its JSON files where transformers finds it.

    Returns:
        The names of the files of code.

    Raises:
        ValueError: the folder holds no config.json or processor_config.json that can be read.
        OSError: it cannot be written.
    """
    code = modules()
    for name, source in code.items():
        with whole_file(folder / name) as path:
            path.write_text(source, encoding="utf-8")
    config, processor = _read(folder / CONFIG_FILE), _read(folder / PROCESSOR_FILE)
    config["auto_map"] = processor["auto_map"] = ENTRANCES
    processor["image_processor"]["auto_map"] = {"AutoImageProcessor": ENTRANCES["AutoImageProcessor"]}
    for name, values in ((CONFIG_FILE, config), (PROCESSOR_FILE, processor)):
        with whole_file(folder / name) as path:
            path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sorted(code)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected a model's folder, written anew") from error
