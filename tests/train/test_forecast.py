"""Forecasts of a run: --dry_run --topology, on described CPU devices in every run of the tests, and with libtpu."""

import importlib.util
import io

import jax
import pytest
import rich.console

from configs import imagenet
from experiments.bench import plain
from experiments.bench import topology as bench
from models.errors import UserError
from tests import tiny
from train.devices import compiled, topology
from train.recording import forecast
from train.run import build_run

TPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra topology)")


def cpus(count=4, memory=2**30):
    """Returns a topology of this CPU's virtual devices, for which XLA can compile, too."""
    return topology.Topology(f"cpu:{count}", "cpu", tuple(jax.devices()[:count]), memory, {})


def shown(config, target):
    out = io.StringIO()
    forecast.show(config, target, rich.console.Console(file=out, width=200))
    return out.getvalue()


def test_a_forecast_is_that_of_the_program_that_would_run():
    config = tiny.config(devices=0, parallel="shard_map")
    step = forecast.lower(config, cpus(1))
    run = build_run(tiny.config(devices=1, parallel="shard_map", steps_per_call=1))
    real = run.train_call.lower(run.parallel.place(run.state), run.feed.data, next(run.feed.calls(0, 1))[1])
    assert step.lowered.as_text() == real.as_text()
    text = shown(config, cpus())
    assert "32 images, 8 per device" in text and "all-reduce" in text and "no speed was measured" in text


def test_sharding_shows_in_the_state_and_in_the_collectives():
    wide = {"model__width": 32, "devices": 0}
    whole, sharded = (shown(tiny.config(**wide, parallel=kind), cpus()) for kind in ("pmap", "fsdp"))
    assert "all-gather" in sharded and "reduce-scatter" in sharded and "all-gather" not in whole

    def state(text):
        return float(text.split("state ")[1].split("iB")[0].split()[0])

    assert state(sharded) < 700 and state(whole) == 2.3  # KiB and MiB


def test_a_step_that_does_not_fit_is_refused_with_remedies_after_its_table():
    out = io.StringIO()
    config = tiny.config(model__width=32, devices=0)
    with pytest.raises(forecast.TooLarge) as caught:
        forecast.show(config, cpus(memory=4 * 2**20), rich.console.Console(file=out, width=200))
    line = str(caught.value)
    assert line.startswith("the training step does not fit into cpu:4: it needs ") and "there are 4.0 MiB" in line
    assert "--config.parallel=fsdp" in line and "--config.accumulate=" in line and "--config.batch_size=" in line
    assert "memory" in out.getvalue() and "all-reduce" in out.getvalue()


def test_a_data_set_that_is_not_prepared_is_described(tmp_path):
    config = tiny.change(imagenet.get_config("resnet18,batch=8,size=32"), data__dir=str(tmp_path), model__width=4)
    step = forecast.lower(config, cpus(2))
    assert step.network.model.num_classes == 1000 and step.network.images.image_shape == (32, 32, 3)
    assert "tfds:imagenet2012 is not prepared here" in step.notes[0]


def test_a_key_that_nothing_reads_is_refused():
    config = tiny.config()
    config.optimizer.rate = 1.0
    with pytest.raises(UserError, match=r"config key 'optimizer\.rate' is read by nothing"):
        forecast.lower(config, cpus())


def test_a_program_that_the_compiler_refuses_names_its_first_line_and_layer():
    error = RuntimeError(
        'INTERNAL: Mosaic failed to compile\nmore\nop_name="jit(train_call)/jvp(ViT)/block3/attention/dot_general"'
    )
    line = str(forecast.not_compiled(error, cpus()))
    assert line == (
        "the training step does not compile for cpu:4: INTERNAL: Mosaic failed to compile (layer block3/attention)"
    )


def test_the_compilers_words_on_memory_are_understood():
    messages = {
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (128.12G) "
        "exceeds available HBM (15.75G).": 128.12,
        "Ran out of memory in memory space hbm. Used 20.15G of 15.75G hbm. Exceeded hbm capacity by 4.40G.": 20.15,
    }
    for message, gibibytes in messages.items():
        assert forecast.bytes_needed(message) == int(gibibytes * 2**30)


@pytest.mark.full
@TPU
def test_on_a_tpu_fsdp_shards_the_state_and_gathers_parameters():
    target = topology.read("v5e:2x2")
    config = tiny.config(devices=0, parallel="fsdp", precision="bfloat16", model__width=32)
    step = forecast.lower(config, target)
    with target.compiling():
        program = step.lowered.compile()
    kinds = {one.kind: one.number for one in compiled.Program(program.as_text() or "").facts().collectives}
    assert kinds["all-gather"] and kinds["reduce-scatter"]
    assert sum(compiled.memory(program).values()) < target.memory


@pytest.mark.full
@TPU
def test_two_slices_of_a_tpu_train_one_step():
    target = topology.read("v5e:2x2,slices=2")
    step = forecast.lower(tiny.config(devices=0, parallel="fsdp", model__width=32), target)
    assert [device.slice_index for device in step.network.parallel.devices] == [0] * 4 + [1] * 4
    with target.compiling():
        program = step.lowered.compile()
    assert sum(compiled.memory(program).values()) < target.memory


@pytest.mark.full
@TPU
def test_on_a_tpu_the_resident_data_set_is_not_copied():
    """A gather from [N, H, W, C] would copy the whole set in each step."""
    target = topology.read("v5e:1x1")
    step = forecast.lower(tiny.config(devices=0), target)
    with target.compiling():
        program = step.lowered.compile()
    images = step.network.feed.data["image"]
    assert compiled.memory(program)["temporaries"] < 2 * images.size + 8 * 2**20
    assert not any(one.shape.startswith(f"u8[{images.shape[0]}") for one in _buffers(program))


def _buffers(program):
    return compiled.Program(program.as_text() or "").facts(1000).buffers


@pytest.mark.full
@TPU
@pytest.mark.parametrize("name", plain.NAMES)
def test_on_a_tpu_a_step_is_at_most_that_of_plain_flax(name):
    """Bounds estimated cycles, and the peak of the memory, of networks with one block per stage."""
    ours, other = bench.rows(name, topology.read("v5e:1x1"), 0, 1)
    peak = 1.15 if name == "convnext_tiny" else 1.0  # docs/benchmarks.md says which arrays ConvNeXt's has more
    assert ours["cycles"] <= other["cycles"], (ours, other)
    assert ours["program_mib"] <= peak * other["program_mib"], (ours, other)


@pytest.mark.full
@TPU
def test_on_a_tpu_batch_norm_takes_few_reductions():
    target = topology.read("v5e:1x1")
    model = plain.ours("resnet50", 1)
    program = bench.step(model, bench.inputs("resnet50", 32), target)
    variables = jax.eval_shape(model.init, jax.random.key(0), *model.example())
    norms = sum(leaf.ndim == 1 for leaf in jax.tree.leaves(variables["batch_stats"])) // 2
    facts = compiled.Program(program.as_text() or "").facts()
    # Forward, backward and the update of the running statistics; the head has some, too
    assert norms == 17 and facts.reductions <= 4 * norms
