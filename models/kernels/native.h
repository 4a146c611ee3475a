// What conv.cc, signs.cc, blocks.cc and fused.cc share: vectors, threads, images with padding, and how XLA's foreign
// function interface calls them (native.py).
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using I = int64_t;

// A Vec is one register: the compiler keeps sums in memory, forty times as slow, where it is made of several.
#if defined(__AVX512F__)
constexpr I kLanes = 16;
constexpr int kSums = 16;  // registers for the sums of a loop, of 32
#elif defined(__AVX__)
constexpr I kLanes = 8;
constexpr int kSums = 12;  // of 16
#elif defined(__aarch64__)
constexpr I kLanes = 4;
constexpr int kSums = 24;  // of 32
#else
constexpr I kLanes = 4;
constexpr int kSums = 12;  // of 16
#endif
typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef int32_t Lanes __attribute__((vector_size(4 * kLanes)));

static inline Vec Load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
static inline void Store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

template <int Most, class Step>
static inline void WithSize(I size, const Step& step) {
  if (size == Most) return step(std::integral_constant<int, Most>());
  if constexpr (Most > 1) WithSize<Most - 1>(size, step);
}

// Calls step(T) for tiles that cover `count`; their sizes T, constants, are at most Most and differ by at most 1.
template <int Most, class Step>
static inline void Tiled(I count, const Step& step) {
  for (I tiles = (count + Most - 1) / Most; tiles > 0; --tiles) {
    const I size = (count + tiles - 1) / tiles;
    WithSize<Most>(size, step);
    count -= size;
  }
}

// Runs work(0) ... work(count - 1) on the pool and on this thread; returns when all have ended.
template <class F>
static void ParallelFor(ffi::ThreadPool& pool, I count, const F& work) {
  struct State {
    std::atomic<I> next{0};
    I ended = 0;
    std::mutex mutex;
    std::condition_variable all;
  };
  auto state = std::make_shared<State>();
  const F* shared = &work;  // a helper that starts late finds nothing left to do, and does not touch it
  auto run = [state, shared, count] {
    I mine = 0;
    for (I i; (i = state->next.fetch_add(1)) < count; ++mine) (*shared)(i);
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(state->mutex);
    state->ended += mine;
    if (state->ended == count) state->all.notify_all();
  };
  for (I helper = 1; helper < std::min<I>(pool.num_threads(), count); ++helper) pool.Schedule(decltype(run)(run));
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all.wait(lock, [&] { return state->ended == count; });
}

struct Shape {  // of what is read, of what is written or matched with it, and how they meet
  I n, h, w, c;        // read
  I oh, ow, d;         // the other
  I kh, kw, groups;
  I stride[2], low[2], dilation[2];
};

using Array = ffi::Buffer<ffi::F32>;
using Out = ffi::ResultBuffer<ffi::F32>;
using Span = ffi::Span<const int64_t>;

static Shape MakeShape(const Array& read, I oh, I ow, I d, I kh, I kw, I groups, Span strides, Span low,
                       Span dilation) {
  auto r = read.dimensions();
  return {r[0], r[1], r[2], r[3], oh, ow, d, kh, kw, groups,
          {strides[0], strides[1]}, {low[0], low[1]}, {dilation[0], dilation[1]}};
}

// Rows [first, first + rows) of image `n`, rows and columns outside of it zero, each `width` pixels from column -left.
static void CopyPadded(const float* x, const Shape& s, I n, I first, I rows, I left, I width, float* to) {
  for (I r = 0; r < rows; ++r, to += width * s.c) {
    const I row = first + r;
    if (row < 0 || row >= s.h) {
      std::memset(to, 0, sizeof(float) * width * s.c);
      continue;
    }
    const I begin = std::min(left, width), count = std::max<I>(0, std::min(s.w, width - begin));
    std::memset(to, 0, sizeof(float) * begin * s.c);
    std::memcpy(to + begin * s.c, x + (n * s.h + row) * s.w * s.c, sizeof(float) * count * s.c);
    std::memset(to + (begin + count) * s.c, 0, sizeof(float) * (width - begin - count) * s.c);
  }
}

// Whether arrays have four axes and attributes two numbers, all in their range: only the number of images may be 0.
template <class Kernel>
static bool InRange(const Array& a, const Kernel& b, Out& out, I groups, Span strides, Span low, Span dilation) {
  auto least = [](auto numbers, size_t count, size_t first, I smallest) {
    return numbers.size() == count && std::all_of(numbers.begin() + first, numbers.end(),
                                                  [&](I number) { return number >= smallest; });
  };
  return groups >= 1 && least(a.dimensions(), 4, 1, 1) && least(b.dimensions(), 4, 1, 1) &&
         least(out->dimensions(), 4, 1, 1) && least(strides, 2, 0, 1) && least(dilation, 2, 0, 1) && low.size() == 2;
}

static ffi::Error Misfit() {  // where the arithmetic would end in a signal, or outside of an array
  return ffi::Error::InvalidArgument("sizes that do not fit each other, or a map without places");
}

#define HANDLER(name, function, kernel)                                                                  \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function, ffi::Ffi::Bind()                                          \
      .Ctx<ffi::ThreadPool>().Arg<Array>().Arg<kernel>().Ret<Array>().Attr<int64_t>("groups")             \
      .Attr<Span>("strides").Attr<Span>("low").Attr<Span>("dilation"))
