"""Exports that several files of tests serve."""

import pytest

from tests import tiny
from train import restore
from train.export import network, write


@pytest.fixture(scope="package")
def folders(tmp_path_factory):
    """Returns a folder with a run and exports of its network."""
    folder = tmp_path_factory.mktemp("served")
    tiny.trained(folder / "run")
    run, state = restore.load_network(folder / "run")
    for kind in ("safetensors", "stablehlo"):
        write.export(run, network.network(run, state), kind, folder / kind, {}, images=8)
    return folder
