"""One picture in many encodings, including PNGs and TIFFs of any bit depth that PIL reads but does not write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

WIDTH, HEIGHT, BLOCK = 64, 48, 16  # each block has a single color, as in JPEG
_COLORS = np.random.default_rng(3).integers(0, 256, (HEIGHT // BLOCK, WIDTH // BLOCK, 3), np.uint8)
COLOR = _COLORS.repeat(BLOCK, 0).repeat(BLOCK, 1)  # uint8 [48, 64, 3]; no rotation or reflection equals it
GRAY = COLOR[..., 1]
SHARE = GRAY / 255  # float64 in [0, 1]


def saved(pixels: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    """Returns the pixels as PIL writes them in a format, converted to a mode."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def png(pixels: np.ndarray, bits: int, kind: int, transparent: bytes = b"") -> bytes:
    """Returns a PNG of numbers [H, W] or [H, W, C] with 1 to 16 bits.

    `kind` is the color type (0 gray, 2 RGB, 4 gray and alpha, 6 RGBA), `transparent` the content of the chunk tRNS.
    """
    rows = pixels.reshape(len(pixels), -1)
    places = np.arange(bits, dtype=pixels.dtype)[::-1]
    packed = np.packbits((rows[..., None] >> places & 1).astype(np.uint8).reshape(len(rows), -1), axis=1)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed)))
        + chunk(b"IEND", b"")
    )


def tiff(pixels: np.ndarray, endian: str = "<", bits: int = 0, white_is_zero: bool = False) -> bytes:
    """Returns an uncompressed TIFF of numbers [H, W]; the dtype sets the sample format, and `bits` of 12 packs them."""
    kinds = {"u": 1, "i": 2, "f": 3}
    raw = pixels.astype(pixels.dtype.newbyteorder(endian)).tobytes()
    if bits:
        places = (pixels[..., None] >> np.arange(bits, dtype=pixels.dtype)[::-1] & 1).astype(np.uint8)
        raw = np.packbits(places.reshape(len(pixels), -1), axis=1).tobytes()
    height, width = pixels.shape
    tags = [
        (256, width), (257, height), (258, bits or 8 * pixels.itemsize), (259, 1), (262, int(not white_is_zero)),
        (273, 8), (277, 1), (278, height), (279, len(raw)), (339, kinds[pixels.dtype.kind]),
    ]  # fmt: skip
    file = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(endian + "I", 8 + len(raw)) + raw
    file += struct.pack(endian + "H", len(tags))
    return file + b"".join(struct.pack(endian + "HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)


def pnm(kind: str, pixels: np.ndarray, top: int) -> bytes:
    """Returns a PGM ("P5") or PPM ("P6") with the maximum level `top`."""
    scaled = np.rint(pixels / 255 * top).astype(np.uint8 if top < 256 else ">u2")
    return f"{kind}\n{WIDTH} {HEIGHT}\n{top}\n".encode() + scaled.tobytes()


def levels(bits: int) -> np.ndarray:
    """Returns the gray picture as numbers of this many bits."""
    return np.rint(SHARE * (2**bits - 1)).astype(np.uint64)


def _palette(mode: str = "P") -> Image.Image:
    return Image.fromarray(COLOR).convert(mode, palette=Image.Palette.ADAPTIVE)


def _file(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _opaque(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, np.full((HEIGHT, WIDTH), 255, np.uint8)])


# name.ending: (the file, the picture in it, the number of levels by which the encoding may differ)
ENCODINGS = {
    "gray1.png": (png(levels(1), 1, 0), GRAY, 127.5),
    "gray2.png": (png(levels(2), 2, 0), GRAY, 42.5),
    "gray4.png": (png(levels(4), 4, 0), GRAY, 8.5),
    "gray8.png": (png(levels(8), 8, 0), GRAY, 0),
    "gray16.png": (png(levels(16), 16, 0), GRAY, 0),
    "gray_alpha8.png": (saved(_opaque(GRAY), "PNG"), GRAY, 0),
    "gray_alpha16.png": (png(np.dstack([levels(16), np.full_like(levels(16), 65535)]), 16, 4), GRAY, 1),
    "rgb8.PNG": (saved(COLOR, "PNG"), COLOR, 0),
    "rgb16.png": (png(COLOR.astype(np.uint64) * 257, 16, 2), COLOR, 1),
    "rgba8.png": (saved(_opaque(COLOR), "PNG"), COLOR, 0),
    "rgba16.png": (png(_opaque(COLOR).astype(np.uint64) * 257, 16, 6), COLOR, 1),
    "palette.png": (_file(_palette(), "PNG"), COLOR, 0),
    "palette_opaque.png": (_file(_palette(), "PNG", transparency=b"\xff" * 256), COLOR, 0),
    "gray8.tif": (saved(GRAY, "TIFF"), GRAY, 0),
    "rgb8.tiff": (saved(COLOR, "TIFF", compression="tiff_lzw"), COLOR, 0),
    "rgba8.tif": (saved(_opaque(COLOR), "TIFF"), COLOR, 0),
    "cmyk.tif": (saved(COLOR, "TIFF", "CMYK"), COLOR, 0),
    "lab.tif": (saved(COLOR, "TIFF", "LAB"), COLOR, 30),  # Lab with eight bits loses that much of a vivid color
    "palette.tif": (_file(_palette(), "TIFF"), COLOR, 0),
    "palette_alpha.tif": (_file(_palette().convert("PA"), "TIFF"), COLOR, 0),
    "gray12.tif": (tiff(levels(12).astype(np.uint16), bits=12), GRAY, 0),
    "gray16.tif": (tiff(levels(16).astype(np.uint16)), GRAY, 0),
    "gray16_big_endian.tif": (tiff(levels(16).astype(np.uint16), ">"), GRAY, 0),
    "gray16_white_is_zero.tif": (tiff(~levels(16).astype(np.uint16), white_is_zero=True), GRAY, 0),
    "gray8_white_is_zero.tif": (tiff(~GRAY, white_is_zero=True), GRAY, 0),
    "gray15.tif": (tiff(levels(15).astype(np.int16)), GRAY, 0),
    "gray32.tif": (tiff(levels(32).astype(np.uint32)), GRAY, 0),
    "gray31.tif": (tiff(levels(31).astype(np.int32)), GRAY, 0),
    "gray31_big_endian.tif": (tiff(levels(31).astype(np.int32), ">"), GRAY, 0),
    "float.tif": (tiff(SHARE.astype(np.float32)), GRAY, 0),
    "float_big_endian.tif": (tiff(SHARE.astype(np.float32), ">"), GRAY, 0),
    "float_white_is_zero.tif": (tiff((1 - SHARE).astype(np.float32), white_is_zero=True), GRAY, 1),
    "float.pfm": (saved(SHARE.astype(np.float32), "PPM"), GRAY, 0),
    "rgb8.bmp": (saved(COLOR, "BMP"), COLOR, 0),
    "palette.gif": (_file(_palette(), "GIF"), COLOR, 0),
    "lossless.webp": (saved(COLOR, "WEBP", lossless=True), COLOR, 0),
    "gray8.pgm": (pnm("P5", GRAY, 255), GRAY, 0),
    "gray16.pgm": (pnm("P5", GRAY, 65535), GRAY, 0),
    "gray10.pgm": (pnm("P5", GRAY, 1023), GRAY, 0),
    "gray1.pbm": (saved(GRAY > 127, "PPM"), GRAY, 127.5),
    "rgb8.ppm": (pnm("P6", COLOR, 255), COLOR, 0),
    "rgb16.pnm": (pnm("P6", COLOR, 65535), COLOR, 1),
    "color.jpg": (saved(COLOR, "JPEG", quality=98, subsampling=0), COLOR, 4),
    "gray.JPEG": (saved(GRAY, "JPEG", quality=98), GRAY, 2),
    "cmyk.jpg": (saved(COLOR, "JPEG", "CMYK", quality=98), COLOR, 6),
    "progressive.jfif": (saved(COLOR, "JPEG", quality=98, subsampling=0, progressive=True), COLOR, 4),
    "rgb8.tga": (saved(COLOR, "TGA"), COLOR, 0),
    "rgb8.qoi": (saved(COLOR, "QOI"), COLOR, 0),
    "lossless.jp2": (saved(COLOR, "JPEG2000"), COLOR, 0),
    "gray16.jp2": (saved(levels(16).astype(np.uint16), "JPEG2000"), GRAY, 0),
    "rgb8.sgi": (saved(COLOR, "SGI"), COLOR, 0),
    "rgb8.pcx": (saved(COLOR, "PCX"), COLOR, 0),
    "rgb8.ico": (saved(COLOR, "ICO", sizes=[(WIDTH, HEIGHT)]), COLOR, 0),
}

# Half of the picture is transparent, and black or red underneath
HIDDEN = np.zeros((HEIGHT, WIDTH), bool)
HIDDEN[: HEIGHT // 2] = True
_SEEN = np.where(HIDDEN, 0, 255).astype(np.uint8)
_UNDER = np.where(HIDDEN[..., None], np.uint8([255, 0, 0]), COLOR)
_GRAY_UNDER = np.where(HIDDEN, 7, np.maximum(GRAY, 20)).astype(np.uint8)
GRAY_SEEN = np.where(HIDDEN, 255, _GRAY_UNDER).astype(np.uint8)
COLOR_SEEN = np.where(HIDDEN[..., None], np.uint8(255), COLOR)


def _indexed() -> tuple[Image.Image, int]:
    """Returns a palette image of the picture, and the palette index of the hidden red."""
    image = Image.fromarray(_UNDER).convert("P", palette=Image.Palette.ADAPTIVE)
    return image, image.getpixel((0, 0))


_IMAGE, _RED = _indexed()
_ALPHAS = bytes(0 if number == _RED else 254 if number == 255 else 255 for number in range(256))

TRANSPARENT = {
    "rgba.png": (saved(np.dstack([_UNDER, _SEEN]), "PNG"), COLOR_SEEN, 0),
    "half_rgba16.png": (png(np.dstack([_UNDER, _SEEN]).astype(np.uint64) * 257, 16, 6), COLOR_SEEN, 1),
    "gray_alpha.png": (saved(np.dstack([_GRAY_UNDER, _SEEN]), "PNG"), GRAY_SEEN, 0),
    "palette_number.png": (_file(_IMAGE, "PNG", transparency=_RED), COLOR_SEEN, 0),
    "palette_alphas.png": (_file(_IMAGE, "PNG", transparency=_ALPHAS), COLOR_SEEN, 0),
    "gray_level.png": (png(_GRAY_UNDER, 8, 0, struct.pack(">H", 7)), GRAY_SEEN, 0),
    "gray16_level.png": (png(_GRAY_UNDER.astype(np.uint64) * 257, 16, 0, struct.pack(">H", 7 * 257)), GRAY_SEEN, 0),
    "gray4_level.png": (png(_GRAY_UNDER // 17, 4, 0, struct.pack(">H", 0)), GRAY_SEEN, 17),
    "gray1_level.png": (png(~HIDDEN * np.uint8(1), 1, 0, struct.pack(">H", 0)), np.full_like(GRAY, 255), 0),
    "rgb_color.png": (png(_UNDER, 8, 2, struct.pack(">HHH", 255, 0, 0)), COLOR_SEEN, 0),
    "rgb16_color.png": (png(_UNDER.astype(np.uint64) * 257, 16, 2, struct.pack(">HHH", 65535, 0, 0)), COLOR_SEEN, 1),
    "number.gif": (_file(_IMAGE, "GIF", transparency=_RED), COLOR_SEEN, 0),
    "rgba.webp": (saved(np.dstack([_UNDER, _SEEN]), "WEBP", lossless=True, exact=True), COLOR_SEEN, 0),
    "rgba.tif": (saved(np.dstack([_UNDER, _SEEN]), "TIFF"), COLOR_SEEN, 0),
    "rgba.tga": (saved(np.dstack([_UNDER, _SEEN]), "TGA"), COLOR_SEEN, 0),
    "rgba.jp2": (saved(np.dstack([_UNDER, _SEEN]), "JPEG2000"), COLOR_SEEN, 0),
}
