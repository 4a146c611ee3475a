"""Huffman coding (Huffman 1952) with canonical codes, so that a decoder needs only the lengths of the codes.

Codes are ordered by length, then by symbol, and each is the binary successor of the previous one. Therefore the length
of the next code follows from comparing the next bits, as a number, with these codes; decoding needs no tree.
"""

import heapq
import itertools

import numpy as np

LONGEST = 48  # maximum bits of a code; longer ones need counts like Fibonacci numbers, about 10^10 in total
_CHUNK = 1 << 20  # number of bits that are decoded at once


class Damaged(ValueError):
    """Data is damaged: no encoder writes these bits or lengths."""


def lengths(counts: np.ndarray) -> np.ndarray:
    """Returns the bits of each symbol's code, uint8 [S], for counts int [S].

    Symbols that do not occur have 0 bits. If only one symbol occurs, it has 1 bit.
    """
    symbols = np.flatnonzero(counts)
    bits = np.zeros(len(counts), np.uint8)
    if len(symbols) == 1:
        bits[symbols] = 1
        return bits
    order = itertools.count()  # breaks ties by age, so that lengths are deterministic and have the smallest variance
    heap = [(int(counts[symbol]), next(order), [symbol]) for symbol in symbols]
    heapq.heapify(heap)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        inside = first[2] + second[2]
        bits[inside] += 1
        heapq.heappush(heap, (first[0] + second[0], next(order), inside))
    return bits


def codes(lengths: np.ndarray) -> np.ndarray:
    """Returns the canonical codes, uint64 [S], right-justified.

    Raises:
      Damaged: No Huffman code has these lengths.
    """
    lengths = np.asarray(lengths)
    result, code, before = np.zeros(len(lengths), np.uint64), 0, 0
    for symbol in _by_code(lengths):
        length = int(lengths[symbol])
        if length > LONGEST:
            raise Damaged(f"a code has {length} bits, more than {LONGEST}")
        code <<= length - before
        if code >= 1 << length:
            raise Damaged("no Huffman code has these code lengths")
        result[symbol], code, before = code, code + 1, length
    return result


def _by_code(lengths: np.ndarray) -> np.ndarray:
    """Returns the symbols that occur, in the order of their codes."""
    symbols = np.flatnonzero(lengths)
    return symbols[np.lexsort((symbols, lengths[symbols]))]


def encode(symbols: np.ndarray, lengths: np.ndarray) -> bytes:
    """Returns the concatenated codes of symbols int [N], highest bit first; the last byte is padded with zeros."""
    symbols = np.asarray(symbols).ravel()
    size = np.asarray(lengths, np.int64)[symbols]
    starts = np.cumsum(size) - size
    position = np.arange(size.sum()) - np.repeat(starts, size)  # of each bit within its code
    shift = (np.repeat(size, size) - 1 - position).astype(np.uint64)
    bits = np.repeat(codes(lengths)[symbols], size) >> shift & np.uint64(1)
    return np.packbits(bits.astype(np.uint8)).tobytes()


def decode(data: bytes, lengths: np.ndarray, count: int) -> np.ndarray:
    """Decodes `count` symbols, int64.

    Raises:
      Damaged: The data holds fewer symbols, or more bits after them than the padding of a byte.
    """
    if count == 0:
        if data:
            raise Damaged("there are bits but no symbols")
        return np.zeros(0, np.int64)
    lengths = np.asarray(lengths)
    order = _by_code(lengths)
    if not len(order):
        raise Damaged("symbols have no code")
    if 8 * len(data) < count * int(lengths[order[0]]):
        raise Damaged("too few bits")
    sizes, longest = lengths[order].astype(np.int64), int(lengths[order[-1]])
    left = codes(lengths)[order] << (longest - sizes).astype(np.uint64)  # left-justified, hence ascending
    bound = left[-1] + (np.uint64(1) << np.uint64(longest - int(sizes[-1])))
    raw, end = np.frombuffer(data, np.uint8), 8 * len(data)
    decoded, position, missing = [], 0, count
    while missing:
        if position >= end:
            raise Damaged("too few bits")
        # Decodes every position of a chunk as if a code started there, then jumps from code to code.
        first = position // 8
        bits = np.unpackbits(raw[first : first + (_CHUNK + longest) // 8 + 1])
        width = min(_CHUNK, len(bits))
        padded = np.concatenate([bits, np.zeros(longest, np.uint8)])
        window = np.zeros(width, np.uint64)
        for i in range(longest):
            window = window << np.uint64(1) | padded[i : i + width]
        which = np.searchsorted(left, window, side="right") - 1
        jumps, inside, starts = sizes[which].tolist(), position - 8 * first, []
        while inside < width and len(starts) < missing:
            starts.append(inside)
            inside += jumps[inside]
        if not (window[starts] < bound).all():
            raise Damaged("some bits are not a code")
        decoded.append(order[which[starts]])
        position, missing = 8 * first + inside, missing - len(starts)
    if position > end:
        raise Damaged("too few bits")
    if end - position >= 8 or np.unpackbits(raw[position // 8 :])[position % 8 :].any():
        raise Damaged("there are bits after the last symbol")
    return np.concatenate(decoded)
