"""Reader of pickles as plain data: lists, dictionaries, texts, numbers, and objects that `build` creates.

Opcodes are interpreted here; classes and functions that the pickle names are neither imported nor called. Damaged or
hostile bytes therefore cost time and memory only in proportion to their length.
"""

import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple

from models.weights.foreign import Damaged
from models.weights.unwrap import Opaque

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_TUPLE": tuple}
_FROM_MARK = {"LIST": list, "TUPLE": tuple, "FROZENSET": list}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_KEYS = (str, int, float, bytes, type(None))  # types of keys of dictionaries; hashing nested tuples can take forever


class Global(NamedTuple):
    """A class or function that a pickle names and that is not imported."""

    name: str


class _Machine:
    """The stack of a pickle's opcodes."""

    def __init__(self, build: Callable[[str, tuple], Any], persistent: Callable[[Any], Any]):
        self.build, self.persistent = build, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[Any, Any] = {}  # by index

    def run(self, file: IO[bytes]) -> Any:
        """Interprets one pickle and leaves the file at its end."""
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _PUTS:
                self.memo[argument] = self.stack[-1]
            elif name in _GETS:
                self.stack.append(self.memo[argument])
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            elif name in _FROM_MARK:
                self.stack.append(_FROM_MARK[name](self.marked()))
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                self.act(name, argument)
        raise Damaged("a pickle without an end")

    def act(self, name: str, argument: Any) -> None:
        """Executes one of the rarer opcodes."""
        match name:
            case "MARK":
                self.marks.append(len(self.stack))
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.popped(int(name[-1]))))
            case "APPEND":
                self.extend(self.popped(1))
            case "APPENDS" | "ADDITEMS":
                self.extend(self.marked())
            case "SETITEM":
                self.update(self.popped(2))
            case "SETITEMS":
                self.update(self.marked())
            case "DICT":
                values = self.marked()
                self.stack.append({})
                self.update(values)
            case "GLOBAL":
                self.stack.append(Global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                self.stack.append(Global(".".join(map(str, self.popped(2)))))
            case "REDUCE" | "NEWOBJ":
                function, arguments = self.popped(2)
                is_plain = isinstance(function, Global) and isinstance(arguments, tuple)
                self.stack.append(self.build(function.name, arguments) if is_plain else Opaque("an object"))
            case "NEWOBJ_EX":
                kind, _, _ = self.popped(3)
                self.stack.append(Opaque(kind.name if isinstance(kind, Global) else "an object"))
            case "BUILD":
                self.popped(1)  # drops the state of an opaque object, or the attributes of an ordered dictionary
            case "BINPERSID":
                self.stack.append(self.persistent(self.stack.pop()))
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self.marked()
            case _:
                raise Damaged(f"a pickle with the opcode {name}")

    def popped(self, count: int) -> list[Any]:
        """Removes the last values from the stack and returns them."""
        if len(self.stack) < count:
            raise Damaged("a pickle whose stack is empty")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def marked(self) -> list[Any]:
        """Removes the values above the last mark from the stack and returns them."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def extend(self, values: list[Any]) -> None:
        """Extends the list on top of the stack."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        """Updates the dictionary on top of the stack with [key, value, key, value, ...]."""
        if isinstance(self.stack[-1], dict):
            keys = (key if isinstance(key, _KEYS) else Opaque("a key") for key in values[::2])
            self.stack[-1].update(zip(keys, values[1::2], strict=True))


def load(file: IO[bytes], build: Callable[[str, tuple], Any], persistent: Callable[[Any], Any]) -> Any:
    """Reads the pickle at the file's position, and leaves the file at its end.

    Args:
      file: Binary file.
      build: Function build("module.name", arguments) that replaces calls of functions and classes.
      persistent: Function of the id of an object outside the pickle.

    Raises:
      Damaged: An opcode is not needed for plain data. Damaged bytes may also raise any other exception.
    """
    return _Machine(build, persistent).run(file)
