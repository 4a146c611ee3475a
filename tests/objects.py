"""An object store in memory, behind the paths gs:// and s3:// of etils.epath, where gcsfs and s3fs would be.

Like a store, it has no folders, no renaming and no appending; each file appears whole when it is closed.
"""

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry


class Objects(MemoryFileSystem):
    """A store; `before` is called before each change with the name of the method and the path."""

    protocol = ("gcs", "gs", "s3")
    store = {}
    pseudo_dirs = [""]
    before = staticmethod(lambda method, path: None)

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).partition("://")[2].strip("/") if "://" in str(path) else "/" + str(path).strip("/")

    def mkdir(self, *arguments, **options):
        raise PermissionError("folders need no making")

    def cp_file(self, *arguments, **options):
        raise PermissionError("nothing is renamed")

    def _open(self, path, mode="rb", **options):
        if mode not in ("rb", "wb"):
            raise NotImplementedError(mode)
        if mode == "wb":
            type(self).before("write", path)
        return super()._open(path, mode, **options)

    def _rm(self, path):
        type(self).before("remove", path)
        super()._rm(path)

    def rm_file(self, path):
        type(self).before("remove", path)
        super().rm_file(path)


def contents(prefix=""):
    """Returns the content of each file whose path begins with `prefix`, without it."""
    return {
        path.removeprefix(f"/{prefix}"): file.getvalue()
        for path, file in Objects.store.items()
        if path.startswith(f"/{prefix}")
    }


@pytest.fixture
def objects(monkeypatch, tmp_path):
    """Gives tests an empty store, and an empty cache of their own; returns the store's class."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("EPATH_USE_TF", "false")
    monkeypatch.setattr(Objects, "store", {})
    monkeypatch.setattr(Objects, "pseudo_dirs", [""])
    for name in ("gcs", "s3"):
        monkeypatch.setitem(_registry, name, Objects)
    backend.fsspec_backend._get_filesystem.cache_clear()
    Objects.clear_instance_cache()
    yield Objects
    backend.fsspec_backend._get_filesystem.cache_clear()
