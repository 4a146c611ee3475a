"""Facts about compiled programs: from XLA's text for this CPU, and from recorded lines of its TPU compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.devices import compiled

# Lines of what libtpu 0.0.42 makes of a ViT with parallel=fsdp, shortened
TPU = """\
HloModule jit_train_call, is_scheduled=true

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a, %b)
}

%fused_computation.661 (param_0.1: bf16[1,65,96]) -> (bf16[1,65,96], bf16[1,65,384]) {
  %all-gather.85 = bf16[1,65,384]{1,0,2:T(2,128)(2,1)} all-gather(%param_0.1), channel_id=1, dimensions={2}, metadata={op_name="jit(train_call)/shard_map/jvp(ViT)/all_gather"}
}

%async_collective_fusion.331 (param_0.2: bf16[1,65,96]) -> bf16[32,8,8,384] {
  %all-gather.86 = bf16[1,65,384]{1,0,2:T(2,128)(2,1)} all-gather(%param_0.2), channel_id=1, dimensions={2}
  ROOT %convolution.5 = bf16[32,8,8,384]{3,0,2,1} convolution(%param_0.2, %param_0.2), window={size=4x4}
}

%fused_computation.9 (param_0.3: bf16[32,8,8,384]) -> f32[384] {
  ROOT %reduce.7 = f32[384]{0} reduce(%param_0.3, %c), dimensions={0,1,2}, to_apply=%region_0.1, metadata={op_name="jit(train_call)/transpose(jvp(ViT))/block0/norm1/reduce_sum"}
}

%body.3 (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.20 = f32[8]{0:S(1)} fusion(%x), kind=kLoop, calls=%region_0.1, backend_config={"window_config":{"estimated_cycles":"100"}}
}

ENTRY %main.128_spmd (p0: bf16[1,65,96]) -> f32[384] {
  %p0 = bf16[1,65,96]{2,1,0} parameter(0)
  %async-collective-start = (bf16[1,65,96]{1,0,2:T(2,128)(2,1)S(1)}, bf16[1,65,384]{1,0,2:T(2,128)(2,1)S(1)}, s32[2]{0:S(4)}) fusion(%p0), kind=kCustom, calls=%fused_computation.661
  %fusion.331 = (bf16[32,8,8,384]{3,0,2,1:T(8,128)(2,1)}, bf16[1,65,96]{1,0,2:T(2,128)(2,1)S(1)}) fusion(%async-collective-start), kind=kOutput, calls=%async_collective_fusion.331, metadata={op_name="jit(train_call)/shard_map/jvp(ViT)/embed/embed.convolve/conv_general_dilated"}, backend_config={"window_config":{"estimated_cycles":"5000"}}
  %fusion.9 = f32[384]{0:T(512)} fusion(%fusion.331), kind=kLoop, calls=%fused_computation.9, backend_config={"window_config":{"estimated_cycles":"700"}}
  %reduce_scatter.1 = f32[96,384]{1,0:T(8,128)S(1)} reduce-scatter(%fusion.9), channel_id=1, dimensions={0}, to_apply=%region_0.1
  %while.1 = (s32[], f32[8]{0}) while(%t), condition=%region_0.1, body=%body.3, backend_config={"known_trip_count":{"n":"4"}}
}
"""  # noqa: E501


def test_facts_of_a_program_for_a_tpu():
    facts = compiled.Program(TPU).facts()
    assert facts.cycles == 5000 + 700 + 4 * 100
    assert (facts.reductions, facts.reduction_cycles) == (1, 700)
    assert facts.collectives == (
        compiled.Collective("all-gather", 1, 65 * 384 * 2, 1),  # runs while the convolution computes
        compiled.Collective("reduce-scatter", 1, 96 * 384 * 4, 0),
    )
    assert facts.buffers == (
        compiled.Buffer(32 * 8 * 8 * 384 * 2, "bf16[32,8,8,384]", "embed"),
        compiled.Buffer(384 * 4, "f32[384]", "block0/norm1 (backward)"),
    )
    assert facts.opcodes["fusion"] == 3 + 4


# As XLA writes them for GPUs
GPU = """ENTRY %main (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  %all-gather-start.1 = (f32[8]{0}, f32[32]{0}) all-gather-start(%p), dimensions={0}
  %all-gather-done.1 = f32[32]{0} all-gather-done(%all-gather-start.1)
  %all-reduce-start.2 = f32[32]{0} all-reduce-start(%all-gather-done.1), to_apply=%add
  %dot.4 = f32[8,8]{1,0} custom-call(%p, %p), custom_call_target="__cublas$gemm"
  %all-reduce-done.2 = f32[32]{0} all-reduce-done(%all-reduce-start.2)
}
"""


def test_a_collective_overlaps_if_something_computes_before_it_is_done():
    assert compiled.Program(GPU).facts().collectives == (
        compiled.Collective("all-reduce", 1, 128, 1),
        compiled.Collective("all-gather", 1, 128, 0),
    )


def test_facts_of_a_program_of_this_cpu():
    mesh = Mesh(np.array(jax.devices()[:4]), ("batch",))

    def step(x, w):
        def one(carry, _):
            return lax.psum(carry @ w, "batch"), None

        return lax.scan(one, x, None, length=3)[0]

    part = PartitionSpec("batch")
    lifted = jax.shard_map(step, mesh=mesh, in_specs=(part, PartitionSpec()), out_specs=part, check_vma=False)
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, part))
    program = jax.jit(lifted).lower(x, jax.ShapeDtypeStruct((32, 32), jnp.float32)).compile()
    facts = compiled.Program(program.as_text() or "").facts()
    assert facts.collectives == (compiled.Collective("all-reduce", 3, 3 * 16 * 32 * 4, 0),)
    memory = compiled.memory(program)
    assert memory["arguments"] == 16 * 32 * 4 + 32 * 32 * 4 and memory["results"] == 16 * 32 * 4


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("jit(train_call)/shard_map/jvp(ViT)/block0/reduce/all_gather", "block0/reduce"),
        (
            "jit(f)/transpose(jvp(ResNet))/stage1/block0/block0._branch/conv3/dot_general",
            "stage1/block0/conv3 (backward)",
        ),
        ("jit(train_call)/shard_map/add", ""),
        ("state.params[\\'stage3\\'][\\'block0\\'][\\'kernel\\']", "stage3/block0/kernel"),
        ("", ""),
    ],
)
def test_layer_of_an_operation(name, layer):
    assert compiled.layer(name) == layer
