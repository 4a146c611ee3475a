// Convolutions of images [N, H, W, C] in float32 by the blocks of a kernel that are not zero. A block is kBlock
// neighboring features of one tap and one input channel.
//
// The places of an output are one row, in tiles that may continue in the next line of the image. A tile sums all
// blocks of kBlock features in registers. Sums are taken in the order of the taps and inputs, as in conv.cc.
#include "native.h"

constexpr I kBlock = 16;  // features, on any processor: networks are pruned by them (blocks.py)
constexpr int kRegisters = kBlock / kLanes;  // of a block
constexpr int kTile = std::min(8, kSums / kRegisters);  // places: their sums are in registers
constexpr I kChunk = 16 * kTile;  // places of a piece of work: their input stays in the second cache
constexpr I kFeatures = 4;  // vectors of features of a piece of work
constexpr I kScratch = 48 * 1024;  // floats of an image that stays in the second cache
constexpr I kSmall = 1 << 16;  // floats that one thread copies sooner than two
constexpr I kFew = 1 << 19;  // products that one thread computes sooner than two

using Words = ffi::Buffer<ffi::S32>;

// T places, whose inputs begin at x[0] ... x[T - 1]; their outputs are `step` floats apart.
template <int T>
static inline void Tile(const float* const* x, const int32_t* offsets, const float* weights, I count,
                        const float* bias, float* out, I step) {
  const float* at[T];
  for (int t = 0; t < T; ++t) at[t] = x[t];
  Vec sum[T][kRegisters];
  for (int t = 0; t < T; ++t)
    for (int k = 0; k < kRegisters; ++k) sum[t][k] = Load(bias + k * kLanes);
  for (I i = 0; i < count; ++i, weights += kBlock) {
    const I offset = offsets[i];
    Vec w[kRegisters];
    for (int k = 0; k < kRegisters; ++k) w[k] = Load(weights + k * kLanes);
    for (int t = 0; t < T; ++t) {
      const float value = at[t][offset];
      for (int k = 0; k < kRegisters; ++k) sum[t][k] += value * w[k];
    }
  }
  for (int t = 0; t < T; ++t)
    for (int k = 0; k < kRegisters; ++k) Store(out + t * step + k * kLanes, sum[t][k]);
}

// Whether the blocks of each vector of features are within the arrays, and their taps and inputs within the kernel.
static bool InKernel(const Words& places, const Words& starts, I blocks, I taps, I inputs, I vectors) {
  const int32_t *at = places.typed_data(), *start = starts.typed_data();
  if (places.element_count() != blocks || starts.element_count() != vectors + 1) return false;
  if (start[0] != 0 || start[vectors] != blocks) return false;
  for (I v = 0; v < vectors; ++v)
    if (start[v] > start[v + 1]) return false;
  for (I i = 0; i < blocks; ++i)
    if (at[i] < 0 || at[i] >= taps * inputs) return false;
  return true;
}

// x [N, H, W, C], weights of the blocks [M, kBlock], their taps and inputs as indices into [kh kw C / groups] [M], the
// first block of each vector of features and the end [D / kBlock + 1], bias [D] -> y [N, H', W', D]
static ffi::Error Blocks(ffi::ThreadPool pool, Array x, Array weights, Words indices, Words starts, Array bias, Out y,
                         I groups, Span size, Span strides, Span low, Span dilation) {
  auto o = y->dimensions(), w = weights.dimensions();
  if (size.size() != 2 || size[0] < 1 || size[1] < 1 || w.size() != 2 || w[1] != kBlock ||
      !InRange(x, x, y, groups, strides, low, dilation) || low[0] < 0 || low[1] < 0)
    return Misfit();
  const Shape s = MakeShape(x, o[1], o[2], o[3], size[0], size[1], groups, strides, low, dilation);
  if (o[0] != s.n || s.c % groups || s.d % (groups * kBlock) || bias.element_count() != s.d) return Misfit();
  const I inputs = s.c / groups, vectors = s.d / kBlock, blocks = w[0];
  if (!InKernel(indices, starts, blocks, s.kh * s.kw, inputs, vectors)) return Misfit();

  // The input with its padding, unless none of it is seen.
  const I width = (s.ow - 1) * s.stride[1] + (s.kw - 1) * s.dilation[1] + 1;
  const I height = (s.oh - 1) * s.stride[0] + (s.kh - 1) * s.dilation[0] + 1;
  const bool padded = s.low[0] || s.low[1] || height > s.h || width > s.w;
  const I line = (padded ? width : s.w) * s.c, image = (padded ? height : s.h) * line;

  std::vector<int32_t> offsets(blocks), of_index(s.kh * s.kw * inputs);  // a division takes as long as some products
  for (I tap = 0; tap < s.kh * s.kw; ++tap)
    for (I c = 0; c < inputs; ++c)
      of_index[tap * inputs + c] = tap / s.kw * s.dilation[0] * line + tap % s.kw * s.dilation[1] * s.c + c;
  const I features = s.d / groups / kBlock;  // vectors of a group
  for (I v = 0; v < vectors; ++v)
    for (I i = starts.typed_data()[v], first = v / features * inputs; i < starts.typed_data()[v + 1]; ++i)
      offsets[i] = first + of_index[indices.typed_data()[i]];

  const I places = s.oh * s.ow, chunks = (places + kChunk - 1) / kChunk, parts = (vectors + kFeatures - 1) / kFeatures;
  auto compute = [&](const float* from, I n, I chunk, I part) {  // `from` is image n
    const I begin = chunk * kChunk, count = std::min(kChunk, places - begin), first = part * kFeatures;
    const float* at[kChunk];
    const float* row = from + begin / s.ow * s.stride[0] * line;
    for (I p = 0, col = begin % s.ow; p < count; ++p) {
      at[p] = row + col * s.stride[1] * s.c;
      if (++col == s.ow) col = 0, row += s.stride[0] * line;
    }
    for (I v = first; v < std::min(first + kFeatures, vectors); ++v) {
      const I start = starts.typed_data()[v];
      const float* const* in = at;
      float* out = y->typed_data() + (n * places + begin) * s.d + v * kBlock;
      Tiled<kTile>(count, [&](auto tile) {
        constexpr int T = decltype(tile)::value;
        Tile<T>(in, offsets.data() + start, weights.typed_data() + start * kBlock, starts.typed_data()[v + 1] - start,
                bias.typed_data() + v * kBlock, out, s.d);
        in += T, out += T * s.d;
      });
    }
  };
  auto run = [&](I items, bool alone, const auto& work) {
    if (!alone) return ParallelFor(pool, items, work);
    for (I item = 0; item < items; ++item) work(item);
  };
  const bool alone = s.n * places * blocks * kBlock < kFew;
  if (image <= kScratch && (alone || s.n >= 2 * pool.num_threads())) {  // image by image, in the second cache
    run(s.n, alone, [&](I n) {
      static thread_local std::vector<float> scratch;
      const float* from = x.typed_data() + n * image;
      if (padded) {
        scratch.resize(image);
        CopyPadded(x.typed_data(), s, n, -s.low[0], height, s.low[1], width, scratch.data());
        from = scratch.data();
      }
      for (I part = 0; part < parts; ++part)
        for (I chunk = 0; chunk < chunks; ++chunk) compute(from, n, chunk, part);
    });
    return ffi::Error::Success();
  }
  std::unique_ptr<float[]> copy(padded ? new float[s.n * image] : nullptr);
  if (padded)
    run(s.n * height, s.n * image < kSmall, [&](I row) {
      CopyPadded(x.typed_data(), s, row / height, row % height - s.low[0], 1, s.low[1], width, copy.get() + row * line);
    });
  const float* from = padded ? copy.get() : x.typed_data();
  run(parts * s.n * chunks, alone, [&](I item) {
    const I n = item / chunks % s.n;
    compute(from + n * image, n, item % chunks, item / (s.n * chunks));
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(conv_blocks, Blocks, ffi::Ffi::Bind()
    .Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Words>().Arg<Words>().Arg<Array>().Ret<Array>()
    .Attr<int64_t>("groups").Attr<Span>("size").Attr<Span>("strides").Attr<Span>("low").Attr<Span>("dilation"));
