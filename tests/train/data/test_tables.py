"""Tables of files and labels: the bits of the folder, columns by their names, several labels, errors by line."""

import numpy as np
import pytest

from models.errors import UserError
from tests.train.data.packed import images, opened, png, same, write_folder
from train.data.sources import kept, table_rows


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "set", images())


def table(root, *rows, name="labels.csv", encoding="utf-8"):
    (root / name).write_bytes("\n".join(rows).encode(encoding))
    return f"csv:{root}/{name}"


def rows(sign=",", names=()):
    return [f"{name}{sign}{name.split('/')[0]}" for name in names or images()]


def whole(source):
    """Returns all rows of a table, before a fifth is held out."""
    return source.source


@pytest.mark.parametrize("split", ["train", "test", "train_fit", "validation"])
def test_a_table_gives_the_bits_of_the_folder(root, split):
    same(opened(table(root, "path,label", *rows()), split), opened(f"folder:{root}", split))


@pytest.mark.parametrize(
    "head, sign, name, encoding",
    [
        ("path,label", ",", "a.csv", "utf-8"),
        ("Label;File Name;file_name", ";", "a.csv", "utf-8-sig"),
        ("filename\tclass", "\t", "a.tsv", "utf-8"),
        ("IMAGE\tcategory", "\t", "a.txt", "utf-8-sig"),
        ('"image_path","target"', ",", "a.csv", "utf-8"),
    ],
)
def test_columns_are_found_by_their_names(root, head, sign, name, encoding):
    lines = rows(sign)
    if head.startswith("Label"):
        lines = [f"{line.split(sign)[1]};x y;{line.split(sign)[0]}" for line in lines]
    if head.startswith('"'):
        lines = ['"' + line.replace(",", '","') + '"' for line in lines]
    same(opened(table(root, head, *lines, "", name=name, encoding=encoding)), opened(f"folder:{root}"))


def test_columns_and_the_folder_can_be_named(root):
    lines = [f"{number},{line.partition('/')[0]},{line.partition('/')[2]}" for number, line in enumerate(rows())]
    lines = [f"{a},{c.split(',')[0]},{b}" for a, b, c in (line.split(",", 2) for line in lines)]
    for name in ("cat", "dog", "eel"):
        mine = [line for line in lines if line.endswith(name)]
        source = table(root, "label,photo,kind of animal", *mine, name=f"{name} (1).csv")
        source = opened(f"{source}(path=photo, label='kind of animal', folder={name})")
        assert whole(source).count == 7 and source.classes == (name,)
    with pytest.raises(UserError, match="unknown column label 'knd'; allowed: label, photo, kind of animal"):
        opened(f"csv:{root}/cat (1).csv(path=photo, label=knd)")
    with pytest.raises(UserError, match=r"data.source csv: .*usage: csv\(path: str"):
        opened(f"csv:{root}/cat (1).csv(paths=photo)")


def test_a_column_of_splits(root):
    parts = ["train", "Training", "val", "test", "extra", "train", "train"] * 3
    source = table(
        root, "path,split,label", *[f"{n},{p},{n.split('/')[0]}" for n, p in zip(images(), parts, strict=True)]
    )
    sizes = {split: len(opened(source, split)) for split in ("train", "test", "validation", "extra", "train_fit")}
    assert sizes == {"train": 12, "test": 3, "validation": 3, "extra": 3, "train_fit": 12}
    with pytest.raises(UserError, match="unknown split of table .*labels.csv 'tset'; did you mean 'test'"):
        opened(source, "tset")


@pytest.mark.parametrize(
    "column, sign", [("label", "|"), ("label", ";"), ("tags", " "), ("labels", ","), ("tags(separator)", "+")]
)
def test_several_labels_in_a_cell(root, column, sign):
    names = list(images())
    cells = [sign.join(["cat"] * (i % 2) + ["dog"] * (i % 3 == 0) + ["eel"]) for i in range(len(names))]
    column, _, chosen = column.partition("(")
    source = table(root, f"path,{column}", *[f'{name},"{cell}"' for name, cell in zip(names, cells, strict=True)])
    source = whole(opened(source + f"(separator='{sign}')" * bool(chosen)))
    assert source.classes == ("cat", "dog", "eel") and source.label_shape == (3,)
    expected = [[i % 2, int(i % 3 == 0), 1] for i in range(len(names))]
    assert source.all_labels().tolist() == expected and source.all_labels().dtype == np.int32
    assert source.read([5, 3])["label"].tolist() == [expected[5], expected[3]]
    assert "21 images with 3 classes, several per image" in source.report


def test_a_column_per_class(root):
    names = list(images())
    cells = [f"{i % 2},{(1, 0, -1)[i % 3]}.0" for i in range(len(names))]
    source = whole(opened(table(root, "image,old car,bus", *[f"{n},{c}" for n, c in zip(names, cells, strict=True)])))
    assert source.classes == ("old car", "bus") and source.label_shape == (2,)
    assert source.all_labels().tolist() == [[i % 2, (1, 0, -1)[i % 3]] for i in range(len(names))]


def test_labels_that_are_numbers_are_in_their_order(root):
    names = list(images())[:12]
    source = opened(table(root, "path,label", *[f"{name},{number}" for number, name in enumerate(names, 1)] * 2))
    assert source.classes == tuple(map(str, range(1, 13)))


def test_names_without_endings_and_absolute_names(root, tmp_path):
    names = [name.removesuffix(".png") for name in images()]
    short = opened(table(root, "ImageId,breed", *rows(names=names)))
    same(short, opened(f"folder:{root}"))
    absolute = opened(table(tmp_path, "path,label", *[f"{root}/{row}" for row in rows()]))
    assert whole(absolute).arrays()["image"].shape == (21, 8, 8, 3)
    before = absolute.identity()
    (root / "cat" / "0.png").write_bytes(png(99) + b" ")
    assert opened(f"csv:{tmp_path}/labels.csv").identity() != before


GOOD = tuple(rows())


@pytest.mark.parametrize(
    "lines, message",
    [
        ([], "it is empty"),
        (["path,label"], "it has no rows below its header"),
        (GOOD, r"it has no header: its first line is cat/0.png, cat; write a line .* path,label, above"),
        (["a,b", *GOOD], r"none of its columns, a, b, is known to hold files: add \(path=COLUMN\)"),
        (["path,b", *GOOD], r"none of its columns, path, b, is known to hold labels: add \(label=COLUMN\)"),
        (["path", "cat/0.png"], "none of its columns, path, is known to hold labels"),
        (["path,label", *GOOD, "cat/1.png"], r"labels.csv: line 23 has 1 cells; allowed: 2 or more"),
        (["path,label", "", *GOOD, "cat/1.png, "], "labels.csv: line 24 has no label"),
        (["path,label", *GOOD, ",cat"], "line 23 has no path"),
        (["path,label,split", "cat/0.png,cat,"], "line 2 has no split"),
        (["path,cat,dog", "cat/0.png,0,1", "cat/1.png,0,2"], "line 3 has '2' in a column of 0 and 1"),
        (["path,cat,dog", "cat/0.png,0,1", "cat/1.png,0,"], "line 3 has no label"),
        (["path,label", *GOOD, 'cat/"0".png,"cat'], "labels.csv: line 2"),
        (["path,label", *GOOD, "cat/none.png,cat"], r"line 23: there is no file .*set/cat/none.png"),
        (
            ["path,label,split", "cat/0.png,cat,train", "dog/0.png,dog,train", "cat/1.png,catt,test"],
            "line 4: no training image has the label 'catt'; did you mean 'cat'",
        ),
    ],
)
def test_bad_tables_are_refused_by_line(root, lines, message):
    with pytest.raises(UserError, match=message) as error:
        opened(table(root, *lines))
    assert "\n" not in str(error.value) and "labels.csv" in str(error.value)


def test_other_encodings_and_names_are_refused(root):
    with pytest.raises(UserError, match="it is not a table in UTF-8; save it as UTF-8"):
        opened(table(root, "path,label", *GOOD, encoding="utf-16"))
    with pytest.raises(UserError, match="there is no such file"):
        opened(f"csv:{root}/none.csv")
    with pytest.raises(UserError, match="must be a file .csv or .tsv"):
        opened(f"csv:{root}")


def test_a_table_is_kept_and_read_again_when_it_changes(root, cache, monkeypatch):
    monkeypatch.setattr(kept, "LEAST", 1)
    source = table(root, "path,label", *GOOD)
    first = opened(source)
    assert len(list(cache.iterdir())) == 1
    reads = []
    read = table_rows._read
    monkeypatch.setattr(table_rows, "_read", lambda *arguments: reads.append(1) or read(*arguments))
    same(opened(source), first)
    assert not reads
    table(root, "path,label", *GOOD[:18])
    assert whole(opened(source)).count == 18 and reads
