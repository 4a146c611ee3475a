// Convolutions of images [N, H, W, C] in float32 for the CPU: value, and gradients by input and by kernel.
//
// The input of a band of rows is copied once into a buffer with its padding, so that no loop has borders. Work is cut
// by shape alone, and sums over parts are taken in order: results do not depend on the number of threads.
#include "native.h"

constexpr I kScratch = 48 * 1024;  // floats of a band of input that should stay in the second cache
constexpr I kLargeKernel = 1 << 16;  // floats: from there on weights are copied block by block
constexpr I kParts = 16;  // of a sum over images
constexpr I kLargeSums = 1 << 17;  // floats
constexpr I kPlaces = 160;  // of a band in a sum: its x and dy of a block of channels stay in the first cache

// Whether a kernel [kh, kw, inputs, features] and `images` are of the shape, and its channels of a kind of loop below.
static bool Fits(const Shape& s, I images, I inputs, I features) {
  if (s.kh < 1 || images != s.n || s.c % s.groups || s.d % s.groups) return false;
  if (inputs != s.c / s.groups || features != s.d) return false;
  const I outputs = s.d / s.groups;
  if (s.groups == 1 || inputs % kLanes == 0) return outputs % kLanes == 0;
  if (inputs == 1) return outputs == 1 && s.d >= kLanes;
  return inputs == outputs && (inputs == 4 || inputs == 8) && s.d % kLanes == 0;
}

// -- value, and gradient by the input ---------------------------------------------------------------------------------

struct Tap {
  I offset;             // of its input from that of the output's first place
  const float* weight;  // [inputs of a group, d], or of a block's features alone
};

enum Kind { kDense, kDepthwise, kFours, kEights };  // the last two: groups of so many channels

template <int G>
static inline Vec Spread(Vec x, int c) {  // in each group of G lanes, its lane c
  Lanes from;
  for (int lane = 0; lane < kLanes; ++lane) from[lane] = lane / G * G + c;
  return __builtin_shuffle(x, from);
}

// T places of a row, KO vectors of features; the input of place t is `step` floats after that of place t - 1.
template <Kind K, int T, int KO>
static inline void Tile(const float* x, I step, const Tap* taps, I count, I inputs, I d, float* out, I out_step) {
  Vec sum[T][KO] = {};
  for (I tap = 0; tap < count; ++tap) {
    const float* at = x + taps[tap].offset;
    const float* weight = taps[tap].weight;
    if constexpr (K == kDepthwise) {
      for (int k = 0; k < KO; ++k) {
        const Vec w = Load(weight + k * kLanes);
        for (int t = 0; t < T; ++t) sum[t][k] += Load(at + t * step + k * kLanes) * w;
      }
    } else if constexpr (K == kFours || K == kEights) {
      constexpr int G = K == kFours ? 4 : 8;
      Vec w[G];
      for (int c = 0; c < G; ++c) w[c] = Load(weight + c * d);
      for (int t = 0; t < T; ++t) {
        const Vec value = Load(at + t * step);
        for (int c = 0; c < G; ++c) sum[t][0] += Spread<G>(value, c) * w[c];
      }
    } else {
      for (I c = 0; c < inputs; ++c, weight += d) {
        Vec w[KO];
        for (int k = 0; k < KO; ++k) w[k] = Load(weight + k * kLanes);
        for (int t = 0; t < T; ++t) {
          const float value = at[t * step + c];
          for (int k = 0; k < KO; ++k) sum[t][k] += value * w[k];
        }
      }
    }
  }
  for (int t = 0; t < T; ++t)
    for (int k = 0; k < KO; ++k) Store(out + t * out_step + k * kLanes, sum[t][k]);
}

template <Kind K, int KO>
static void Row(const float* x, I step, const Tap* taps, I count, I inputs, I d, float* out, I out_step, I places) {
  constexpr int kMost = K == kEights ? kSums / 2 : std::min(8, kSums / KO);
  Tiled<kMost>(places, [&](auto tile) {
    constexpr int T = decltype(tile)::value;
    Tile<K, T, KO>(x, step, taps, count, inputs, d, out, out_step);
    x += T * step, out += T * out_step;
  });
}

// One phase of an output: places (row0 + i * rstep, col0 + j * cstep); their input is at (i * s.stride, j * s.stride).
struct Phase {
  I row0, col0, rstep, cstep;
  struct At { I row, col; const float* weight; };  // taps: input from there
  std::vector<At> taps;
};

struct Block {  // of features that a tile has at once
  I first, vectors;
};

template <Kind K>
static std::vector<Block> Blocks(const Shape& s) {
  const I outputs = s.d / s.groups;
  std::vector<Block> blocks;
  for (I o = 0; o < s.d;) {
    const bool two = K == kDepthwise ? o + 2 * kLanes <= s.d : K == kDense && o % outputs + 2 * kLanes <= outputs;
    blocks.push_back({o, two ? 2 : 1});
    o += two ? 2 * kLanes : kLanes;
    if (K == kDepthwise && o < s.d && o + kLanes > s.d) o = s.d - kLanes;  // the last vector may overlap
  }
  return blocks;
}

// Copies each tap's weights block by block, [inputs, features of the block] each: in a kernel, the rows of a block are
// d floats apart, which for a wide one is a page each.
static void Pack(ffi::ThreadPool& pool, std::vector<Phase>& phases, const std::vector<Block>& blocks, I inputs, I d,
                 float* pack) {
  ParallelFor(pool, blocks.size(), [&](I b) {
    const I o = blocks[b].first, features = blocks[b].vectors * kLanes;
    float* to = pack + o * inputs;
    for (const auto& phase : phases)
      for (const auto& tap : phase.taps) {
        for (I c = 0; c < inputs; ++c)
          std::memcpy(to + c * features, tap.weight + c * d + o, sizeof(float) * features);
        to += inputs * d;
      }
  });
  for (auto& phase : phases)
    for (auto& tap : phase.taps) tap.weight = pack, pack += inputs * d;
}

template <Kind K>
static void Gather(ffi::ThreadPool& pool, const float* x, const Shape& s, std::vector<Phase> phases, float* y) {
  I top = 0, bottom = 0, left = 0, right = 0;  // reach of the taps around a place's own input
  for (const auto& phase : phases)
    for (const auto& tap : phase.taps) {
      top = std::max(top, -tap.row), bottom = std::max(bottom, tap.row);
      left = std::max(left, -tap.col), right = std::max(right, tap.col);
    }
  const I inputs = s.c / s.groups, outputs = s.d / s.groups;
  const I rstep = phases[0].rstep, cstep = phases[0].cstep;
  const I rows_all = (s.oh + rstep - 1) / rstep, cols_all = (s.ow + cstep - 1) / cstep;
  const I width = left + (cols_all - 1) * s.stride[1] + right + 1;
  const I fit = (kScratch / (width * s.c) - top - bottom - 1) / s.stride[0] + 1;
  const I rows = std::max<I>(std::min<I>(4, rows_all), std::min(fit, rows_all)), bands = (rows_all + rows - 1) / rows;
  const std::vector<Block> blocks = Blocks<K>(s);
  const I kernel = s.kh * s.kw * inputs * s.d;  // each of its taps is in one phase
  const bool packed = K == kDense && s.d > 2 * kLanes && kernel > kLargeKernel;
  std::unique_ptr<float[]> pack(packed ? new float[kernel] : nullptr);
  if (packed) Pack(pool, phases, blocks, inputs, s.d, pack.get());
  ParallelFor(pool, s.n * bands, [&](I item) {
    static thread_local std::vector<float> scratch;
    static thread_local std::vector<Tap> taps;
    const I n = item / bands, begin = item % bands * rows, end = std::min(begin + rows, rows_all);
    const I high = (end - begin - 1) * s.stride[0] + top + bottom + 1;
    scratch.resize(high * width * s.c);
    CopyPadded(x, s, n, begin * s.stride[0] - top, high, left, width, scratch.data());
    for (const auto& phase : phases) {
      const I places = (s.ow - phase.col0 + cstep - 1) / cstep;
      for (const auto [o, vectors] : blocks) {
        const I first = K == kDense ? o / outputs * inputs : o;
        const I stride = packed ? vectors * kLanes : s.d;  // from one input's weights to the next one's
        taps.clear();
        for (const auto& tap : phase.taps)
          taps.push_back({((tap.row + top) * width + tap.col + left) * s.c + first,
                          tap.weight + (packed ? o * inputs : o)});
        for (I row = begin; row < end && phase.row0 + row * rstep < s.oh; ++row) {
          float* out = y + ((n * s.oh + phase.row0 + row * rstep) * s.ow + phase.col0) * s.d + o;
          const float* in = scratch.data() + (row - begin) * s.stride[0] * width * s.c;
          if (vectors == 2) {
            Row<K, K == kDense || K == kDepthwise ? 2 : 1>(
                in, s.stride[1] * s.c, taps.data(), taps.size(), inputs, stride, out, cstep * s.d, places);
          } else {
            Row<K, 1>(in, s.stride[1] * s.c, taps.data(), taps.size(), inputs, stride, out, cstep * s.d, places);
          }
        }
      }
    }
  });
}

static void Run(ffi::ThreadPool& pool, const float* x, const Shape& s, const std::vector<Phase>& phases, float* y) {
  const I inputs = s.c / s.groups;
  if (s.groups == 1 || inputs % kLanes == 0) return Gather<kDense>(pool, x, s, phases, y);
  if (inputs == 1) return Gather<kDepthwise>(pool, x, s, phases, y);
  if (inputs == 4) return Gather<kFours>(pool, x, s, phases, y);
  return Gather<kEights>(pool, x, s, phases, y);
}

// x [N, H, W, C], kernel [kh, kw, C / groups, D] -> y [N, H', W', D]
static ffi::Error Forward(ffi::ThreadPool pool, Array x, Array kernel, Out y, I groups, Span strides, Span low,
                          Span dilation) {
  if (!InRange(x, kernel, y, groups, strides, low, dilation)) return Misfit();
  auto k = kernel.dimensions(), o = y->dimensions();
  Shape s = MakeShape(x, o[1], o[2], o[3], k[0], k[1], groups, strides, low, dilation);
  if (!Fits(s, o[0], k[2], k[3])) return Misfit();
  Phase phase{0, 0, 1, 1, {}};
  for (I i = 0; i < k[0]; ++i)
    for (I j = 0; j < k[1]; ++j)
      phase.taps.push_back({i * s.dilation[0] - s.low[0], j * s.dilation[1] - s.low[1],
                            kernel.typed_data() + (i * k[1] + j) * k[2] * k[3]});
  Run(pool, x.typed_data(), s, {phase}, y->typed_data());
  return ffi::Error::Success();
}

// dy [N, H', W', D], kernel [kh, kw, D / groups, C] -> dx [N, H, W, C]; one phase for each place within the stride
static ffi::Error InputGradient(ffi::ThreadPool pool, Array dy, Array kernel, Out dx, I groups, Span strides, Span low,
                                Span dilation) {
  if (!InRange(dy, kernel, dx, groups, strides, low, dilation)) return Misfit();
  auto k = kernel.dimensions(), o = dx->dimensions();
  const I ones[] = {1, 1};
  Shape s = MakeShape(dy, o[1], o[2], o[3], k[0], k[1], groups, Span(ones, 2), low, dilation);
  if (!Fits(s, o[0], k[2], k[3])) return Misfit();
  std::vector<Phase> phases;
  for (I a = 0; a < strides[0]; ++a)
    for (I b = 0; b < strides[1]; ++b) {
      Phase phase{a, b, strides[0], strides[1], {}};
      for (I i = 0; i < k[0]; ++i)
        for (I j = 0; j < k[1]; ++j) {
          const I row = a + low[0] - i * dilation[0], col = b + low[1] - j * dilation[1];
          if (row % strides[0] == 0 && col % strides[1] == 0)
            phase.taps.push_back({row / strides[0], col / strides[1],
                                  kernel.typed_data() + (i * k[1] + j) * k[2] * k[3]});
        }
      phases.push_back(phase);
    }
  Run(pool, dy.typed_data(), s, phases, dx->typed_data());
  return ffi::Error::Success();
}

// -- gradient by the kernel -------------------------------------------------------------------------------------------

struct Band {  // some output rows of an image, and their padded input
  const float* x;
  const float* dy;
  I rows, width;
};

// dk[i, j0 ... j0 + J, c] += x dy, J taps of a row at once
template <int J>
static void DepthwiseTaps(const Band& b, const Shape& s, I i, I j0, I c, float* dk) {
  Vec sum[J];
  for (int j = 0; j < J; ++j) sum[j] = Load(dk + (i * s.kw + j0 + j) * s.d + c);
  for (I r = 0; r < b.rows; ++r) {
    const float* x = b.x + ((r * s.stride[0] + i * s.dilation[0]) * b.width + j0 * s.dilation[1]) * s.c + c;
    const float* dy = b.dy + r * s.ow * s.d + c;
    for (I q = 0; q < s.ow; ++q, x += s.stride[1] * s.c, dy += s.d) {
      const Vec g = Load(dy);
      for (int j = 0; j < J; ++j) sum[j] += Load(x + j * s.dilation[1] * s.c) * g;
    }
  }
  for (int j = 0; j < J; ++j) Store(dk + (i * s.kw + j0 + j) * s.d + c, sum[j]);
}

static void DepthwiseSums(const Band& b, const Shape& s, float* dk) {
  std::vector<float> last;
  for (I c = 0; c < s.d; c += kLanes) {
    float* to = dk;
    if (c + kLanes > s.d) {  // the last vector overlaps: what the one before has summed must not be added again
      const I from = s.d - kLanes, taps = s.kh * s.kw;
      last.assign(dk, dk + taps * s.d);
      to = last.data();
      for (I i = 0; i < s.kh; ++i) {
        I j = 0;
        for (; j + 7 <= s.kw; j += 7) DepthwiseTaps<7>(b, s, i, j, from, to);
        for (; j + 3 <= s.kw; j += 3) DepthwiseTaps<3>(b, s, i, j, from, to);
        for (; j < s.kw; ++j) DepthwiseTaps<1>(b, s, i, j, from, to);
      }
      for (I tap = 0; tap < taps; ++tap)
        std::memcpy(dk + tap * s.d + c, to + tap * s.d + c, sizeof(float) * (s.d - c));
      return;
    }
    for (I i = 0; i < s.kh; ++i) {
      I j = 0;
      for (; j + 7 <= s.kw; j += 7) DepthwiseTaps<7>(b, s, i, j, c, to);
      for (; j + 3 <= s.kw; j += 3) DepthwiseTaps<3>(b, s, i, j, c, to);
      for (; j < s.kw; ++j) DepthwiseTaps<1>(b, s, i, j, c, to);
    }
  }
}

// dk[i, j, c0 ... c0 + C, o ... o + 16 KO] += x dy; G > 0: lanes are groups of G channels, C = G
template <int C, int KO, int G>
static void DenseTap(const Band& b, const Shape& s, I i, I j, I first, I c0, I o, float* dk) {
  float* at = dk + ((i * s.kw + j) * (s.c / s.groups) + c0) * s.d + o;
  Vec sum[C][KO];
  for (int c = 0; c < C; ++c)
    for (int k = 0; k < KO; ++k) sum[c][k] = Load(at + c * s.d + k * kLanes);
  for (I r = 0; r < b.rows; ++r) {
    const float* x = b.x + ((r * s.stride[0] + i * s.dilation[0]) * b.width + j * s.dilation[1]) * s.c + first + c0;
    const float* dy = b.dy + r * s.ow * s.d + o;
    for (I q = 0; q < s.ow; ++q, x += s.stride[1] * s.c, dy += s.d) {
      Vec g[KO];
      for (int k = 0; k < KO; ++k) g[k] = Load(dy + k * kLanes);
      if constexpr (G > 0) {
        const Vec value = Load(x);
        for (int c = 0; c < C; ++c) sum[c][0] += Spread<G>(value, c) * g[0];
      } else {
        for (int c = 0; c < C; ++c)
          for (int k = 0; k < KO; ++k) sum[c][k] += x[c] * g[k];
      }
    }
  }
  for (int c = 0; c < C; ++c)
    for (int k = 0; k < KO; ++k) Store(at + c * s.d + k * kLanes, sum[c][k]);
}

template <int KO>
static void DenseSums(const Band& b, const Shape& s, I first, I o, float* dk) {
  I c = 0;
  Tiled<kSums / KO>(s.c / s.groups, [&](auto tile) {
    constexpr int C = decltype(tile)::value;
    for (I i = 0; i < s.kh; ++i)
      for (I j = 0; j < s.kw; ++j) DenseTap<C, KO, 0>(b, s, i, j, first, c, o, dk);
    c += C;
  });
}

// Adds up the features [from, to), multiples of 2 kLanes (or all of them).
static void Sums(const Band& b, const Shape& s, I from, I to, float* dk) {
  const I inputs = s.c / s.groups, outputs = s.d / s.groups;
  if (s.groups > 1 && inputs == 1) return DepthwiseSums(b, s, dk);
  for (I o = from; o < to;) {
    if (s.groups > 1 && inputs < kLanes) {
      for (I i = 0; i < s.kh; ++i)
        for (I j = 0; j < s.kw; ++j)
          if (inputs == 4) DenseTap<4, 1, 4>(b, s, i, j, o, 0, o, dk);
          else DenseTap<8, 1, 8>(b, s, i, j, o, 0, o, dk);
      o += kLanes;
    } else if (outputs % (2 * kLanes) == 0) {
      DenseSums<2>(b, s, o / outputs * inputs, o, dk);
      o += 2 * kLanes;
    } else {
      DenseSums<1>(b, s, o / outputs * inputs, o, dk);
      o += kLanes;
    }
  }
}

// x [N, H, W, C], dy [N, H', W', D] -> dk [kh, kw, C / groups, D]
static ffi::Error KernelGradient(ffi::ThreadPool pool, Array x, Array dy, Out dk, I groups, Span strides, Span low,
                                 Span dilation) {
  if (!InRange(x, dy, dk, groups, strides, low, dilation) || low[0] < 0 || low[1] < 0) return Misfit();
  auto k = dk->dimensions(), o = dy.dimensions();
  Shape s = MakeShape(x, o[1], o[2], o[3], k[0], k[1], groups, strides, low, dilation);
  if (!Fits(s, o[0], k[2], k[3])) return Misfit();
  const I size = k[0] * k[1] * k[2] * k[3];
  if (s.n == 0) {
    std::memset(dk->typed_data(), 0, sizeof(float) * size);
    return ffi::Error::Success();
  }
  // Each part has sums of its own; where they are large there are few, cut into blocks of features instead.
  const bool large = size > kLargeSums && s.d % (2 * kLanes) == 0;
  const I parts = std::min(s.n, large ? 2 : kParts), blocks = large ? s.d / (2 * kLanes) : 1, block = s.d / blocks;
  const I width = (s.ow - 1) * s.stride[1] + (s.kw - 1) * s.dilation[1] + 1;
  const I reach = (s.kh - 1) * s.dilation[0];
  const I rows = std::max<I>(1, std::min(s.oh, kPlaces / s.ow));
  std::vector<float> sums(parts * size, 0.0f);
  ParallelFor(pool, parts * blocks, [&](I item) {
    static thread_local std::vector<float> scratch;
    const I part = item / blocks, from = item % blocks * block;
    scratch.resize(((rows - 1) * s.stride[0] + reach + 1) * width * s.c);
    for (I n = part * s.n / parts; n < (part + 1) * s.n / parts; ++n)
      for (I row = 0; row < s.oh; row += rows) {
        Band band{scratch.data(), dy.typed_data() + (n * s.oh + row) * s.ow * s.d, std::min(rows, s.oh - row), width};
        CopyPadded(x.typed_data(), s, n, row * s.stride[0] - s.low[0],
                   (band.rows - 1) * s.stride[0] + reach + 1, s.low[1], width, scratch.data());
        Sums(band, s, from, from + block, sums.data() + part * size);
      }
  });
  float* to = dk->typed_data();
  const I pieces = std::min<I>(16, size);
  ParallelFor(pool, size > kLargeSums ? pieces : 1, [&](I piece) {
    const I all = size > kLargeSums ? pieces : 1, begin = piece * size / all, end = (piece + 1) * size / all;
    std::memcpy(to + begin, sums.data() + begin, sizeof(float) * (end - begin));
    for (I part = 1; part < parts; ++part)
      for (I i = begin; i < end; ++i) to[i] += sums[part * size + i];
  });
  return ffi::Error::Success();
}

HANDLER(conv_forward, Forward, Array);
HANDLER(conv_input_gradient, InputGradient, Array);
HANDLER(conv_kernel_gradient, KernelGradient, Array);
