"""Facts about a compiled program, read from XLA's text of it: cycles, collectives, large buffers, lone reductions.

The text is in the order of the schedule. Cycles are XLA's own estimates, which only its TPU compiler gives.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_BITS = {"pred": 8, "bf": 16, "token": 0, "opaque": 0}  # of types whose names do not end in their bits
_HEADER = re.compile(r"^(ENTRY )?%?(\S+) \(.*\) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_SHAPE = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r'op_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_WRAPPER = re.compile(
    r"^(?:jit|pjit|jvp|transpose|vmap|checkpoint|remat|rematted_computation|shard_map|while|body|cond)\b"
)
# Opcodes whose results are no arrays of their own in the main memory
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"),
    *("copy-start", "copy-done", "slice-start", "slice-done"),
)


class Instruction(NamedTuple):
    """An instruction of a program.

    Attributes:
      name: its name, unique in the program.
      shape: text of the type of its result.
      opcode: such as "fusion".
      rest: text after the opcode: operands, attributes and metadata.
      times: how often one run of the program executes it.
    """

    name: str
    shape: str
    opcode: str
    rest: str
    times: int

    @property
    def cycles(self) -> int:
        """XLA's estimate of the cycles of all its executions; 0 if there is none."""
        return self.times * int(match[1]) if (match := _CYCLES.search(self.rest)) else 0

    @property
    def layer(self) -> str:
        """The layer that it belongs to, e.g. "stage1/block0/conv1 (backward)"; "" if XLA does not say."""
        return layer(match[1]) if (match := _NAME.search(self.rest)) else ""


class Collective(NamedTuple):
    """A kind of communication between devices.

    Attributes:
      kind: one of COLLECTIVES.
      number: executions per run of the program.
      bytes: of all their results, per device.
      overlapping: number of those that run while the device computes.
    """

    kind: str
    number: int
    bytes: int
    overlapping: int


class Buffer(NamedTuple):
    """A large array that the program writes to the device's memory: its bytes, type and layer."""

    bytes: int
    shape: str
    layer: str


class Facts(NamedTuple):
    """Facts about one run of a compiled program, per device.

    Attributes:
      cycles: estimated; 0 where the compiler gives none.
      reductions: number of reductions that are not fused with a convolution or matrix product.
      reduction_cycles: estimated cycles of them.
      collectives: by kind.
      buffers: the largest first.
      opcodes: number of executions by opcode, of instructions outside of fusions.
    """

    cycles: int
    reductions: int
    reduction_cycles: int
    collectives: tuple[Collective, ...]
    buffers: tuple[Buffer, ...]
    opcodes: dict[str, int]


class Program:
    """A program that XLA has compiled.

    Args:
      text: `jax.stages.Compiled.as_text()`.
    """

    def __init__(self, text: str):
        self._bodies: dict[str, list[Instruction]] = {}
        self._entry, body = "", []
        for line in text.splitlines():
            if header := _HEADER.match(line):
                body = self._bodies[header[2]] = []
                self._entry = header[2] if header[1] else self._entry
            elif match := _INSTRUCTION.match(line):
                body.append(Instruction(*match.groups(), times=1))

    def instructions(self) -> Iterator[Instruction]:
        """Yields the instructions that run, in the order of the schedule; a fusion is one instruction."""
        return self._executed(self._entry, 1)

    def _executed(self, name: str, times: int) -> Iterator[Instruction]:
        for instruction in self._bodies.get(name, ()):
            yield instruction._replace(times=times)
            opcode, rest = instruction.opcode, instruction.rest
            if opcode == "while":
                trips = int(match[1]) if (match := _TRIPS.search(rest)) else 1
                yield from self._executed(_CALLED.findall(rest)[-1], times * trips)
            elif opcode == "conditional":
                branches = match[1].replace("%", "").split(", ") if (match := _BRANCHES.search(rest)) else ()
                for branch in branches or _CALLED.findall(rest):
                    yield from self._executed(branch, times)
            elif opcode == "call":
                for called in _CALLED.findall(rest):
                    yield from self._executed(called, times)

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """Returns the instructions that a fusion consists of, those of nested fusions included."""
        result = []
        for called in _CALLED.findall(instruction.rest) if instruction.opcode in ("fusion", "async-start") else ():
            for inner in self._bodies.get(called, ()):
                result += [inner, *self.inside(inner)]
        return result

    def facts(self, largest: int = 5) -> Facts:
        """Returns the facts, with that many of the largest buffers."""
        cycles = reductions = reduction_cycles = 0
        opcodes, buffers = defaultdict(int), {}
        for instruction in self.instructions():
            opcodes[instruction.opcode] += instruction.times
            cycles += instruction.cycles
            if self._reduces_alone(instruction):
                reductions += instruction.times
                reduction_cycles += instruction.cycles
            if instruction.opcode not in _FREE and not instruction.name.startswith("async-collective"):
                where = self._layer(instruction)
                for size, shape in _in_memory(instruction.shape):
                    buffers.setdefault((size, shape, where), Buffer(size, shape, where))
        ordered = sorted(buffers.values(), key=lambda buffer: -buffer.bytes)[:largest]
        return Facts(cycles, reductions, reduction_cycles, self._collectives(), tuple(ordered), dict(opcodes))

    def _layer(self, instruction: Instruction) -> str:
        """Returns the layer of an instruction, or of the last part of a fusion whose layer XLA knows."""
        return next((one.layer for one in (instruction, *reversed(self.inside(instruction))) if one.layer), "")

    def _reduces_alone(self, instruction: Instruction) -> bool:
        inside = {inner.opcode for inner in self.inside(instruction)} or {instruction.opcode}
        return "reduce" in inside and not inside & {"convolution", "dot", "custom-call"}

    def _collectives(self) -> tuple[Collective, ...]:
        sums = defaultdict(lambda: [0, 0, 0])
        for start, later in _with_later(list(self.instructions())):
            kind = start.opcode.removesuffix("-start")
            if start.opcode in ("fusion", "async-start"):
                # A TPU's asynchronous collective is a chain of fusions, of which one starts it and one ends it
                kinds = [inner.opcode for inner in self.inside(start) if inner.opcode in COLLECTIVES]
                is_start = start.opcode == "async-start" or start.name.startswith("async-collective-start")
                kind = kinds[0] if kinds and is_start else ""
            if kind not in COLLECTIVES:
                continue
            overlaps = kind != start.opcode and (start.opcode == "fusion" or _computes_before_done(start, later))
            sizes = [size for size, _ in _sizes(start.shape)]
            # The result of a start holds its operand and its result, and a TPU's also counters
            size = sum(sizes) if kind == start.opcode else max(sizes, default=0)
            total = sums[kind]
            total[0] += start.times
            total[1] += start.times * size
            total[2] += start.times * overlaps
        return tuple(Collective(kind, *sums[kind]) for kind in COLLECTIVES if kind in sums)


def _with_later(instructions: list[Instruction]) -> Iterator[tuple[Instruction, Iterator[Instruction]]]:
    for index, instruction in enumerate(instructions):
        yield instruction, itertools.islice(instructions, index + 1, None)


def _computes_before_done(start: Instruction, later: Iterator[Instruction]) -> bool:
    """Returns whether something is computed between the start of a collective and its end."""
    for instruction in later:
        if instruction.opcode.endswith("-done") and re.search(rf"%?{re.escape(start.name)}\b", instruction.rest):
            return False
        if instruction.opcode in ("fusion", "convolution", "dot", "custom-call"):
            return True
    return False


def layer(op_name: str) -> str:
    """Returns the layer that XLA's name of an operation comes from.

    Args:
      op_name: such as "jit(train_call)/shard_map/transpose(jvp(ViT))/block1/expand/dot_general".
    """
    if keys := re.findall(r"\['(\w+)'\]", op_name.replace("\\", "")):  # an argument of the program
        return "/".join(keys)
    parts = re.split(r"/(?![^()]*\))", op_name)
    # flax also names the methods that are called, such as "block0._branch"
    names = [part for part in parts if not _WRAPPER.match(part) and not re.fullmatch(r"\w+\.\w+", part)]
    path = "/".join(names[:-1])  # the last one is the operation
    return f"{path} (backward)" if path and "transpose(" in op_name else path


def _sizes(shape: str) -> Iterator[tuple[int, str]]:
    """Yields bytes and text of each array in the text of a type."""
    for kind, dimensions, layout in _SHAPE.findall(shape):
        digits = re.search(r"\d+", kind)
        bits = int(digits[0]) if digits else next((n for name, n in _BITS.items() if kind.startswith(name)), 0)
        count = math.prod(int(length) for length in dimensions.split(",") if length)
        yield math.ceil(count * bits / 8), f"{kind}[{dimensions}]{'' if 'S(' not in layout else ' in scratch memory'}"


def _in_memory(shape: str) -> Iterator[tuple[int, str]]:
    """Yields the arrays of a type that lie in the main memory, not in the scratch memory of a TPU's core."""
    return ((size, text) for size, text in _sizes(shape) if not text.endswith("scratch memory"))


def memory(compiled: Any) -> dict[str, int]:
    """Returns the bytes per device that a compiled program needs, by use; their sum is the peak.

    Args:
      compiled: `jax.stages.Compiled`.
    """
    stats = compiled.memory_analysis()
    return {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
