"""The optimizers that `config.optimizer.name` can name: all of optax and optax.contrib that a step can feed.

An entry says where an optimizer comes from, its usual learning rate with the source, how it decays, and what it needs
besides gradients. `optimizer.learning_rate=0` stands for the usual learning rate.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from models import plugins
from models.errors import UserError, has_type
from train.optim.optimizers import check_fractions, coupled, decoupled
from train.setup import spec

MOST = 30  # a learning rate that exceeds the usual one by a larger factor earns a warning
VALUE, HESSIAN = "value", "hessian"  # what an optimizer needs besides gradients
COUPLED, DECOUPLED, INSIDE = "coupled", "decoupled", "inside"


class Entry(NamedTuple):
    """An optimizer.

    Attributes:
      where: "module:NAME" of a builder of ours, or of a function of optax whose arguments a config gives.
      usual: its usual learning rate.
      source: where that comes from.
      decay: "decoupled": w decreases by learning rate x decay x w; "coupled": decay x w is added to the gradient;
        "inside": as its paper has it, see the docstring of its builder.
      needs: "" for gradients alone; "value" for the loss, too; "hessian" for products of the Hessian and a vector.
    """

    where: str
    usual: float
    source: str
    decay: str
    needs: str = ""


_OURS, _FREE, _CONTRIB = "train.optim.optimizers:", "train.optim.schedule_free:", "optax.contrib:"
ENTRIES = {
    "sgd": Entry(f"{_OURS}sgd", 0.1, "He 2016, section 3.4", COUPLED),
    "adam": Entry(f"{_OURS}adam", 1e-3, "Kingma 2015, algorithm 1", COUPLED),
    "adamw": Entry(f"{_OURS}adamw", 1e-3, "Loshchilov 2019, algorithm 2", DECOUPLED),
    "lars": Entry(f"{_OURS}lars", 5.0, "MLPerf's ResNet-50 at less than 8,192 images per step", INSIDE),
    "lamb": Entry(f"{_OURS}lamb", 5e-3, "Wightman 2021, table 2: A1 and A2", INSIDE),
    "acprop": Entry(f"{_CONTRIB}acprop", 1e-3, "Zhuang 2021, section 5", DECOUPLED),
    "adabelief": Entry("optax:adabelief", 1e-3, "Zhuang 2020, section 3", DECOUPLED),
    "adadelta": Entry("optax:adadelta", 1.0, "Zeiler 2012, which has none", COUPLED),
    "adafactor": Entry("optax:adafactor", 1e-2, "Shazeer 2018, algorithm 6", DECOUPLED),
    "adagrad": Entry("optax:adagrad", 1e-2, "PyTorch's default", COUPLED),
    "adamax": Entry("optax:adamax", 2e-3, "Kingma 2015, algorithm 2", COUPLED),
    "adamaxw": Entry("optax:adamaxw", 2e-3, "Kingma 2015, algorithm 2", DECOUPLED),
    "adan": Entry("optax:adan", 1e-3, "the default of its authors' code", DECOUPLED),
    "ademamix": Entry(f"{_CONTRIB}ademamix", 1e-3, "that of AdamW, as in Pagliardini 2024", DECOUPLED),
    "adopt": Entry(f"{_CONTRIB}adopt", 1e-3, "Taniguchi 2024, algorithm 2", DECOUPLED),
    "amsgrad": Entry("optax:amsgrad", 1e-3, "that of Adam", COUPLED),
    "cocob": Entry(f"{_CONTRIB}cocob", 1.0, "Orabona 2017, which has none", COUPLED),
    "dadapt_adamw": Entry(f"{_OURS}dadapt_adamw", 1.0, "Defazio 2023, which estimates it", DECOUPLED),
    "dog": Entry(f"{_CONTRIB}dog", 1.0, "Ivgi 2023, which estimates it", COUPLED),
    "dowg": Entry(f"{_CONTRIB}dowg", 1.0, "Khaled 2023, which estimates it", COUPLED),
    "fromage": Entry("optax:fromage", 1e-2, "Bernstein 2020, section 6", COUPLED),
    "galore": Entry(f"{_CONTRIB}galore", 1e-2, "Zhao 2024, section 5.1", DECOUPLED),
    "lion": Entry("optax:lion", 1e-4, "Chen 2023, section 5: a tenth to a third of AdamW's", DECOUPLED),
    "madgrad": Entry(f"{_CONTRIB}madgrad", 1e-2, "the default of its authors' code", COUPLED),
    "momo": Entry(f"{_CONTRIB}momo", 1.0, "Schaipp 2023: an upper bound", DECOUPLED, VALUE),
    "momo_adam": Entry(f"{_CONTRIB}momo_adam", 1e-2, "Schaipp 2023: an upper bound", DECOUPLED, VALUE),
    "muon": Entry("train.optim.matrices:muon", 0.02, "the readme of its authors' code", DECOUPLED),
    "nadam": Entry("optax:nadam", 2e-3, "PyTorch's default", COUPLED),
    "nadamw": Entry("optax:nadamw", 1e-3, "that of AdamW", DECOUPLED),
    "noisy_sgd": Entry(f"{_OURS}noisy_sgd", 0.1, "that of SGD", COUPLED),
    "novograd": Entry(f"{_OURS}novograd", 1e-2, "Ginsburg 2019, section 4", INSIDE),
    "optimistic_adam_v2": Entry("optax:optimistic_adam_v2", 1e-3, "that of Adam", COUPLED),
    "optimistic_gradient_descent": Entry("optax:optimistic_gradient_descent", 0.1, "that of SGD", COUPLED),
    "polyak_sgd": Entry(f"{_OURS}polyak_sgd", 1.0, "Loizou 2021, section 3: a factor", COUPLED, VALUE),
    "prodigy": Entry(f"{_OURS}prodigy", 1.0, "Mishchenko 2023, which estimates it", DECOUPLED),
    "radam": Entry("optax:radam", 1e-3, "that of Adam", COUPLED),
    "rmsprop": Entry("optax:rmsprop", 1e-3, "Tieleman 2012, lecture 6", COUPLED),
    "rprop": Entry(f"{_OURS}rprop", 1.0, "Riedmiller 1993, which adapts each step", COUPLED),
    "schedule_free_adamw": Entry(f"{_FREE}adamw", 2.5e-3, "the default of its authors' code", DECOUPLED),
    "schedule_free_sgd": Entry(f"{_FREE}sgd", 1.0, "the default of its authors' code", COUPLED),
    "sign_sgd": Entry("optax:sign_sgd", 1e-4, "Bernstein 2018, section 6", DECOUPLED),
    "signum": Entry("optax:signum", 1e-4, "Bernstein 2018, section 6", DECOUPLED),
    "simplified_ademamix": Entry(
        f"{_CONTRIB}simplified_ademamix", 1e-5, "AdamW's x (1 - b1), as its momentum is a sum (Morwani 2025)", DECOUPLED
    ),
    "sm3": Entry(f"{_OURS}sm3", 0.1, "Anil 2019, table 3", COUPLED),
    "sophia": Entry(f"{_OURS}sophia", 8e-4, "0.8 x AdamW's, by the readme of its authors' code", DECOUPLED, HESSIAN),
    "yogi": Entry("optax:yogi", 1e-2, "Zaheer 2018, section 5", COUPLED),
}
REFUSED = {  # what else optax has that is called an optimizer, and why it is none here
    "lbfgs": "its line search evaluates the loss of one batch many times per step",
    "dpsgd": "it needs the gradient of each example",
    "mechanize": "it wraps another optimizer; prodigy and dadapt_adamw also estimate the learning rate",
    "schedule_free": "it wraps another optimizer; write schedule_free_sgd or schedule_free_adamw",
    "sam": "set optimizer.sam, which wraps any optimizer",
    "lookahead": "set lookahead, which averages the weights of any optimizer",
    "optimistic_adam": "optax replaced it by optimistic_adam_v2",
    "shampoo": "optax has none, and muon is its modern form",
    "differentially_private_aggregate": "it needs the gradient of each example",
}
_FRACTIONS = {"b1", "b2", "b3", "beta", "momentum", "rho", "decay"}
_NOT_NEGATIVE = {"eps", "eps_root", "alpha", "min_norm", "initial_accumulator_value"}
# Arguments that the section `optimizer` sets in other ways, or that are no literals
_HIDDEN = {
    "learning_rate", "weight_decay", "mask", "weight_decay_mask", "weight_decay_rate", "mu_dtype", "dtype_momentum",
    "accumulator_dtype", "clip_value_fn", "base_optimizer", "weight_dimension_numbers", "init_estim_sq_dist",
}  # fmt: skip
_KINDS = {"clipping_threshold": float, "momentum": float, "decay_offset": int}  # of arguments that may be None


def entry(text: str) -> Entry | None:
    """Returns the entry of an optimizer with its arguments, e.g. "lion(b1=0.95)"; None for FILE.py:NAME."""
    calls = spec.parse("optimizer.name", text)
    return ENTRIES.get(calls[0].name) if len(calls) == 1 else None


def needs_hessian(text: str) -> bool:
    """Tells whether an optimizer needs products of the Hessian and a vector."""
    row = entry(text)
    return row is not None and row.needs == HESSIAN


def create(text: str, learning_rate: Any, weight_decay: float, decay_mask: Any) -> optax.GradientTransformation:
    """Builds the optimizer that a config names.

    Args:
      text: its name and arguments, e.g. "lion(b1=0.95)".
      learning_rate: learning rate by step.
      weight_decay: strength of the decay.
      decay_mask: parameters -> a tree of bools: which of them decay.

    Raises:
      UserError: the name or an argument is unknown, or a value is out of range.
    """
    calls = spec.parse("optimizer.name", text)
    if len(calls) == 1 and calls[0].name in REFUSED:
        raise UserError(f"optimizer.name={text}: {REFUSED[calls[0].name]}")
    return spec.resolve_one("optimizer.name", text, BUILDERS, learning_rate, weight_decay, decay_mask)


def usual(text: str, learning_rate: float) -> tuple[float, list[str]]:
    """Returns the learning rate of a run, and lines to print about it.

    Args:
      text: the optimizer with its arguments.
      learning_rate: the config's; 0 stands for the optimizer's usual one.

    Raises:
      UserError: 0 is given for an optimizer of a file, which has no usual learning rate.
    """
    row = entry(text)
    if learning_rate:
        if row is None or learning_rate <= MOST * row.usual:
            return learning_rate, []
        return learning_rate, [
            f"warning: optimizer.learning_rate={learning_rate:g} is {learning_rate / row.usual:,.0f} times the usual "
            f"one of {text}, {row.usual:g} ({row.source}); 0 stands for the usual one"
        ]
    if row is None and plugins.split(text):
        raise UserError(f"optimizer.learning_rate=0 stands for the usual one, and {text} has none: set it")
    if row is None:
        return learning_rate, []  # `create` refuses the name
    return row.usual, [f"optimizer.learning_rate=0: {row.usual:g}, the usual one of {text} ({row.source})"]


def arguments(name: str) -> dict[str, inspect.Parameter]:
    """Returns the arguments of an optimizer that a config may give."""
    return dict(list(inspect.signature(BUILDERS[name]).parameters.items())[3:])


def _builder(row: Entry) -> Callable[..., optax.GradientTransformation]:
    """Returns the function of an entry: (learning_rate, weight_decay, decay_mask, …) -> optimizer."""
    function: Any = plugins.imported(row.where)
    if not row.where.startswith("optax"):
        return function
    theirs = inspect.signature(function).parameters
    mask = next((name for name in ("mask", "weight_decay_mask") if name in theirs), "")
    own = mask and "weight_decay" in theirs

    names = [name for name in theirs if name not in _HIDDEN]

    @functools.wraps(function)
    def build(learning_rate, weight_decay, decay_mask, *values, **given):
        given |= dict(zip(names, values, strict=False))
        _check(theirs, given)
        if own:
            return function(learning_rate, weight_decay=weight_decay, **{mask: decay_mask}, **given)
        optimizer = function(learning_rate, **given)
        if row.decay == DECOUPLED:
            return decoupled(optimizer, learning_rate, weight_decay, decay_mask)
        return coupled(optimizer, weight_decay, decay_mask)

    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    leading = [inspect.Parameter(name, either) for name in ("learning_rate", "weight_decay", "decay_mask")]
    shown = [theirs[name].replace(kind=either, annotation=_kind(theirs[name])) for name in names]
    build.__signature__ = inspect.Signature([*leading, *shown])  # pyright: ignore[reportAttributeAccessIssue]
    return build


def _kind(parameter: inspect.Parameter) -> Any:
    """Returns the type of an argument by its default; a tuple is checked by `_check`."""
    default = parameter.default
    if parameter.name in _KINDS:
        return _KINDS[parameter.name]
    return inspect.Parameter.empty if isinstance(default, tuple) else type(default)


def _check(theirs: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> None:
    """Raises ValueError if an argument of optax is out of range."""
    for name, value in given.items():
        default = theirs[name].default
        if name in _FRACTIONS and not (isinstance(default, float) and default >= 1):
            check_fractions(**{name: value})
        if isinstance(default, tuple) and not (
            isinstance(value, tuple)
            and len(value) == len(default)
            and all(has_type(one, type(other)) for one, other in zip(value, default, strict=True))
        ):
            raise ValueError(f"{name}={value!r} must have the form {default!r}")
        if name in _NOT_NEGATIVE and isinstance(value, (int, float)) and value < 0:
            raise ValueError(f"{name}={value} must be at least 0")


BUILDERS = {name: _builder(row) for name, row in ENTRIES.items()}
