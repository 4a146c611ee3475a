"""Our worker: the same work as `peer`, and what the loop adds to a bare step.

    python -m experiments.bench.ours '{"case": "steps", "model": "resnet20", "batch": 128, "size": 32}'
"""

import contextlib
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from experiments.bench.serve import WARM, after_warm_up, serve
from models.layers.conv import lowering
from train import config as config_lib
from train import loop
from train.data import order, source, stream


def steps(case: dict) -> None:
    """Training step (SGD with momentum and decay) and forward pass on one fixed batch, without the loop."""
    dtype = jnp.bfloat16 if case.get("precision") == "bfloat16" else None
    model = models.create(case["model"], image_size=case["size"], dtype=dtype)
    shape = (case["batch"], case["size"], case["size"], 3)
    variables = {"batch_stats": {}, **models.initialize(model, jax.random.key(0), shape)}
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray(rng.integers(0, 10, shape[0]))
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, 0.9))

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state, x, y):
        params, stats, opt = state

        def loss(params):
            logits, new = model.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"],
                                      rngs={"dropout": jax.random.key(1)})
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new.get("batch_stats", {})

        grads, new_stats = jax.grad(loss, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), new_stats, opt

    infer = jax.jit(lambda state, x: model.apply({"params": state[0], "batch_stats": state[1]}, x))
    state = [(variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))]

    def step():
        state[0] = jax.block_until_ready(train(state[0], x, y))

    def forward():
        jax.block_until_ready(infer(state[0], x))

    with lowering("plain") if case.get("plain") else contextlib.nullcontext():
        for _ in range(2):
            step()
            forward()
    serve({"step": step, "forward": forward})


def explain(case: dict) -> None:
    """Forward pass and Grad-CAM of a batch, and the occlusion of its first image, compiled; for the top classes."""
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
    serve(served)


def loop_steps(case: dict) -> None:
    """Four steps of the real loop: data of the pipeline asked for, augmentation, metrics, as configs/cifar10.py."""
    config = config_lib.load(f"configs/cifar10.py:{case['model']}")
    config.data.source, config.data.dir = f"arrays:{case['arrays']}", ""
    config.data.pipeline, config.data.workers = case["pipeline"], case.get("workers", 0)
    config.data.augment = case.get("augment", config.data.augment)
    config.batch_size, config.parallel, config.devices = case["batch"], case.get("parallel", "pmap"), 1
    run = loop.setup(config)
    state = [run.parallel.replicate(run.state)]
    calls = run.feed.calls(0, 10**6)

    def four_steps():
        for _ in range(4):
            _, items = next(calls)
            state[0], metrics = run.train_call(state[0], run.feed.data, items)
        jax.block_until_ready(metrics)

    four_steps()
    serve({"steps": four_steps})


def data(case: dict) -> None:
    """A folder of JPEGs: decode, random-resized crop, batch, by the streaming pipeline; from the tenth batch on."""
    options = source.Options(source=f"folder:{case['folder']}", image_size=case["size"], crop="random_resized")
    images = source.load(options, "train")

    def one_pass():
        batches = stream.stream(
            images, order.Order(len(images), 0), case["batch"], 0, WARM + case["batches"], case["workers"])
        return after_warm_up(batches)

    one_pass()
    serve({"pass": one_pass})


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    {"steps": steps, "explain": explain, "loop": loop_steps, "data": data}[asked["case"]](asked)
