"""Our worker: the same work as `peer`, and the overhead of the training loop over a bare step.

python -m experiments.bench.ours '{"case": "steps", "model": "resnet20", "batch": 128, "size": 32}'
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from experiments.bench.worker_side import WARM, Served, after_warm_up, begin, work
from models.kernels.tracing import lowering
from train.devices import memory

# Modules that train and read data are imported where they are used. Bare steps need neither grain nor Orbax, which a
# machine borrowed for an hour may lack.
PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}  # as in `train.loop`


def machine(case: dict) -> Served:
    """Describes the machine."""
    from train.recording import summary

    devices = jax.devices()
    return Served({}, {**summary.environment(devices), "platform": devices[0].platform, "devices": len(devices)})


def device_peak() -> int | None:
    """Returns the peak memory in bytes, or None if the backend does not report them, as on a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def step_and_forward(case: dict) -> tuple[dict[str, Callable[[], None]], dict[str, Any]]:
    """Compiles a training step (SGD with momentum and decay) and a forward pass on one fixed batch, without the loop.

    Returns:
      The calls, and the number of parameters. Each call computes `repeat` times and waits once.
    """
    dtype = PRECISIONS[case.get("precision", "float32")]
    model = models.create(case["model"], image_size=case["size"], dtype=dtype, **case.get("fields", {}))
    shape = (case["batch"], case["size"], case["size"], 3)
    variables = {"batch_stats": {}, **models.initialize(model, jax.random.key(0), shape)}
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray(rng.integers(0, 10, shape[0]))
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, 0.9))

    chosen = lowering("plain" if case.get("plain") else "auto")

    @functools.partial(jax.jit, donate_argnums=0)
    @chosen
    def train(state, x, y):
        params, stats, opt = state

        def loss(params):
            logits, new = model.apply(
                {"params": params, "batch_stats": stats},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new.get("batch_stats", {})

        grads, new_stats = jax.grad(loss, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), new_stats, opt

    infer = jax.jit(chosen(lambda state, x: model.apply({"params": state[0], "batch_stats": state[1]}, x)))
    state = [(variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))]

    def step():
        for _ in range(case.get("repeat", 1)):
            state[0] = train(state[0], x, y)
        jax.block_until_ready(state[0])

    def forward():
        logits = None
        for _ in range(case.get("repeat", 1)):
            logits = infer(state[0], x)
        jax.block_until_ready(logits)

    all_calls = {"step": step, "forward": forward}
    calls = {name: all_calls[name] for name in case.get("calls", all_calls)}
    for _ in range(2):
        for call in calls.values():
            call()
    return calls, {"params": sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))}


def steps(case: dict) -> Served:
    """Prepares the calls of `step_and_forward`."""
    return Served(*step_and_forward(case), device_peak)


def profiled(case: dict) -> Served:
    """Reports under "profile" the time of `step_and_forward`'s calls, as in `profile.traced`."""
    from experiments.bench import profile

    calls, _ = step_and_forward(case)
    return Served({}, {"profile": {name: profile.traced(call) for name, call in calls.items()}})


def matmul(case: dict) -> Served:
    """Prepares products of square matrices, one call per size."""
    dtype = PRECISIONS[case["precision"]] or jnp.float32
    product = jax.jit(jnp.matmul)

    def products(size):
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        b = jax.random.normal(jax.random.key(1), (size, size), dtype)
        product(a, b).block_until_ready()
        return lambda: jax.block_until_ready([product(a, b) for _ in range(case["repeat"])]) and None

    return Served({str(size): products(size) for size in case["sizes"]})


def explain(case: dict) -> Served:
    """Compiles forward pass and Grad-CAM of a batch, and the occlusion of its first image, each for the top class."""
    from models.explain.cam import grad_cam
    from models.explain.catalogue import heat
    from models.explain.occlusion import occlusion

    model = models.create(case["model"], image_size=case["size"])
    shape = (case["batch"], case["size"], case["size"], 3)
    variables = models.initialize(model, jax.random.key(0), shape)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    infer = jax.jit(model.apply)
    options = {"size": case["square"], "stride": case["stride"], "batch": case["batch"]}
    calls = {
        "forward": lambda: infer(variables, x),
        "grad_cam": lambda: heat(grad_cam(model, variables, x).values, shape[1:3]),
        "occlusion": lambda: occlusion(model, variables, x[:1], **options),
    }

    def finished(call):
        jax.block_until_ready(call())

    served = {name: functools.partial(finished, call) for name, call in calls.items()}
    for call in served.values():
        call()
    return Served(served, device_peak=device_peak)


def loop_steps(case: dict) -> Served:
    """Prepares `steps` steps of the real loop, with configs/cifar10.py changed by the keys of the case.

    They include the case's data pipeline, augmentation, and metrics fetched one dispatch late.
    """
    import rich.console

    from train.recording.recorder import Recorder
    from train.run import build_run
    from train.setup.config import load

    config: Any = load("configs/cifar10.py")
    if case["model"] != config.model.name:
        config.model = type(config.model)({"name": case["model"]})  # fields such as norm keep the network's defaults
    config.data.source = f"arrays:{case['arrays']}"
    for name in ("pipeline", "workers", "augment"):
        config.data[name] = case.get(name, config.data[name])
    config.batch_size, config.devices = case["batch"], case.get("devices", 1)
    config.eval_batch_size = config.batch_size
    for name in ("parallel", "precision", "steps_per_call"):
        config[name] = case.get(name, config[name])
    endless, unit = 10**9, config.steps_per_call
    run = build_run(config)
    recorder = Recorder(
        None,
        rich.console.Console(quiet=True),
        total=endless,
        step=0,
        batch_size=config.batch_size,
        unit="images",
        peak_mib=lambda: memory.peak_mib(run.parallel.local),
        log_every=200,
        before=None,
    )
    state, calls = [run.parallel.place(run.state)], run.feed.calls(0, endless)

    def take(count):
        for _ in range(count // unit):
            done, items = next(calls)
            state[0], computed = run.train_call(state[0], run.data, items)
            recorder.add(done, computed)
        recorder.flush()

    take(2 * unit)
    return Served({"step": lambda: take(case["steps"])}, device_peak=device_peak)


def data(case: dict) -> Served:
    """Prepares decoding a folder of JPEGs, random-resized crops and batches by the stream; timed from batch ten on."""
    from train.data import load, shuffle, source, stream

    options = source.Options(
        source=f"folder:{case['folder']}", image_size=case["size"], crop="random_resized", exif="ignore"
    )  # like the peers
    images = load.load(options, "train")

    def one_pass():
        batches = stream.stream(
            images, shuffle.Order(len(images), 0), case["batch"], 0, WARM + case["batches"], case["workers"]
        )
        return after_warm_up(batches)

    one_pass()
    return Served({"pass": one_pass})


if __name__ == "__main__":
    begin(__doc__)
    work(
        {
            "about": machine,
            "steps": steps,
            "profile": profiled,
            "matmul": matmul,
            "explain": explain,
            "loop": loop_steps,
            "data": data,
        }
    )
