// What the tests of the second moment run apart from its kernels.
#include <stdexcept>
#include <string>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/second_moment_tiles.cuh"
#include "kernels/cuda/simt.cuh"

using namespace rome_fast;

namespace {

std::string message;

template <class F>
const char* message_of(const F& f) {
  try {
    f();
    message.clear();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

template <int kHeights>
int list_tiles(int64_t d, int tile_rows, int* positions) {
  const TileOrder<kHeights> order(d, tile_rows);
  for (int i = 0; i < order.size(); ++i) {
    const TilePosition tile = order.at(i);
    positions[2 * i] = tile.row;
    positions[2 * i + 1] = tile.col;
  }
  return order.size();
}

struct Image {
  alignas(1024) unsigned char bytes[128 << 10];
};

// out[64][256] += a b, with operands where the descriptors say that they are in the image.
__global__ void multiply_kernel(const unsigned char* image, uint64_t a, uint64_t b, bool accumulate,
                                bool fenced, bool waits, float* out) {
  Image& shared = shared_storage<Image>();
  for (unsigned i = threadIdx.x; i < sizeof(Image); i += blockDim.x) shared.bytes[i] = image[i];
  fence_async_proxy();
  __syncthreads();
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  const int col = threadIdx.x % 4 * 2;
  const auto at = [&](int i) { return (row + i / 2 % 2 * 8) * 256 + col + i / 4 * 8 + i % 2; };
  float sum[128];
  for (int i = 0; i < 128; ++i) sum[i] = out[at(i)];
  if (fenced) fence_products();
  const uint64_t start = shared_address(&shared) >> 4;
  multiply_m64n256k16<__nv_bfloat16>(sum, a + start, b + start, accumulate);
  commit_products();
  if (waits) wait_for_products<0>(sum);
  for (int i = 0; i < 128; ++i) out[at(i)] = sum[i];
  if (!waits) wait_for_products<0>(sum);
}

}  // namespace

extern "C" int list_tiles(int64_t d, int tile_rows, int heights, int* positions) {
  return heights == 1 ? list_tiles<1>(d, tile_rows, positions)
                      : list_tiles<2>(d, tile_rows, positions);
}

extern "C" const char* multiply(const unsigned char* image, uint64_t a, uint64_t b, bool accumulate,
                                bool fenced, bool waits, float* out) {
  return message_of([&] {
    launch(multiply_kernel, dim3(1), dim3(128), sizeof(Image), nullptr, image, a, b, accumulate,
           fenced, waits, out);
  });
}
