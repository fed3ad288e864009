"""A folder with code from a local hub, offline, in a process that has no package of this project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from glip_model.hugging_face.remote_code import ENTRANCES, add_remote_code, modules
from glip_model.predictor import GLIPPredictor

WITHOUT_US = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("glip_model", "pipeline", "stages"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor, pipeline
name, picture, out = sys.argv[1:]
options = {"trust_remote_code": True}
assert AutoConfig.from_pretrained(name, **options).model_type == "glip"
processor = AutoProcessor.from_pretrained(name, **options)
model = AutoModelForZeroShotObjectDetection.from_pretrained(name, **options).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
image = Image.open(picture)
with torch.no_grad():
    outputs = model(**processor(images=image, text=["red apple", "kite"]))
(found,) = processor.post_process_grounded_object_detection(outputs, threshold=0, target_sizes=[image.size[::-1]])
detector = pipeline("zero-shot-object-detection", model=name, **options)
assert detector(image, candidate_labels=["kite"], threshold=0.0)
torch.save([found["boxes"], found["scores"]], out)
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.slow
def test_the_hub_has_all_that_a_stranger_needs(
    published_folder: Path, tmp_path: Path, noise: Callable[[int, int], Image.Image]
) -> None:
    repository = tmp_path / "home/hub/models--owner--glip"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(published_folder, snapshot)
    add_remote_code(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    picture, out = tmp_path / "picture.png", tmp_path / "found.pt"
    noise(152, 96).save(picture)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, "owner/glip", str(picture), str(out)],
        env=kept | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (expected,) = GLIPPredictor.from_pretrained(published_folder).predict(str(picture), ["red apple", "kite"])
    boxes, scores = torch.load(out, weights_only=True)
    torch.testing.assert_close(boxes, expected.boxes_xyxy, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-4)


def test_the_code_names_no_package_of_ours() -> None:
    code = modules()
    assert {entrance.split(".")[0] + ".py" for entrance in ENTRANCES.values()} <= set(code)
    for name, source in code.items():
        imports = [line.split()[1] for line in source.splitlines() if line.lstrip().startswith(("from ", "import "))]
        assert not [each for each in imports if each.split(".")[0] == "glip_model"], name
        relative = [each.removeprefix(".") for each in imports if each.startswith(".")]
        assert {f"{each}.py" for each in relative} <= set(code), name


def test_a_folder_of_before_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"processor_config.json: cannot be read .* expected a model's folder, written"
    ):
        add_remote_code(tmp_path)
