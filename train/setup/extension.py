"""Training a run on to a longer duration: `python -m train --extend`."""

import re
from collections.abc import Mapping
from typing import Any

from models.errors import UserError
from train.optim import schedules
from train.setup.config import Durations, Reader, lines

_SHARE = re.compile(r"\d%")  # a share of the whole training, as in "10%" and "step(0.1, '50%')"


def effect(config: Mapping[str, Any], durations: Durations, before: str, step: int) -> str:
    """Returns the line that says what a longer duration does to a run.

    Args:
      config: the config with the longer duration.
      durations: its durations.
      before: the duration of the run so far, e.g. "10 epochs".
      step: number of steps done.

    Raises:
      UserError: the duration is not longer, or the run prunes by shares of its duration.
    """
    earlier, total = durations._replace(total=None).with_total(before), durations.total or 0
    old_total = earlier.total or 0
    if total <= old_total:
        raise UserError(
            f"--extend: duration='{config['duration']}' is {total:,} steps, which must be more than the {old_total:,} "
            f"steps ('{before}') of this run"
        )
    optimizer = config["optimizer"]
    if _SHARE.search(optimizer["prune"]):
        raise UserError(
            f"--extend: optimizer.prune={optimizer['prune']} prunes at shares of the duration, which would move; "
            "choose another --workdir"
        )
    last = float(schedules.create(Reader(optimizer), earlier.steps, old_total)(max(step - 1, 0)))
    following = float(schedules.create(Reader(optimizer), durations.steps, total)(step))
    rate = (
        f"the learning rate stays {following:.4g}"
        if last == following
        else f"optimizer.schedule={optimizer['schedule']} is laid over the new length, so the learning rate goes from "
        f"{last:.4g} to {following:.4g} at step {step:,}"
    )
    moved = [line.replace(": ", "=", 1) for line in lines(config) if _SHARE.search(line.split(": ", 1)[1])]
    return f"extending the run from {old_total:,} to {total:,} steps: {rate}" + (
        f"; shares are of the new length: {', '.join(moved)}" if moved else ""
    )
