"""Average precision on the test split, for networks that predict several classes per image."""

from typing import Any

from models.errors import UserError
from train.run import Hook, Run
from train.state import TrainState
from train.tasks import average_precision


class AveragePrecision(Hook):
    """Average precision of each class over the whole test split (Everingham 2010).

    Measures mean average precision in two ways: as the area under the precision-recall curve, and by the 11 points of
    VOC 2007. The former is also given per class, null for classes without images. An image is ignored for classes in
    which its label is -1.
    """

    def check(self, run: Run) -> None:
        if not run.feed.label_shape:
            raise UserError("hooks: average_precision is for several classes per image (task.name=multi_label)")

    def measure(self, run: Run, state: TrainState) -> dict[str, Any]:
        scores, labels, _ = run.predictions(state.evaluation_variables(), run.feed.test_batches())
        by_class = average_precision.by_class(average_precision.average_precision, scores, labels)
        return {**average_precision.measure(scores, labels), "average_precision_by_class": by_class}
