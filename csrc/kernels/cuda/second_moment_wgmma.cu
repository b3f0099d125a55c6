// Tensor cores of sm_90a: 128 x 256 tiles by wgmma, keys copied by the tensor copy engine.
//
// A block has three warpgroups. The first one feeds a ring of stages: one thread asks for the
// copies, and, if there is a mask, a warp writes zeros over the rows that it drops. The other two
// multiply, 64 rows of the tile each. Blocks are persistent: the copies of the next tile run while
// the last one is added to the sum.
#include <cuda.h>

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/second_moment.h"
#include "kernels/cuda/second_moment_tiles.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {
namespace {

constexpr int kTileM = 128;
constexpr int kTileN = 256;
constexpr int kDepth = 64;  // rows of keys a stage
constexpr int kStages = 4;
constexpr int kBox = 64;  // columns of keys a copy: 128 bytes, the widest that swizzle takes
constexpr int kRowBoxes = kTileM / kBox;
constexpr int kBoxes = (kTileM + kTileN) / kBox;
constexpr int kWarpgroup = 128;
constexpr int kConsumers = kTileM / 64;  // warpgroups
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kStep = 16;  // rows of keys that one wgmma takes
using Order = TileOrder<kTileN / kTileM>;

// Of each thread 128 sums, and of a consumer what else it needs. setmaxnreg moves registers from
// the producer's warpgroup to the consumers', starting from what the kernel is compiled with.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= (1 + kConsumers) * 168 &&
                  kThreads * 168 <= 65536,
              "registers of a multiprocessor");

// 48 KiB for 2 * 128 * 256 * 64 operations, 1024 cycles of the tensor cores: 48 bytes a cycle from
// L2, in all tiles of a wave. 128 x 128 tiles would need 64.
struct Stage {
  alignas(1024) uint16_t box[kBoxes][kDepth][kBox];  // first the tile's rows, then its columns
};
constexpr uint32_t kStageBytes = sizeof(Stage);

struct WgmmaStorage {
  Stage stage[kStages];
  Patch<8> patch[kConsumers * kWarpgroup / 32];
  Barrier full[kStages];   // the copies have landed
  Barrier clean[kStages];  // and masked rows are zeros
  Barrier empty[kStages];  // the products that read the stage are done
};
static_assert(kStageBytes == 49152 && sizeof(WgmmaStorage) <= 227 * 1024, "shared memory");

// Waves on the 132 multiprocessors of an H100: d = 6400 has 650 tiles, 4.92 of 5 waves; 14336 has
// 3192, 24.2 of 25; 16384 has 4160, 31.5 of 32. The diagonal costs half a tile row more than the
// triangle, 4 % at d = 6400.

// Where a block is in its sequence of tiles and slabs of rows; all warps go through the same one.
struct Position {
  uint32_t step = 0;

  __device__ int slot() const { return step % kStages; }
  __device__ uint32_t parity() const { return step / kStages & 1; }
};

// Calls f(tile) for every tile of this block.
template <class F>
__device__ __forceinline__ void for_each_tile(int64_t d, const F& f) {
  const Order order(d, kTileM);
  const int tiles = order.size();
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) f(order.at(tile));
}

__device__ __forceinline__ int count_slabs(int64_t n) {
  return static_cast<int>((n + kDepth - 1) / kDepth);
}

// One thread: copies every slab of every tile, as stages become empty.
__device__ __forceinline__ void produce(WgmmaStorage& s, const CUtensorMap& map, int64_t n,
                                        int64_t d) {
  const int slabs = count_slabs(n);
  Position at;
  for_each_tile(d, [&](TilePosition tile) {
    for (int slab = 0; slab < slabs; ++slab, ++at.step) {
      const int slot = at.slot();
      wait_for_phase(&s.empty[slot], at.parity() ^ 1);
      arrive_expecting(&s.full[slot], kStageBytes);
      for (int box = 0; box < kBoxes; ++box) {
        const int col = box < kRowBoxes ? tile.row * kTileM + box * kBox
                                        : tile.col * kTileN + (box - kRowBoxes) * kBox;
        copy_box(s.stage[slot].box[box], &map, col, slab * kDepth, &s.full[slot]);
      }
    }
  });
}

// Which of the 64 rows of a slab the mask drops, as bits; the same in all lanes.
__device__ __forceinline__ uint64_t dropped_rows(const bool* mask, int64_t stride, int64_t n,
                                                 int slab) {
  const int64_t row = static_cast<int64_t>(slab) * kDepth + threadIdx.x % 32;
  const uint32_t low = __ballot_sync(~0u, row < n && !mask[row * stride]);
  const uint32_t high = __ballot_sync(~0u, row + 32 < n && !mask[(row + 32) * stride]);
  return static_cast<uint64_t>(high) << 32 | low;
}

// One warp: zeros the dropped rows of every stage. A row of a box is 128 bytes in one piece:
// swizzle only permutes what is in it.
__device__ __forceinline__ void clean(WgmmaStorage& s, const bool* mask, int64_t stride, int64_t n,
                                      int64_t d) {
  constexpr int kPieces = kBoxes * 8;  // of 16 bytes
  const int lane = threadIdx.x % 32;
  const int slabs = count_slabs(n);
  Position at;
  for_each_tile(d, [&](TilePosition) {
    uint64_t next = dropped_rows(mask, stride, n, 0);
    for (int slab = 0; slab < slabs; ++slab, ++at.step) {
      uint64_t dropped = next;
      if (slab + 1 < slabs) next = dropped_rows(mask, stride, n, slab + 1);
      const int slot = at.slot();
      wait_for_phase(&s.full[slot], at.parity());
      for (; dropped != 0; dropped &= dropped - 1) {
        const int row = __ffsll(static_cast<long long>(dropped)) - 1;
        for (int piece = lane; piece < kPieces; piece += 32) {
          zero_16_bytes(&s.stage[slot].box[piece / 8][row][piece % 8 * 8]);
        }
      }
      fence_async_proxy();
      arrive(&s.clean[slot]);
    }
  });
}

#if defined(ROME_FAST_HAS_WGMMA)
// The descriptor of an operand whose rows of keys are 128 bytes apart in boxes, swizzled by 128
// bytes, columns of keys in consecutive addresses. Fields count 16 bytes: bits 0-13 the address,
// 16-29 from one box to the next, 32-45 from 8 rows of keys to the next 8, 62-63 the swizzle (1).
__device__ __forceinline__ uint64_t describe(const void* operand) {
  constexpr uint64_t kFromBoxToBox = sizeof(Stage::box[0]) / 16;
  constexpr uint64_t kFrom8To8Rows = 8 * sizeof(Stage::box[0][0]) / 16;
  return (shared_address(operand) & 0x3FFFF) >> 4 | kFromBoxToBox << 16 | kFrom8To8Rows << 32 |
         uint64_t{1} << 62;
}

// The products of one stage with the 64 rows of the tile that are this warpgroup's.
template <class Key>
__device__ __forceinline__ void multiply_stage(const Stage& stage, int consumer, bool accumulate,
                                               float (&sum)[128]) {
  fence_products();
#pragma unroll
  for (int k = 0; k < kDepth; k += kStep) {
    const uint64_t a = describe(stage.box[consumer][k]);
    const uint64_t b = describe(stage.box[kRowBoxes][k]);
    multiply_m64n256k16<Key>(sum, a, b, accumulate || k > 0);
  }
  commit_products();
}

// Adds a warp's sums, of 16 rows from `row` on and the columns from `col` on.
template <class Key, class Sum>
__device__ __forceinline__ void add_sums(const SecondMomentParams<Key, Sum>& p, int64_t row,
                                         int64_t col, const float (&sum)[128], Patch<8>& patch) {
#pragma unroll
  for (int i = 0; i < kTileN / 16; ++i) {
    add_fragment<8>(p, row + 8 * (i % 2), col + i / 2 * 32, patch,
                    [&](int j, int e) { return sum[i / 2 * 16 + 4 * j + i % 2 * 2 + e]; });
  }
}

// A warpgroup: multiplies every stage, and gives it back once the products have read it.
template <class Key, class Sum>
__device__ __forceinline__ void consume(WgmmaStorage& s, const SecondMomentParams<Key, Sum>& p,
                                        int consumer) {
  const int slabs = count_slabs(p.n);
  const int slabs_per_flush = static_cast<int>(rows_per_flush(p)) / kDepth;
  Barrier* ready = p.mask != nullptr ? s.clean : s.full;
  const int warp = threadIdx.x / 32 - kWarpgroup / 32;  // of the consumers
  const bool speaks = threadIdx.x % 32 == 0;            // for its warp
  Position at;
  float sum[128];
  for_each_tile(p.d, [&](TilePosition tile) {
    for (int begin = 0; begin < slabs; begin += slabs_per_flush) {
      const int end = slabs - begin < slabs_per_flush ? slabs : begin + slabs_per_flush;
      for (int slab = begin; slab < end; ++slab, ++at.step) {
        wait_for_phase(&ready[at.slot()], at.parity());
        multiply_stage<Key>(s.stage[at.slot()], consumer, slab > begin, sum);
        wait_for_products<1>(sum);  // those of the stage before
        if (slab > begin && speaks) arrive(&s.empty[(at.step - 1) % kStages]);
      }
      wait_for_products<0>(sum);
      if (speaks) arrive(&s.empty[(at.step - 1) % kStages]);
      add_sums(p, static_cast<int64_t>(tile.row) * kTileM + 16 * warp,
               static_cast<int64_t>(tile.col) * kTileN, sum, s.patch[warp]);
    }
  });
}
#endif

// Where wgmma does not exist only a stub is compiled, and it says so by its launch bounds.
#if defined(__CUDA_ARCH__) && !defined(ROME_FAST_HAS_WGMMA)
#define ROME_FAST_WGMMA_BOUNDS __launch_bounds__(32)
#else
#define ROME_FAST_WGMMA_BOUNDS __launch_bounds__(kThreads, 1)
#endif

template <class Key, class Sum>
__global__ void ROME_FAST_WGMMA_BOUNDS second_moment_wgmma_kernel(
    const __grid_constant__ CUtensorMap map, const SecondMomentParams<Key, Sum> p) {
#if defined(ROME_FAST_HAS_WGMMA)
  WgmmaStorage& s = shared_storage<WgmmaStorage>();
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kStages; ++slot) {
      init_barrier(&s.full[slot], 1);
      init_barrier(&s.clean[slot], 32);
      init_barrier(&s.empty[slot], kConsumers * kWarpgroup / 32);
    }
    fence_async_proxy();
  }
  __syncthreads();
  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    give_registers_back<kProducerRegisters>();
    const int warp = threadIdx.x / 32;
    if (warp == 0 && threadIdx.x == 0) produce(s, map, p.n, p.d);
    if (warp == 1 && p.mask != nullptr) clean(s, p.mask, p.mask_stride, p.n, p.d);
  } else {
    take_registers<kConsumerRegisters>();
    consume(s, p, warpgroup - 1);
  }
#endif
}

// The driver's function, found without linking the driver; null where it is too old.
auto encode_function() -> decltype(&cuTensorMapEncodeTiled) {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSuccess;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                               12000, cudaEnableDefault, &result);
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) found = nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  return function;
}

// keys as boxes of kDepth rows and kBox columns; false where the copy engine cannot read them.
template <class Key, class Sum>
bool describe_keys(const SecondMomentParams<Key, Sum>& p, CUtensorMap* map) {
  const auto encode = encode_function();
  if (encode == nullptr) return false;
  constexpr bool kBFloat16 = std::is_same_v<Key, BFloat16>;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(p.d), static_cast<cuuint64_t>(p.n)};
  const cuuint64_t pitch[1] = {static_cast<cuuint64_t>(p.keys_row_stride) * sizeof(Key)};
  const cuuint32_t box[2] = {kBox, kDepth};
  const cuuint32_t steps[2] = {1, 1};
  return encode(map, kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                2, const_cast<Key*>(p.keys), sizes, pitch, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Whether more than the stub was compiled for this device.
template <class Key, class Sum>
bool is_compiled() {
  cudaFuncAttributes attributes;
  const void* kernel = reinterpret_cast<const void*>(&second_moment_wgmma_kernel<Key, Sum>);
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess &&
         attributes.maxThreadsPerBlock >= kThreads;
}

}  // namespace

template <class Key, class Sum>
bool wgmma_can_run(const SecondMomentParams<Key, Sum>& p) {
  if (compute_capability() != 90) return false;
  // Coordinates of the copy engine are 32-bit; rows that overlap are not for it either.
  if (p.n > INT32_MAX - kDepth || p.d > INT32_MAX - kTileN) return false;
  if (p.keys_col_stride != 1 || p.keys_row_stride < p.d) return false;
  if (p.keys_row_stride * sizeof(Key) % 16 != 0) return false;
  if (reinterpret_cast<uintptr_t>(p.keys) % 16 != 0) return false;
  return encode_function() != nullptr && is_compiled<Key, Sum>();
}

template <class Key, class Sum>
void second_moment_wgmma(const SecondMomentParams<Key, Sum>& p, cudaStream_t stream) {
  CUtensorMap map;
  if (!describe_keys(p, &map)) throw std::runtime_error("cuTensorMapEncodeTiled refused the keys");
  const int tiles = Order(p.d, kTileM).size();
  const int blocks = tiles < multiprocessor_count() ? tiles : multiprocessor_count();
  launch(second_moment_wgmma_kernel<Key, Sum>, dim3(blocks), dim3(kThreads), sizeof(WgmmaStorage),
         stream, map, p);
}

#define ROME_FAST_INSTANTIATE(Key, Sum)                             \
  template bool wgmma_can_run(const SecondMomentParams<Key, Sum>&); \
  template void second_moment_wgmma(const SecondMomentParams<Key, Sum>&, cudaStream_t);
ROME_FAST_INSTANTIATE(BFloat16, double)
ROME_FAST_INSTANTIATE(Half, double)
ROME_FAST_INSTANTIATE(BFloat16, float)
ROME_FAST_INSTANTIATE(Half, float)
#undef ROME_FAST_INSTANTIATE

}  // namespace rome_fast
