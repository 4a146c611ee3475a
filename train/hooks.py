"""What a run does besides training, named in the config: hooks="recalibrate(200)|figures"."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.compress.prune import sparsity
from models.errors import UserError
from train import evaluate, workdir
from train import spec as calls
from train.files import write_atomically, write_json
from train.optim import pruning, sensitivity
from train.recalibrate import recalibrate_batch_norm
from train.tasks import average_precision, translate


class Hook:
    """Called by the loop; a hook overrides what it needs."""

    def check(self, run: Any) -> None:
        """Before anything is trained: raises UserError where the hook cannot do its work on this run."""

    def at_end(self, run: Any, state: Any) -> Any:
        """After the last step, before the last evaluation and checkpoint: may return another state (on the devices)."""
        del run
        return state

    def measure(self, run: Any, state: Any) -> dict[str, Any]:
        """After the last evaluation: numbers that join its results, in metrics.jsonl and in summary.json. `state` is
        numpy.
        """
        del run, state
        return {}

    def finished(self, run: Any, state: Any, folder: Path) -> None:
        """After everything else, on the process that writes: `state` is numpy, `folder` the workdir."""


@contextlib.contextmanager
def picture(path: Path) -> Iterator[None]:
    """Turns any failure to draw a picture into a warning: the run that it shows has ended well."""
    try:
        yield
    except Exception as error:  # whatever Matplotlib, fonts or the file system come up with
        print(f"warning: {path} was not drawn: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)


class Recalibrate(Hook):
    """Recomputes batch-norm statistics over `batches` training batches, by default one epoch of unaugmented images.

    Batch norm sees as many images at a time as it did in training: a device's share of a batch (of all devices with
    model.sync_norm), or a part of it.
    """

    def __init__(self, batches: int = 0):
        if batches < 0:
            raise ValueError(f"batches={batches} must be 0 (an epoch) or more")
        self._batches = batches

    def check(self, run):
        if "batch_stats" not in run.state.model_state or run.feed.unit != "images":
            raise UserError("hooks: recalibrate is for networks with batch norm (model.norm=batch) on images")

    def at_end(self, run, state):
        host = run.parallel.fetch(state)
        batch_size = run.config["batch_size"]
        devices = 1 if getattr(run.task.model, "sync_norm", False) else len(run.parallel.devices)
        part = batch_size // devices // run.config["accumulate"]
        count = self._batches * (batch_size // part) or -(-len(run.feed.train) // part)

        def recalibrated(variables):
            fresh = recalibrate_batch_norm(run.task.model, variables, run.feed.training_images(count, part))
            return {name: value for name, value in fresh.items() if name != "params"}

        host = host.replace(model_state=recalibrated(host.variables()))
        if host.ema:
            host = host.replace(ema={**host.ema, "model_state": recalibrated(host.evaluation_variables())})
        return run.parallel.place(host)


class Figures(Hook):
    """Draws curves.png, and mistakes.png (confusion matrix, most confident errors) where an image has one class,
    attention.png (what the decoder looks at, for the first test sentences) for translation.
    """

    def finished(self, run, state, folder):
        # Matplotlib is needed at the end alone, and the first step should not wait for it
        from train.plots import figures

        feed = run.feed
        with picture(folder / "curves.png"):
            figures.curves(workdir.read_metrics(folder / "metrics.jsonl"), folder / "curves.png")
        if feed.unit == "sentences":
            with picture(folder / "attention.png"):
                figures.attention(
                    translate.attention(run, state, range(min(4, len(feed.test)))), folder / "attention.png"
                )
        elif not feed.label_shape:
            with picture(folder / "mistakes.png"):
                self._mistakes(run, state, folder)

    def _mistakes(self, run, state, folder):
        from train.plots import figures

        feed = run.feed
        logits, labels, index = evaluate.predictions(
            run.task.predict, state.evaluation_variables(), feed.prepare_evaluation, feed.test_batches()
        )
        figures.mistakes(
            logits,
            labels,
            feed.classes,
            folder / "mistakes.png",
            image=lambda place: feed.test.example(place, None)["image"],
            index=index,
        )


class Bleu(Hook):
    """Translates the test split by beam search (1: greedily): BLEU of the whole as sacreBLEU has it (Post 2018, arXiv
    1804.08771), with its signature, and the share of sentences that are the reference itself.

    Writes translations.txt (source, reference and ours, a line each, an empty line between sentences) and
    tokenizer.json, the vocabulary as the library `tokenizers` reads it.
    """

    def __init__(self, beam: int = 4):
        if beam < 1:
            raise ValueError(f"beam={beam} must be 1 or more")
        self._beam, self._ours = beam, []

    def check(self, run):
        if run.feed.unit != "sentences":
            raise UserError("hooks: bleu is for translation (data.source=text:FOLDER)")

    def measure(self, run, state):
        import sacrebleu  # needed at the end alone

        self._ours = translate.translations(run, state, self._beam)
        metric, references = sacrebleu.BLEU(), run.feed.test.texts[1]
        return {
            "bleu": metric.corpus_score(self._ours, [references]).score,
            "bleu_signature": f"{metric.get_signature()}|beam:{self._beam}",
            "exact_match": sum(map(str.__eq__, self._ours, references)) / len(references),
        }

    def finished(self, run, state, folder):
        lines = ["\n".join(three) + "\n" for three in zip(*run.feed.test.texts, self._ours, strict=True)]
        write_atomically(folder / "translations.txt", "\n".join(lines))
        run.feed.tokenizer.save(str(folder / "tokenizer.json"))


class AveragePrecision(Hook):
    """Ranks the whole test split by the score of each class (Everingham 2010): mean average precision by the area under
    the precision-recall curve and by the 11 points of VOC 2007, and the former by class, null for a class that no image
    has. An image counts for the classes that its label counts.
    """

    def check(self, run):
        if not run.feed.label_shape:
            raise UserError("hooks: average_precision is for several classes an image (task.name=multi_label)")

    def measure(self, run, state):
        scores, labels, _ = evaluate.predictions(
            run.task.predict, state.evaluation_variables(), run.feed.prepare_evaluation, run.feed.test_batches()
        )
        by_class = average_precision.by_class(average_precision.average_precision, scores, labels)
        return {**average_precision.measure(scores, labels), "average_precision_by_class": by_class}


class Sparsity(Hook):
    """What optimizer.prune has cut: "sparsity", the share of zeros of what may go, and "sparsity_by_layer"."""

    def check(self, run):
        if not pruning.masks_of(run.state.opt_state):
            raise UserError("hooks: sparsity is for runs with optimizer.prune")

    def measure(self, run, state):
        found = sparsity(pruning.masks_of(state.opt_state))
        return {"sparsity": found.pop("all"), "sparsity_by_layer": found}


class Sensitivity(Hook):
    """How much each layer can spare (Han 2015, fig. 6): accuracy on `images` training images, not augmented, after a
    layer alone loses its smallest weights, without retraining. Writes sensitivity.json, by which optimizer.prune can
    spread what goes over the layers, and sensitivity.png.
    """

    SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

    def __init__(self, images: int = 1000):
        if images < 1:
            raise ValueError(f"images={images} must be 1 or more")
        self._images, self._found = images, {}

    def check(self, run):
        if run.feed.unit != "images" or run.feed.label_shape:
            raise UserError("hooks: sensitivity is for networks that classify images")

    def measure(self, run, state):
        self._found = sensitivity.measure(
            run, state.evaluation_variables(), state.task_state, self._images, self.SPARSITIES
        )
        return {}

    def finished(self, run, state, folder):
        from train.plots import figures

        write_json(folder / "sensitivity.json", self._found)
        with picture(folder / "sensitivity.png"):
            figures.sensitivity(self._found, folder / "sensitivity.png")


HOOKS = {
    "recalibrate": Recalibrate,
    "figures": Figures,
    "bleu": Bleu,
    "average_precision": AveragePrecision,
    "sparsity": Sparsity,
    "sensitivity": Sensitivity,
}


def create(spec: str) -> list[Hook]:
    """The hooks that a config's text names.

    Raises:
      UserError: for an unknown one.
    """
    return [calls.resolve("hooks", call, HOOKS) for call in calls.parse("hooks", spec)]
