//! Learning rates over steps and over layers, as in facebookresearch/mae.

/// Linear warm-up over `warmup` steps, then half a cosine from `peak` to `floor` at step `total`, per step:
/// peak·(t + 1)/warmup, then floor + (peak - floor)·(1 + cos π·(t - warmup)/(total - warmup))/2.
/// Counting from t + 1 makes the first step learn; the reference counts from t, so its first step has rate 0.
pub fn learning_rate(step: u64, total: u64, warmup: u64, peak: f64, floor: f64) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let done = ((step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64).min(1.0);
    floor + (peak - floor) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}

/// What a layer's learning rate is multiplied by in fine-tuning: decay^(depth + 1 - layer) (BEiT's layer decay).
/// Layer 0 is the patch embedding with cls token and positions, k + 1 is block k, and depth + 1 (scale 1) is the head.
pub fn layer_scale(depth: usize, layer: usize, decay: f64) -> f64 {
    assert!(layer <= depth + 1, "layer {layer} of a model of depth {depth}: the head is {}", depth + 1);
    decay.powi((depth + 1 - layer) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn warm_up_starts_above_zero_and_ends_at_the_peak() {
        let rate = |step| learning_rate(step, 100, 10, 1e-3, 1e-6);
        assert_relative_eq!(rate(0), 1e-4);
        assert_relative_eq!(rate(9), 1e-3);
        assert_relative_eq!(rate(10), 1e-3);
    }

    #[test]
    fn the_cosine_passes_the_middle_and_stays_at_the_floor() {
        let rate = |step| learning_rate(step, 100, 10, 1e-3, 1e-6);
        assert_relative_eq!(rate(55), 0.5 * (1e-3 + 1e-6), max_relative = 1e-12);
        // The last step is one short of the floor: (peak - floor)·(1 - cos π/90)/2 above it.
        assert_relative_eq!(rate(99), 1e-6 + 999e-6 * 3.045_865e-4, max_relative = 1e-6);
        assert_eq!((rate(100), rate(1000)), (1e-6, 1e-6));
    }

    #[test]
    fn without_warm_up_the_first_step_is_at_the_peak() {
        assert_eq!(learning_rate(0, 10, 0, 1e-3, 0.0), 1e-3);
        assert_eq!(learning_rate(5, 5, 5, 1e-3, 0.0), 1e-3, "a run that is all warm-up stays at its peak");
    }

    #[test]
    fn layers_decay_towards_the_patch_embedding() {
        assert_eq!(layer_scale(12, 13, 0.65), 1.0);
        assert_relative_eq!(layer_scale(12, 12, 0.65), 0.65);
        assert_relative_eq!(layer_scale(12, 0, 0.65), 0.65f64.powi(13));
    }
}
