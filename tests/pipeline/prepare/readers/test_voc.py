"""Boxes in XML: Pascal VOC, what labelling tools make of it, ImageNet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import BOXES_FROM_POLYGONS, NAMES_NOT_UTF8, Converted, DroppedBox, SourceContext, Url
from pipeline.prepare.readers import voc
from pipeline.prepare.readers.coco import read_coco_detection
from pipeline.prepare.readers.voc import parse_voc, read_imagenet_boxes, read_pascal_voc
from pipeline.store.records import DetectionRecord

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
Read = Callable[..., list[Any]]
Encode = Callable[..., bytes]


SIDES = ("xmin", "ymin", "xmax", "ymax")


def xml(*objects: tuple[str, Any], name: str = "a.jpg", size: str = "") -> str:
    boxes = "".join(
        f"<object><name>{label}</name><pose>Left</pose><difficult>1</difficult><part><name>head</name></part>"
        + "<bndbox>"
        + "".join(
            f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False)
        )
        + "</bndbox></object>"
        for label, box in objects
    )
    return f"<annotation><folder>VOC2012</folder><filename>{name}</filename>{size}{boxes}</annotation>"


SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


class Voc:
    """A data set in VOC's folders."""

    def __init__(self, folder: Path, picture: Encode) -> None:
        self.folder, self.picture = folder, picture
        for name in ("Annotations", "JPEGImages"):
            (folder / name).mkdir()

    def write(self, stem: str, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        (self.folder / "Annotations" / f"{stem}.xml").write_bytes(data)
        (self.folder / "JPEGImages" / f"{stem}.jpg").write_bytes(self.picture())

    @property
    def options(self) -> dict[str, Url]:
        return {"annotations": Url(self.folder / "Annotations"), "images": Url(self.folder / "JPEGImages")}


@pytest.fixture
def data(tmp_path: Path, picture: Encode) -> Voc:
    return Voc(tmp_path, picture)


def test_corners_count_pixels_from_one(data: Voc, context: SourceContext, read_rows: Read) -> None:
    data.write("a", xml(("dog", (1, 1, 40, 30)), ("cat", (5.4, 6, 10, 12))))
    (table,) = read_pascal_voc(context, **data.options)
    assert [category.name for category in table.categories] == ["cat", "dog"]
    (record,) = read_rows(table)
    assert isinstance(record, DetectionRecord)
    assert [(item.category_id, item.xyxy) for item in record.objects] == [
        (2, (0.0, 0.0, 40.0, 30.0)),
        (1, (pytest.approx(4.4), 5.0, 10.0, 12.0)),
    ]
    (table,) = read_pascal_voc(context, **data.options, one_based=False)
    assert read_rows(table)[0].objects[0].xyxy == (1.0, 1.0, 40.0, 30.0)


def test_a_split_and_a_vocabulary_choose(data: Voc, context: SourceContext, read_rows: Read) -> None:
    for stem in ("b", "a", "c"):
        data.write(stem, xml(("dog", (1, 1, 20, 20)), ("cat", (1, 1, 20, 20)), name=f"{stem}.jpg"))
    (data.folder / "train.txt").write_text("c  1\na -1\nb  1\n")
    (table,) = read_pascal_voc(context, **data.options, split=Url(data.folder / "train.txt"), names=("cat",))
    for rows_per_part in (1, 10):
        rows = read_rows(table, rows_per_part)
        assert rows[0] == DroppedBox("c", "category_unknown")
        assert [len(row.objects) for row in rows[1::2]] == [1, 1]
    (data.folder / "train.txt").write_text("c\nabsent\n")
    (table,) = read_pascal_voc(context, **data.options, split=Url(data.folder / "train.txt"))
    found, absent = read_rows(table)
    assert (len(found.objects), absent.reason) == (2, "row_malformed")
    (data.folder / "train.txt").write_text("../../secret\n")
    with pytest.raises(MissingInputError, match=r"expected a list of file names without suffix, found"):
        read_pascal_voc(context, **data.options, split=Url(data.folder / "train.txt"))


@pytest.mark.parametrize("name", ["a.jpg", "renamed.png", "", "a", "../../etc/a.jpg"])
def test_a_picture_is_found_by_the_name_of_its_file(
    name: str, data: Voc, context: SourceContext, read_rows: Read
) -> None:
    data.write("a", xml(name=name))
    (table,) = read_pascal_voc(context, **data.options, names=("dog",))
    (row,) = read_rows(table)
    if ".." in name:
        assert row.reason == "image_outside_folder"
    else:
        assert isinstance(row, DetectionRecord)


BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>",
        "no xml",
        b"\xff\xfe\x00",
        "<a></b>",
        BOMB + "<annotation>&b;</annotation>",
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
        "<html><body/></html>",
    ],
)
def test_broken_and_hostile_files_are_rejects(
    text: str | bytes, data: Voc, context: SourceContext, read_rows: Read
) -> None:
    data.write("a", text)
    data.write("b", xml(("dog", (1, 1, 20, 20)), name="b.jpg"))
    (table,) = read_pascal_voc(context, **data.options)
    reject, record = read_rows(table)
    assert (reject.reason, len(record.objects)) == ("row_malformed", 1)


def test_an_annotation_may_be_in_a_namespace(data: Voc, context: SourceContext, read_rows: Read) -> None:
    text = xml(("dog", (1, 1, 20, 20)), name="b.jpg")
    data.write("b", text.replace("<annotation>", '<annotation xmlns="http://www.example.org/voc">', 1))
    (table,) = read_pascal_voc(context, **data.options)
    (record,) = read_rows(table)
    assert [item.xyxy for item in record.objects] == [(0, 0, 20, 20)]


def test_bad_boxes_are_dropped(
    data: Voc, context: SourceContext, read_rows: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.write("a", xml(("dog", (1, 1)), ("dog", ("x", 1, 9, 9)), ("dog", (9, 9, 1, 1)), size=SIZE))
    (table,) = read_pascal_voc(context, **data.options)
    *dropped, record = read_rows(table, pictures="unread")
    assert [row.reason for row in dropped] == ["box_malformed", "box_malformed", "box_degenerate"]
    assert (record.height, record.width) == (30, 40)
    monkeypatch.setattr(voc, "MAX_XML_BYTES", 50)
    assert read_rows(table)[0].reason == "row_malformed"


def test_imagenet_names_its_synsets(tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read) -> None:
    (tmp_path / "synsets.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n")
    for wnid in ("n01440764", "n01443537"):
        (tmp_path / "Annotation" / wnid).mkdir(parents=True)
        (tmp_path / "train" / wnid).mkdir(parents=True)
        name = f"{wnid}_18"
        (tmp_path / "Annotation" / wnid / f"{name}.xml").write_text(xml((wnid, (0, 2, 30, 20)), name=name))
        (tmp_path / "train" / wnid / f"{name}.JPEG").write_bytes(picture())
    folders = {"annotations": Url(tmp_path / "Annotation"), "images": Url(tmp_path / "train")}
    (table,) = read_imagenet_boxes(context, **folders, synsets=Url(tmp_path / "synsets.txt"))
    names = {category.id: category.name for category in table.categories}
    rows = read_rows(table)
    assert [[names[item.category_id] for item in row.objects] for row in rows] == [["tench"], ["goldfish"]]
    assert rows[0].objects[0].xyxy == (0.0, 2.0, 30.0, 20.0)
    (tmp_path / "synsets.txt").write_text("\n")
    with pytest.raises(MissingInputError, match="expected lines such as"):
        read_imagenet_boxes(context, **folders, synsets=Url(tmp_path / "synsets.txt"))


@given(st.binary(max_size=60) | st.text(st.sampled_from("<>/abx=\"'&;! "), max_size=40).map(str.encode))
def test_any_bytes_are_a_tree_or_a_value_error(data: bytes) -> None:
    try:
        expected = ElementTree.tostring(ElementTree.fromstring(data))
    except (ElementTree.ParseError, ValueError, LookupError):
        expected = None
    try:
        assert ElementTree.tostring(parse_voc(data)) == expected
    except ValueError:
        assert expected is None or b"<!" in data


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real samples are not here: {SHARED}")
def test_real_photographs_have_the_boxes_of_a_plain_loop(context: SourceContext, read_rows: Read) -> None:
    folder = SHARED / "raccoon_voc"
    (table,) = read_pascal_voc(context, annotations=Url(folder / "annotations"), images=Url(folder / "images"))
    found = {row.key: [item.xyxy for item in row.objects] for row in read_rows(table)}
    assert len(found) == 40
    expected = []
    for path in sorted((folder / "annotations").glob("*.xml")):
        boxes = ElementTree.parse(path).getroot().iter("bndbox")
        expected.append([tuple(float(side.text or "") for side in box) for box in boxes])
    for boxes, plain in zip(found.values(), expected, strict=True):
        for (x1, y1, x2, y2), (left, top, right, bottom) in zip(boxes, plain, strict=True):
            assert abs(x1 - max(left - 1, 0)) < 1e-3
            assert abs(y1 - max(top - 1, 0)) < 1e-3
            assert x2 <= right
            assert y2 <= bottom


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real samples are not here: {SHARED}")
def test_one_data_set_reads_alike_from_coco_and_voc(context: SourceContext, boxes_by_picture: Any) -> None:
    folder = SHARED / "voc_100_formats"
    sizes = json.loads((folder / "sizes.json").read_text())
    (by_coco,) = read_coco_detection(
        context, annotations=Url(folder / "coco_format_v1/instances_default.json"), images=Url("/nowhere")
    )
    (by_voc,) = read_pascal_voc(
        context, annotations=Url(folder / "pascalvoc_format"), images=Url("/nowhere"), one_based=False
    )

    coco, pascal = boxes_by_picture(by_coco), boxes_by_picture(by_voc)
    assert coco.keys() == pascal.keys() == sizes.keys()
    assert coco == pascal


DOG, PEDESTRIAN, RARE = "犬", "行人", "瑫"  # the last is in GBK and not in GB2312
DECLARATION = '<?xml version="1.0" encoding="{}"?>\n'


@pytest.mark.parametrize(
    ("name", "encoding", "declared", "is_guess"),
    [
        (DOG, "gb2312", "gb2312", False),
        (DOG, "gbk", "GBK", False),
        (RARE, "gbk", "gb2312", False),
        (PEDESTRIAN, "gb18030", "gb18030", False),
        (DOG, "utf-8", "gb2312", True),
        (DOG, "gb2312", None, True),  # C8 AE, which is a Latin letter with a dot in UTF-8
        (PEDESTRIAN, "gb2312", None, True),
        (RARE, "gbk", None, True),
        (DOG, "gbk", "utf-8", True),
        (DOG, "utf-8", None, False),
        (DOG, "utf-8-sig", "utf-8", False),
        (DOG, "utf-16", "utf-16", False),
        (DOG, "big5", "big5", False),
        ("いぬ", "shift_jis", "Shift_JIS", False),
        ("être", "latin-1", None, True),
        ("être", "latin-1", "iso-8859-1", False),
        ("naïf", "cp1252", "utf-8", True),
        ("café", "utf-8", None, False),
        ("hươu", "utf-8", None, False),
        ("пёс", "utf-8", None, False),
        ("dog", "ascii", "us-ascii", False),
    ],
)
def test_names_are_read_in_the_encoding_that_the_file_has(
    name: str,
    encoding: str,
    declared: str | None,
    is_guess: bool,
    data: Voc,
    context: SourceContext,
    read_rows: Read,
) -> None:
    text = (DECLARATION.format(declared) if declared else "") + xml((name, (1, 1, 20, 20)))
    data.write("a", text.encode(encoding))
    (table,) = read_pascal_voc(context, **data.options)
    assert [category.name for category in table.categories] == [name]
    record, *told = read_rows(table)
    assert len(record.objects) == 1
    assert told == ([Converted("a", NAMES_NOT_UTF8)] if is_guess else [])


@pytest.mark.parametrize(
    "head", [DECLARATION.format("klingon"), DECLARATION.format("zlib"), "", "<?xml encoding='x'?>"]
)
def test_xml_in_no_known_encoding_is_a_reject(head: str, data: Voc, context: SourceContext, read_rows: Read) -> None:
    data.write("a", head.encode() + b"<annotation><name>\x81\xff</name></annotation>")
    (table,) = read_pascal_voc(context, **data.options, names=("dog",))
    assert [row.reason for row in read_rows(table)] == ["row_malformed"]


@pytest.mark.parametrize(
    "name",
    ["pictures\\b.jpg", "C:\\Users\\x\\b.jpg", "C:/Users/x/b.jpg", "\\\\server\\x\\b.jpg", "..\\x\\b.jpg", "\\b.jpg"],
)
def test_paths_of_windows_lead_to_the_name_at_their_end(
    name: str, data: Voc, context: SourceContext, read_rows: Read
) -> None:
    data.write("a", xml(name=name))
    (data.folder / "JPEGImages" / "a.jpg").rename(data.folder / "JPEGImages" / "b.jpg")
    (table,) = read_pascal_voc(context, **data.options, names=("dog",))
    (row,) = read_rows(table, pictures="reference")
    assert row.image.path == str(data.folder / "JPEGImages" / "b.jpg")


def test_a_path_of_windows_below_the_folder_goes_first(
    data: Voc, context: SourceContext, read_rows: Read, picture: Encode
) -> None:
    data.write("b", xml(name="old\\b.jpg"))
    (data.folder / "JPEGImages" / "old").mkdir()
    (data.folder / "JPEGImages" / "old" / "b.jpg").write_bytes(picture())
    (table,) = read_pascal_voc(context, **data.options, names=("dog",))
    (row,) = read_rows(table, pictures="reference")
    assert row.image.path == str(data.folder / "JPEGImages" / "old" / "b.jpg")


@pytest.mark.parametrize(
    ("polygon", "box"),
    [
        ("<x1>3</x1><y1>4</y1><x2>21</x2><y2>5</y2><x3>9</x3><y3>17.5</y3>", (2, 3, 21, 17.5)),
        ("<pt><x>3</x><y>4</y></pt><pt><x>21</x><y>17</y></pt><username>x</username>", (2, 3, 21, 17)),
        ("<x1>3</x1><y1>4</y1><x2>21</x2>", None),
        ("<x1>3</x1><y1>four</y1>", None),
        ("<x1>nan</x1><y1>4</y1>", None),
        ("", None),
    ],
)
def test_the_box_of_an_object_that_is_a_polygon_lies_around_it(
    polygon: str, box: Any, data: Voc, context: SourceContext, read_rows: Read
) -> None:
    content = f"<annotation><object><name>dog</name><polygon>{polygon}</polygon></object></annotation>"
    data.write("a", content)
    (table,) = read_pascal_voc(context, **data.options)
    first, second = (*read_rows(table), None)[:2]
    if box is None:
        assert (first, second.objects) == (DroppedBox("a", "box_malformed"), ())
    else:
        assert first.objects[0].xyxy == box
        assert second == Converted("a", BOXES_FROM_POLYGONS)


def test_a_byte_order_mark_settles_the_encoding() -> None:
    notes: set[str] = set()
    root = parse_voc(b"\xef\xbb\xbf<annotation><name>caf\xc3\xa9</name></annotation>", notes)
    assert (root.findtext("name"), notes) == ("café", set())
    assert parse_voc(b"\xef\xbb\xbf<annotation><name>dog</name></annotation>", notes).findtext("name") == "dog"
    assert not notes
