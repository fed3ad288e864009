"""What the code behind a shard is: the modules that its imports lead to, without comments and layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import MissingInputError
from pipeline.evaluation.benchmark import predict_shard
from pipeline.phrases.noun_phrases import NounPhraseParser
from pipeline.prepare.parts import write_part
from pipeline.prepare.sources import READERS
from pipeline.store import provenance
from pipeline.store.provenance import code_sha256, modules_behind

WORK = '''
"""What it is."""
from toy.sub.tables import ROWS
def double(x):
    """Twice."""
    # really
    return 2 * x
'''
MODULES = {
    "__init__": "",
    "work": WORK,
    "sub/__init__": "",
    "sub/tables": "import toy.limits as limits\nROWS = limits.MOST",
    "limits": "MOST = 3\ndef read():\n    from toy.late import LATE\n    return LATE",
    "late": "from toy import work\nLATE = 1",  # a circle
    "other": "OTHER = 1",
}


@pytest.fixture
def digest_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], str]:
    """Give a function that writes a package, some of its modules changed, and hashes the code behind one of them."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(provenance, "PACKAGES", ("toy",))

    def digest(changed: dict[str, str]) -> str:
        for name, text in {**MODULES, **changed}.items():
            path = tmp_path / "toy" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return code_sha256(["toy.work"])

    return digest


Digest = Callable[[dict[str, str]], str]


def test_comments_and_docstrings_leave_the_hash_of_the_code(digest_of: Digest) -> None:
    same = "from toy.sub.tables import ROWS\ndef double(x):\n    '''Doubled…'''\n    return (2 *\n        x)\n"
    assert digest_of({}) == digest_of({"work": same})
    for name, text in MODULES.items():
        assert digest_of({}) == digest_of({name: f'"""Says what it is."""\n\n{text}  # and why\n'}), name


def test_code_that_does_something_else_has_another_hash(digest_of: Digest) -> None:
    assert digest_of({}) != digest_of({"work": WORK.replace("2 * x", "3 * x")})


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("sub/tables", MODULES["sub/tables"] + "\nMORE = 1"),
        ("limits", MODULES["limits"].replace("3", "4")),
        ("late", MODULES["late"].replace("LATE = 1", "LATE = 2")),
    ],
)
def test_a_changed_constant_in_what_is_imported_changes_the_hash(digest_of: Digest, module: str, text: str) -> None:
    assert digest_of({}) != digest_of({module: text})


def test_what_nobody_imports_leaves_the_hash(digest_of: Digest) -> None:
    assert digest_of({}) == digest_of({"other": "OTHER = 2", "sub/__init__": "A = 1"})


def test_a_name_taken_from_the_package_leads_to_where_the_package_has_it_from(digest_of: Digest) -> None:
    package = "if TYPE_CHECKING:\n    from toy.other import OTHER\ndef __getattr__(name): ..."
    modules = {"__init__": package, "work": "from toy import OTHER"}
    assert digest_of(modules) != digest_of({**modules, "other": "OTHER = 2"})
    assert digest_of({"__init__": package}) == digest_of({"__init__": package, "other": "OTHER = 2"})


def test_hash_of_code_does_not_depend_on_the_order_of_roots(digest_of: Digest) -> None:
    digest_of({})
    assert code_sha256(["toy.work", "toy.other"]) == code_sha256(["toy.other", "toy.work"])
    assert code_sha256(["toy.work", "toy.other"]) != code_sha256(["toy.work"])


@pytest.mark.parametrize("name", ["no_such_package", "toy.absent", "sys"])
def test_a_root_without_source_is_named(digest_of: Digest, name: str) -> None:
    digest_of({})
    with pytest.raises(MissingInputError, match=f"{name}: no such module"):
        code_sha256([name])


@pytest.mark.parametrize("root", [NounPhraseParser, predict_shard, write_part, *READERS.values()])
def test_work_depends_on_no_command_and_on_no_ray(root: Callable[..., object]) -> None:
    names = set(modules_behind([root]))
    assert root.__module__ in names
    assert not [
        name for name in names if name.endswith((".job", ".cli", "ray_session", "store.resume", "pipeline.settings"))
    ]


def test_a_part_depends_on_its_own_reader_alone() -> None:
    voc = set(modules_behind([write_part, READERS["pascal_voc"]]))
    readers = {name for name in voc if name.startswith("pipeline.prepare.readers.")}
    shared = "pipeline.prepare.readers.lines"  # how all of them open texts
    assert readers == {"pipeline.prepare.readers.voc", shared}
