"""The loop from end to end: what it writes, how it goes on, what it refuses."""

import json

import numpy as np
import pytest

from models.errors import UserError
from tests import tiny
from train import checkpoint, loop, workdir


def final(folder):
    """Leaves of the newest checkpoint."""
    store = checkpoint.Checkpoints(folder / "checkpoints")
    leaves, about = store.restore_newest(pytest.fail)
    store.close()
    return leaves, about


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run, with pictures and recalibrated statistics."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.config(hooks="recalibrate(2)|figures", ema_decay=0.5, data__augment="crop(1)")
    return config, folder, loop.train(config, folder)


def test_a_run_leaves_everything(finished):
    config, folder, summary = finished
    assert summary == json.loads((folder / "summary.json").read_text())
    assert {"accuracy", "parameters", "mult_adds", "seconds", "images_per_second", "device", "commit", "versions",
            "seconds_to_first_step"} <= summary.keys()
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


def test_event_files_hold_the_same_numbers(finished):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    _, folder, summary = finished
    (path,) = folder.glob("events.out.tfevents.*")
    data, scalars = path.read_bytes(), {}
    while data:  # TFRecord: length, its checksum, payload, its checksum
        size = int.from_bytes(data[:8], "little")
        payload = data[12:12 + size]
        assert int.from_bytes(data[12 + size:16 + size], "little") == masked_crc32c(payload)
        event = event_pb2.Event.FromString(payload)
        scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + size:]
    assert scalars["test/accuracy", 12] == pytest.approx(summary["accuracy"])
    assert ("train/loss", 4) in scalars


def test_a_finished_run_stands(finished, capsys):
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


def test_another_config_is_refused_and_said(finished):
    _, folder, _ = finished
    other = tiny.config(hooks="recalibrate(2)|figures", ema_decay=0.5, data__augment="crop(1)", batch_size=64)
    with pytest.raises(UserError, match=r"belongs to a run with another config \(batch_size: 32 -> 64\)"):
        loop.train(other, folder)
    faster = tiny.config(hooks="recalibrate(2)|figures", ema_decay=0.5, data__augment="crop(1)", log_every="1 steps")
    assert loop.train(faster, folder)["steps"] == 12  # how often it logs is nobody's result


def test_a_lost_checkpoint_is_made_up_for_to_the_bit(tmp_path):
    """12 steps equal 8 steps, restore, 4 steps: parameters, statistics, momentum, average, rng, metrics."""
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

    def told(folder):
        lines = workdir.read_metrics(folder / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]

    assert told(whole) == told(broken)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config = tiny.config(optimizer__learning_rate=1e-3, optimizer__schedule="step(1e30, '6 steps')", model__norm="none")
    with pytest.raises(UserError, match=r"the (loss|gradient norm) is (nan|inf) at step ([7-9]|10)"):
        loop.train(config, tmp_path)
    leaves, about = final(tmp_path)
    assert about["step"] == 4 and all(np.isfinite(leaf).all() for leaf in leaves.values())


@pytest.mark.parametrize(("changes", "message"), [
    ({"model__nrm": "batch"}, "unknown field of resnet8 'nrm'; did you mean 'norm'"),
    ({"optimizer__lerning_rate": 1.0},
     "'optimizer.lerning_rate' is read by nothing; did you mean 'optimizer.learning_rate'"),
    ({"model__name": "resnet21"}, "unknown model 'resnet21'; did you mean 'resnet"),
    ({"model__norm": "bach"}, "unknown norm 'bach'; did you mean 'batch'"),
    ({"model__init": "msar"}, "unknown init 'msar'; did you mean 'msra'"),
    ({"data__source": "tfds:no_such_set"}, "unknown TFDS data set 'no_such_set'"),
    ({"data__source": "digit"}, "unknown data.source 'digit'; did you mean 'digits'"),
    ({"task__name": "clasify"}, "unknown task 'clasify'; did you mean 'classify'"),
    ({"precision": "float16"}, "unknown precision 'float16'"),
    ({"hooks": "figure"}, "unknown hook 'figure'; did you mean 'figures'"),
    ({"data_init": "LSUV"}, "unknown data_init 'LSUV'"),
    ({"duration": "0.001 epochs"}, "less than one step"),
    ({"duration": "ten epochs"}, "cannot read the duration 'ten epochs'"),
    ({"ema_decay": 1.0}, "ema_decay=1.0 must be in"),
    ({"data__pipeline": "stream"}, "steps_per_call=2: must be 1 where data are streamed"),
    ({"keep_checkpoints": 0}, "keep_checkpoints=0"),
])
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        loop.train(tiny.config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lsuv_as_data_init():
    run = loop.setup(tiny.config(data_init="lsuv"))
    plain = loop.setup(tiny.config())
    a, b = run.state.params["head"]["kernel"], plain.state.params["head"]["kernel"]
    assert not np.allclose(a, b)
