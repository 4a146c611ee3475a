"""experiments/quickstart.ipynb: small, without errors, and it runs from its first cell to its last."""

import json
import re

import pytest

from tests.tiny import ROOT

PATH = ROOT / "experiments" / "quickstart.ipynb"
NOTEBOOK = json.loads(PATH.read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
TEXT = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown"]


def outputs(cells):
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def test_it_is_small_and_was_run_without_errors():
    assert PATH.stat().st_size < 150_000 and NOTEBOOK["nbformat"] == 4
    kinds = {output["output_type"] for output in outputs(NOTEBOOK["cells"])}
    assert kinds == {"stream", "display_data"}
    assert not re.search(r"/tmp|/home|/root|[Ww]arning", json.dumps(outputs(NOTEBOOK["cells"])))


def test_its_code_compiles_and_its_links_lead_somewhere():
    for source in CODE:
        compile(source, PATH.name, "exec")
    links = [link for text in TEXT for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert links and all(link.startswith("https://") or (PATH.parent / link).exists() for link in links)


@pytest.mark.full
def test_it_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", "")  # compiles as users do
    notebook = nbformat.read(PATH, 4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    pictures = [output for output in outputs(notebook["cells"]) if output["output_type"] == "display_data"]
    assert len(pictures) == 3
    printed = "".join(output.get("text", "") for output in outputs(notebook["cells"]))
    assert float(re.search(r"([\d.]+)% of 360 test images", printed)[1]) > 95
    assert float(re.search(r"([\d.]+)% with a tenth", printed)[1]) > 90
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"quickstart", "quickstart-small"}
