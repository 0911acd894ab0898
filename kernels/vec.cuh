// Memory in vectors of 16 bytes, 8 bf16 or 4 f32: the most that one instruction moves. Addresses are
// multiples of 16.
//
// The `_once` forms are for data that nothing reads again soon: it is the first to leave the caches.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>
#include <string.h>

#include "ptx.cuh"

using bf16 = __nv_bfloat16;

// Elements of T in a vector.
template <class T>
constexpr int WIDTH = 16 / sizeof(T);

// The bits of 0, in every type.
__device__ __forceinline__ uint4 zeros() {
  return make_uint4(0, 0, 0, 0);
}

// --- A vector's bits, in global memory ---------------------------------------------------------------------

template <class T>
__device__ __forceinline__ uint4 load(const T* from) {
  return *vector_at<const uint4>(from);
}

template <class T>
__device__ __forceinline__ uint4 load_once(const T* from) {
  return __ldcs(vector_at<const uint4>(from));
}

template <class T>
__device__ __forceinline__ void store(T* to, uint4 bits) {
  *vector_at<uint4>(to) = bits;
}

template <class T>
__device__ __forceinline__ void store_once(T* to, uint4 bits) {
  __stcs(vector_at<uint4>(to), bits);
}

// --- Its numbers -------------------------------------------------------------------------------------------

// Two bf16, the first in the low half.
__device__ __forceinline__ void unpack(uint32_t bits, float& first, float& second) {
  first = __int_as_float(static_cast<int>(bits << 16));
  second = __int_as_float(static_cast<int>(bits & 0xffff0000u));
}

// Rounded to nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ uint32_t pack(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

__device__ __forceinline__ void unpack(uint4 bits, float (&x)[8]) {
  unpack(bits.x, x[0], x[1]);
  unpack(bits.y, x[2], x[3]);
  unpack(bits.z, x[4], x[5]);
  unpack(bits.w, x[6], x[7]);
}

__device__ __forceinline__ uint4 pack(const float (&x)[8]) {
  return make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
}

__device__ __forceinline__ void unpack(uint4 bits, float (&x)[4]) {
  memcpy(x, &bits, sizeof bits);
}

__device__ __forceinline__ uint4 pack(const float (&x)[4]) {
  uint4 bits;
  memcpy(&bits, x, sizeof bits);
  return bits;
}

// --- Memory as numbers -------------------------------------------------------------------------------------

__device__ __forceinline__ void load(const bf16* from, float (&x)[8]) {
  unpack(load(from), x);
}

__device__ __forceinline__ void load(const float* from, float (&x)[4]) {
  unpack(load(from), x);
}

// Two vectors: parameters in f32 beside activations in bf16.
__device__ __forceinline__ void load(const float* from, float (&x)[8]) {
  const float4* vectors = vector_at<const float4>(from);
  const float4 a = vectors[0], b = vectors[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
  x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

__device__ __forceinline__ void load_once(const float* from, float (&x)[4]) {
  unpack(load_once(from), x);
}

__device__ __forceinline__ void store(bf16* to, const float (&x)[8]) {
  store(to, pack(x));
}

__device__ __forceinline__ void store(float* to, const float (&x)[4]) {
  store(to, pack(x));
}

// Two vectors.
__device__ __forceinline__ void store(float* to, const float (&x)[8]) {
  float4* vectors = vector_at<float4>(to);
  vectors[0] = make_float4(x[0], x[1], x[2], x[3]);
  vectors[1] = make_float4(x[4], x[5], x[6], x[7]);
}

__device__ __forceinline__ void store_once(float* to, const float (&x)[4]) {
  store_once(to, pack(x));
}

// Half a vector: a bf16 copy beside a vector of f32.
__device__ __forceinline__ void store(bf16* to, const float (&x)[4]) {
  *vector_at<uint2>(to) = make_uint2(pack(x[0], x[1]), pack(x[2], x[3]));
}

// In pairs: shorter chains than one after the other, and smaller errors.
__device__ __forceinline__ float sum(const float (&x)[8]) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

__device__ __forceinline__ float sum(const float (&x)[4]) {
  return (x[0] + x[1]) + (x[2] + x[3]);
}
