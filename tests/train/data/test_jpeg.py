"""Tests of train/data/jpeg.py against PIL: the same bits, or the same error, whatever the file."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.data import jpeg
from train.data.decode import Decoder

ROOT = Path(__file__).parents[3]
needs_native = pytest.mark.skipif(not jpeg.available(), reason="no C++ compiler or no headers of libjpeg-turbo here")


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Returns smooth random levels with some noise, uint8 [H, W, 3], or [H, W] for 1 channel."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 9), max(2, width // 9), 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + rng.integers(-20, 20, (height, width, 3)), 0, 255).astype(np.uint8)
    return pixels if channels == 3 else pixels[..., 0]


def file(pixels: np.ndarray, **options) -> bytes:
    """Returns a JPEG of the pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "jpeg", **options)
    return out.getvalue()


def header(encoded: bytes) -> int:
    """Returns the place of the frame header, whose marker is two bytes before its length."""
    return min(at for at in (encoded.find(b"\xff\xc0"), encoded.find(b"\xff\xc2")) if at > 0)


def sampled(height: int, width: int, factors: int) -> bytes:
    """Returns a JPEG of sampling factors that PIL does not write, made from one with as many blocks per MCU.

    Its blocks are in other places. That shows another picture, but no damage.
    """
    across, down = factors >> 4, factors & 15
    columns, rows = -(-width // (8 * across)), -(-height // (8 * down))
    encoded = bytearray(file(photo(16 * rows, 16 * columns), subsampling="4:2:0"))
    if across * down == 2:
        encoded = bytearray(file(photo(8 * rows, 16 * columns), subsampling="4:2:2"))
    at = header(bytes(encoded))
    encoded[at + 5 : at + 9] = height.to_bytes(2) + width.to_bytes(2)
    encoded[at + 11] = factors
    return bytes(encoded)


def outcome(decoder: Decoder, encoded: bytes, seed: int | None):
    """Returns the pixels, or the error's text."""
    try:
        return decoder(encoded, None if seed is None else np.random.default_rng(seed))
    except Exception as error:  # PIL raises anything
        return f"{type(error).__name__}: {re.sub('0x[0-9a-f]+', 'ADDRESS', str(error))}"


class Counted:
    """A stand-in for `jpeg.pixels` that counts the files that native code took, or hinders it."""

    def __init__(self):
        self.native, self.hinder, self._real = 0, False, jpeg.pixels

    def __call__(self, image, part):
        pixels = None if self.hinder else self._real(image, part)
        self.native += pixels is not None
        return pixels


@pytest.fixture
def counted(monkeypatch):
    counted = Counted()
    monkeypatch.setattr(jpeg, "pixels", counted)
    return counted


def differs(counted: Counted, decoder: Decoder, encoded: bytes, seed: int | None) -> str:
    """Returns "" if native code has PIL's outcome, else what the two are."""
    counted.hinder = False
    ours = outcome(decoder, encoded, seed)
    counted.hinder = True
    theirs = outcome(decoder, encoded, seed)
    if isinstance(ours, str) or isinstance(theirs, str):
        return "" if isinstance(ours, str) and ours == theirs else f"{ours} instead of {theirs}"
    same = ours.shape == theirs.shape and ours.dtype == theirs.dtype
    worst = int(np.abs(ours.astype(int) - theirs).max()) if same else -1
    return "" if worst == 0 else f"{worst} levels"


DECODERS = [
    Decoder("random_resized", 32, 3),
    Decoder("random_resized", 24, 3, scale=(0.01, 0.2), ratio=(0.3, 3.0), interpolation="bicubic"),
    Decoder("random_resized", 20, 1),
    Decoder("resize", 48, 3, exact=True),
    Decoder("resize", 28, 3, interpolation="bicubic"),
    Decoder("whole", 40, 3),
]
KINDS = {
    "4:4:4": lambda height, width: file(photo(height, width), subsampling="4:4:4"),
    "4:2:2": lambda height, width: file(photo(height, width), subsampling="4:2:2"),
    "4:2:0": lambda height, width: file(photo(height, width), subsampling="4:2:0", quality=95),
    "4:4:0": lambda height, width: sampled(height, width, 0x12),
    "4:1:1": lambda height, width: sampled(height, width, 0x41),
    "tall blocks": lambda height, width: sampled(height, width, 0x14),
    "progressive": lambda height, width: file(photo(height, width), progressive=True),
    "gray": lambda height, width: file(photo(height, width, 1)),
    "progressive gray": lambda height, width: file(photo(height, width, 1), progressive=True),
    "restarts": lambda height, width: file(photo(height, width), restart_marker_blocks=3),
    "restarts by row": lambda height, width: file(photo(height, width), restart_marker_rows=1, subsampling="4:4:4"),
    "RGB": lambda height, width: file(photo(height, width), keep_rgb=True),
    "optimized": lambda height, width: file(photo(height, width), optimize=True, quality=30),
}
SIZES = [(1, 1), (1, 37), (40, 1), (7, 9), (8, 16), (17, 33), (64, 48), (131, 77), (90, 203), (300, 411)]


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_have_the_bits_of_pil(kind, counted):
    wrong = []
    for height, width in SIZES:
        encoded = KINDS[kind](height, width)
        for number, decoder in enumerate(DECODERS):
            for seed in (None, number, number + 100):
                if line := differs(counted, decoder, encoded, seed):
                    wrong.append(f"{height}x{width}, {decoder.crop}, {seed}: {line}")
    assert not wrong, "\n".join(wrong)
    assert counted.native == len(SIZES) * len(DECODERS) * 3


def turned(orientation: int) -> bytes:
    """Returns a JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file(photo(90, 140), exif=exif)


@needs_native
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned(orientation, counted):
    encoded = turned(orientation)
    for seed, decoder in enumerate(DECODERS):
        assert not differs(counted, decoder, encoded, seed)
        assert not differs(counted, decoder, encoded, None)
    # A crop that resizes the whole picture turns it first, which is left to PIL.
    assert counted.native == (7 if orientation > 1 else 12)


def cmyk() -> bytes:
    out = io.BytesIO()
    Image.fromarray(photo(60, 80)).convert("CMYK").save(out, "jpeg")
    return out.getvalue()


def changed(encoded: bytes, at: int, value: int) -> bytes:
    return encoded[:at] + bytes([value]) + encoded[at + 1 :]


PLAIN = file(photo(120, 90), quality=85)
LEFT_TO_PIL = {
    "CMYK": cmyk(),
    "arithmetic coding": changed(PLAIN, header(PLAIN) + 1, 0xC9),
    "12 bits": changed(PLAIN, header(PLAIN) + 4, 12),
    "lossless": changed(PLAIN, header(PLAIN) + 1, 0xC3),
    "no end": PLAIN[:-2],
    "half": PLAIN[: len(PLAIN) // 2],
    "header alone": PLAIN[: PLAIN.find(b"\xff\xda") + 14],
    "half of a progressive file": (lambda data: data[: len(data) // 2])(file(photo(99, 77), progressive=True)),
    "two pictures in one": PLAIN[:-2] + PLAIN,
    "text": b"\xff\xd8\xff" + b"no picture" * 50,
    "PNG": (lambda out: Image.fromarray(photo(50, 60)).save(out, "png") or out.getvalue())(io.BytesIO()),
}


@needs_native
@pytest.mark.parametrize("kind", LEFT_TO_PIL)
def test_other_files_are_left_to_pil(kind, counted):
    for seed in (None, 0, 1, 2):
        for decoder in DECODERS:
            assert not differs(counted, decoder, LEFT_TO_PIL[kind], seed)
    assert counted.native == 0


@needs_native
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}], ids=str)
def test_damaged_files_have_the_outcome_of_pil(options, counted):
    encoded, rng, wrong, taken = file(photo(150, 110), **options), np.random.default_rng(0), [], set()
    scan = encoded.find(b"\xff\xda")
    for trial in range(150):
        damaged = bytearray(encoded)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(2, scan) if trial % 3 == 0 else rng.integers(scan, len(encoded))] = rng.integers(256)
        if trial % 5 == 0:
            del damaged[rng.integers(scan, len(encoded)) :]
        before = counted.native
        if line := differs(counted, DECODERS[trial % 3], bytes(damaged), trial):
            wrong.append(f"{trial}: {line}")
        taken.add(counted.native > before)
    assert not wrong, "\n".join(wrong)
    assert taken == {True, False}


@needs_native
def test_files_are_read_from_disk_and_a_trailer_is_allowed(tmp_path, counted):
    decoder = DECODERS[0]
    (tmp_path / "a.jpg").write_bytes(PLAIN + b"a trailer of a phone")
    assert not differs(counted, decoder, tmp_path / "a.jpg", 3)
    assert np.array_equal(decoder(tmp_path / "a.jpg"), decoder(PLAIN)) and counted.native == 1


@pytest.mark.parametrize("broken", [{"CXX": "false"}, {"CPATH": "HERE"}, {"ABLATE_CPU_TUNING": "0"}], ids=str)
def test_pil_decodes_where_native_code_is_missing(broken, tmp_path):
    (tmp_path / "jpeglib.h").write_text("#error no header")  # comes before the system's
    env = {name: value.replace("HERE", str(tmp_path)) for name, value in broken.items()}
    code = "from train.data import jpeg; print(jpeg.available())"
    done = _python(code, XDG_CACHE_HOME=str(tmp_path), **env)
    assert done == "False"


def _python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, env={**os.environ, **env}
    )
    assert not done.stderr
    return done.stdout.strip()


def test_a_library_with_other_bits_is_not_used(monkeypatch):
    monkeypatch.setattr(jpeg.build, "library", lambda *_: type("Library", (), {"ablate_jpeg": lambda request: 1}))
    assert jpeg._agreeing.__wrapped__() is None
