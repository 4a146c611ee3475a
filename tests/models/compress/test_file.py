"""Damaged or hostile files of compressed networks are refused in one line."""

import json
import struct
import zlib

import jax
import numpy as np
import pytest

import models
from models.compress import file, packed
from models.errors import UserError
from train.setup import pretrained


def small():
    model = models.create("lenet_300_100", hidden=(8,), image_size=8)
    variables = jax.tree.map(np.asarray, models.initialize(model, jax.random.key(0), (1, 8, 8, 1)))
    return file.dump("lenet_300_100", {"hidden": (8,), "image_size": 8}, variables, (1, 8, 8, 1))


def changed(data, change):
    """Returns the file with a changed header and a valid checksum."""
    length = struct.unpack_from("<I", data, 10)[0]
    header = json.loads(zlib.decompress(data[14 : 14 + length]))
    change(header["about"])
    packed = zlib.compress(json.dumps(header).encode())
    packed = data[:10] + struct.pack("<I", len(packed)) + packed + data[14 + length : -4]
    return packed + struct.pack("<I", zlib.crc32(packed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(model="lenet6"), "unknown model 'lenet6'"),
        (lambda card: card.update(model=["lenet5"]), "its network cannot be created"),
        (lambda card: card.pop("fields"), "its network cannot be created"),
        (lambda card: card["fields"].update(depth=3), "unknown field of lenet_300_100 'depth'"),
        (lambda card: card["fields"].update(hidden=[10**9]), "a field of its network is 1000000000"),
        (lambda card: card["fields"].update(hidden=[9]), "its arrays differ from those of its network"),
        (lambda card: card["fields"].update(hidden=[8] * 5000), "far more layers than the file"),
        (lambda card: card["fields"].update(hidden=[[[8]]]), "hidden="),
        (lambda card: card["fields"].update(hidden={"a": 1}), "a field of its network is"),
        (lambda card: card.update(model="resnet8", fields={"stage_sizes": [990]}), "far more layers than the file"),
        (lambda card: card.update(model="resnet1202", fields={}), "far more layers than the file"),
        (
            lambda card: card.update(model="resnet8", fields={"stage_sizes": [900], "widths": [["head", 10]]}),
            "far more layers than the file",
        ),
        (lambda card: card.update(model="swin_tiny", fields={"window": 200}), "a field of its network is 200"),
        (lambda card: card.update(inputs=[1, 10**6, 10**6, 3]), "a field of its network is 1000000"),
    ],
)
def test_hostile_networks_are_one_line(change, message, tmp_path):
    data = changed(small(), change)
    with pytest.raises(UserError, match=message) as error:
        file.load(data, "net.ablate")
    assert str(error.value).startswith("net.ablate: ")


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "net.ablate"
    data = small()
    for bad in (b"", data[:-1], data[:50], data[:60] + b"x" + data[61:]):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=f"{path}: "):
            pretrained.load(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        file.read(tmp_path / "none.ablate")


def test_mutants_of_the_whole_file_with_valid_checksums():
    data, refused = small(), 0
    rng = np.random.default_rng(0)
    for _ in range(400):
        bad = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            bad[rng.integers(len(bad) - 4)] ^= 1 << int(rng.integers(8))
        bad[-4:] = struct.pack("<I", zlib.crc32(bytes(bad[:-4])))
        try:
            file.load(bytes(bad))
        except UserError:
            refused += 1
    assert refused > 10
    assert packed.description(data)["model"] == "lenet_300_100"
