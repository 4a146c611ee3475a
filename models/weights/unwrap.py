"""Extraction of weights from the checkpoints of training scripts, which nest and rename them."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from models.weights.foreign import Damaged

# Keys under which scripts nest weights. The first one on a level is used; averaged weights come first.
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "params_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "net",
    "module",
    "weights",
    "params",
    "checkpoint",
)
# Prefixes of all names in networks that torch's DataParallel or compile has wrapped.
PARALLEL = ("module.", "_orig_mod.")
# Prefixes of all names in modules with the network as an attribute, such as Lightning's, and in flattened trees.
ATTRIBUTES = (*PARALLEL, *(f"{key}." for key in WRAPPERS if key != "module"), "backbone.")
# Names of numbers that training stores beside the weights; whole numbers without axes count as well.
COUNTERS = (
    "epoch",
    "step",
    "global_step",
    "iteration",
    "iter",
    "best_acc",
    "best_acc1",
    "acc",
    "accuracy",
    "loss",
    "best_loss",
    "best_score",
    "lr",
    "decay",
    "seed",
)


class Opaque:
    """An object of a foreign class, of which only the name is known."""

    def __init__(self, name: str):
        self.name = name


def is_array(value: Any) -> bool:
    """Returns whether a value is a NumPy array or represents an array in a file."""
    return hasattr(value, "shape")


def is_counter(name: str, array: Any) -> bool:
    """Returns whether an array is a number that training stores beside the weights and no network uses."""
    if array.shape != ():
        return False
    return array.dtype.kind in "iubUS" or name.rpartition(".")[2].lower() in COUNTERS


def state(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a checkpoint by name, either at the top level or nested under WRAPPERS at any depth.

    Other values on their level (numbers, texts, options, the optimizer's state) are dropped. A level that contains
    itself is visited once.

    Raises:
      Damaged: There are no arrays, their names are not texts, or they are foreign objects.
    """
    if isinstance(tree, Opaque):
        raise Damaged(f"refused for the objects in it ({tree.name}); save its state_dict alone")
    if not isinstance(tree, Mapping):
        raise Damaged(f"a {'Tensor' if is_array(tree) else type(tree).__name__} instead of arrays by name")
    objects = []
    for level in _levels(tree):
        arrays = {name: value for name, value in level.items() if is_array(value)}
        if not all(isinstance(name, str) for name in arrays):
            raise Damaged("its arrays are numbered, not named")
        if not all(is_counter(name, array) for name, array in arrays.items()):
            return arrays
        objects += [value.name for value in level.values() if isinstance(value, Opaque)]
    if objects:
        raise Damaged(f"refused for the objects in it ({', '.join(sorted(set(objects)))}); save its state_dict alone")
    keys = ", ".join(f"'{key}'" for key in tree if isinstance(key, str))
    raise Damaged(
        f"there are no arrays by name in it{keys and f', but {keys}'}; they are looked for under {', '.join(WRAPPERS)}"
    )


def without_prefixes(
    arrays: Mapping[str, Any], prefixes: Collection[str], expected: Collection[str] = ()
) -> dict[str, Any]:
    """Removes prefixes that all names share, in any order, until there is none or a name is `expected`.

    Counters may lack the prefix.
    """
    expected = set(expected)
    while expected.isdisjoint(arrays):
        names = [name for name, array in arrays.items() if not is_counter(name, array)]
        prefix = next((prefix for prefix in prefixes if names and all(name.startswith(prefix) for name in names)), "")
        if not prefix:
            break
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return dict(arrays)


def _levels(tree: Mapping) -> Iterator[Mapping]:
    """Yields the mappings under WRAPPERS, each once and before the one that contains it, without recursion."""
    visited, stack = set(), [(tree, False)]
    while stack:
        level, is_done = stack.pop()
        if is_done:
            yield level
        elif id(level) not in visited:
            visited.add(id(level))
            inside = [level[key] for key in WRAPPERS if isinstance(level.get(key), Mapping)]
            stack += [(level, True), *((child, False) for child in reversed(inside))]
