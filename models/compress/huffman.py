"""Huffman coding (Huffman 1952) with canonical codes: a table of code lengths is all that a decoder needs.

Codes are ordered by length, then by symbol, each the binary successor of the one before. So a window of the next bits,
as a number, tells by comparison how long the code in it is, and decoding needs no tree.
"""

import heapq
import itertools

import numpy as np

LONGEST = 48  # bits of a code; the least counts that make a longer one are Fibonacci's numbers, some 10^10 in all
_CHUNK = 1 << 20  # bits that are decoded at a time


class Damaged(ValueError):
    """Bits or lengths that no encoder wrote."""


def lengths(counts: np.ndarray) -> np.ndarray:
    """Bits of each symbol's code, uint8 [S], for counts int [S]; 0 for what does not occur. A lone symbol has 1."""
    symbols = np.flatnonzero(counts)
    found = np.zeros(len(counts), np.uint8)
    if len(symbols) == 1:
        found[symbols] = 1
        return found
    order = itertools.count()  # ties by age, so that lengths are those of the smallest variance, and always the same
    heap = [(int(counts[symbol]), next(order), [symbol]) for symbol in symbols]
    heapq.heapify(heap)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        inside = first[2] + second[2]
        found[inside] += 1
        heapq.heappush(heap, (first[0] + second[0], next(order), inside))
    return found


def codes(lengths: np.ndarray) -> np.ndarray:
    """The canonical codes, uint64 [S], right-justified.

    Raises:
      Damaged: there are no codes of such lengths.
    """
    lengths = np.asarray(lengths)
    found, code, before = np.zeros(len(lengths), np.uint64), 0, 0
    for symbol in _by_code(lengths):
        length = int(lengths[symbol])
        if length > LONGEST:
            raise Damaged(f"a code of {length} bits")
        code <<= length - before
        if code >= 1 << length:
            raise Damaged("code lengths that no Huffman code has")
        found[symbol], code, before = code, code + 1, length
    return found


def _by_code(lengths: np.ndarray) -> np.ndarray:
    """Symbols that occur, in the order of their codes."""
    symbols = np.flatnonzero(lengths)
    return symbols[np.lexsort((symbols, lengths[symbols]))]


def encode(symbols: np.ndarray, lengths: np.ndarray) -> bytes:
    """The codes of symbols int [N], one after another, highest bit first; the last byte is filled with zeros."""
    symbols = np.asarray(symbols).ravel()
    size = np.asarray(lengths, np.int64)[symbols]
    starts = np.cumsum(size) - size
    place = np.arange(size.sum()) - np.repeat(starts, size)  # of each bit within its code
    shift = (np.repeat(size, size) - 1 - place).astype(np.uint64)
    bits = np.repeat(codes(lengths)[symbols], size) >> shift & np.uint64(1)
    return np.packbits(bits.astype(np.uint8)).tobytes()


def decode(data: bytes, lengths: np.ndarray, count: int) -> np.ndarray:
    """`count` symbols, int64.

    Raises:
      Damaged: there are not so many in the data, or more bits than theirs and less than a byte of zeros.
    """
    if count == 0:
        if data:
            raise Damaged("bits where there are no symbols")
        return np.zeros(0, np.int64)
    lengths = np.asarray(lengths)
    order = _by_code(lengths)
    if not len(order):
        raise Damaged("symbols without a code")
    if 8 * len(data) < count * int(lengths[order[0]]):
        raise Damaged("too few bits")
    sizes, longest = lengths[order].astype(np.int64), int(lengths[order[-1]])
    left = codes(lengths)[order] << (longest - sizes).astype(np.uint64)  # left-justified: ascending
    bound = left[-1] + (np.uint64(1) << np.uint64(longest - int(sizes[-1])))
    raw, end = np.frombuffer(data, np.uint8), 8 * len(data)
    found, place, left_over = [], 0, count
    while left_over:
        if place >= end:
            raise Damaged("too few bits")
        # What every place of a chunk would decode to if a code began there, then from code to code.
        first = place // 8
        bits = np.unpackbits(raw[first : first + (_CHUNK + longest) // 8 + 1])
        width = min(_CHUNK, len(bits))
        padded = np.concatenate([bits, np.zeros(longest, np.uint8)])
        window = np.zeros(width, np.uint64)
        for i in range(longest):
            window = window << np.uint64(1) | padded[i : i + width]
        which = np.searchsorted(left, window, side="right") - 1
        jumps, inside, places = sizes[which].tolist(), place - 8 * first, []
        while inside < width and len(places) < left_over:
            places.append(inside)
            inside += jumps[inside]
        if not (window[places] < bound).all():
            raise Damaged("bits that are no code")
        found.append(order[which[places]])
        place, left_over = 8 * first + inside, left_over - len(places)
    if place > end:
        raise Damaged("too few bits")
    if end - place >= 8 or np.unpackbits(raw[place // 8 :])[place % 8 :].any():
        raise Damaged("bits after the last symbol")
    return np.concatenate(found)
