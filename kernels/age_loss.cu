// Losses of a predicted age and their mean over the batch, for each kind:
//   L1  |e|    L2  e^2    Huber  e^2 / 2 for |e| <= d, d (|e| - d / 2) above,    with e = pred - age
//   soft label  sum over bins of label (ln label - ln softmax(pred)), label = a normal density around the
//               age, cut to the bins and brought to sum 1
//
// A warp takes a sample, a lane every 32nd output. A few numbers a sample: bound by nothing but the launch,
// so all is computed in f64, as on the CPU.
#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace {

constexpr int WARPS = 8;  // of a block

enum Kind { L1, L2, HUBER, SOFT_LABEL };

// Laid out as in src/ops/age_loss.rs. Centres of bins are first + i step.
struct Loss {
  double threshold, first, step, sigma;
  int kind, outputs;
};

// The normal distribution's mass below x; erf is odd, so is the error.
__device__ double below(double x, double age, double sigma) {
  return 0.5 * (1 + erf((x - age) * (0.70710678118654752440 / sigma)));
}

// The label's mass in bin i, before it is divided by the mass in all bins.
__device__ double mass(const Loss& loss, double age, int i) {
  const double edge = loss.first + (i - 0.5) * loss.step;
  return below(edge + loss.step, age, loss.sigma) - below(edge, age, loss.sigma);
}

// The logarithm of the sum of exp(pred[i]), on each lane. A NaN among them makes it NaN.
__device__ double log_sum_exp(const float* pred, int outputs) {
  double largest = -INFINITY;
  for (int i = lane_id(); i < outputs; i += 32) largest = fmax(largest, static_cast<double>(pred[i]));
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = fmax(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
  }
  double total = 0;
  for (int i = lane_id(); i < outputs; i += 32) total += exp(pred[i] - largest);
  return largest + log(warp_sum(total));
}

// The mass in all bins, on each lane.
__device__ double mass_of_all(const Loss& loss, double age) {
  const double from = loss.first - 0.5 * loss.step, to = from + loss.outputs * loss.step;
  return fmax(below(to, age, loss.sigma) - below(from, age, loss.sigma), 2.2250738585072014e-308);
}

// The loss of one sample, on each lane.
__device__ double value(const Loss& loss, const float* pred, double age) {
  if (loss.kind == SOFT_LABEL) {
    const double log_sum = log_sum_exp(pred, loss.outputs), all = mass_of_all(loss, age);
    double total = 0;
    for (int i = lane_id(); i < loss.outputs; i += 32) {
      const double label = mass(loss, age, i) / all;
      if (label > 0) total += label * (log(label) - pred[i] + log_sum);
    }
    return warp_sum(total);
  }
  const double error = pred[0] - age, size = fabs(error);
  if (loss.kind == L1) return size;
  if (loss.kind == L2) return error * error;
  return size <= loss.threshold ? 0.5 * error * error : loss.threshold * (size - 0.5 * loss.threshold);
}

// The derivative of value by a prediction that is a single number.
__device__ double slope(const Loss& loss, double error) {
  const double sign = error > 0 ? 1 : error < 0 ? -1 : error;  // 0 at 0, NaN at NaN
  if (loss.kind == L1) return sign;
  if (loss.kind == L2) return 2 * error;
  return fabs(error) <= loss.threshold ? error : loss.threshold * sign;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * WARPS) age_loss(
    const float* __restrict__ pred,  // [B, outputs]
    const float* __restrict__ age,   // [B]
    float* __restrict__ per_sample,  // [B]
    int batch, const __grid_constant__ Loss loss) {
  const int b = blockIdx.x * WARPS + warp_id();
  if (b >= batch) return;
  const double error = value(loss, pred + static_cast<size_t>(b) * loss.outputs, age[b]);
  if (lane_id() == 0) per_sample[b] = static_cast<float>(error);
}

// One block.
extern "C" __global__ void __launch_bounds__(32 * WARPS) age_loss_mean(
    const float* __restrict__ per_sample,  // [B]
    float* __restrict__ mean,              // []
    int batch) {
  double total = 0;
  for (int b = threadIdx.x; b < batch; b += 32 * WARPS) total += per_sample[b];
  total = block_sum(total);
  if (threadIdx.x == 0) mean[0] = static_cast<float>(total / batch);
}

// dpred = dloss / B times the slope.
extern "C" __global__ void __launch_bounds__(32 * WARPS) age_loss_grad(
    const float* __restrict__ dloss,  // []
    const float* __restrict__ pred,   // [B, outputs]
    const float* __restrict__ age,    // [B]
    bf16* __restrict__ dpred,         // [B, outputs]
    int batch, const __grid_constant__ Loss loss) {
  const int b = blockIdx.x * WARPS + warp_id();
  if (b >= batch) return;
  const double unit = static_cast<double>(dloss[0]) / batch;
  pred += static_cast<size_t>(b) * loss.outputs;
  dpred += static_cast<size_t>(b) * loss.outputs;
  if (loss.kind == SOFT_LABEL) {
    const double log_sum = log_sum_exp(pred, loss.outputs), all = mass_of_all(loss, age[b]);
    for (int i = lane_id(); i < loss.outputs; i += 32) {
      const double d = exp(pred[i] - log_sum) - mass(loss, age[b], i) / all;
      dpred[i] = __float2bfloat16_rn(static_cast<float>(unit * d));
    }
  } else if (lane_id() == 0) {
    const double error = static_cast<double>(pred[0]) - age[b];
    dpred[0] = __float2bfloat16_rn(static_cast<float>(unit * slope(loss, error)));
  }
}

EMU_KERNEL(age_loss)
EMU_KERNEL(age_loss_mean)
EMU_KERNEL(age_loss_grad)
