"""The benchmark of image sources: small sets in every form, opened, decoded and compared."""

import contextlib
import io
import subprocess

import numpy as np
from PIL import Image

from experiments.bench import sources


def test_sources_are_made_opened_and_give_the_same_bits_in_each_form(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 30, 3), np.uint8)
    encoded = []
    for one in pixels:
        Image.fromarray(one).save(file := io.BytesIO(), "jpeg")
        encoded.append(file.getvalue())
    monkeypatch.setattr(sources, "jpegs", lambda folder: [(i % 4, content) for i, content in enumerate(encoded)])
    for name, value in (("FILES", 3), ("ROUNDS", 1), ("BATCH", 8), ("LOOKUPS", 100)):
        monkeypatch.setattr(sources, name, value)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: Done(command[2]))
    forms = [form for form in sources.FORMS if form != "tfds"]
    rows = sources.measure(tmp_path, forms, 3000)
    assert [row["form"] for row in rows] == forms and all(row["entries"] == 3000 for row in rows)
    assert all(row["restart"] and row["shards"] and row["images_per_second"] > 0 for row in rows)
    images = {row["form"]: sources.source(row["form"], tmp_path / "images" / row["form"]).arrays() for row in rows}
    counts = {form: np.unique(arrays["image"].reshape(40, -1), axis=0) for form, arrays in images.items()}
    for form in forms:
        np.testing.assert_array_equal(counts[form], counts["folder"])
    assert sources.table(rows).count("same bits") == 10


class Done:
    """A process that has run Python's code in this process, and printed a value as JSON."""

    def __init__(self, code):
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            exec(code)
        self.stdout = written.getvalue()
