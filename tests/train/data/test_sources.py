"""Sources: digits, TFDS sets, folders and arrays; decoding and cropping; errors for bad input."""

import dataclasses
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from models.errors import UserError
from tests import tfds_sample
from tests.golden import FOLDER
from train.data.crops import central_box, random_box
from train.data.decode import Decoder
from train.data.load import load
from train.data.shuffle import philox
from train.data.source import Options, Unreadable
from train.data.sources.arrays import ArraySource

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "tfds"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
GOLDEN = np.load(FOLDER / "augment.npz")


def pictures(count: int, shape=(8, 8), seed=0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, *shape, 3), dtype=np.uint8))


# digits and arrays


def test_digits_have_a_fixed_stratified_split():
    train, test = (load(Options("digits"), split) for split in ("train", "test"))
    fit, validation = (load(Options("digits"), split) for split in ("train_fit", "validation"))
    assert (len(train), len(test), len(fit), len(validation)) == (1437, 360, 1149, 288)
    assert train.classes == tuple("0123456789") and train.image_shape == (8, 8, 1) and train.fixed_size
    counts = np.bincount(test.arrays()["label"])
    assert counts.min() >= 35 and counts.max() <= 37
    images = [{x.tobytes() for x in source.images} for source in (train, test, fit, validation)]
    assert not images[0] & images[1] and not images[2] & images[3] and images[2] | images[3] == images[0]
    assert train.images.max() == 255 and len(np.unique(train.images)) == 17
    # Recorded, so that results of different versions use the same test set.
    assert test.arrays()["label"][:10].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]
    with pytest.raises(UserError, match=r"unknown split of digits 'tset'; did you mean 'test'"):
        load(Options("digits"), "tset")


def test_arrays(tmp_path):
    images = np.stack(pictures(5))
    np.savez(tmp_path / "a.npz", train_image=images, train_label=np.arange(5), test_image=images[:2], test_label=[0, 1])
    source = load(Options(f"arrays:{tmp_path}/a.npz"), "train")
    example = source.example(3)
    assert (example["image"] == images[3]).all() and example["label"] == 3 and example["label"].dtype == np.int32
    assert len(load(Options(f"arrays:{tmp_path}/a.npz"), "test")) == 2
    with pytest.raises(UserError, match=r"unknown split of .* 'val'"):
        load(Options(f"arrays:{tmp_path}/a.npz"), "val")
    with pytest.raises(UserError, match=r"No such file"):
        load(Options(f"arrays:{tmp_path}/b.npz"), "train")
    np.savez(tmp_path / "c.npz", train_image=np.repeat(images, 4, 0), train_label=np.arange(20) // 4)
    parts = {name: load(Options(f"arrays:{tmp_path}/c.npz"), name) for name in ("train", "test")}
    assert [len(part) for part in parts.values()] == [16, 4] and len(parts["test"].classes) == 5
    with pytest.raises(UserError, match=r"images must be uint8 \[N, H, W, C\].*got float64 \[2, 4, 4\]"):
        ArraySource(np.zeros((2, 4, 4)), np.zeros(2))


# Options


@pytest.mark.parametrize(
    "change, message",
    [
        ({"source": "digit"}, "unknown data.source 'digit'; did you mean 'digits'"),
        ({"source": "tfds:"}, "unknown data.source 'tfds:'"),
        ({"crop": "random"}, "unknown data.crop 'random'; did you mean 'random_resized'"),
        ({"on_error": "ignore"}, "unknown data.on_error 'ignore'"),
        ({"image_size": 32}, "data.image_size=32 but its images are 8x8"),
        ({"image_size": -1}, "data.image_size=-1"),
        ({"eval_crop": 0.0}, "data.eval_crop=0.0"),
        ({"interpolation": "cubic"}, "unknown data.interpolation 'cubic'; did you mean 'bicubic'"),
        ({"crop_scale": (1.0, 0.5)}, r"data.crop_scale=\(1.0, 0.5\): must be .low, high. with 0 < low <= high <= 1.0"),
    ],
)
def test_wrong_options_are_named(change, message):
    with pytest.raises(UserError, match=message):
        load(dataclasses.replace(Options("digits"), **change), "train")


def test_options_are_read_by_attribute_and_none_is_skipped():
    class Section:
        def __init__(self):
            self.read = set()

        def __getattr__(self, name):
            self.read.add(name)
            return getattr(Options("digits"), name)

    section = Section()
    load(section, "train")
    assert section.read == {field.name for field in dataclasses.fields(Options)}


# Decoding


def jpeg(width: int, height: int) -> bytes:
    y, x = np.mgrid[:height, :width]
    image = np.stack([128 + 100 * np.sin(x / (40 + 9 * c) + y / (70 - 13 * c)) for c in range(3)], -1)
    return tfds_sample.encode(np.clip(image, 0, 255).astype(np.uint8), "JPEG")


@pytest.mark.parametrize("name", [name for name in GOLDEN.files if name.startswith("evaluation/")])
def test_evaluation_crop_is_torchvisions(name):
    crop, size, turned = name.split("/")[1].split(",") + [name.split("/")[2]]
    image = GOLDEN["image/3"].transpose(1, 0, 2) if int(turned) else GOLDEN["image/3"]
    ours = Decoder("resize", int(size), 3, eval_crop=float(crop))(tfds_sample.encode(image))
    difference = np.abs(ours.astype(int) - GOLDEN[name].astype(int))
    # PIL keeps a box in float32, and ties are frequent here
    assert difference.max() <= 1 and np.mean(difference) < 0.25


@pytest.mark.parametrize("turned", [1, 2, 6, 8])
@pytest.mark.parametrize("size,share", [(32, 0.875), (48, 1.0), (224, 0.9)])
def test_bicubic_evaluation_is_to_the_bit_that_of_pil(size, share, turned):
    """PIL resizes the whole picture, and the center is cropped, as torchvision and timm do; a JPEG is never reduced."""
    for width, height in ((900, 620), (333, 517), (70, 64), (41, 300)):
        exif = Image.Exif()
        exif[0x0112] = turned
        buffer = io.BytesIO()
        Image.open(io.BytesIO(jpeg(width, height))).save(buffer, "JPEG", quality=95, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(buffer))
        short = int(size / share)
        sides = [int(short * side / min(upright.size)) for side in upright.size]
        left, top = (round((side - size) / 2) for side in sides)
        whole = upright.resize(sides, Image.Resampling.BICUBIC)
        expected = np.asarray(whole.crop((left, top, left + size, top + size)))
        for crop in ("resize", "random_resized"):
            decoder = Decoder(crop, size, 3, eval_crop=share, interpolation="bicubic")
            np.testing.assert_array_equal(decoder(buffer.getvalue()), expected)
        squeezed = Decoder("whole", size, 3, interpolation="bicubic")(buffer.getvalue())
        np.testing.assert_array_equal(squeezed, upright.resize((size, size), Image.Resampling.BICUBIC))
        assert not np.array_equal(Decoder("resize", size, 3, eval_crop=share)(buffer.getvalue()), expected)


@pytest.mark.parametrize("width, height", [(200_000, 2), (3, 100_000)])
def test_bicubic_evaluation_of_a_very_long_picture_takes_no_memory(width, height):
    """Resized as a whole, it would have 2e9 pixels or more; only its crop is."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 200
    decoded = Decoder("resize", 224, 3, interpolation="bicubic")(pixels)
    assert decoded.shape == (224, 224, 3) and set(np.unique(decoded)) >= {0, 200}


def test_bicubic_training_crops_are_the_same_boxes():
    encoded = jpeg(300, 200)
    decoder = Decoder("random_resized", 64, 3, interpolation="bicubic")
    box = random_box(300, 200, philox(0, 5, 1), decoder.scale, decoder.ratio)
    full = Image.open(io.BytesIO(encoded)).convert("RGB")
    expected = full.resize((64, 64), Image.Resampling.BICUBIC, box=box)
    assert min(box[2] - box[0], box[3] - box[1]) < 128  # decoded in full
    np.testing.assert_array_equal(decoder(encoded, philox(0, 5, 1)), expected)


@pytest.mark.parametrize("width, height, size", [(900, 620, 64), (333, 517, 32), (70, 64, 64), (41, 1000, 24)])
def test_scaled_decoding_is_close_to_decoding_in_full(width, height, size):
    encoded = jpeg(width, height)
    full = Image.open(io.BytesIO(encoded)).convert("RGB")
    decoder = Decoder("random_resized", size, 3)
    for number in range(-1, 6):
        box, rng = central_box(width, height, size, 0.875), None
        if number >= 0:
            rng = philox(0, number, 1)
            box = random_box(width, height, philox(0, number, 1), decoder.scale, decoder.ratio)
        plain = np.asarray(full.resize((size, size), Image.Resampling.BILINEAR, box=box))
        difference = np.abs(decoder(encoded, rng).astype(int) - plain.astype(int))
        assert difference.mean() < 1 and np.quantile(difference, 0.99) <= 4, (box, difference.mean())


def test_random_crops_have_the_published_areas_and_aspects():
    boxes = np.array([random_box(200, 100, philox(0, i, 1), (0.08, 1.0), (3 / 4, 4 / 3)) for i in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 200 and boxes[:, 3].max() <= 100
    area, aspect = width * height / 20000, width / height
    assert 0.075 < area.min() < 0.1 and area.max() <= 4 / 3 * 100 * 100 / 20000 + 0.01
    assert 0.7 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.42
    # No crop of that area fits: the largest central one of an allowed aspect ratio.
    assert random_box(1000, 10, philox(0, 0, 1), (0.9, 1.0), (3 / 4, 4 / 3)) == (493, 0, 506, 10)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(mode, tmp_path):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(pictures(1)[0]).convert(mode).save(path)
    assert Decoder("resize", 4, 3)(path).shape == (4, 4, 3)
    assert Decoder("resize", 4, 1)(path).shape == (4, 4, 1)


# TFDS


@pytest.fixture
def tfds_dir(tmp_path):
    examples = [(tfds_sample.encode(image), i % 3) for i, image in enumerate(pictures(12))]
    tfds_sample.write(tmp_path, "insects", {"train": examples, "test": examples[:5]}, (8, 8))
    return tmp_path


def test_tfds_set_of_any_builder(tfds_dir):
    options = Options("tfds:insects", dir=str(tfds_dir), train_split="train[:75%]")
    source = load(options, "train")
    assert (len(source), source.classes, source.image_shape) == (9, ("ant", "bee", "cat"), (8, 8, 3))
    assert len(load(options, "test")) == 5 and len(load(options, "train[75%:]")) == 3
    arrays = source.arrays()
    np.testing.assert_array_equal(arrays["image"], np.stack(pictures(12))[:9])
    assert arrays["label"].tolist() == [0, 1, 2] * 3 and not len(arrays["skipped"])
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.example(7)["image"] == arrays["image"][7]).all()
    assert len(pickle.dumps(source)) < 1500
    assert source.name(7) == "insects train[:75%] 7"
    with pytest.raises(UserError, match=r"unknown split of insects 'trian'; did you mean 'train'"):
        load(options, "trian")
    with pytest.raises(UserError, match=r"split 'train\[:200%\]' of insects"):
        load(options, "train[:200%]")


def test_tfds_sets_that_cannot_be_read_are_explained(tfds_dir):
    def failure(name: str) -> str:
        with pytest.raises(UserError) as error:
            load(Options(f"tfds:{name}", dir=str(tfds_dir)), "train")
        assert "\n" not in str(error.value)
        return str(error.value)

    command = f"python -m train.data.prepare cifar10 --data_dir={tfds_dir}"
    assert f"'cifar10' is not prepared: nothing in {tfds_dir}/cifar10" in failure("cifar10")
    assert failure("cifar10").endswith(command)
    assert "unknown TFDS data set 'cifar1O'; did you mean 'cifar10'?" in failure("cifar1O")
    assert "unknown TFDS data set 'insect'; did you mean 'insects'?" in failure("insect")
    tfds_sample.write(tfds_dir, "mnist", {"train": [(b"", 0)]}, (8, 8))  # version 1.0.0, which TFDS no longer makes
    assert f"'mnist' is not prepared: nothing in {tfds_dir}/mnist/3." in failure("mnist")
    assert len(load(Options("tfds:mnist:1.0.0", dir=str(tfds_dir)), "train")) == 1
    tfds_sample.write(tfds_dir, "old", {"train": [(b"", 0)]}, (8, 8), file_format="tfrecord")
    assert "is tfrecord, which has no random access" in failure("old") and "prepare old" in failure("old")
    tfds_sample.write(tfds_dir, "wild", {"train": [(b"", 0)]})
    assert "images vary in size: set data.image_size" in failure("wild")


def test_feature_names_are_found_by_type(tfds_dir):
    examples = [(tfds_sample.encode(pictures(1)[0]), 2)]
    tfds_sample.write(tfds_dir, "named", {"train": examples}, (8, 8), features=("photo", "species"))
    source = load(Options("tfds:named", dir=str(tfds_dir)), "train")
    assert source.example(0)["label"] == 2 and source.classes == ("ant", "bee", "cat")


def test_data_dir_comes_from_the_config_or_the_environment(monkeypatch, tfds_dir):
    from train.data.sources.tfds import data_dir

    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    assert len(load(Options("tfds:insects"), "train")) == 12
    assert data_dir("~/x") == str(Path.home() / "x")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert data_dir("") == str(Path.home() / "tensorflow_datasets")


def test_reading_imports_no_tensorflow(tfds_dir):
    code = (
        "import sys\nfrom train.data.load import load\nfrom train.data.source import Options\n"
        f"source = load(Options('tfds:insects', dir={str(tfds_dir)!r}), 'train')\n"
        "assert len(source.arrays()['image']) == 12\n"
        "print(sorted(m for m in ('tensorflow', 'torch') if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@shared
def test_shared_sets():
    cifar = load(Options("tfds:cifar10_jpeg", dir=str(SHARED), train_split="train[:90%]"), "train")
    assert len(cifar) == 45000 and cifar.image_shape == (32, 32, 3) and cifar.classes[0] == "airplane"
    assert "automobile_0830" in cifar.name(5) and cifar.example(5)["label"] == 1
    options = Options("tfds:imagenet_sample", str(SHARED), "validation", "validation", 224, "random_resized")
    imagenet = load(options, "test")
    assert len(imagenet) == 250 and not imagenet.fixed_size and len(imagenet.classes) == 1000
    first, again, other = (imagenet.example(3, philox(0, i, 1))["image"] for i in (0, 0, 1))
    assert (first == again).all() and (first != other).any() and first.shape == (224, 224, 3)
    # Two fifths of ImageNet's files need care: grayscale, CMYK, PNG with a JPEG ending. All of the sample decode.
    batch = imagenet.read(range(0, 250, 5))
    assert batch["mask"].all() and batch["image"].std((1, 2, 3)).min() > 5


# Folders


def folder_of(root: Path, counts: dict[str, int], size=(9, 7)) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i, image in enumerate(pictures(count, size, seed=number)):
            Image.fromarray(image).save(root / name / f"{i}.png")
    return root


def options_of(root: Path, **changes) -> Options:
    return Options(f"folder:{root}", image_size=6, crop="resize", **changes)


def test_folder_without_splits_holds_out_a_fifth(tmp_path):
    options = options_of(folder_of(tmp_path, {"cat": 60, "ant": 40, "bee": 2}))

    def files(split):
        return set(load(options, split).files)

    train, test, fit, validation = map(files, ("train", "test", "train_fit", "validation"))
    assert not train & test and len(train | test) == 102 and not fit & validation and fit | validation == train
    assert len(test) == 20 and len(validation) == 16
    for split, classes in ((train, {"ant", "bee", "cat"}), (test, {"ant", "cat"}), (fit, {"ant", "bee", "cat"})):
        assert {name.split("/")[0] for name in split} == classes
    source = load(options, "train")
    assert source.classes == ("ant", "bee", "cat") and source.image_shape == (6, 6, 3) and not source.fixed_size
    assert [source.classes[label] for label in source.labels] == [name.split("/")[0] for name in source.files]
    assert source.example(0)["image"].shape == (6, 6, 3) and source.name(0) == str(tmp_path / source.files[0])
    for i in range(60, 80):
        Image.fromarray(pictures(1)[0]).save(tmp_path / "cat" / f"{i}.png")
    assert len(files("test")) == 24 and len(files("test") & test) >= 15  # few files change sides


def test_folder_with_splits(tmp_path):
    for split in ("train", "val"):
        folder_of(tmp_path / split, {"ant": 10, "bee": 10})
    options = options_of(tmp_path)
    assert len(load(options, "train")) == 20
    assert load(options, "test").files[0].startswith("val/")
    validation = load(options, "validation").files  # made from train, because the folder val is the test set here
    assert validation[0].startswith("train/") and len(validation) + len(load(options, "train_fit")) == 20
    folder_of(tmp_path / "test", {"ant": 3, "bee": 3})
    assert load(options, "test").files[0].startswith("test/") and len(load(options, "validation")) == 20
    assert len(load(options, "train_fit")) == 20


def test_wrong_folders_are_explained(tmp_path):
    def failure(root: Path, split="train", **changes) -> str:
        with pytest.raises(UserError) as error:
            load(dataclasses.replace(options_of(root), **changes), split)
        return str(error.value)

    assert "there is no such folder" in failure(tmp_path / "none")
    assert "has no folders: it must have one folder of images for each class" in failure(tmp_path)
    folder_of(tmp_path, {"ant": 3, "bee": 0})
    assert f"class folder {tmp_path}/bee has no images" in failure(tmp_path)
    assert "unknown split of folder" in failure(tmp_path, "tests")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "bee" / "0.png")
    assert "images vary in size: set data.image_size" in failure(tmp_path, image_size=0, crop="none")
    with pytest.raises(UserError, match=r"image .*/ant/\d.png is 9x7, not 6x6: set data.crop"):
        load(dataclasses.replace(options_of(tmp_path), crop="none"), "train").arrays()
    folder_of(tmp_path / "split" / "train", {"ant": 2})
    assert "has no folders except train: it must have a training folder" in failure(tmp_path / "split")
    folder_of(tmp_path / "split" / "test", {"ant": 2, "aunt": 2})
    assert "classes that the training folder lacks: aunt; did you mean 'ant'?" in failure(tmp_path / "split", "test")


# Damaged images


@pytest.fixture
def damaged(tmp_path):
    root = folder_of(tmp_path / "train", {"ant": 4, "bee": 4}) and folder_of(tmp_path / "test", {"ant": 4, "bee": 4})
    for split in ("train", "test"):
        whole = (tmp_path / split / "ant" / "2.png").read_bytes()
        (tmp_path / split / "ant" / "2.png").write_bytes(whole[: len(whole) // 2])
        (tmp_path / split / "ant" / "3.png").write_bytes(b"no image")
    return root.parent


def test_a_damaged_image_is_named(damaged):
    source = load(options_of(damaged), "train")
    with pytest.raises(Unreadable, match=r"cannot decode image .*train/ant/2.png: .*data.on_error=skip") as error:
        source.read(range(8))
    assert "\n" not in str(error.value) and isinstance(pickle.loads(pickle.dumps(error.value)), Unreadable)
    with pytest.raises(Unreadable, match=r"ant/3.png"):
        source.example(3)


def test_a_damaged_image_is_replaced_in_training_and_masked_in_evaluation(damaged):
    source = load(options_of(damaged, on_error="skip"), "train")
    train = source.read([1, 2, 3, 5], replace=True)
    assert train["skipped"].tolist() == [2, 3]
    assert train["mask"].tolist() == [1, 1, 1, 1] and train["label"].tolist() == [0, 1, 1, 1]
    following = source.example(4)["image"]
    assert (train["image"][1] == following).all() and (train["image"][2] == following).all()
    evaluation = source.read([1, 2, 3, 5])
    assert evaluation["skipped"].tolist() == [2, 3] and evaluation["mask"].tolist() == [1, 0, 0, 1]
    assert evaluation["label"].tolist() == [0, 0, 0, 1] and not evaluation["image"][1:3].any()
    for path in (damaged / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the images can be decoded"):
        load(options_of(damaged, on_error="skip"), "train").read([0], replace=True)
