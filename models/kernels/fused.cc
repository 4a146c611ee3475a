// Convolutions of images [N, H, W, C] in float32 for trained networks. Their kernels are packed once (fused.py), and the
// loop that writes an output adds a bias and another array, and cuts off values outside of limits (ReLU, ReLU6).
//
// Places at a border sum fewer taps than others, so that no input is copied to get a padding. Each sum is taken by one
// thread, in the order of the taps and inputs: results do not depend on the number of threads.
#include "native.h"

constexpr I kBlock = 16;  // features, on any processor (fused.py)
constexpr int kRegisters = kBlock / kLanes;  // of a block
constexpr int kTile = std::min(8, kSums / kRegisters);  // places: their sums are in registers
constexpr I kChunk = 16 * kTile;  // places of a piece of work: their input stays in the second cache
constexpr I kWeights = 1 << 16;  // floats of weights of a piece of work, which stay there, too
constexpr I kPieces = 8;  // of a thread, at least
constexpr I kFew = 1 << 18;  // products that one thread computes sooner than two

struct Run {  // inputs that are neighbors in memory, and so are their weights
  I input, weight, length;
};

struct Segment {  // places of an output that see the same taps
  I row, col, rows, cols;  // the first place, and their number
  I from;  // input of the first place's first tap that is not outside
  std::vector<Run> runs;  // by their distance from there
};

struct Edge {  // neighboring outputs of an axis, which see the taps [begin, end)
  I first, count, begin, end;
};

static std::vector<Edge> Edges(I outputs, I inputs, I taps, I stride, I low, I dilation) {
  std::vector<Edge> edges;
  for (I o = 0; o < outputs; ++o) {
    const I at = o * stride - low;
    const I begin = at < 0 ? std::min(taps, (-at + dilation - 1) / dilation) : 0;
    const I end = at >= inputs ? begin : std::max(begin, std::min(taps, (inputs - 1 - at) / dilation + 1));
    if (!edges.empty() && edges.back().begin == begin && edges.back().end == end) ++edges.back().count;
    else edges.push_back({o, 1, begin, end});
  }
  return edges;
}

static std::vector<Segment> Segments(const Shape& s) {
  const I inputs = s.c / s.groups, line = s.w * s.c;
  const bool joined = s.groups == 1 && s.dilation[1] == 1;  // the taps of a row
  std::vector<Segment> segments;
  for (const Edge& r : Edges(s.oh, s.h, s.kh, s.stride[0], s.low[0], s.dilation[0]))
    for (const Edge& c : Edges(s.ow, s.w, s.kw, s.stride[1], s.low[1], s.dilation[1])) {
      const I row = r.first * s.stride[0] - s.low[0] + r.begin * s.dilation[0];
      const I col = c.first * s.stride[1] - s.low[1] + c.begin * s.dilation[1];
      Segment segment{r.first, c.first, r.count, c.count, row * line + col * s.c, {}};
      for (I i = r.begin; i < r.end; ++i)
        for (I j = c.begin; j < c.end; j += joined ? c.end - c.begin : 1)
          segment.runs.push_back({(i - r.begin) * s.dilation[0] * line + (j - c.begin) * s.dilation[1] * s.c,
                                  (i * s.kw + j) * inputs * kBlock,
                                  joined ? (c.end - c.begin) * inputs : inputs});
      segments.push_back(segment);
    }
  return segments;
}

struct Place {  // where its input begins, and its output
  const float* x;
  I y;
};

struct Ends {  // of a sum
  const float* bias;
  const float* add;  // or null
  float least, most;
};

// One block of T places' outputs.
template <bool kDepthwise, int T>
static inline void Tile(const Place* places, I channel, const std::vector<Run>& runs, const float* weights,
                        const Ends& ends, float* y) {
  Vec sum[T][kRegisters];
  for (int t = 0; t < T; ++t)
    for (int k = 0; k < kRegisters; ++k) sum[t][k] = Load(ends.bias + k * kLanes);
  for (const Run& run : runs) {
    const float* w = weights + run.weight;
    const float* at[T];
    for (int t = 0; t < T; ++t) at[t] = places[t].x + run.input + channel;
    if constexpr (kDepthwise) {
      for (int k = 0; k < kRegisters; ++k) {
        const Vec weight = Load(w + k * kLanes);
        for (int t = 0; t < T; ++t) sum[t][k] += Load(at[t] + k * kLanes) * weight;
      }
    } else {
      for (I i = 0; i < run.length; ++i, w += kBlock) {
        Vec weight[kRegisters];
        for (int k = 0; k < kRegisters; ++k) weight[k] = Load(w + k * kLanes);
        for (int t = 0; t < T; ++t) {
          const float value = at[t][i];
          for (int k = 0; k < kRegisters; ++k) sum[t][k] += value * weight[k];
        }
      }
    }
  }
  const Vec least = ends.least - Vec{}, most = ends.most - Vec{};
  for (int t = 0; t < T; ++t)
    for (int k = 0; k < kRegisters; ++k) {
      Vec v = sum[t][k];
      if (ends.add) v += Load(ends.add + places[t].y + k * kLanes);
      v = least > v ? least : v;  // in this order, NaN stays NaN
      v = most < v ? most : v;
      Store(y + places[t].y + k * kLanes, v);
    }
}

// x [N, H, W, C], weights [blocks, kh kw C / groups, kBlock], bias [D], an array to add, of y's shape, or an empty one
// -> y [N, H', W', D]. If D is no multiple of kBlock, the last block begins at feature D - kBlock.
static ffi::Error Fused(ffi::ThreadPool pool, Array x, Array weights, Array bias, Array add, Out y, I groups, Span size,
                        Span strides, Span low, Span dilation, float least, float most) {
  auto o = y->dimensions(), w = weights.dimensions();
  if (size.size() != 2 || size[0] < 1 || size[1] < 1 || w.size() != 3 || w[2] != kBlock ||
      !InRange(x, x, y, groups, strides, low, dilation))
    return Misfit();
  const Shape s = MakeShape(x, o[1], o[2], o[3], size[0], size[1], groups, strides, low, dilation);
  const I inputs = s.c / s.groups, outputs = s.d / s.groups, blocks = (s.d + kBlock - 1) / kBlock;
  const bool depthwise = groups > 1 && inputs == 1 && outputs == 1;
  const I kernel = s.kh * s.kw * inputs * kBlock, all = s.oh * s.ow * s.d;  // floats: weights of a block, an output
  if (s.c % groups || s.d % groups || s.d < kBlock || o[0] != s.n || w[0] != blocks || w[1] * kBlock != kernel ||
      (groups > 1 && !depthwise && outputs % kBlock) || I(bias.element_count()) != s.d ||
      (add.element_count() && I(add.element_count()) != s.n * all))
    return Misfit();

  const std::vector<Segment> segments = Segments(s);
  struct Chunk {
    const Segment* segment;
    I begin, count;
  };
  std::vector<std::vector<Chunk>> pieces(1);  // of an image, of about kChunk places each
  I places = 0;
  for (const Segment& segment : segments) {
    const I count = segment.rows * segment.cols, chunks = (count + kChunk - 1) / kChunk;
    for (I i = 0; i < chunks; ++i) {
      if (places >= kChunk) pieces.emplace_back(), places = 0;
      const I begin = i * count / chunks, end = (i + 1) * count / chunks;
      pieces.back().push_back({&segment, begin, end - begin});
      places += end - begin;
    }
  }
  const I units = s.d / kBlock;  // of blocks for a thread; the last one has the block that overlaps, too
  const I enough = (kPieces * pool.num_threads() + s.n * I(pieces.size()) - 1) / std::max<I>(1, s.n * pieces.size());
  const I parts = std::min(units, std::max(enough, kernel * units / kWeights));
  auto compute = [&](I item) {
    const I part = item / (s.n * pieces.size()), n = item / pieces.size() % s.n;
    const I first = part * units / parts, last = part + 1 == parts ? blocks : (part + 1) * units / parts;
    for (const Chunk& chunk : pieces[item % pieces.size()]) {
      const Segment& g = *chunk.segment;
      const float* from = x.typed_data() + n * s.h * s.w * s.c + g.from;
      Place places[kChunk];
      I row = chunk.begin / g.cols, col = chunk.begin % g.cols;
      for (I p = 0; p < chunk.count; ++p) {
        places[p] = {from + (row * s.stride[0] * s.w + col * s.stride[1]) * s.c,
                     n * all + ((g.row + row) * s.ow + g.col + col) * s.d};
        if (++col == g.cols) col = 0, ++row;
      }
      for (I block = first; block < last; ++block) {
        const I feature = std::min(block * kBlock, s.d - kBlock);
        const I channel = depthwise ? feature : feature / outputs * inputs;
        const float* summand = add.element_count() ? add.typed_data() + feature : nullptr;
        const Ends ends{bias.typed_data() + feature, summand, least, most};
        const Place* next = places;
        Tiled<kTile>(chunk.count, [&](auto tile) {
          constexpr int T = decltype(tile)::value;
          auto sum = depthwise ? Tile<true, T> : Tile<false, T>;
          sum(next, channel, g.runs, weights.typed_data() + block * kernel, ends, y->typed_data() + feature);
          next += T;
        });
      }
    }
  };
  const I items = parts * s.n * pieces.size();
  if (s.n * s.oh * s.ow * kernel * units >= kFew) {
    ParallelFor(pool, items, compute);
  } else {
    for (I item = 0; item < items; ++item) compute(item);
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(conv_fused, Fused, ffi::Ffi::Bind()
    .Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Ret<Array>()
    .Attr<int64_t>("groups").Attr<Span>("size").Attr<Span>("strides").Attr<Span>("low").Attr<Span>("dilation")
    .Attr<float>("least").Attr<float>("most"));
