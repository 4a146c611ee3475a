"""The style of figures: formats for papers, and colors that color-blind readers tell apart."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from matplotlib import rcParams

from models import command
from models.analysis import drawing, palette

ROOT = Path(__file__).parents[3]
# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as protanopes, deuteranopes and tritanopes see it
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def lab(color, seen):
    """Returns CIELAB of a color "#rrggbb", D65, after a matrix on linear RGB."""
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(seen @ linear, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_color_blind_readers_tell_the_colors_apart(blindness):
    colors = [*palette.COLORS, palette.BLACK, palette.GRAY]
    seen = [lab(color, np.array(BLINDNESS[blindness])) for color in colors]
    distances = {
        (a, b): np.linalg.norm(seen[i] - seen[j]) for (i, a), (j, b) in itertools.combinations(enumerate(colors), 2)
    }
    assert min(distances.values()) > 10, min(distances, key=lambda pair: distances[pair])


def test_the_style_file_cycles_through_the_palette_and_leaves_no_trace(tmp_path):
    before = dict(rcParams)
    with drawing.figure(tmp_path / "a.png", (2, 2)) as figure:
        axes = figure.subplots()
        lines = [axes.plot([0, 1])[0].get_color() for _ in palette.COLORS]
        assert [color.lower().removeprefix("#") for color in lines] == [c.removeprefix("#") for c in palette.COLORS]
        assert not axes.spines["top"].get_visible()
    assert dict(rcParams) == before


def test_formats_for_papers_lie_beside_the_png_and_are_the_same_bytes_each_time(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        with drawing.formats(["pdf", "svg"]), drawing.figure(folder / "x.png", (2, 2)) as figure:
            figure.subplots().set_title("50% of $5")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["x.pdf", "x.png", "x.svg"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert "50% of $5" in (tmp_path / "a" / "x.svg").read_text()


def test_the_flag_of_commands_is_checked(monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    assert command.figure_formats() == ()
    assert command.formats("pdf, svg") == ("pdf", "svg") and command.formats("") == ()
    with pytest.raises(ValueError, match="'gif' is not a format of figures; allowed: png, pdf, svg"):
        command.formats("pdf,gif")


def test_no_other_file_creates_figures():
    files = [path for room in ("models", "train", "experiments") for path in (ROOT / room).rglob("*.py")]
    assert [path.name for path in files if "figsize" in path.read_text()] == ["drawing.py"]
