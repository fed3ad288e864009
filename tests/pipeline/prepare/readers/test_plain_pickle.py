from __future__ import annotations

import contextlib
import copyreg
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import MissingInputError
from pipeline.prepare.readers.plain_pickle import (
    MAX_CONTAINERS,
    MAX_DEPTH,
    PickleRefusedError,
    load_plain_pickle,
    parse_plain_pickle,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**300), 2**300)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=20,
)

# As Python 2 writes them: byte strings and unicode side by side, whole numbers as int and long, None and booleans.
PYTHON_2_TEXT = b"""(lp1
(dp2
S'sent_ids'
p3
(lp4
I0
aL581857L
asS'split'
p5
S'train'
p6
sS'raw'
p7
S'it\\'s "a" caf\\xc3\\xa9\\n'
p8
sS'sent'
p9
V\\u2013 unicode
p10
sS'double'
p11
S"boy's"
p12
sS'latin'
p13
S'caf\\xe9'
p14
sS'box'
p15
(F1.5
I-2
tp16
sS'flags'
p17
(lp18
I01
aI00
aNasS'again'
p19
g6
sa."""
PYTHON_2_BINARY = (
    b"\x80\x02]q\x01}q\x02(U\x08sent_idsq\x03]q\x04(K\x00M\x01\x02J\xff\xff\xff\xff\x8a\x04\xe1\xe0\x08\x00e"
    b"U\x03rawq\x05T\x05\x00\x00\x00caf\xc3\xa9q\x06U\x05latinq\x07U\x04caf\xe9q\x08"
    b"U\x04sentq\x09X\x06\x00\x00\x00\xe2\x80\x93 abq\nU\x03boxq\x0bG?\xf8\x00\x00\x00\x00\x00\x00N\x86q\x0c"
    b"U\x05againq\rh\x05U\x04flagq\x0e\x88ua."
)


@given(value=PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_come_back_from_every_protocol(value: Any, protocol: int) -> None:
    read = parse_plain_pickle(pickle.dumps(value, protocol))
    assert read == value
    assert repr(read) == repr(value)  # True is not 1, nor [] ()


def test_text_protocol_of_python_2() -> None:
    assert parse_plain_pickle(PYTHON_2_TEXT) == [
        {
            "sent_ids": [0, 581857],
            "split": "train",
            "raw": 'it\'s "a" café\n',
            "sent": "– unicode",
            "double": "boy's",
            "latin": "café",
            "box": (1.5, -2),
            "flags": [True, False, None],
            "again": "train",
        }
    ]


def test_binary_protocol_of_python_2() -> None:
    assert parse_plain_pickle(PYTHON_2_BINARY) == [
        {
            "sent_ids": [0, 513, -1, 581857],
            "raw": "café",
            "latin": "café",
            "sent": "– ab",
            "box": (1.5, None),
            "again": "raw",
            "flag": True,
        }
    ]


@pytest.mark.parametrize("data", [PYTHON_2_TEXT, PYTHON_2_BINARY], ids=["text", "binary"])
def test_every_beginning_of_a_pickle_is_refused_as_cut_off(data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(PickleRefusedError):
            parse_plain_pickle(data[:size])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(PickleRefusedError):
        parse_plain_pickle(data)


@given(
    data=st.sampled_from([PYTHON_2_TEXT, PYTHON_2_BINARY, pickle.dumps([{"a": ("b", 1.0)}] * 3, 4)]),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_damaged_pickles_are_read_or_refused(data: bytes, edits: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for place, value in edits:
        damaged[place % len(data)] = value
    with contextlib.suppress(PickleRefusedError):
        parse_plain_pickle(bytes(damaged))


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [{"sentences": [{"sent": x}]}], lambda x: ("a", x)])
def test_calls_are_refused_and_not_made(wrap: Callable[[Any], Any], protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    calls = (Call(os.system, f"touch {mark}"), Call(eval, f"open({str(mark)!r}, 'w')"), Call(Path.touch, mark))
    for call in calls:
        data = pickle.dumps(wrap(call), protocol)
        with pytest.raises(PickleRefusedError, match="opcode"):
            parse_plain_pickle(data)
        assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "opcode"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "GLOBAL"),
        (b"(S'true'\nios\nsystem\n.", "INST"),
        (b"(cos\nsystem\nS'true'\no.", "GLOBAL"),
        (b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "STACK_GLOBAL"),
        (b"S'print'\n(S'x'\ntR.", "REDUCE"),
        (b"]}b.", "BUILD"),
        (b"S'x'\n)\x81.", "NEWOBJ"),
        (b"S'x'\n)}\x92.", "NEWOBJ_EX"),
        (b"(S'x'\no.", "OBJ"),
        (b"P123\n.", "PERSID"),
        (b"S'123'\nQ.", "BINPERSID"),
        (b"\x82\x01.", "EXT1"),
        (b"\x83\x01\x00.", "EXT2"),
        (b"\x84\x01\x00\x00\x00.", "EXT4"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"C\x01a.", "SHORT_BINBYTES"),
        (b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "BYTEARRAY8"),
        (b"\x8f.", "EMPTY_SET"),
        (b"\x8b\xff\xff\xff\x7f.", "LONG4"),
        (b"\xff.", "number 255"),
    ],
)
def test_opcodes_that_plain_values_do_not_need_are_named(data: bytes, opcode: str) -> None:
    with pytest.raises(PickleRefusedError, match=f"opcode {opcode}, which plain values do not need"):
        parse_plain_pickle(data)


def test_registered_extensions_are_refused_though_python_knows_them() -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        pickle.loads(b"\x82\xf0.")  # now it is in Python's cache, where no find_class is asked
        with pytest.raises(PickleRefusedError, match="EXT1"):
            parse_plain_pickle(b"\x82\xf0(S'true'\ntR.")
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_persistent_ids_are_refused() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return "file:///etc/passwd" if value == "secret" else None

    for protocol in PROTOCOLS:
        out = io.BytesIO()
        Pickler(out, protocol).dump(["secret"])
        with pytest.raises(PickleRefusedError, match="PERSID"):
            parse_plain_pickle(out.getvalue())


def test_billion_laughs_are_refused() -> None:
    laughs: list[Any] = ["ha"] * 10
    for _ in range(9):
        laughs = [laughs] * 10
    data = pickle.dumps(laughs, 2)
    assert len(data) < 1000
    with pytest.raises(PickleRefusedError, match="values and characters"):
        parse_plain_pickle(data)


def test_long_text_in_many_places_is_refused() -> None:
    with pytest.raises(PickleRefusedError, match="values and characters"):
        parse_plain_pickle(pickle.dumps(["a" * 100_000] * 10_000, 4))


def test_shared_values_are_read() -> None:
    shared = ["man", {"in": "black"}]
    assert parse_plain_pickle(pickle.dumps([shared, shared, (shared,)], 2)) == [shared, shared, (shared,)]


@pytest.mark.parametrize(
    "data",
    [
        b"]" * (MAX_CONTAINERS + 1) + b".",
        b"N" + b"\x85" * (MAX_CONTAINERS + 1) + b".",
        b"(" * 1000 + b"l" * 1000 + b".",
        b"]" * 1000 + b"a" * 999 + b".",
        b"N" + b"\x85" * 1000 + b".",
        b"]" * (MAX_DEPTH + 1) + b"a" * MAX_DEPTH + b".",
    ],
    ids=["many lists", "many tuples", "deep by marks", "deep by lists", "deep by tuples", "one too deep"],
)
def test_too_many_and_too_deep_lists_are_refused(data: bytes) -> None:
    with pytest.raises(PickleRefusedError, match="more than"):
        parse_plain_pickle(data)


def test_depth_is_counted_through_shared_values() -> None:
    chain: list[list[Any]] = [[]]
    for _ in range(1000):
        chain.append([chain[-1]])
    with pytest.raises(PickleRefusedError, match="inside one another"):
        parse_plain_pickle(pickle.dumps(chain, 2))


def test_a_list_may_be_as_deep_as_allowed() -> None:
    value: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert parse_plain_pickle(pickle.dumps(value)) == value


def test_values_that_hold_themselves_are_refused() -> None:
    itself: list[Any] = []
    itself += [itself, itself]
    key: dict[str, Any] = {}
    key["a"] = key
    for value in (itself, key):
        with pytest.raises(PickleRefusedError, match="inside one another"):
            parse_plain_pickle(pickle.dumps(value))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"]p-1\n.", "negative"),
        (b"X" + struct.pack("<I", 2**32 - 1) + b"a.", "broken"),
        (b"\x8d" + struct.pack("<Q", 2**63) + b"a.", "broken"),
        (b"I" + b"9" * 10_000 + b"\n.", "10000 digits"),
        (b"g" + b"9" * 10_000 + b"\n.", "broken"),
        (b"\x80\x06N.", "protocol: 6"),
        (b"}(K\x01K\x02u.", "key that is int"),
        (b"}K\x01K\x02s.", "key that is int"),
        (b"}N\x85\x85N\x85s.", "key that is tuple"),
        (b"}(S'a'\nu.", "broken"),
        (b"](K\x01K\x02u.", "items set in list"),
        (b"}K\x01a.", "no attribute 'append'"),
        (b"Sabc\n.", "must be quoted"),
        (b"S'\n.", "must be quoted"),
        (b"K\x01\x87.", "broken"),
        (b"h\x05.", "broken"),
        (b"X\x01\x00\x00\x00\xff.", "broken"),
        (b".", "broken"),
        (b"", "broken"),
        (b"t.", "broken"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, found: str) -> None:
    with pytest.raises(PickleRefusedError, match=found):
        parse_plain_pickle(data)


def test_a_far_place_in_the_memo_takes_no_memory() -> None:
    assert parse_plain_pickle(b"]r" + struct.pack("<I", 2**31 - 1) + b".") == []


def test_file_is_loaded_by_url(tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(PYTHON_2_TEXT)
    assert load_plain_pickle(f"file://{path}")[0]["split"] == "train"


def test_file_larger_than_the_limit_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(["a" * 100]))
    with pytest.raises(MissingInputError, match=r"refs\.p: .*larger than 50 bytes"):
        load_plain_pickle(str(path), max_bytes=50)


def test_message_of_a_refused_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(Call(os.system, "true"), 0))
    with pytest.raises(MissingInputError, match=r"refs\.p: expected a pickle of .* found: opcode GLOBAL.*fetch the"):
        load_plain_pickle(str(path))
    with pytest.raises(MissingInputError, match="no such file"):
        load_plain_pickle(str(tmp_path / "absent.p"))
