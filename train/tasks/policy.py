"""BlockDrop (Wu et al. 2018, arXiv 1711.08393): a policy that learns by its reward which blocks an image needs."""

from typing import Any

import jax
import jax.numpy as jnp

from models.errors import UserError
from models.gated import BlockDrop, gates
from train.tasks.gated import Skipping

EPS = float(jnp.finfo(jnp.float32).eps)


class Policy(Skipping):
    """Policy gradient with a self-critical baseline (Rennie et al. 2017); the network itself stays as it is, or learns
    with it.

    Args, besides those of every task:
      penalty: the reward of a wrong prediction is minus this (gamma); of a right one, `reward`.
      bound: probabilities p are sampled as bound * p + (1 - bound) * (1 - p) (alpha, equation 7).
      entropy: weight of the entropy of what is sampled, which keeps it exploring (beta in the authors' code, whose term
        is -p log p alone; here it is that of open and closed, of the blocks that are the policy's).
      curriculum: time until which more and more blocks are the policy's to drop, the last ones first (section 3.3).
      joint: whether the network learns, too, by the cross-entropy of what it says with the sampled blocks. If not, its
        gradient is 0, and optimizer.groups has to keep decay from it: (('policy/.*', 1.0), ('.*', 0.0)).
    """

    def __init__(
        self,
        model: Any,
        num_classes: int,
        config: Any,
        to_steps: Any = None,
        *,
        penalty: float = 5.0,
        bound: float = 0.8,
        entropy: float = 0.1,
        curriculum: str = "0 steps",
        joint: bool = False,
    ):
        if not isinstance(model, BlockDrop):
            raise UserError(f"task policy is for networks with a policy (blockdrop110), not {type(model).__name__}")
        if min(penalty, entropy) < 0 or not 0 <= bound <= 1:
            raise ValueError(f"penalty={penalty} and entropy={entropy} must be at least 0, and bound={bound} in [0, 1]")
        super().__init__(model, num_classes, config, to_steps)
        self._penalty, self._bound, self._entropy, self._joint = penalty, bound, entropy, joint
        self._curriculum = to_steps(curriculum) if to_steps else 0
        if to_steps and self._curriculum > to_steps("100%"):
            raise ValueError(
                f"curriculum='{curriculum}' is longer than the training, of {to_steps('100%')} steps: "
                "some blocks would never be the policy's"
            )

    def init(self, key, inputs):
        """The state is {"learned": how many blocks, the last ones, are the policy's}."""
        variables, _ = super().init(key, inputs)
        return variables, {"learned": self._learned(jnp.zeros((), jnp.int32))}

    def _learned(self, step):
        blocks = len(self.model.blocks)
        if not self._curriculum:
            return jnp.full((), blocks, jnp.int32)
        return jnp.minimum(1 + step * blocks // self._curriculum, blocks).astype(jnp.int32)

    def loss(self, params, model_state, task_state, batch, key, step):
        """See the class and `train.tasks`."""
        model, images, mask = self.model, batch["image"], batch["mask"]
        policy_key, model_key, sample_key = jax.random.split(key, 3)
        own = {"params": params["policy"], **{name: tree["policy"] for name, tree in model_state.items()}}
        logits, policy_state = model.policy(parent=None).apply(
            own, model.pooled(images), train=True, rngs={"dropout": policy_key}, mutable=list(model_state)
        )
        learned = self._learned(step)
        open_ = jnp.arange(len(model.blocks)) >= len(model.blocks) - learned  # [K]: the policy's
        bounded = self._bound * jax.nn.sigmoid(logits) + (1 - self._bound) * jax.nn.sigmoid(-logits)  # [B, K]
        bounded = jnp.clip(bounded, EPS, 1 - EPS)  # has logarithms where the bound is 0 or 1
        sampled = jnp.where(open_, jax.random.bernoulli(sample_key, bounded), True).astype(jnp.float32)
        greedy = jnp.where(open_, logits >= 0, True).astype(jnp.float32)

        def predicted(keep, params, train):
            return model.apply(
                {"params": params, **model_state},
                images,
                train=train,
                keep=keep,
                rngs={"dropout": model_key},
                mutable=list(model_state),
            )

        said, state = predicted(sampled, params if self._joint else jax.lax.stop_gradient(params), self._joint)
        base, _ = predicted(greedy, jax.lax.stop_gradient(params), self._joint)
        label = jnp.argmax(batch["target"], -1) if "target" in batch else batch["label"]  # as `scored` has it
        rewards = [reward(logits, label, keep, self._penalty) for logits, keep in ((said, sampled), (base, greedy))]
        chosen = jnp.where(sampled > 0, jnp.log(bounded), jnp.log1p(-bounded)) * open_  # log of probabilities
        gain = -(rewards[0] - rewards[1]) * jnp.sum(chosen, -1)
        entropy = -jnp.sum((bounded * jnp.log(bounded) + (1 - bounded) * jnp.log1p(-bounded)) * open_, -1)
        weight = jnp.sum(mask)
        cross_entropy, metrics = self.scored(said if self._joint else base, batch)
        loss = jnp.sum((gain - self._entropy * entropy) * mask) / len(mask) + self._joint * cross_entropy
        metrics |= {"reward": (jnp.sum(rewards[1] * mask), weight), "blocks": (jnp.sum(greedy * mask[:, None]), weight)}
        model_state = {
            name: {**(state if self._joint else model_state)[name], "policy": tree}
            for name, tree in policy_state.items()
        }
        return loss, (metrics, model_state, {"learned": learned})

    def decided(self, variables, task_state, images):
        """As `Skipping`; while the curriculum goes on, the first blocks are always computed."""
        _, computed = gates(self.model, variables, images)
        first = jnp.arange(computed.shape[1]) < computed.shape[1] - task_state["learned"]
        computed = jnp.maximum(computed, first)
        return self.model.apply(variables, images, train=False, keep=computed), computed


def reward(logits: jax.Array, label: jax.Array, keep: jax.Array, penalty: float) -> jax.Array:
    """Equation 2: 1 less the square of the share of the blocks that are computed, where the prediction is right, and
    minus the penalty where it is not: logits [B, num_classes], label [B], keep [B, blocks] -> [B].
    """
    right = jnp.argmax(logits, -1) == label
    return jax.lax.stop_gradient(jnp.where(right, 1 - jnp.mean(keep, -1) ** 2, -penalty))
