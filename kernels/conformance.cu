// What each primitive of ptx.cuh, and of CUDA itself, does: every result that a thread can see is written to
// `out`, so that the emulator and a GPU can be compared bit for bit. The inputs are made here, of small
// integers, so that sums are exact in every order. One block each, of 32 threads (conform_barrier: 64);
// sm_90's primitives: conformance_sm90.cu.
#include "ptx.cuh"

namespace {

// An integer from -8 to 7 that looks random.
__device__ __forceinline__ int small(uint32_t i) {
  return static_cast<int>((i * 2654435761u) >> 28) - 8;
}

__device__ __forceinline__ uint32_t pair_of_bf16(uint32_t i) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(small(2 * i), small(2 * i + 1));
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace

// c += a * b twice, the second time with other operands.
extern "C" __global__ void __launch_bounds__(32) conform_mma(uint32_t* __restrict__ out /* [4][32] */) {
  uint32_t a[4];
  uint32_t b[2];
  float c[4];
  for (int r = 0; r < 4; r++) {
    c[r] = small(1000 + r * 32 + threadIdx.x);
  }
  for (int step = 0; step < 2; step++) {
    for (int r = 0; r < 4; r++) {
      a[r] = pair_of_bf16(2000 + step * 500 + r * 32 + threadIdx.x);
    }
    for (int r = 0; r < 2; r++) {
      b[r] = pair_of_bf16(3000 + step * 500 + r * 32 + threadIdx.x);
    }
    ptx::mma_m16n8k16_bf16(c, a, b);
  }
  for (int r = 0; r < 4; r++) {
    out[r * 32 + threadIdx.x] = __float_as_uint(c[r]);
  }
}
EMU_KERNEL(conform_mma)

// Matrices of elements that tell their own place, with their rows in a mixed order.
extern "C" __global__ void __launch_bounds__(32) conform_ldmatrix(uint32_t* __restrict__ out /* [12][32] */) {
  DYN_SMEM(uint16_t, rows);  // [32][8]
  for (int i = threadIdx.x; i < 32 * 8; i += 32) {
    rows[i] = i;
  }
  __syncthreads();
  const uint32_t row = ptx::smem_u32(&rows[threadIdx.x * 11 % 32 * 8]);
  uint32_t x4[4];
  uint32_t x2[2];
  ptx::ldmatrix_x4(x4, row);
  for (int r = 0; r < 4; r++) {
    out[r * 32 + threadIdx.x] = x4[r];
  }
  ptx::ldmatrix_x4_trans(x4, row);
  for (int r = 0; r < 4; r++) {
    out[(4 + r) * 32 + threadIdx.x] = x4[r];
  }
  ptx::ldmatrix_x2(x2, row);
  for (int r = 0; r < 2; r++) {
    out[(8 + r) * 32 + threadIdx.x] = x2[r];
  }
  ptx::ldmatrix_x2_trans(x2, row);
  for (int r = 0; r < 2; r++) {
    out[(10 + r) * 32 + threadIdx.x] = x2[r];
  }
}
EMU_KERNEL(conform_ldmatrix)

// Copies of 16, 8 and 4 bytes, of which each number is read, over shared memory that was filled before.
extern "C" __global__ void __launch_bounds__(32)
    conform_cp_async(const uint32_t* __restrict__ source /* [224], aligned to 16 bytes */,
                     uint32_t* __restrict__ out /* [224] */) {
  DYN_SMEM(uint32_t, words);  // [32][4], [32][2], [32]
  for (int i = threadIdx.x; i < 224; i += 32) {
    words[i] = 0xABABABAB;
  }
  __syncthreads();
  const int lane = threadIdx.x;
  ptx::cp_async16(ptx::smem_u32(&words[lane * 4]), &source[lane * 4], lane % 17);
  ptx::cp_async_commit();
  ptx::cp_async8(ptx::smem_u32(&words[128 + lane * 2]), &source[128 + lane * 2], lane % 9);
  ptx::cp_async_commit();
  ptx::cp_async4(ptx::smem_u32(&words[192 + lane]), &source[192 + lane], lane % 5);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  for (int i = threadIdx.x; i < 224; i += 32) {
    out[i] = words[i];
  }
}
EMU_KERNEL(conform_cp_async)

// The first warp hands numbers to the second over two named barriers: 1 when they are written, 2 when they
// are read.
extern "C" __global__ void __launch_bounds__(64) conform_barrier(uint32_t* __restrict__ out /* [4][32] */) {
  DYN_SMEM(uint32_t, numbers);  // [32]
  for (int round = 0; round < 4; round++) {
    if (warp_id() == 0) {
      numbers[lane_id()] = round * 100 + lane_id();
      ptx::bar_arrive(1, 64);
      ptx::bar_sync(2, 64);
    } else {
      ptx::bar_sync(1, 64);
      out[round * 32 + lane_id()] = numbers[lane_id() ^ 1];
      ptx::bar_arrive(2, 64);
    }
  }
}
EMU_KERNEL(conform_barrier)

// Shuffles and votes of the whole warp, of groups of 8 lanes, and of the even lanes.
extern "C" __global__ void __launch_bounds__(32) conform_warp(uint32_t* __restrict__ out /* [13][32] */) {
  const int lane = threadIdx.x;
  const uint32_t mine = lane * lane + 1;
  uint32_t results[13];
  results[0] = __shfl_sync(~0u, mine, lane * 7);
  results[1] = __shfl_sync(~0u, mine, lane * 7, 8);
  results[2] = __shfl_xor_sync(~0u, mine, 21);
  results[3] = __shfl_xor_sync(~0u, mine, 21, 8);
  results[4] = __shfl_up_sync(~0u, mine, 3);
  results[5] = __shfl_up_sync(~0u, mine, 3, 8);
  results[6] = __shfl_down_sync(~0u, mine, 3);
  results[7] = __shfl_down_sync(~0u, mine, 3, 8);
  results[8] = __ballot_sync(~0u, mine % 3 == 1);
  results[9] = __any_sync(~0u, lane == 5);
  results[10] = __all_sync(~0u, lane != 5);
  results[11] = 0;
  results[12] = 0;
  if (lane % 2 == 0) {
    results[11] = __shfl_xor_sync(0x55555555u, mine, 2);
    results[12] = __ballot_sync(0x55555555u, lane > 9);
  }
  for (int i = 0; i < 13; i++) {
    out[i * 32 + lane] = results[i];
  }
}
EMU_KERNEL(conform_warp)

// Integers and bits, of a and b that differ from lane to lane.
extern "C" __global__ void __launch_bounds__(32) conform_integer(uint32_t* __restrict__ out /* [12][32] */) {
  DYN_SMEM(uint32_t, cells);  // [32]
  const int lane = threadIdx.x;
  const uint32_t a = 0x9E3779B9u * (lane + 1);
  const uint32_t b = 0x85EBCA6Bu >> lane;
  uint32_t results[12];
  results[0] = __umulhi(a, b);
  results[1] = __mulhi(static_cast<int>(a), static_cast<int>(b));
  results[2] = __popc(a);
  results[3] = __ffs(static_cast<int>(b << lane));
  results[4] = __clz(static_cast<int>(b));
  results[5] = min(a, b);
  results[6] = max(static_cast<int>(a), static_cast<int>(b));
  cells[lane] = a;
  results[7] = atomicAdd(&cells[lane], b);
  results[8] = atomicExch(&cells[lane], lane);
  results[9] = atomicInc(&cells[lane], 20);
  results[10] = atomicCAS(&cells[lane], 7, 70);
  results[11] = atomicMax(&cells[lane], 10);
  for (int i = 0; i < 12; i++) {
    out[i * 32 + lane] = results[i];
  }
}
EMU_KERNEL(conform_integer)

// Conversions, and arithmetic that is rounded once, of any bits that are given: NaN, infinities, subnormal
// numbers, ties. Where several NaN are right, NaN is written as one of them.
extern "C" __global__ void __launch_bounds__(32)
    conform_float(const uint32_t* __restrict__ bits /* [n] */, uint32_t* __restrict__ out /* [9][n] */,
                  int n) {
  const auto one_nan = [](float x) {
    return x != x ? 0x7FFFFFFFu : __float_as_uint(x);
  };
  for (int i = threadIdx.x; i < n; i += 32) {
    const float x = __uint_as_float(bits[i]);
    const float y = __uint_as_float(bits[(i + 1) % n]);
    const float z = __uint_as_float(bits[(i + 2) % n]);
    const __nv_bfloat162 both = __floats2bfloat162_rn(x, y);
    out[0 * n + i] = __bfloat16_as_ushort(__float2bfloat16(x));
    out[1 * n + i] = *reinterpret_cast<const uint32_t*>(&both);
    out[2 * n + i] = one_nan(__bfloat162float(__ushort_as_bfloat16(bits[i] & 0xFFFF)));
    out[3 * n + i] = one_nan(__half2float(__ushort_as_half(bits[i] & 0xFFFF)));
    out[4 * n + i] = one_nan(__fadd_rn(x, y));
    out[5 * n + i] = one_nan(__fmul_rn(x, y));
    out[6 * n + i] = one_nan(__fmaf_rn(x, y, z));
    out[7 * n + i] = one_nan(__fsqrt_rn(x));
    out[8 * n + i] = one_nan(fmaxf(x, y) + 0.0f);  // either zero may be the larger
  }
}
EMU_KERNEL(conform_float)
