"""BlockDrop (Wu et al. 2018, arXiv 1711.08393): a policy that learns from rewards which blocks an image needs."""

from typing import Any

import jax
import jax.numpy as jnp

from models.errors import UserError
from models.gated import BlockDrop, gates
from train.setup.config import Reader
from train.tasks.gated import Skipping

EPS = float(jnp.finfo(jnp.float32).eps)


class Policy(Skipping):
    """Policy gradient with a self-critical baseline (Rennie et al. 2017).

    Args:
      model: the flax module.
      num_classes: number of classes of the data.
      config: the section `task`.
      to_steps: converts durations to steps.
      penalty: the reward of a wrong prediction is minus this number (gamma); that of a right one is given by `reward`.
      bound: a probability p is sampled as bound * p + (1 - bound) * (1 - p) (alpha, equation 7).
      entropy: weight of the entropy of the sampled decisions, which encourages exploration. The authors' code calls it
        beta, and its term is only -p log p. Here, the term is the binary entropy of each decision, summed over the
        blocks that the policy may drop.
      curriculum: duration in which the policy gets more and more blocks to drop, the last ones first (section 3.3).
      joint: whether the network also learns, by the cross-entropy of its predictions with the sampled blocks. If not,
        its gradient is 0, and optimizer.groups must freeze it, so that it does not decay: (('policy/.*', 1.0),
        ('.*', 0.0)).
    """

    def __init__(
        self,
        model: Any,
        num_classes: int,
        config: Reader,
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
                f"curriculum='{curriculum}' is longer than the training of {to_steps('100%')} steps, so that the "
                "policy would never get some of the blocks"
            )

    def init(self, key, inputs):
        """Returns drawn variables and the state {"learned": number of last blocks that the policy may drop}."""
        variables, _ = super().init(key, inputs)
        return variables, {"learned": self._learned(jnp.zeros((), jnp.int32))}

    def _learned(self, step):
        blocks = len(self.model.blocks)
        if not self._curriculum:
            return jnp.full((), blocks, jnp.int32)
        return jnp.minimum(1 + step * blocks // self._curriculum, blocks).astype(jnp.int32)

    def loss(self, params, model_state, task_state, batch, key, step):
        """Returns the policy gradient's loss, plus that of the network with `joint`; see `Task.loss`."""
        model, images, mask = self.model, batch["image"], batch["mask"]
        policy_key, model_key, sample_key = jax.random.split(key, 3)
        own = {"params": params["policy"], **{name: tree["policy"] for name, tree in model_state.items()}}
        logits, policy_state = model.policy(parent=None).apply(
            own, model.pooled(images), train=True, rngs={"dropout": policy_key}, mutable=list(model_state)
        )
        learned = self._learned(step)
        open_ = jnp.arange(len(model.blocks)) >= len(model.blocks) - learned  # [K]: blocks of the policy
        bounded = self._bound * jax.nn.sigmoid(logits) + (1 - self._bound) * jax.nn.sigmoid(-logits)  # [B, K]
        bounded = jnp.clip(bounded, EPS, 1 - EPS)  # keeps logarithms finite if the bound is 0 or 1
        sampled = jnp.where(open_, jax.random.bernoulli(sample_key, bounded), True).astype(jnp.float32)
        greedy = jnp.where(open_, logits >= 0, True).astype(jnp.float32)

        def predict(keep, params, train):
            return model.apply(
                {"params": params, **model_state},
                images,
                train=train,
                keep=keep,
                rngs={"dropout": model_key},
                mutable=list(model_state),
            )

        explored, state = predict(sampled, params if self._joint else jax.lax.stop_gradient(params), self._joint)
        base, _ = predict(greedy, jax.lax.stop_gradient(params), self._joint)
        labels = jnp.argmax(batch["target"], -1) if "target" in batch else batch["label"]  # as in `scored`
        rewards = [
            reward(logits, labels, keep, self._penalty) for logits, keep in ((explored, sampled), (base, greedy))
        ]
        log_probabilities = jnp.where(sampled > 0, jnp.log(bounded), jnp.log1p(-bounded)) * open_
        gain = -(rewards[0] - rewards[1]) * jnp.sum(log_probabilities, -1)
        entropy = -jnp.sum((bounded * jnp.log(bounded) + (1 - bounded) * jnp.log1p(-bounded)) * open_, -1)
        weight = jnp.sum(mask)
        cross_entropy, metrics = self.scored(explored if self._joint else base, batch)
        loss = jnp.sum((gain - self._entropy * entropy) * mask) / len(mask) + self._joint * cross_entropy
        metrics |= {"reward": (jnp.sum(rewards[1] * mask), weight), "blocks": (jnp.sum(greedy * mask[:, None]), weight)}
        model_state = {
            name: {**(state if self._joint else model_state)[name], "policy": tree}
            for name, tree in policy_state.items()
        }
        return loss, (metrics, model_state, {"learned": learned})

    def decided(self, variables, task_state, images):
        """Returns the results of `Skipping.decided`; blocks that the policy does not have yet are always computed."""
        _, computed = gates(self.model, variables, images)
        first = jnp.arange(computed.shape[1]) < computed.shape[1] - task_state["learned"]
        computed = jnp.maximum(computed, first)
        return self.model.apply(variables, images, train=False, keep=computed), computed


def reward(logits: jax.Array, labels: jax.Array, keep: jax.Array, penalty: float) -> jax.Array:
    """Returns the rewards [B] of equation 2, for logits [B, num_classes], labels [B] and keep [B, blocks].

    The reward of a right prediction is 1 minus the square of the share of blocks that are computed; that of a wrong
    prediction is minus the penalty.
    """
    right = jnp.argmax(logits, -1) == labels
    return jax.lax.stop_gradient(jnp.where(right, 1 - jnp.mean(keep, -1) ** 2, -penalty))
