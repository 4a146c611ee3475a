// Crops of JPEGs, decoded and resampled in one pass, with the bits of Pillow's decoder and of its Image.resize.
// Only the rows and blocks under the crop are decoded (libjpeg-turbo). See jpeg.py for what calls it.
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <jpeglib.h>
#ifndef LIBJPEG_TURBO_VERSION
#error "only libjpeg-turbo decodes parts of a picture, and upsamples as Pillow does"
#endif

namespace {
constexpr int kBits = 22;    // of a weight's fraction, as in Pillow
constexpr int kRows = 4;     // rows that are resampled together
constexpr int kMargin = 4;   // columns at each side of a part: fancy upsampling of chroma reads the next sample

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef int32_t Lanes __attribute__((vector_size(4 * kLanes)));
typedef int16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
typedef uint32_t Words __attribute__((vector_size(16)));

struct Request {  // the same as jpeg.py's _Request
  const uint8_t* data;
  uint64_t size;
  int32_t decoded[2];  // width, height of the whole picture, decoded at 1 / scale
  int32_t scale;       // 1, 2, 4 or 8
  float box[4];        // left, top, right, bottom, in the decoded picture
  int32_t resized[2];  // width, height to which the box is resized
  int32_t window[4];   // left, top, width, height of the part of the result to compute
  int32_t bicubic, down_first, channels;  // down_first: columns are resampled before rows
  uint8_t* out;  // [height, width, channels]
};

struct Axis {  // Pillow's precompute_coeffs and normalize_coeffs_8bpc
  int begin = 0, end = 0;  // of the pixels that are read
  std::vector<int> first, count, weights;
  int taps = 0;

  void Prepare(int size, float low, float high, int resized, int start, int length, bool bicubic) {
    const double step = double(high - low) / resized, spread = std::max(step, 1.0);
    const double support = (bicubic ? 2.0 : 1.0) * spread;
    taps = int(std::ceil(support)) * 2 + 1;
    weights.resize(size_t(length) * taps);
    std::vector<double> exact(taps);
    begin = size;
    for (int i = start; i < start + length; ++i) {
      const double center = low + (i + 0.5) * step;
      const int from = std::max(int(center - support + 0.5), 0), to = std::min(int(center + support + 0.5), size);
      double sum = 0;
      for (int t = 0; t < to - from; ++t) sum += exact[t] = Filter((t + from - center + 0.5) * (1.0 / spread), bicubic);
      for (int t = 0; t < to - from; ++t) {
        const double weight = (sum != 0 ? exact[t] / sum : exact[t]) * (1 << kBits);
        weights[first.size() * taps + t] = int(weight < 0 ? weight - 0.5 : weight + 0.5);
      }
      first.push_back(from), count.push_back(std::max(to - from, 0));
      begin = std::min(begin, from), end = std::max(end, to);
    }
  }

  static double Filter(double x, bool bicubic) {
    x = std::abs(x);
    if (!bicubic) return x < 1 ? 1 - x : 0;
    if (x < 1) return ((-0.5 + 2) * x - (-0.5 + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
  }
};

#ifdef __AVX512F__
inline Lanes Widened(const void* bytes) {
  return Lanes(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(bytes))));
}

inline void StoreRounded(Lanes sum, void* to) {
  const __m512i positive = _mm512_max_epi32(__m512i(sum >> kBits), _mm512_setzero_si512());
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(positive));
}
#else  // GCC converts to twice or half the width in one instruction, but not to four times or a quarter
inline Lanes Widened(const void* bytes) {
  return __builtin_convertvector(__builtin_convertvector(*static_cast<const Bytes*>(bytes), Halves), Lanes);
}

inline void StoreRounded(Lanes sum, void* to) {
  sum >>= kBits;
  sum = sum < 0 ? Lanes{} : sum;
  sum = sum > 255 ? Lanes{} + 255 : sum;
  *static_cast<Bytes*>(to) = __builtin_convertvector(__builtin_convertvector(sum, Halves), Bytes);
}
#endif

// Sums groups of 16 bytes, each times its weight, and rounds the sums to bytes.
inline void StoreWeighted(const uint8_t* bytes, size_t step, const int* weights, int count, uint8_t* to) {
  for (int part = 0; part < 16; part += kLanes) {
    Lanes sum = Lanes{} + (1 << (kBits - 1));
    for (int t = 0; t < count; ++t) sum += Widened(bytes + part + t * step) * weights[t];
    StoreRounded(sum, to + part);
  }
}

// Makes columns of 4 rows of 4 pixels.
inline void Transpose(const uint8_t* from, size_t step, uint8_t* to, size_t apart) {
  Words rows[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&rows[i], from + i * step, 16);
  const Words low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
  const Words a = __builtin_shuffle(rows[0], rows[1], low), b = __builtin_shuffle(rows[2], rows[3], low);
  const Words c = __builtin_shuffle(rows[0], rows[1], high), d = __builtin_shuffle(rows[2], rows[3], high);
  const Words columns[4] = {__builtin_shuffle(a, b, first), __builtin_shuffle(a, b, second),
                            __builtin_shuffle(c, d, first), __builtin_shuffle(c, d, second)};
  for (int i = 0; i < 4; ++i) std::memcpy(to + i * apart, &columns[i], 16);
}

struct Decoding {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors;
  std::jmp_buf unusual;
  Axis x, y;
  JDIMENSION left = 0, width = 0;  // columns that are decoded
  size_t pitch = 0, stride = 0;    // bytes of a decoded row, and of a row of the result; 4 bytes per pixel
  std::unique_ptr<uint8_t[]> rows, block, resampled;  // not filled with zeros; block: kRows pixels of each column

  ~Decoding() { jpeg_destroy_decompress(&info); }

  static void Leave(j_common_ptr info) { std::longjmp(static_cast<Decoding*>(info->client_data)->unusual, 1); }
  static void Emit(j_common_ptr info, int level) {
    if (level < 0) Leave(info);  // a warning: damaged data
  }

  // Whether nothing but image data and restarts lies between the header and the end of a picture with one scan.
  bool Whole() const {
    const uint8_t *at = info.src->next_input_byte, *end = at + info.src->bytes_in_buffer;
    while ((at = static_cast<const uint8_t*>(std::memchr(at, 0xFF, end - at))) && at + 1 < end) {
      if (at[1] == JPEG_EOI) return true;
      if (at[1] != 0 && (at[1] < JPEG_RST0 || at[1] > JPEG_RST0 + 7)) return false;
      at += 2;
    }
    return false;
  }

  bool Start(const Request& r) {
    info.err = jpeg_std_error(&errors);
    errors.error_exit = Leave, errors.emit_message = Emit;
    info.client_data = this;
    if (setjmp(unusual)) return false;
    jpeg_create_decompress(&info);
    info.client_data = this;
    jpeg_mem_src(&info, r.data, r.size);
    if (jpeg_read_header(&info, TRUE) != JPEG_HEADER_OK) return false;
    const bool gray = info.num_components == 1 && info.jpeg_color_space == JCS_GRAYSCALE;
    const bool color = info.num_components == 3 &&
                       (info.jpeg_color_space == JCS_YCbCr || info.jpeg_color_space == JCS_RGB);
    if (!(gray || color) || info.data_precision != 8 || info.arith_code) return false;
    if (!jpeg_has_multiple_scans(&info) && !Whole()) return false;
    info.scale_num = 1, info.scale_denom = r.scale;
    info.out_color_space = JCS_EXT_RGBX;
    return jpeg_start_decompress(&info) && int(info.output_width) == r.decoded[0] &&
           int(info.output_height) == r.decoded[1];
  }

  void Prepare(const Request& r) {
    const int columns = info.output_width, lines = info.output_height;
    x.Prepare(columns, r.box[0], r.box[2], r.resized[0], r.window[0], r.window[2], r.bicubic);
    y.Prepare(lines, r.box[1], r.box[3], r.resized[1], r.window[1], r.window[3], r.bicubic);
    left = std::max(x.begin - kMargin, 0), width = std::min(x.end + kMargin, columns) - left;
    pitch = Padded(columns), stride = Padded(r.window[2]);
    const size_t height = y.end - y.begin;
    const size_t part = Padded(x.end - x.begin);
    rows.reset(new uint8_t[(r.down_first ? height * pitch : std::max(pitch, stride) * kRows) + 16]);
    block.reset(new uint8_t[part * kRows]);
    resampled.reset(new uint8_t[r.down_first ? (part + stride) * kRows : (height + kRows) * stride]);
  }

  static size_t Padded(size_t pixels) { return (pixels * 4 + 15) / 16 * 16; }

  bool Run(const Request& r) {
    if (setjmp(unusual)) return false;
    if (width < info.output_width) jpeg_crop_scanline(&info, &left, &width);
    if (y.begin && int(jpeg_skip_scanlines(&info, y.begin)) != y.begin) return false;
    const size_t first = (x.begin - left) * 4, part = Padded(x.end - x.begin);
    for (int i = 0, count; i < y.end - y.begin; i += count) {
      count = std::min(kRows, y.end - y.begin - i);
      uint8_t* to = rows.get() + (r.down_first ? i * pitch : 0);
      for (int j = 0; j < count; ++j)
        if (!Read(r, to + j * pitch)) return false;
      if (!r.down_first) Across(r, to + first, pitch, &resampled[i * stride]);
    }
    for (int i = 0, count; i < r.window[3]; i += count) {
      count = std::min(kRows, r.window[3] - i);
      uint8_t *lines = resampled.get(), *done = rows.get();
      if (r.down_first) done = lines + part * kRows;
      for (int j = 0; j < count; ++j)
        if (r.down_first) Down(i + j, &rows[first], pitch, part, lines + j * part);
        else Down(i + j, lines, stride, stride, done + j * stride);
      if (r.down_first) Across(r, lines, part, done);
      for (int j = 0; j < count; ++j) {
        uint8_t* out = r.out + size_t(i + j) * r.window[2] * r.channels;
        (r.channels == 1 ? Pack<1> : Pack<3>)(done + j * stride, r.window[2], out);
      }
    }
    return true;
  }

  bool Read(const Request& r, uint8_t* line) {
    if (jpeg_read_scanlines(&info, &line, 1) != 1) return false;
    if (r.channels == 1 && info.num_components == 3)  // Pillow's conversion from RGB to L
      for (uint8_t* p = line; p < line + size_t(width) * 4; p += 4)
        p[0] = (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16;
    return true;
  }

  // Resamples kRows rows that begin at column x.begin.
  void Across(const Request& r, const uint8_t* from, size_t step, uint8_t* to) {
    uint8_t* const columns = block.get();
    for (int i = 0; i < x.end - x.begin; i += 4) Transpose(from + i * 4, step, columns + i * 16, 16);
    for (int i = 0; i < r.window[2]; i += 4) {
      alignas(64) uint8_t sums[64];
      for (int j = i; j < std::min(i + 4, r.window[2]); ++j) {
        const uint8_t* const read = columns + (x.first[j] - x.begin) * 16;
        StoreWeighted(read, 16, &x.weights[j * x.taps], x.count[j], sums + (j - i) * 16);
      }
      Transpose(sums, 16, to + i * 4, stride);
    }
  }

  // Makes row i of the result from rows that begin with row y.begin.
  void Down(int i, const uint8_t* from, size_t step, size_t bytes, uint8_t* to) const {
    from += (y.first[i] - y.begin) * step;
    for (size_t at = 0; at < bytes; at += 16)
      StoreWeighted(from + at, step, &y.weights[i * y.taps], y.count[i], to + at);
  }

  template <int kChannels>
  static void Pack(const uint8_t* from, int count, uint8_t* to) {
    for (int i = 0; i < count; ++i)
      for (int c = 0; c < kChannels; ++c) to[i * kChannels + c] = from[i * 4 + c];
  }
};
}  // namespace

// Returns whether `out` holds the result; if not, the picture is damaged or of a kind that is left to Pillow.
extern "C" int ablate_jpeg(const Request* request) {
  try {
    Decoding decoding;
    if (!decoding.Start(*request)) return false;
    decoding.Prepare(*request);
    return decoding.Run(*request);
  } catch (...) {  // no memory
    return false;
  }
}
