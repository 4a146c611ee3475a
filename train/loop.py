"""THE training loop: every experiment, task, pruning run and study goes through `train`."""

import contextlib
import functools
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console

import models
from models.errors import UserError, choice_error
from models.layers import low_bit
from train import checkpoint, evaluate, hooks, step, tasks
from train import config as config_lib
from train import initial_weights as start
from train import recorder as metrics
from train import state as state_lib
from train import summary as summary_lib
from train import workdir as workdir_lib
from train.data.feed import Feed
from train.data.sources import text
from train.data.text_feed import TextFeed
from train.devices import multihost
from train.devices.parallel import Parallel
from train.files import expanded, read_json, write_json
from train.interruption import Interruption
from train.lock import Lock
from train.optim import build as optimizer
from train.optim import lookahead as lookahead_lib
from train.optim import pruning as prune
from train.optim import weight_sharing

PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}  # of the computation; parameters and statistics are float32


class Run(NamedTuple):
    """What a config means, before anything is trained or written."""

    config: dict[str, Any]
    parallel: Parallel
    feed: Feed | TextFeed
    task: Any
    hooks: list[Any]
    total: int  # steps
    every: dict[str, int]  # steps between "log", "evaluate", "checkpoint"; 0: only at the end
    keep: int  # checkpoints
    program: Any  # of one device, which `train_call` lifts over all of them
    train_call: Any
    evaluation_call: Any
    state: state_lib.TrainState  # before the first step
    pruning: prune.Plan | None
    start: str | None  # digest of the arrays that it starts from

    def evaluate(self, state: state_lib.TrainState, last: bool = False) -> dict[str, Any]:
        """Metrics on the test set under `state` (on the devices); the last time with what the hooks measure."""
        results = evaluate.evaluate(self.evaluation_call, state, self.feed.evaluation_calls(), self.feed.test_weight)
        if last and self.hooks:
            host = self.parallel.fetch(state)
            for hook in self.hooks:
                results |= hook.measure(self, host)
        return results


def setup(config: Mapping[str, Any], recorded: Mapping[str, Any] | None = None, fresh: bool = True) -> Run:
    """Builds model, data, task, optimizer and lifted calls from a config (see configs/base.py).

    Args:
      config: complete.
      recorded: of a run that is reopened, what it remembers of its data (`Feed.record`); the data set need not be
        there then.
      fresh: False where the state is read from a checkpoint; then no codebooks are made of drawn weights, and nothing
        is traced to see whether it fits together.

    Raises:
      UserError: anything in the config that is unknown, unread, or does not fit.
    """
    config_lib.check_types(config)
    reader = config_lib.Reader(config)
    if reader.precision not in PRECISIONS:
        raise choice_error("precision", reader.precision, PRECISIONS)
    if reader.keep_checkpoints < 1:
        raise UserError(f"keep_checkpoints={reader.keep_checkpoints} must be at least 1")
    if not 0 <= reader.ema_decay < 1:
        raise UserError(f"ema_decay={reader.ema_decay} must be in [0, 1)")
    parallel = Parallel(reader.parallel, reader.devices)
    sizes = {key: getattr(reader, key) for key in ("batch_size", "eval_batch_size", "steps_per_call", "seed")}
    for key in ("batch_size", "eval_batch_size"):
        parallel.check_batch(key, sizes[key])
    if text.is_text(reader.data.source):
        feed = TextFeed(reader.data.source, reader.text, parallel, **sizes, recorded=recorded)
    else:
        feed = Feed(reader.data, parallel, **sizes, recorded=recorded)
    per_device = reader.batch_size // len(parallel.devices)
    if reader.accumulate < 1 or per_device % reader.accumulate:
        raise UserError(f"accumulate={reader.accumulate} must divide the {per_device} examples of a device")
    to_steps = functools.partial(config_lib.steps, batch_size=reader.batch_size, examples=feed.train_count)
    total = to_steps(reader.duration)
    if total < 1:
        raise UserError(f"duration='{reader.duration}' is less than one step")
    to_steps = functools.partial(to_steps, total=total)
    if not 0 <= reader.seed < 2**32:
        raise UserError(f"seed={reader.seed} must be in [0, 2**32)")
    for field, why in (
        ("num_classes", "the data set says how many"),
        ("vocab_size", "the text says how many"),
        ("dtype", "set precision=bfloat16 or float32"),
    ):
        if field in reader.model.to_dict():
            raise UserError(f"model.{field}: {why}")
    for field in sorted(feed.fields.keys() - set(models.fields(reader.model.name))):
        raise UserError(
            f"model.name={reader.model.name} is not for {feed.unit} (data.source={reader.data.source}): it "
            f"has no field {field}"
        )
    every = {"log": reader.log_every, "evaluate": reader.evaluate_every, "checkpoint": reader.checkpoint_every}

    model = models.create(
        reader.model.name,
        **{**feed.fields, "dtype": PRECISIONS[reader.precision], **reader.model.to_dict(without=("name",))},
    )
    task = tasks.create(
        reader.task, model, len(feed.classes), feed.unit, feed.label_shape, reader.data.source, to_steps
    )
    pruning = prune.plan(reader.optimizer.prune, to_steps, total)
    sharing = weight_sharing.plan(reader.optimizer.share)
    with parallel.drawing():
        variables, task_state, digest = start.variables(
            reader, model, task, feed, per_device // reader.accumulate, sharing if fresh else None
        )
    zeros = sharing or (pruning and pruning.structure != "filters")
    if zeros and (kernels := low_bit.binary(model, variables, *models.abstract(feed.inputs))):
        raise UserError(
            f"optimizer.prune and share are not for binary layers, where 0 counts as 1: {kernels[0]}; "
            "structure=filters is"
        )
    coupled = functools.partial(prune.vectors, model, variables, feed.inputs)
    tx, learning_rate = optimizer.create(
        reader.optimizer, variables["params"], to_steps, total, pruning, sharing, coupled
    )
    lookahead = lookahead_lib.create(reader.lookahead, to_steps, total)
    if lookahead and reader.ema_decay:
        raise UserError(f"lookahead='{reader.lookahead}' averages in its own way; set ema_decay=0")
    if (lookahead or reader.ema_decay) and (pruning or sharing):
        what = f"ema_decay={reader.ema_decay}" if reader.ema_decay else f"lookahead='{reader.lookahead}'"
        raise UserError(
            f"{what}: averages of weights that optimizer.prune cuts or that optimizer.share lets share "
            "values are not cut and share none"
        )
    program = functools.partial(
        step.train_call,
        gather=feed.gather,
        prepare=feed.prepare,
        task=task,
        optimizer=tx,
        learning_rate=learning_rate,
        accumulate=reader.accumulate,
        ema_decay=reader.ema_decay,
        ema_warmup=reader.ema_warmup,
        lookahead=lookahead,
    )
    evaluation_call = functools.partial(step.evaluation_call, prepare=feed.prepare_evaluation, task=task)
    with parallel.drawing():
        state = state_lib.create(variables, task_state, tx, reader.seed, with_ema=bool(lookahead or reader.ema_decay))
    run = Run(
        config=workdir_lib.plain(config),
        parallel=parallel,
        feed=feed,
        task=task,
        hooks=hooks.create(reader.hooks),
        total=total,
        every={name: to_steps(duration) for name, duration in every.items()},
        keep=reader.keep_checkpoints,
        program=program,
        train_call=parallel.lift_training(program),
        evaluation_call=parallel.lift_evaluation(evaluation_call),
        state=state,
        pruning=pruning,
        start=digest,
    )
    reader.check_all_read()
    for hook in run.hooks:
        hook.check(run)
    if fresh:
        # Traced once without computing: what does not fit together is said now, before anything is written.
        items, evaluation_items = feed.shapes()
        jax.eval_shape(run.train_call, run.state, feed.data, items)
        jax.eval_shape(run.evaluation_call, run.state, {}, evaluation_items)
    # As numpy: it goes to the devices when training starts. The parameters were being drawn while that was traced.
    return run._replace(state=jax.tree.map(np.asarray, run.state))


def train(
    config: Mapping[str, Any],
    workdir: str | Path,
    console: rich.console.Console | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Trains the run that `config` describes in `workdir`, or goes on with it, and evaluates it.

    Whatever ended an earlier run of the same config there, the result is that of an uninterrupted one.

    Args:
      config: complete; see configs/base.py.
      workdir: folder of this run alone.
      console: for progress; silent where None.
      started: when the process started, by time.time(), for "seconds_to_first_step".

    Returns:
      The summary, as in summary.json; {"interrupted": signal, "step": …} where SIGTERM or SIGINT ended it early.

    Raises:
      UserError: a mistake in the config, a workdir of another config or of another process, a loss that is not finite,
        a full disk.
    """
    folder = expanded(workdir).absolute()
    with checkpoint.full_disk_is_said(folder), contextlib.ExitStack() as held:
        return _train(config, folder, console or rich.console.Console(quiet=True), started or time.time(), held)


def _train(
    config: Mapping[str, Any], folder: Path, console: rich.console.Console, started: float, held: contextlib.ExitStack
) -> dict[str, Any]:
    """Does what `train` says; the workdir is this process's until `held` ends."""
    lock = Lock(folder)
    held.callback(lock.release)

    def early():  # before memory of the devices is taken from the process that has the folder
        if folder.is_dir():
            lock.acquire()
        return None, ()

    multihost.from_primary(early, ())
    multihost.check_same("config", workdir_lib.plain(config))
    run = setup(config)
    parallel, feed, total = run.parallel, run.feed, run.total
    for note in feed.notes:
        console.print(note, soft_wrap=True, markup=False, highlight=False)
    is_primary = jax.process_index() == 0  # the one process that reads and writes the workdir
    record = feed.record()
    if run.start:
        record["arrays of init_from"] = run.start
    if run.pruning and run.pruning.file:
        record["file of optimizer.prune"] = hashlib.sha256(expanded(run.pruning.file).read_bytes()).hexdigest()[:16]
    multihost.check_same("data or start of the run", record)
    saved = None

    def found():
        nonlocal saved
        workdir_lib.claim(folder, run.config, record, lock)
        held.enter_context(workdir_lib.details_kept(folder))
        saved = held.enter_context(
            contextlib.closing(checkpoint.Checkpoints(folder / "checkpoints", run.keep, run.task.headline))
        )
        return _found(run, saved, folder, record, console)

    (about, finished), state = multihost.from_primary(found, run.state)
    if finished:
        console.print(f"{folder} is finished; its summary stands", soft_wrap=True, markup=False)
        return finished
    state, done, results = parallel.place(state), about["step"], {}
    began = time.time() - about["seconds"]  # as if the earlier, interrupted runs had been one with this
    recorder = metrics.Recorder(
        folder if is_primary else None,
        console,
        total=total,
        step=done,
        batch_size=run.config["batch_size"],
        unit=feed.unit,
        log_every=run.every["log"],
        before=about["recorder"],
    )
    try:
        with Interruption() as interruption:
            for number, (count, items) in enumerate(feed.calls(done, total)):
                state, computed = run.train_call(state, feed.data, items)
                recorder.add(count, computed)
                before, done, results = done, done + count, {}
                due = {
                    name: done == total or (every > 0 and done // every > before // every)
                    for name, every in run.every.items()
                }
                interrupted = interruption.noted(number)
                if not (due["evaluate"] or due["checkpoint"] or interrupted):
                    continue
                recorder.flush()  # nothing that is not finite is evaluated or saved
                if done == total:
                    for hook in run.hooks:
                        state = hook.at_end(run, state)
                if due["evaluate"]:
                    results = run.evaluate(state, last=done == total)
                    recorder.evaluated(done, results)
                if due["checkpoint"] or interrupted:
                    host = metrics.check_finite(done, parallel.fetch(state))
                    if is_primary:
                        saved.save(
                            done,
                            host,
                            {"seconds": time.time() - began, "data": record, "recorder": recorder.state()},
                            results,
                        )
                if interrupted and done < total:
                    if is_primary:
                        saved.wait()
                    recorder.say(f"{interrupted}: saved at step {done} of {total}; the same command goes on")
                    return {"interrupted": interrupted, "step": done}
                recorder.resume()
        if is_primary:
            saved.wait()
        results = results or run.evaluate(state, last=True)  # killed between the last checkpoint and the summary
        result = summary_lib.create(run, results, seconds=time.time() - began, recorder=recorder, started=started)
        if skipped := feed.skipped_line():
            recorder.say(f"warning: {skipped}")
        recorder.close()
        host = parallel.fetch(state) if run.hooks else None
        if is_primary:
            for hook in run.hooks:
                hook.finished(run, host, folder)
            write_json(folder / "summary.json", result)
    finally:
        recorder.close()
    return result


def _found(
    run: Run, saved: checkpoint.Checkpoints, folder: Path, record: Mapping[str, Any], console: rich.console.Console
) -> tuple[Any, state_lib.TrainState]:
    """Where the run stands: (what is told of the newest checkpoint, the summary if it is finished), and the state.

    Raises:
      UserError: checkpoints of other data or of another network, or that are all damaged.
    """
    found = saved.restore_newest(warn=lambda text: console.print(f"warning: {text}", soft_wrap=True, markup=False))
    if not found:
        return ({"step": 0, "seconds": 0.0, "recorder": None}, None), run.state
    leaves, about = found
    changed = config_lib.difference(about["data"], record)
    if changed:
        raise UserError(
            f"the data or the start of the run in {folder} changed since ({'; '.join(changed)}): "
            "choose another --workdir"
        )
    if about["step"] == run.total and (folder / "summary.json").exists():
        try:
            return (about, read_json(folder / "summary.json", summary_lib.SCHEMA)), run.state
        except UserError as error:
            raise UserError(f"{error}; delete it, and the same command evaluates the run again") from None
    state = checkpoint.unflatten(run.state, leaves, f"checkpoint {about['step']} in {folder}")
    console.print(f"going on from step {about['step']} of {run.total}", soft_wrap=True, markup=False)
    return (about, None), state
