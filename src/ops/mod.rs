//! The operations: a file each, with its record function, its definition and its gradient. What a definition
//! computes is what every machine is held to.
pub mod add;
pub mod age_loss;
pub mod append_mask_tokens;
pub mod attention;
mod attention_grad;
mod attention_hopper;
pub mod augment;
pub mod copy;
pub mod drop_path;
pub mod layer_norm;
pub mod linear;
mod linear_grad;
pub mod masking;
pub mod mean_pool;
pub mod modality;
pub mod optimiser;
pub mod patch_embed;
pub mod patches;
pub mod reconstruction_loss;
mod tiling;
pub mod tokens;
mod weight_grad;

pub use add::add;
pub use age_loss::{AgeLoss, Bins, age_loss};
pub use append_mask_tokens::append_mask_tokens;
pub use attention::attention;
pub use augment::augment;
pub use copy::copy;
pub use drop_path::drop_path;
pub use layer_norm::layer_norm;
pub use linear::{Gelu, linear, linear_gelu, linear_real, linear_residual};
pub use masking::{foreground_weight, random_masking, token_states};
pub use mean_pool::mean_pool;
pub use modality::{Modality, kept_of_modality, removed_of_modality};
pub use patch_embed::patch_embed;
pub use patches::Patches;
pub use reconstruction_loss::{normalise_patch, reconstruction_loss};
pub use tokens::{embed_tokens, gather_tokens, last_tokens};

use crate::machine::Real;
use multiversion::multiversion;

/// Instructions of a thread that leaves a tile, by kernel: what the choice of tiles takes for granted, to be compared
/// with the compiled code.
pub fn instructions_of_leaving() -> Vec<(&'static str, usize)> {
    linear::KERNELS
        .into_iter()
        .chain(linear_grad::KERNELS)
        .chain([weight_grad::KERNELS])
        .flat_map(tiling::leaving)
        .collect()
}

/// Columns that a warp takes in kernels/*.cu: 32 lanes, 8 elements each.
const WARP_COLS: usize = 256;

/// Asserts that rows are a multiple of 8 long: kernels move 16 bytes of bf16 at a time.
#[track_caller]
fn assert_vectors(op: &str, width: usize) {
    assert!(width.is_multiple_of(8), "on a GPU {op} takes rows of a multiple of 8 elements, not {width}");
}

/// Rows that one task of a row-wise operation takes: fixed, so that sums over rows do not depend on the threads.
const ROWS: usize = 32;

/// Rows `i ROWS` to `(i + 1) ROWS` of a matrix with `cols` columns, or what there is of them.
fn row_block<F>(x: &[F], i: usize, cols: usize) -> &[F] {
    let at = i * ROWS * cols;
    &x[at..x.len().min(at + ROWS * cols)]
}

/// Sums `f` over the elements of `x` (side by side, when there are several slices) in sixteen running sums, which is
/// what lets the loop become vector code.
#[inline(always)]
fn lanes<F: Real, const P: usize>(x: [&[F]; P], f: impl Fn([F; P]) -> F) -> F {
    let parts = x.map(|x| x.as_chunks::<16>());
    let mut sums = [F::ZERO; 16];
    for i in 0..parts[0].0.len() {
        let chunk = parts.map(|p| &p.0[i]);
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(chunk.map(|c| c[lane]));
        }
    }
    for (lane, sum) in sums.iter_mut().enumerate().take(parts[0].1.len()) {
        *sum += f(parts.map(|p| p.1[lane]));
    }
    sums.into_iter().fold(F::ZERO, |total, s| total + s)
}

/// `sum[j] = sum over i of x[i, j]`, in order of `i`.
#[multiversion(targets = "simd")]
fn column_sum<F: Real>(x: &[F], sum: &mut [F]) {
    sum.fill(F::ZERO);
    for row in x.chunks_exact(sum.len()) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += *x;
        }
    }
}
