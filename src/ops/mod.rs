//! The operations: a file each, with its record function, its definition and its gradient. What a definition
//! computes is what every machine is held to.
pub mod add;
pub mod age_loss;
pub mod attention;
pub mod copy;
pub mod drop_path;
pub mod layer_norm;
pub mod linear;
pub mod mean_pool;
pub mod optimiser;
pub mod patch_embed;
pub mod patches;
pub mod reconstruction_loss;
pub mod tokens;

pub use add::add;
pub use age_loss::{AgeLoss, Bins, age_loss};
pub use attention::attention;
pub use copy::copy;
pub use drop_path::drop_path;
pub use layer_norm::layer_norm;
pub use linear::{Gelu, linear, linear_gelu, linear_residual};
pub use mean_pool::mean_pool;
pub use patch_embed::patch_embed;
pub use patches::Patches;
pub use reconstruction_loss::{normalise_patch, reconstruction_loss};
pub use tokens::{embed_tokens, gather_tokens, restore_tokens};

use crate::machine::Real;

/// Rows that one task of a row-wise operation takes: fixed, so that sums over rows do not depend on the threads.
const ROWS: usize = 32;

/// Rows `i ROWS` to `(i + 1) ROWS` of a matrix with `cols` columns, or what there is of them.
fn row_block<F>(x: &[F], i: usize, cols: usize) -> &[F] {
    let at = i * ROWS * cols;
    &x[at..x.len().min(at + ROWS * cols)]
}

/// Sums `f(0) + .. + f(n - 1)` in sixteen running sums, which is what lets the loop become vector code.
#[inline(always)]
fn lanes<F: Real>(n: usize, f: impl Fn(usize) -> F) -> F {
    let mut sums = [F::ZERO; 16];
    let whole = n - n % 16;
    for at in (0..whole).step_by(16) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(at + lane);
        }
    }
    for at in whole..n {
        sums[at % 16] += f(at);
    }
    let mut total = F::ZERO;
    for s in sums {
        total += s;
    }
    total
}
