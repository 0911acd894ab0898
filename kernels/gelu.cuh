// GELU, h times the share of a normal distribution below h, and its slope.
#pragma once
#include "ptx.cuh"

// Of the normal distribution: the share beyond |h|, and exp(-h^2 / 2). The share is p(t) times the latter,
// t = 1 / (1 + 0.39 |h| / sqrt 2), the form of Hastings (1955), as in erf of src/machine/real.rs.
struct Tail {
  float share, exponential;
};

__device__ __forceinline__ Tail tail(float h) {
  const float e = ptx::exp2_approx(-0.5f * 1.44269504f * h * h);
  const float t = ptx::rcp_approx(fmaf(0.39f * 0.707106781f, fabsf(h), 1.0f));
  float p = 0.5f * -0.22753728f;
  p = fmaf(p, t, 0.5f * 0.886665f);
  p = fmaf(p, t, 0.5f * -0.6354013f);
  p = fmaf(p, t, 0.5f * 0.6495602f);
  p = fmaf(p, t, 0.5f * 0.091388085f);
  p = fmaf(p, t, 0.5f * 0.23532527f);
  return {p * t * e, e};
}

// h below(h), where 1 - tail is below a positive h, and tail below a negative one.
__device__ __forceinline__ float gelu(float h) {
  return fmaf(-fabsf(h), tail(h).share, fmaxf(h, 0.0f));
}

// below(h) + h density(h).
__device__ __forceinline__ float gelu_slope(float h) {
  const Tail at = tail(h);
  const float below = h < 0.0f ? at.share : 1.0f - at.share;
  return fmaf(0.39894228f * h, at.exponential, below);
}
