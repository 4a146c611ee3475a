// Convolutions of the signs of images with signs, packed as bits: an xor and a count for 512 products.
#include "native.h"
#ifdef __AVX512VPOPCNTDQ__
#include <immintrin.h>
#endif

using Words = ffi::Buffer<ffi::U32>;
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes), aligned(4)));

static inline Bits Ones(Bits v) {  // how many bits of each lane are set
#ifdef __AVX512VPOPCNTDQ__
  return (Bits)_mm512_popcnt_epi32((__m512i)v);
#else
  v -= (v >> 1) & 0x55555555;
  v = (v & 0x33333333) + ((v >> 2) & 0x33333333);
  return ((v + (v >> 4)) & 0x0f0f0f0f) * 0x01010101 >> 24;
#endif
}

static void PackSigns(const float* x, I places, I c, uint32_t* to) {  // a bit for every channel: at least 0
  for (; places > 0; --places, x += c)
    for (I first = 0; first < c; first += 32) {
      uint32_t word = 0;
      if (c - first >= 32)
        for (int bit = 0; bit < 32; ++bit) word |= uint32_t(x[first + bit] >= 0) << bit;
      else
        for (I bit = 0; bit < c - first; ++bit) word |= uint32_t(x[first + bit] >= 0) << bit;
      *to++ = word;
    }
}

struct SignTap {
  I offset;
  const uint32_t* kernel;  // [words, features]
};

// T places of a row, KO vectors of features, from feature o of d; what lies beyond d is not written.
template <int T, int KO>
static inline void SignTile(const uint32_t* x, I step, const std::vector<SignTap>& taps, I words, I features, I o, I c,
                            float* out, I d) {
  Bits sum[T][KO] = {};
  for (const auto& tap : taps) {
    const uint32_t* at = x + tap.offset;
    const uint32_t* kernel = tap.kernel + o;
    for (I word = 0; word < words; ++word, kernel += features)
      for (int t = 0; t < T; ++t) {
        const Bits value = Bits{} + at[t * step + word];
        for (int k = 0; k < KO; ++k) sum[t][k] += Ones(value ^ *reinterpret_cast<const Bits*>(kernel + k * kLanes));
      }
  }
  for (int t = 0; t < T; ++t)
    for (int k = 0; k < KO; ++k) {  // equal signs less those that differ
      const Vec y = __builtin_convertvector(int32_t(taps.size() * c) - 2 * (Lanes)sum[t][k], Vec);
      const I inside = std::min(kLanes, d - o - k * kLanes);
      if (inside > 0) std::memcpy(out + t * d + o + k * kLanes, &y, sizeof(float) * inside);
    }
}

// x [N, H, W, C], bits of the kernel's signs [kh, kw, C / 32, D, rounded up to vectors] -> y [N, H', W', D]; what lies
// in the padding counts as 0.
static ffi::Error Signs(ffi::ThreadPool pool, Array x, Words kernel, Out y, I, Span strides, Span low, Span dilation) {
  if (!InRange(x, kernel, y, 1, strides, low, dilation)) return Misfit();
  auto k = kernel.dimensions(), o = y->dimensions();
  const Shape s = MakeShape(x, o[1], o[2], o[3], k[0], k[1], 1, strides, low, dilation);
  if (s.kh < 1 || o[0] != s.n || k[2] != (s.c + 31) / 32 || k[3] % kLanes || k[3] < s.d) return Misfit();
  const I words = k[2], features = k[3], step = s.stride[1] * words;
  const I images = s.n * s.h, pieces = std::min<I>(16, images);
  std::vector<uint32_t> packed(images * s.w * words);
  ParallelFor(pool, pieces, [&](I piece) {
    const I begin = piece * images / pieces * s.w, end = (piece + 1) * images / pieces * s.w;
    PackSigns(x.typed_data() + begin * s.c, end - begin, s.c, packed.data() + begin * words);
  });
  const I block = 4 * kLanes, blocks = (features + block - 1) / block;
  const I rows = std::min(s.oh, std::max<I>(1, 64 / s.ow)), bands = (s.oh + rows - 1) / rows;
  ParallelFor(pool, blocks * s.n * bands, [&](I item) {
    static thread_local std::vector<SignTap> taps;
    const I first = item / (s.n * bands) * block, n = item / bands % s.n, top = item % bands * rows;
    auto inside = [&](I q, I j) {
      const I col = q * s.stride[1] + j * s.dilation[1] - s.low[1];
      return col >= 0 && col < s.w;
    };
    for (I row = top; row < std::min(top + rows, s.oh); ++row)
      for (I q = 0, end; q < s.ow; q = end) {  // places that see the same taps inside of the image
        auto same = [&](I other) {
          for (I j = 0; j < s.kw; ++j)
            if (inside(q, j) != inside(other, j)) return false;
          return true;
        };
        for (end = q + 1; end < s.ow && same(end);) ++end;
        taps.clear();
        for (I i = 0; i < s.kh; ++i) {
          const I at = row * s.stride[0] + i * s.dilation[0] - s.low[0];
          for (I j = 0; j < s.kw && at >= 0 && at < s.h; ++j)
            if (inside(q, j))
              taps.push_back({((n * s.h + at) * s.w + q * s.stride[1] + j * s.dilation[1] - s.low[1]) * words,
                              kernel.typed_data() + (i * s.kw + j) * words * features});
        }
        auto run = [&](auto tile, auto vectors, I f, I place) {
          SignTile<decltype(tile)::value, decltype(vectors)::value>(
              packed.data() + (place - q) * step, step, taps, words, features, f, s.c,
              y->typed_data() + ((n * s.oh + row) * s.ow + place) * s.d, s.d);
        };
        std::integral_constant<int, 1> one;
        std::integral_constant<int, 4> four;
        for (I f = first; f < std::min(first + block, features);) {
          const bool wide = f + block <= features;
          I place = q;
          for (; place + 4 <= end; place += 4) wide ? run(four, four, f, place) : run(four, one, f, place);
          for (; place < end; ++place) wide ? run(one, four, f, place) : run(one, one, f, place);
          f += wide ? block : kLanes;
        }
      }
  });
  return ffi::Error::Success();
}

HANDLER(conv_signs, Signs, Words);
