"""The loop from end to end: its files, resuming, and errors."""

import json
import shutil
import time

import numpy as np
import pytest
import rich.console

from models.errors import UserError
from tests import tiny
from tests.tiers import keep_first
from train import loop
from train.recording import recorder as metrics
from train.run import build_run
from train.storage import checkpoint, workdir


def final(folder):
    """Returns the leaves of the newest checkpoint."""
    store = checkpoint.Checkpoints(folder / "checkpoints")
    leaves, metadata = store.restore_newest(pytest.fail)
    store.close()
    return leaves, metadata


def logged_metrics(folder):
    """Returns the lines of metrics.jsonl without the speed."""
    lines = workdir.read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns a whole run, with pictures and recalibrated statistics."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.config(hooks="recalibrate(2)|figures", ema_decay=0.5, data__augment="crop(1)")
    return config, folder, loop.train(config, folder, started=time.time() - 100)


def test_all_seconds_count_from_the_start_of_the_process(finished):
    _, folder, summary = finished
    assert 100 < summary["seconds_to_first_step"] < summary["seconds"] < 300
    assert summary["training_seconds"] < summary["seconds"] - summary["seconds_to_first_step"] + 5
    # The next process goes on from the time at the last checkpoint
    assert 100 < final(folder)[1]["seconds"] < summary["seconds"]


def test_a_run_writes_every_file(finished):
    config, folder, summary = finished
    assert summary == json.loads((folder / "summary.json").read_text())
    assert {
        "accuracy", "parameters", "mult_adds", "seconds", "images_per_second", "device", "commit", "versions",
        "seconds_to_first_step", "peak_mib",
    } <= summary.keys()  # fmt: skip
    assert summary["training_seconds"] == pytest.approx(12 * 32 / summary["images_per_second"], abs=0.01)
    assert 200 < summary["peak_mib"] < 20_000
    assert summary["test_examples"] == 360 and summary["steps"] == 12
    assert json.loads((folder / "config.json").read_text())["batch_size"] == config.batch_size
    lines = workdir.read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "train"] == [4, 8, 12]
    assert [line["step"] for line in lines if line["split"] == "test"] == [6, 12]
    assert lines[-1]["accuracy"] == summary["accuracy"]
    assert len(lines[-1]["accuracy_by_class"]) == 10
    assert any(folder.glob("events.out.tfevents.*"))
    for name in ("curves.png", "mistakes.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG") and (folder / name).stat().st_size > 10_000
    assert sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdecimal())[-2:] == [8, 12]


def test_speed_leaves_out_the_compilation_of_each_length_of_call(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    recorder = metrics.Recorder(
        None,
        rich.console.Console(quiet=True),
        total=7,
        step=0,
        batch_size=10,
        unit="images",
        peak_mib=lambda: None,
        log_every=0,
        before=None,
    )
    # The last is another program, which takes 100 s to compile
    for at, count in ((5.0, 2), (9.0, 2), (11.0, 2), (111.0, 1)):
        clock[0] = at
        recorder.add(
            count, {name: (np.ones(count), np.ones(count)) for name in ("loss", "gradient_norm", "learning_rate")}
        )
    clock[0] = 112.0
    recorder.flush()
    recorder.close()
    assert recorder.examples_per_second == 10 and recorder.training_seconds == 7


def test_event_files_hold_the_same_numbers(finished):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    _, folder, summary = finished
    (path,) = folder.glob("events.out.tfevents.*")
    data, scalars = path.read_bytes(), {}
    while data:  # TFRecord: length, its checksum, payload, its checksum
        size = int.from_bytes(data[:8], "little")
        payload = data[12 : 12 + size]
        assert int.from_bytes(data[12 + size : 16 + size], "little") == masked_crc32c(payload)
        event = event_pb2.Event.FromString(payload)
        scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + size :]
    assert scalars["test/accuracy", 12] == pytest.approx(summary["accuracy"])
    assert ("train/loss", 4) in scalars


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    config, folder, summary = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert loop.train(config, folder) == summary
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_recalibration_reaches_the_checkpoint_and_the_average(finished):
    config, folder, summary = finished
    leaves, _ = final(folder)
    trained = leaves["model_state/batch_stats/stage1/block0/norm1/mean"]
    averaged = leaves["ema/model_state/batch_stats/stage1/block0/norm1/mean"]
    assert not np.array_equal(trained, averaged)


def test_a_different_config_is_refused_with_its_difference(finished):
    _, folder, _ = finished
    other = tiny.config(hooks="recalibrate(2)|figures", ema_decay=0.5, data__augment="crop(1)", batch_size=64)
    with pytest.raises(UserError, match=r"belongs to a run with a different config \(batch_size: 32 -> 64\)"):
        loop.train(other, folder)
    faster = tiny.config(hooks="recalibrate(2)|figures", ema_decay=0.5, data__augment="crop(1)", log_every="1 steps")
    assert loop.train(faster, folder)["steps"] == 12  # the logging interval does not affect results


@pytest.mark.full
def test_a_lost_checkpoint_is_recomputed_to_the_bit(tmp_path):
    """Compares 12 steps with 8 steps, restore, 4 steps: parameters, statistics, momentum, average, rng, metrics."""
    config = tiny.config(ema_decay=0.5, data__augment="crop(1)|mixup(0.3)", model__dropout=0.1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    loop.train(config, whole)
    loop.train(config, broken)
    damaged = max((broken / "checkpoints" / "12" / "state").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    damaged.write_bytes(b"")
    (broken / "metrics.jsonl").open("a").write('{"step": 12, "split": "tra')
    loop.train(config, broken)
    assert (tmp_path / "broken" / "damaged-checkpoint-12").is_dir()
    tiny.assert_same(final(whole)[0], final(broken)[0])

    assert logged_metrics(whole) == logged_metrics(broken)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config = tiny.config(optimizer__learning_rate=1e-3, optimizer__schedule="step(1e30, '6 steps')", model__norm="none")
    with pytest.raises(UserError, match=r"the (loss|gradient norm) is (nan|inf) at step ([7-9]|10)"):
        loop.train(config, tmp_path)
    leaves, metadata = final(tmp_path)
    assert metadata["step"] == 4 and all(np.isfinite(leaf).all() for leaf in leaves.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__nrm": "batch"}, "unknown field of resnet8 'nrm'; did you mean 'norm'"),
        (
            {"optimizer__lerning_rate": 1.0},
            "'optimizer.lerning_rate' is read by nothing; did you mean 'optimizer.learning_rate'",
        ),
        ({"model__name": "resnet21"}, "unknown model 'resnet21'; did you mean 'resnet"),
        ({"model__norm": "bach"}, "unknown norm 'bach'; did you mean 'batch'"),
        ({"model__init": "msar"}, "unknown init 'msar'; did you mean 'msra'"),
        ({"data__source": "tfds:no_such_set"}, "unknown TFDS data set 'no_such_set'"),
        ({"data__source": "digit"}, "unknown data.source 'digit'; did you mean 'digits'"),
        ({"task__name": "clasify"}, "unknown task.name 'clasify'; did you mean 'classify'"),
        ({"precision": "float16"}, "unknown precision 'float16'"),
        ({"hooks": "figure"}, "unknown hooks 'figure'; did you mean 'figures'"),
        ({"data_init": "LSUV"}, "unknown data_init 'LSUV'"),
        ({"duration": "0.001 epochs"}, "less than one step"),
        ({"duration": "ten epochs"}, "cannot read the duration 'ten epochs'"),
        ({"ema_decay": 1.0}, "ema_decay=1.0 must be in"),
        ({"data__pipeline": "stream"}, "steps_per_call=2: must be 1 for streamed data"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0"),
        ({"seed": -1}, "seed=-1"),
        ({"hooks": "recalibrate", "model__norm": "group:2"}, "recalibrate is for networks with batch norm"),
        ({"hooks": "recalibrate(-1)"}, "hooks recalibrate: batches=-1"),
        ({"data__augment": "mixup(0.2)", "batch_size": 31, "steps_per_call": 1}, "must be even, not 31"),
        ({"data__mean": (0.1, 0.2, 0.3)}, r"data.mean=.*must be a tuple of 1 number, or of 1 per channel \(here 1\)"),
        ({"data__std": (0.0,)}, "data.std=.*must be positive"),
        ({"model__num_classes": 5}, "model.num_classes: the data set determines it"),
        ({"model__dtype": "float32"}, "model.dtype: set precision"),
        ({"model__dropout": "abc"}, "model field dropout='abc' must be of type float"),
        ({"model__stage_sizes": 3}, "stage_sizes=3 must be"),
        ({"model__width": 0}, "width=0 must be at least 1"),
        ({"optimizer__clip_norm": -1.0}, "optimizer.clip_norm=-1.0 must be at least 0"),
        ({"optimizer__learning_rate": -1.0}, "optimizer.learning_rate=-1.0 must be at least 0"),
        ({"optimizer__name": "sgd(momentum='a')"}, "optimizer.name sgd: momentum must be float, not 'a'"),
        ({"optimizer__name": "sgd(momentum=2.5)"}, "optimizer.name sgd: momentum=2.5 must be in"),
        ({"optimizer__schedule": "step(a, '3 steps')"}, "optimizer.schedule step: factor must be float"),
        ({"optimizer__warmup": "200%"}, "optimizer.warmup=200% is longer than the training"),
        ({"optimizer__groups": (".*", 1.0)}, "optimizer.groups=.*must be tuples"),
        ({"optimizer__groups": ((".*", -1.0),)}, "a multiplier must be 0"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        loop.train(tiny.config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_explodes_on_the_last_step_is_no_result(tmp_path):
    """Tests a finite loss whose update ruins the parameters: neither they nor their evaluation are kept."""
    config = tiny.config(
        optimizer__learning_rate=1e-3,
        optimizer__schedule="step(1e38, '11 steps')",
        optimizer__warmup="0 steps",
        model__norm="none",
        steps_per_call=1,
        model__act="gelu",
    )  # a ReLU turns -inf into 0
    with pytest.raises(UserError, match="at step 12; the last checkpoint before it is kept"):
        loop.train(config, tmp_path)
    assert final(tmp_path)[1]["step"] == 8 and not (tmp_path / "summary.json").exists()


@pytest.mark.full
def test_a_run_that_saved_nothing_does_not_own_its_folder(tmp_path):
    hopeless = tiny.config(optimizer__learning_rate=1e30, optimizer__warmup="0 steps", model__norm="none")
    with pytest.raises(UserError, match="is (nan|inf) at step"):
        loop.train(hopeless, tmp_path)
    assert loop.train(tiny.config(duration="2 steps"), tmp_path)["steps"] == 2


def test_data_that_changed_are_refused(tmp_path):
    def arrays(count):
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 256, (count, 8, 8, 1), np.uint8), np.arange(count) % 10
        np.savez(tmp_path / "set.npz", train_image=images, train_label=labels, test_image=images, test_label=labels)

    config = tiny.config(data__source=f"arrays:{tmp_path / 'set.npz'}", duration="4 steps", eval_batch_size=10)
    arrays(40)
    summary = loop.train(config, tmp_path / "run")
    arrays(50)
    with pytest.raises(UserError, match=r"have changed \(.*identity.test.images: 40 -> 50"):
        loop.train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary


def test_a_disk_that_fills_up_is_one_line(tmp_path, monkeypatch):
    def full(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workdir.MetricsFile, "write", full)
    with pytest.raises(UserError, match="no disk space in .*No space left on device"):
        loop.train(tiny.config(), tmp_path)


@pytest.mark.full
def test_a_class_without_test_images_is_null_in_json(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 8, 8, 2), np.uint8)  # two channels: no picture, but no error either
    np.savez(
        tmp_path / "set.npz",
        train_image=images,
        train_label=np.arange(30) % 3,
        test_image=images[:20],
        test_label=np.append(np.arange(19) % 2, 2),
    )
    source = f"arrays:{tmp_path / 'set.npz'}"
    config = tiny.config(data__source=source, duration="2 steps", eval_batch_size=10, hooks="figures")
    loop.train(config, tmp_path / "run")
    text = (tmp_path / "run" / "summary.json").read_text()
    json.loads(text, parse_constant=pytest.fail)  # called for NaN and Infinity, which are not JSON


def test_only_at_the_end():
    run = build_run(tiny.config(evaluate_every="0 steps", checkpoint_every="0 steps", log_every="0 steps"))
    assert run.every == {"log": 0, "evaluate": 0, "checkpoint": 0}


@pytest.mark.parametrize(
    "changes",
    keep_first(
        1,
        [
            dict(steps_per_call=1, data__pipeline="stream", data__workers=1),
            dict(devices=4, parallel="shard_map", accumulate=2),
            dict(precision="bfloat16", log_every="5 steps"),
            dict(devices=4, model__conv="int8", model__dense="int8"),
        ],
    ),
    ids=["stream", "devices", "bfloat16", "int8"],
)
def test_going_on_is_exact_in_every_mode(tmp_path, changes):
    """Repeats the test above for workers, several devices, accumulation, bfloat16, more log lines, and int8 layers."""
    config = tiny.config(data__augment="crop(1)", **changes)
    loop.train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    (tmp_path / "broken" / "checkpoints" / "12" / "about" / "metadata").write_text("")
    loop.train(config, tmp_path / "broken")
    tiny.assert_same(final(tmp_path / "whole")[0], final(tmp_path / "broken")[0])
    assert logged_metrics(tmp_path / "whole") == logged_metrics(tmp_path / "broken")


def test_lsuv_as_data_init():
    run = build_run(tiny.config(data_init="lsuv"))
    plain = build_run(tiny.config())
    a, b = run.state.params["head"]["kernel"], plain.state.params["head"]["kernel"]
    assert not np.allclose(a, b)


def test_bfloat16_on_a_cpu_gets_a_line():
    assert any("slower than float32" in note for note in build_run(tiny.config(precision="bfloat16")).notes)
    assert build_run(tiny.config()).notes == ()
