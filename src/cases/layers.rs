//! The cases of a transformer's layers.
use super::{Case, Outputs, Recorder};
use crate::ops::{self, AgeLoss};

pub(super) fn table() -> Vec<Case> {
    [linear(), normalisation(), attention()].into_iter().flatten().collect()
}

fn linear() -> Vec<Case> {
    let mut cases = Vec::new();
    // One row; rows that are not a whole number of blocks of 32; extents that are no multiple of a vector. On a GPU: sums
    // longer than the ring of stages, in small tiles and in large ones; rows in several splits of a weight's gradient; on
    // Hopper more tiles than the emulator has processors, and sums longer than both rings; such long sums that tiles are
    // wide whatever is done to what they leave.
    for [rows, n, k] in [
        [1, 1, 1],
        [3, 5, 7],
        [33, 16, 12],
        [70, 19, 64],
        [40, 9, 330],
        [136, 136, 264],
        [520, 16, 24],
        [136, 520, 456],
        [8, 264, 1408],
    ] {
        let shape = format!("{rows} x {k} -> {n}");
        let layer = move |r: &mut Recorder| [r.param(&[rows, k]), r.param(&[n, k]), r.param(&[n])];
        cases.push(Case::new("linear", shape.clone(), move |r| {
            let [x, w, b] = layer(r);
            ops::linear(&mut r.tape, x, w, b).into()
        }));
        cases.push(Case::new("linear_gelu", shape.clone(), move |r| {
            let [x, w, b] = layer(r);
            ops::linear_gelu(&mut r.tape, x, w, b).value.into()
        }));
        // Of the largest, differences are as far off as their bound.
        if n < 500 {
            cases.push(Case::new("linear of linear_gelu", shape.clone(), move |r| {
                let [x, w, b] = layer(r);
                let h = ops::linear_gelu(&mut r.tape, x, w, b);
                let (w, b) = (r.param(&[k, n]), r.param(&[k]));
                ops::linear(&mut r.tape, h, w, b).into()
            }));
        }
        cases.push(Case::new("linear_residual", shape.clone(), move |r| {
            let [x, w, b] = layer(r);
            let skip = r.param(&[rows, n]);
            ops::linear_residual(&mut r.tape, x, w, b, skip, None).into()
        }));
        let exact = Case::new("linear_residual", format!("{shape}, whole numbers"), move |r| {
            let [x, w, b] = layer(r);
            let skip = r.param(&[rows, n]);
            ops::linear_residual(&mut r.tape, x, w, b, skip, None).into()
        });
        cases.push(exact.on_whole_numbers());
    }
    // The second on Hopper: wide tiles, several of a block, each with what it needs of the skip connection.
    for [rows, n, k] in [[16, 5, 6], [11, 1000, 200]] {
        let shape = format!("3 samples x {rows} rows of {k} -> {n}, one dropped");
        cases.push(Case::new("linear_residual", shape, move |r| {
            let (x, skip) = (r.param(&[3, rows, k]), r.param(&[3, rows, n]));
            let (w, b) = (r.param(&[n, k]), r.param(&[n]));
            let scale = r.values(&[3], vec![1.25, 0.0, 1.25]);
            ops::linear_residual(&mut r.tape, x, w, b, skip, Some(scale)).into()
        }));
    }
    cases.push(Case::new("linear_real", "5 samples to an age", |r| {
        let (x, w, b) = (r.param(&[5, 24]), r.param(&[1, 24]), r.param(&[1]));
        let pred = ops::linear_real(&mut r.tape, x, w, b);
        let age = r.input(&[5]);
        let loss = ops::age_loss(&mut r.tape, pred, age, AgeLoss::L2);
        Outputs { differentiable: vec![loss.loss], other: vec![pred], ..Outputs::default() }
    }));
    cases.push(Case::new("linear_real", "136 x 24 -> 136, in large tiles", |r| {
        let (x, w, b) = (r.param(&[136, 24]), r.param(&[136, 24]), r.param(&[136]));
        Outputs { other: vec![ops::linear_real(&mut r.tape, x, w, b)], ..Outputs::default() }
    }));
    cases
}

fn normalisation() -> Vec<Case> {
    let mut cases = Vec::new();
    // One vector; rows of which a part of the lanes holds none; each of the kernels for longer rows.
    for [rows, cols] in [[1, 8], [2, 16], [37, 24], [65, 192], [5, 384], [7, 768], [3, 1000], [2, 2048]] {
        cases.push(Case::new("layer_norm", format!("{rows} x {cols}"), move |r| {
            let (x, gamma, beta) = (r.param(&[rows, cols]), r.param(&[cols]), r.param(&[cols]));
            ops::layer_norm(&mut r.tape, x, gamma, beta).into()
        }));
    }
    cases
}

fn attention() -> Vec<Case> {
    let mut cases = Vec::new();
    // One token; several samples and heads; the width of the presets; more rows than a tile of scores holds.
    for ([batch, length, heads, width], why) in [
        ([1, 1, 1, 8], "one token"),
        ([2, 11, 2, 8], "odd length"),
        ([1, 38, 3, 64], "visible tokens"),
        ([1, 300, 1, 8], "two tiles"),
        ([2, 130, 2, 64], "more than 128"),
        ([1, 270, 1, 64], "more than a box has rows"),
        ([1, 401, 1, 64], "more blocks than Hopper's stages"),
    ] {
        cases.push(Case::new(
            "attention",
            format!("{batch} x {length} x {heads} x {width}, {why}"),
            move |r| {
                let qkv = r.param(&[batch, length, 3 * heads * width]);
                ops::attention(&mut r.tape, qkv, heads, None).into()
            },
        ));
    }
    // The last two on Hopper: keys that do not fill a block, that are one, and none.
    for ([length, heads, width], lengths) in [
        ([9, 2, 8], vec![9, 4, 1, 0]),
        ([300, 2, 8], vec![299, 17]),
        ([260, 1, 64], vec![257, 128, 0]),
        ([390, 1, 64], vec![385, 128, 0]),
    ] {
        let batch = lengths.len();
        let shape = format!("{batch} x {length} x {heads} x {width}, {lengths:?} keys");
        cases.push(Case::new("attention", shape, move |r| {
            let qkv = r.param(&[batch, length, 3 * heads * width]);
            let lengths = r.indices(&[batch], lengths.clone());
            ops::attention(&mut r.tape, qkv, heads, Some(lengths)).into()
        }));
    }
    cases
}
