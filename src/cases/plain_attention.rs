//! Attention as plainly as bf16 does it: what is compared with it may be twice as far from the truth, not more
//! (FlashAttention's rule).
use half::bf16;

/// Attention and its gradient with sums in `f32`, but scores, weights, their gradients and the results each
/// rounded to bf16, as where every one of them is a tensor of its own. `qkv: [B, L, 3, H, width]`, `dy: [B, L, H, width]`,
/// `shape` = B, L, H, width; the first `lengths[b]` keys count, or all. Returns `y` and `dqkv`, shaped like `dy`
/// and `qkv`; what no key reaches is zero.
pub fn plain_attention(
    qkv: &[f32],
    lengths: Option<&[u32]>,
    dy: &[f32],
    shape: [usize; 4],
) -> (Vec<f32>, Vec<f32>) {
    let [batch, length, heads, width] = shape;
    let (qkv, dy) = (rounded(qkv), rounded(dy));
    let (mut y, mut dqkv) = (vec![0.0; dy.len()], vec![0.0; qkv.len()]);
    let scale = 1.0 / (width as f32).sqrt();
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let keys = lengths.map_or(length, |l| l[b] as usize);
        let row = |token: usize| {
            let from = ((b * length + token) * heads + h) * width;
            from..from + width
        };
        let part = |part: usize, token: usize| {
            let from = (((b * length + token) * 3 + part) * heads + h) * width;
            from..from + width
        };
        for i in 0..if keys == 0 { 0 } else { length } {
            let (q, dy) = (&qkv[part(0, i)], &dy[row(i)]);
            let score = |j| round(round(dot(q, &qkv[part(1, j)])) * scale);
            let p = softmax((0..keys).map(score).collect());
            let dp: Vec<f32> = (0..keys).map(|j| round(dot(dy, &qkv[part(2, j)]))).collect();
            let inner = dot(&p, &dp);
            for j in 0..keys {
                let ds = round(round(p[j] * (dp[j] - inner)) * scale);
                add(&mut y[row(i)], p[j], &qkv[part(2, j)]);
                add(&mut dqkv[part(0, i)], ds, &qkv[part(1, j)]);
                add(&mut dqkv[part(1, j)], ds, q);
                add(&mut dqkv[part(2, j)], p[j], dy);
            }
        }
    }
    (rounded(&y), rounded(&dqkv))
}

fn round(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| round(x)).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

fn softmax(scores: Vec<f32>) -> Vec<f32> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.iter().map(|w| round(w / sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::{plain_attention, rounded};
    use crate::machine::philox::{Philox, Purpose};
    use crate::ops;
    use crate::program::{Cpu, backward};
    use crate::tape::Tape;

    #[test]
    fn it_is_attention_but_for_the_roundings() {
        let (shape, keys) = ([3, 20, 2, 8], [20, 0, 7]);
        let [batch, length, heads, width] = shape;
        let mut t = Tape::default();
        let qkv = t.param("qkv", &[batch, length, 3 * heads * width]);
        let (lengths, dy) = (t.indices(&[batch]), t.input(&[batch, length, heads * width]));
        let y = ops::attention(&mut t, qkv, heads, Some(lengths));
        let dqkv = backward(&mut t, &[(y, dy)])[&qkv];

        let mut random = Philox::new(1, Purpose::Test, 0, 0);
        let [qkv_values, dy_values] = [qkv, dy].map(|x| {
            let values: Vec<f32> = (0..t.len(x)).map(|_| random.normal()).collect();
            rounded(&values)
        });
        let mut cpu = Cpu::<f32>::new(t, &[y, dqkv]);
        cpu.write(qkv, &qkv_values);
        cpu.write(dy, &dy_values);
        cpu.write_indices(lengths, &keys);
        cpu.run();

        let (plain_y, plain_dqkv) = plain_attention(&qkv_values, Some(&keys), &dy_values, shape);
        for (plain, exact) in [(plain_y, cpu.read(y)), (plain_dqkv, cpu.read(dqkv))] {
            let error = plain.iter().zip(exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let largest = exact.iter().map(|x| x.abs()).fold(0.0, f32::max);
            assert!(error > 0.0 && error < largest / 64.0, "{error} of {largest}");
        }
    }
}
