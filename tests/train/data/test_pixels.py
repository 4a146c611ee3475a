"""Unusual pictures: in every encoding, pixels mean what the file says, and photographs are upright."""

import dataclasses
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import UserError
from tests import hostile_pictures as pictures
from tests import tiny
from tests.hostile_pictures import COLOR, ENCODINGS, GRAY, HEIGHT, SHARE, TRANSPARENT, WIDTH
from train import loop, restore
from train.data.decode import Decoder, levels
from train.data.load import load
from train.data.shuffle import philox
from train.data.source import Options, Unreadable
from train.data.user_image import of_file
from train.export.loaded import Loaded

ROOT = Path(__file__).parents[3]
SHAPE = (HEIGHT, WIDTH, 3)


def rgb(pixels):
    """Returns gray pixels with their level in each channel."""
    return pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, -1)


def off(pixels, expected):
    """Returns the largest difference of two pictures, in levels."""
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    return np.abs(pixels.astype(int) - expected.astype(int)).max()


# Pixels mean what the file says


@pytest.mark.parametrize("name", [*ENCODINGS, *TRANSPARENT])
def test_every_encoding_of_a_picture_gives_its_pixels(name, tmp_path):
    file, picture, loss = {**ENCODINGS, **TRANSPARENT}[name]
    path = tmp_path / name
    path.write_bytes(file)
    gray = picture if picture.ndim == 2 else np.asarray(Image.fromarray(picture).convert("L"))
    for encoded in (file, path):
        assert off(Decoder("none", 0, 3)(encoded), rgb(picture)) <= loss
        assert off(Decoder("none", 0, 1)(encoded), gray[..., None]) <= loss
    small = np.asarray(Image.fromarray(rgb(picture)).resize((16, 16), Image.Resampling.BILINEAR))
    card = {
        "preprocessing": {
            "crop": "whole", "size": 16, "channels": 3, "eval_crop": 0.875, "exif": "apply", "shape": [16, 16, 3],
        }
    }  # fmt: skip
    for decoded in (
        Decoder("whole", 16, 3)(path),
        of_file(Decoder("none", 0, 3), (16, 16, 3), path),
        Loaded(card, None, None).pixels(path),
    ):
        assert off(decoded, small) <= loss + 1  # levels are rounded before and after


def test_a_folder_of_all_encodings_is_read_alike(tmp_path):
    """Checks files with a class each: predict, explain and probe read them through the same Decoder."""
    for number, (name, (file, _, _)) in enumerate(ENCODINGS.items()):
        folder = tmp_path / "train" / f"{number:02d}"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(file)
    (tmp_path / "test").symlink_to("train")
    source = load(Options(f"folder:{tmp_path}", crop="whole", image_size=WIDTH), "train")
    assert len(source) == len(ENCODINGS)
    whole = [
        np.asarray(Image.fromarray(rgb(picture)).resize((WIDTH, WIDTH), Image.Resampling.BILINEAR))
        for _, picture, _ in ENCODINGS.values()
    ]
    losses = [loss for _, _, loss in ENCODINGS.values()]
    for name, decoded, expected, loss in zip(ENCODINGS, source.arrays()["image"], whole, losses, strict=True):
        assert off(decoded, expected) <= loss + 1, name


def test_images_are_only_decoded_in_one_module():
    """Checks that all code that reads a user's pictures opens them in decode.py."""
    places = [
        *(ROOT / "train").rglob("*.py"),
        *(ROOT / "experiments" / "explain").rglob("*.py"),
        *(ROOT / "experiments/studies/adaptive").rglob("*.py"),
    ]
    assert [path.name for path in places if re.search(r"Image\.open|imread", path.read_text())] == ["decode.py"]


@pytest.mark.parametrize(
    "mode",
    [
        "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16",
        "I;16B", "I;16L", "F",
    ],
)  # fmt: skip
def test_every_mode_of_pil_becomes_gray_or_rgb(mode):
    color = mode not in ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "F")
    picture = COLOR if color else GRAY
    loss = {"1": 127.5, "P": 30, "PA": 30, "LAB": 30, "YCbCr": 4, "HSV": 8}.get(mode, 0)
    if mode.startswith("I;16"):
        raw = (GRAY.astype(np.uint16) * 257).astype(">u2" if mode.endswith("B") else "<u2").tobytes()
        image = Image.frombytes(mode, (WIDTH, HEIGHT), raw)
    else:
        image = Image.fromarray(SHARE.astype(np.float32) if mode == "F" else picture)
        for step in {"La": ("LA", "La"), "RGBa": ("RGBA", "RGBa"), "PA": ("P", "PA")}.get(mode, (mode,)):
            image = image.convert(step, dither=Image.Dither.NONE, palette=Image.Palette.ADAPTIVE)
    gray = np.asarray(Image.fromarray(picture).convert("L"))
    assert off(np.asarray(levels(image, 3)), rgb(picture)) <= loss and levels(image, 3).mode == "RGB"
    assert off(np.asarray(levels(image, 1)), gray) <= loss and levels(image, 1).mode == "L"


def test_half_transparent_pixels_are_mixed_with_white():
    alpha = np.full((HEIGHT, WIDTH), 102, np.uint8)
    file = pictures.saved(np.dstack([COLOR, alpha]), "PNG")
    assert off(Decoder("none", 0, 3)(file), np.rint(COLOR * 0.4 + 255 * 0.6).astype(np.uint8)) <= 1


REFUSED = {
    "float_above.tif": (pictures.tiff((SHARE * 255).astype(np.float32)), "point values reach from .* allowed: 0 to 1"),
    "float_below.tif": (pictures.tiff((SHARE - 1).astype(np.float32)), "floating-point values reach from -"),
    "float_nan.tif": (pictures.tiff(np.full_like(SHARE, np.nan, np.float32)), "floating-point values reach from nan"),
    "float_inf.pfm": (pictures.saved(np.full_like(SHARE, np.inf, np.float32), "PPM"), "floating-point values .* inf"),
    "float_dark.tif": (pictures.tiff((SHARE / 1000).astype(np.float32)), "all of it would be black"),
    "negative16.tif": (pictures.tiff((SHARE * 99 - 50).astype(np.int16)), "16-bit values reach from -"),
    "negative32.tif": (pictures.tiff((SHARE * 99 - 50).astype(np.int32)), "32-bit values reach from -"),
    "eight_bits_in_32.tif": (pictures.tiff(GRAY.astype(np.int32)), "reach only 2.. of 2147483647, so all of it"),
    "seven_bits_in_16.png": (pictures.png(GRAY.astype(np.uint64) // 2, 16, 0), "16-bit values reach only .* of 65535"),
    "document.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS is not a format for"),
    "empty.png": (b"", "cannot identify image file"),
    "text.jpg": (b"<html>not found</html>", "cannot identify image file"),
    "cut.png": (pictures.saved(COLOR, "PNG")[:90], "truncated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pixels_without_a_meaning_are_refused_in_one_line(name, tmp_path):
    file, message = REFUSED[name]
    folder = tmp_path / "class"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}{name}").write_bytes(file)
    with warnings.catch_warnings(), pytest.raises(Unreadable, match=message) as error:
        warnings.simplefilter("error")
        load(Options(f"folder:{tmp_path}", image_size=8, crop="resize"), "train").example(0)
    assert "\n" not in str(error.value) and name in str(error.value)
    with pytest.raises(UserError, match=message):
        of_file(Decoder("resize", 8, 3), (8, 8, 3), folder / f"0{name}")


@pytest.mark.parametrize("pixels", [90_000_000, 200_000_000])
def test_a_file_that_claims_too_many_pixels_is_refused_before_they_are_decoded(pixels):
    """Checks two sizes: PIL warns about the first, which would pass, and raises for the second."""
    side = int(pixels**0.5)
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    with warnings.catch_warnings(), pytest.raises((ValueError, Image.DecompressionBombError), match="pixels"):
        warnings.simplefilter("ignore")
        Decoder("resize", 8, 3)(file.getvalue())


def frames(kind, **options):
    others = [Image.fromarray(255 - COLOR), Image.fromarray(COLOR[::-1])]
    file = io.BytesIO()
    Image.fromarray(COLOR).save(file, kind, save_all=True, append_images=others, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind, options",
    [("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("MPO", {"quality": 98, "subsampling": 0})],
)
def test_the_first_of_several_frames_is_read(kind, options):
    assert off(Decoder("none", 0, 3)(frames(kind, **options)), COLOR) <= 4
    assert (
        off(
            Decoder("random_resized", 16, 3)(frames(kind, **options), philox(0, 1, 1)),
            Decoder("random_resized", 16, 3)(pictures.saved(COLOR, "PNG"), philox(0, 1, 1)),
        )
        <= 4
    )


# Orientation


UNTURN = {
    1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
    7: "TRANSVERSE", 8: "ROTATE_270",
}  # fmt: skip


def photograph(picture, turned, kind="JPEG", **options):
    """Returns a photograph of the picture by a camera held in that orientation."""
    image = Image.fromarray(picture)
    if UNTURN[turned]:
        image = image.transpose(Image.Transpose[UNTURN[turned]])
    exif = Image.Exif()
    exif[0x0112] = turned
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind, options",
    [("JPEG", {"quality": 98, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})],
)
@pytest.mark.parametrize("turned", UNTURN)
def test_a_photograph_is_upright(turned, kind, options):
    file = photograph(COLOR, turned, kind, **options)
    assert off(Decoder("none", 0, 3)(file), COLOR) <= 4
    stored = Decoder("none", 0, 3, exif="ignore")(file)
    assert stored.shape == (SHAPE if kind == "TIFF" or turned < 5 else (WIDTH, HEIGHT, 3))
    assert kind == "TIFF" or turned == 1 or stored.shape != SHAPE or off(stored, COLOR) > 50


@pytest.mark.parametrize("crop", ["resize", "random_resized", "whole"])
@pytest.mark.parametrize("turned", UNTURN)
def test_the_crop_of_an_upright_photograph(crop, turned):
    """Checks for the same part as in the picture itself, at a scale at which a JPEG is decoded in eighths."""
    y, x = np.mgrid[:720, :960]
    smooth = np.stack([128 + 120 * np.sin(x / 90), 128 + 120 * np.cos(y / 110), (x + y) / 7], -1).astype(np.uint8)
    decoder = Decoder(crop, 24, 3)
    for rng in (None, 0, 1, 2):
        cropped, expected = (
            decoder(file, None if rng is None else philox(0, rng, 1))
            for file in (photograph(smooth, turned, quality=95), photograph(smooth, 1, quality=95))
        )
        assert off(cropped, expected) <= 6, (rng, off(cropped, expected))


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x05\0", b"Exif\0\0nonsense"]
)
def test_damaged_tags_are_ignored(exif):
    assert off(Decoder("none", 0, 3)(pictures.saved(COLOR, "JPEG", quality=98, subsampling=0, exif=exif)), COLOR) <= 4


@pytest.mark.parametrize("number", [0, 9, 77])
def test_an_unknown_orientation_is_ignored(number):
    exif = Image.Exif()
    exif[0x0112] = number
    file = pictures.saved(COLOR, "JPEG", quality=98, subsampling=0, exif=exif)
    assert off(Decoder("none", 0, 3)(file), COLOR) <= 4


def test_exif_is_an_option(tmp_path):
    (tmp_path / "class").mkdir()
    for number in range(2):
        (tmp_path / "class" / f"{number}.jpg").write_bytes(photograph(COLOR, 6, quality=98, subsampling=0))
    options = Options(f"folder:{tmp_path}", crop="whole", image_size=WIDTH)
    upright, stored = (
        load(dataclasses.replace(options, exif=exif), "train").example(0)["image"] for exif in ("apply", "ignore")
    )
    assert off(upright, load(options, "train").example(0)["image"]) == 0 and off(upright, np.rot90(stored, -1)) <= 1
    with pytest.raises(UserError, match="unknown data.exif 'ignored'; did you mean 'ignore'"):
        load(dataclasses.replace(options, exif="ignored"), "train")


def test_runs_from_before_exif_was_applied_ignore_it(tmp_path):
    """Checks runs of earlier versions, which resized bilinearly; their exports have no checksums and are refused."""
    run = tmp_path / "run"
    loop.train(tiny.config(duration="2 steps"), run)
    config = json.loads((run / "config.json").read_text())
    assert config["data"].pop("exif") == "apply" and config["data"].pop("interpolation") == "bilinear"
    (run / "config.json").write_text(json.dumps(config))
    decoder = restore.load(run)[0].feed.test.decoder
    assert (decoder.exif, decoder.interpolation) == ("ignore", "bilinear")
