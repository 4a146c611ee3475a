"""Codebooks against scikit-learn's k-means; Huffman codes against the entropy and hostile bits."""

import heapq

import numpy as np
import pytest
from sklearn.cluster import KMeans

from models.compress import codebook, huffman
from models.errors import UserError

RNG = np.random.default_rng(0)


# -- codebooks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", codebook.INITS)
@pytest.mark.parametrize("count", [2, 16, 32])
def test_kmeans_equals_scikit_learn_from_the_same_start(init, count):
    values = RNG.uniform(-1, 1, 3000).astype(np.float32)  # no centroid loses all its values: scikit-learn would move it
    start = np.sort(codebook.initial(values, count, init))
    theirs = KMeans(count, init=start[:, None], n_init=1, max_iter=1000, tol=0, algorithm="lloyd")
    theirs.fit(values[:, None].astype(np.float64))
    ours = codebook.kmeans(values, start, 1000)
    np.testing.assert_allclose(ours, np.sort(theirs.cluster_centers_.ravel()), atol=1e-6)


def test_where_centroids_start():
    values = np.array([0.0, 1.0, 1.0, 1.0, 10.0])
    assert codebook.initial(values, 3, "linear").tolist() == [0, 5, 10]
    assert codebook.initial(values, 2, "density").tolist() == [1, 1]
    assert set(codebook.initial(values, 4, "random")) <= {0, 1, 10}


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_shared_weights_are_the_nearest_of_few_values_and_keep_zeros(bits):
    weights = RNG.normal(size=(3, 3, 8, 40)).astype(np.float32)
    weights[RNG.random(weights.shape) < 0.7] = 0
    shared = codebook.share(weights, bits)
    values = shared.weights()
    assert len(shared.codebook) <= 2**bits and values.dtype == np.float32
    np.testing.assert_array_equal(values == 0, weights == 0)
    distance = np.abs(weights[weights != 0][:, None] - shared.codebook)
    np.testing.assert_allclose(np.abs(values - weights)[weights != 0], distance.min(1), atol=1e-7)
    again = codebook.share(values, bits)
    np.testing.assert_array_equal(again.weights(), values)  # values that are already shared do not change


def test_more_bits_less_error():
    weights = RNG.normal(size=5000).astype(np.float32)
    errors = [np.square(codebook.share(weights, bits).weights() - weights).mean() for bits in (2, 4, 6, 8)]
    assert all(errors[i + 1] < errors[i] / 4 for i in range(3))


def test_small_layers_keep_their_values():
    weights = np.array([[0.5, -1.0, 0.0, 0.5]], np.float32)
    shared = codebook.share(weights, 4)
    assert shared.codebook.tolist() == [-1.0, 0.5] and shared.index.tolist() == [[1, 0, -1, 1]]
    empty = codebook.share(np.zeros((2, 2)), 4)
    assert len(empty.codebook) == 0 and (empty.index == -1).all() and (empty.index.shape == (2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "bits=0 must be from 1 to 16"),
        ((17,), "bits=17"),
        ((4, "lineal"), "unknown codebook init 'lineal'; did you mean"),
    ],
)
def test_impossible_codebooks_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        codebook.share(np.ones(3), *arguments)


# -- Huffman -------------------------------------------------------------------------------------------------------


def distribution(kind, size=64):
    if kind == "skewed":
        return 0.5 ** np.arange(1, size + 1)
    return {"uniform": np.ones(size), "normal": np.exp(-((np.arange(size) - size / 2) ** 2) / 50)}[kind]


@pytest.mark.parametrize("kind", ["uniform", "skewed", "normal"])
@pytest.mark.parametrize("count", [1, 2, 1000, 50_000])
def test_symbols_survive_a_round_trip(kind, count):
    p = distribution(kind)
    symbols = RNG.choice(len(p), count, p=p / p.sum())
    lengths = huffman.lengths(np.bincount(symbols, minlength=len(p)))
    data = huffman.encode(symbols, lengths)
    assert len(data) == -(-int(lengths[symbols].astype(int).sum()) // 8)
    np.testing.assert_array_equal(huffman.decode(data, lengths, count), symbols)


@pytest.mark.parametrize("kind", ["uniform", "skewed", "normal"])
def test_codes_are_prefix_free_and_within_a_bit_of_the_entropy(kind):
    p = distribution(kind)
    counts = np.round(1e6 * p / p.sum()).astype(int)
    lengths, used = huffman.lengths(counts), counts > 0
    pairs = zip(huffman.codes(lengths), lengths, strict=True)
    words = [format(code, f"0{length}b") for code, length in pairs if length]
    assert len(words) == used.sum()
    assert not any(b.startswith(a) for a, b in zip(sorted(words), sorted(words)[1:], strict=False))
    q = counts[used] / counts.sum()
    entropy, average = -(q * np.log2(q)).sum(), (q * lengths[used]).sum()
    assert entropy <= average < entropy + 1
    assert (2.0 ** -lengths[used].astype(float)).sum() == 1  # no code is wasted


def test_lengths_are_optimal():
    """Compares the total length with the sum of the inner nodes of Huffman's tree."""
    for _ in range(20):
        counts = RNG.integers(1, 100, RNG.integers(2, 40))
        heap, total = counts.tolist(), 0
        heapq.heapify(heap)
        while len(heap) > 1:
            node = heapq.heappop(heap) + heapq.heappop(heap)
            total += node
            heapq.heappush(heap, node)
        assert (huffman.lengths(counts).astype(int) * counts).sum() == total


def test_empty_input_gives_empty_output():
    assert huffman.encode(np.zeros(0, int), np.zeros(4, np.uint8)) == b""
    assert huffman.decode(b"", np.zeros(4, np.uint8), 0).size == 0
    with pytest.raises(huffman.Damaged):
        huffman.decode(b"\0", np.zeros(4, np.uint8), 0)
    with pytest.raises(huffman.Damaged):
        huffman.decode(b"\0", np.zeros(4, np.uint8), 3)


def test_hostile_bits_and_lengths_are_refused():
    """Checks that 10,000 mutations give either the same number of symbols or Damaged."""
    p = distribution("normal", 16)
    symbols = RNG.choice(16, 60, p=p / p.sum())
    lengths = huffman.lengths(np.bincount(symbols, minlength=16))
    data = huffman.encode(symbols, lengths)
    refused = 0
    for _ in range(10_000):
        bits, table, count = bytearray(data), lengths.copy(), len(symbols)
        change = RNG.integers(4)
        if change == 0:
            bits[RNG.integers(len(bits))] ^= 1 << int(RNG.integers(8))
        elif change == 1:
            bits = bits[: RNG.integers(len(bits))]
        elif change == 2:
            table[RNG.integers(16)] = RNG.integers(256)
        else:
            count = int(RNG.integers(10_000))
        try:
            assert len(huffman.decode(bytes(bits), table, count)) == count
        except huffman.Damaged:
            refused += 1
    assert refused > 5000
