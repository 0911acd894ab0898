//! Every operation, and the ways they are put together, at the shapes that take each of their branches.
use super::{Case, Outputs, Recorder};
use crate::image::BACKGROUND;
use crate::machine::philox::{Philox, Purpose, STREAM};
use crate::ops::augment::{IDENTITY, SHADING, Shading, mirror};
use crate::ops::optimiser::{AdamConstants, Moments, Range};
use crate::ops::{self, AgeLoss, Bins, Modality, tokens::ABSENT};
use crate::tape::{Dtype, Tensor};
use half::f16;

/// All cases.
pub fn table() -> Vec<Case> {
    let operations = [super::layers::table(), tokens(), volumes(), losses(), optimiser()];
    operations.into_iter().flatten().chain(super::composed::table().into_iter().map(Case::as_chain)).collect()
}

fn tokens() -> Vec<Case> {
    let ids = |r: &mut Recorder, kept: usize| {
        let values = (0..2).flat_map(|_| r.permutation(8)[..kept].to_vec()).collect();
        r.indices(&[2, kept], values)
    };
    let mut cases = vec![
        Case::new("gather_tokens", "3 of 8, after a class token", move |r| {
            let (x, ids) = (r.param(&[2, 9, 8]), ids(r, 3));
            ops::gather_tokens(&mut r.tape, x, ids, 1).into()
        }),
        Case::new("gather_tokens", "5 of 40 wider than a warp's share", |r| {
            let ids = (0..2).flat_map(|_| r.permutation(40)[..5].to_vec()).collect();
            let (x, ids) = (r.param(&[2, 40, 264]), r.indices(&[2, 5], ids));
            ops::gather_tokens(&mut r.tape, x, ids, 0).into()
        }),
        Case::new("gather_tokens", "2 of 8 and one that is absent", |r| {
            let (x, ids) = (r.param(&[2, 8, 8]), r.indices(&[2, 3], vec![5, ABSENT, 0, ABSENT, 2, 7]));
            ops::gather_tokens(&mut r.tape, x, ids, 0).into()
        }),
        Case::new("last_tokens", "all but 3 of 40", |r| {
            let x = r.param(&[2, 40, 16]);
            ops::last_tokens(&mut r.tape, x, 3).into()
        }),
        Case::new("add", "5 x 7", |r| {
            let (a, b) = (r.param(&[5, 7]), r.param(&[5, 7]));
            ops::add(&mut r.tape, a, b).into()
        }),
        Case::new("add", "5 x 7 of activations", |r| {
            let (a, b) = (r.param(&[5, 7]), r.activation(&[5, 7]));
            ops::add(&mut r.tape, a, b).into()
        }),
        Case::new("copy", "5 x 7", |r| {
            let x = r.param(&[5, 7]);
            ops::copy(&mut r.tape, x).into()
        }),
        Case::new("copy", "5 x 7 of activations", |r| {
            let x = r.activation(&[5, 7]);
            Outputs { other: vec![ops::copy(&mut r.tape, x)], ..Outputs::default() }
        }),
    ];
    // Patches in vectors of 8, 4 and 2 voxels, and voxel by voxel; products in small tiles and in several large ones.
    for (edge, channels, patches, [batch, kept, dim]) in [
        (16, 1, [2, 1, 3], [2, 4, 136]),
        (12, 1, [2, 1, 2], [3, 3, 136]),
        (8, 1, [2, 3, 2], [2, 7, 136]),
        (4, 3, [2, 3, 2], [20, 7, 16]),
        (3, 2, [2, 1, 3], [2, 5, 7]),
        (2, 2, [2, 4, 2], [2, 5, 6]),
    ] {
        let shape = format!("{batch} x {kept} patches of {edge}³, {channels} channels -> {dim}");
        let case = Case::new("patch_embed", shape, move |r| {
            let [x, y, z] = patches.map(|n| n * edge);
            let volume = r.activation(&[batch, channels, x, y, z]);
            let tokens = patches.iter().product();
            let ids = (0..batch).flat_map(|_| r.permutation(tokens)[..kept].to_vec()).collect();
            let ids = r.indices(&[batch, kept], ids);
            let (w, b) = (r.param(&[dim, channels, edge, edge, edge]), r.param(&[dim]));
            ops::patch_embed(&mut r.tape, volume, ids, w, b).into()
        });
        cases.push(case);
    }
    // The smallest; more rows and columns than a block takes.
    for [batch, length, dim] in [[3, 9, 8], [2, 70, 264]] {
        let shape = format!("{} tokens of {dim} after a class token", length - 1);
        cases.push(Case::new("mean_pool", shape, move |r| {
            let x = r.param(&[batch, length, dim]);
            ops::mean_pool(&mut r.tape, x, 1, None).into()
        }));
        let shape = format!("the same, of lengths {length}, 2 and, without tokens, 1");
        cases.push(Case::new("mean_pool", shape, move |r| {
            let (x, lengths) = (r.param(&[3, length, dim]), r.indices(&[3], vec![length as u32, 2, 1]));
            ops::mean_pool(&mut r.tape, x, 1, Some(lengths)).into()
        }));
    }
    for per_sample in [[4, 8], [3, 4096]] {
        cases.push(Case::new("drop_path", format!("3 samples of {per_sample:?}"), move |r| {
            let [length, dim] = per_sample;
            let (x, scale) = (r.param(&[3, length, dim]), r.values(&[3], vec![0.0, 2.0, 2.0]));
            ops::drop_path(&mut r.tape, x, scale).into()
        }));
    }
    // The last is wider than a warp's share.
    for (with_cls, dim) in [(true, 8), (false, 8), (true, 264)] {
        let (c, how) = if with_cls { (1, "class token") } else { (0, "no class token") };
        cases.push(Case::new("embed_tokens", format!("3 of 8 x {dim}, {how}"), move |r| {
            let (x, pos, ids) = (r.param(&[2, 3, dim]), r.input(&[1, c + 8, dim]), ids(r, 3));
            let cls = with_cls.then(|| r.param(&[1, 1, dim]));
            ops::embed_tokens(&mut r.tape, x, cls, pos, ids).into()
        }));
        cases.push(Case::new("append_mask_tokens", format!("3 of 8 x {dim}, {how}"), move |r| {
            let (x, mask) = (r.param(&[2, c + 3, dim]), r.param(&[1, 1, dim]));
            let pos = r.input(&[1, c + 8, dim]);
            let ids = ids(r, 8);
            ops::append_mask_tokens(&mut r.tape, x, mask, pos, ids, None).into()
        }));
        let shape = format!("3 and 1 of 8 x {dim}, two mask tokens, {how}");
        cases.push(Case::new("append_mask_tokens", shape, move |r| {
            let (x, mask) = (r.param(&[2, c + 3, dim]), r.param(&[2, 1, dim]));
            let (pos, ids) = (r.input(&[1, c + 8, dim]), ids(r, 8));
            let visible = r.indices(&[2], [3, 1].map(|n| (c + n) as u32).to_vec());
            ops::append_mask_tokens(&mut r.tape, x, mask, pos, ids, Some(visible)).into()
        }));
    }
    // More rows than 32 for each warp that the emulator runs at a time.
    cases.push(Case::new("append_mask_tokens", "24 of 96 x 8, sixteen mask tokens", |r| {
        let (x, mask, pos) = (r.param(&[3, 24, 8]), r.param(&[16, 1, 8]), r.input(&[1, 96, 8]));
        let ids = (0..3).flat_map(|_| r.permutation(96)).collect();
        let ids = r.indices(&[3, 96], ids);
        ops::append_mask_tokens(&mut r.tape, x, mask, pos, ids, None).into()
    }));
    cases
}

fn volumes() -> Vec<Case> {
    let mut cases = Vec::new();
    let none = Shading::NONE;
    let bias = [0.25, -0.125, 0.25, 0.125, -0.25, 0.125, 0.0625, -0.125, 0.125];
    let noisy = Shading { exponent: 1.25, contrast: 0.875, brightness: 0.125, noise: 0.25, bias };
    // In steps of 1/64, so that weights are exact in every precision, and with them which voxels are brain.
    let turned = [[60.0, -10.0, 7.0, 83.0], [8.0, 66.0, -9.0, 26.0], [-4.0, 12.0, 62.0, -70.0]];
    let turned = turned.map(|row| row.map(|v| v / 64.0));
    // Several stretches of the kernel; volumes that are no multiple of four voxels; rows that are none.
    for (grid, several, maps, shading, how) in [
        ([8, 12, 8], 1, vec![IDENTITY, mirror(8)], [none; 2], "as they are, and mirrored"),
        ([16, 24, 20], 1, vec![turned, IDENTITY], [none; 2], "turned, and not"),
        ([5, 7, 9], 2, vec![turned, mirror(5)], [none, noisy], "turned; shaded with noise"),
        ([8, 6, 10], 1, vec![turned, turned], [noisy, Shading { noise: 0.0, ..noisy }], "turned, shaded"),
    ] {
        let shape = format!("2 x {} x {} x {}, {how}", grid[0], grid[1], grid[2]);
        cases.push(Case::new("augment", shape, move |r| {
            let [x, y, z] = grid;
            let voxels = brain(2 * x * y * z);
            // Two samples of one volume, or one of two: the same voxels in the same order.
            let stored = r.stored(&[2 / several, several, x, y, z], voxels);
            let affine = r.values(&[2, 3, 4], maps.iter().flatten().flatten().copied().collect());
            let shading = r.values(&[2, SHADING], shading.iter().flat_map(|s| s.row()).collect());
            let noise = streams(r, 2);
            let volume = ops::augment(&mut r.tape, stored, affine, shading, noise);
            Outputs { other: vec![volume], ..Outputs::default() }
        }));
    }
    // One block of patches and several; lengths that are no multiple of a block of random words; nothing kept, nothing
    // removed. With states: samples of which all, some and none of the patches may be kept.
    for (tokens, kept) in [(1, 0), (7, 7), (150, 37), (514, 128)] {
        for states in [false, true] {
            let how = if states { ", with states" } else { "" };
            cases.push(Case::new("random_masking", format!("3 x {kept} of {tokens}{how}"), move |r| {
                let starts = streams(r, 3);
                let states = states.then(|| {
                    let some = |i: usize| [0, 2, 1, 0, 0][i % 5];
                    let values = (0..3 * tokens).map(|i| [0, some(i), 2][i / tokens]).collect();
                    r.indices(&[3, tokens], values)
                });
                let masks = ops::random_masking(&mut r.tape, starts, states, 1, tokens, kept);
                let lengths = masks.lengths.into_iter().flat_map(|l| [l.visible, l.total]);
                let ids = [masks.ids_keep, masks.ids_removed, masks.ids_shuffle];
                Outputs { indices: ids.into_iter().chain(lengths).collect(), ..Outputs::default() }
            }));
        }
    }
    // Within a block of places and beyond one; more kept than a modality has, and fewer; one that has no kept token.
    for (each, kept) in [(4, 5), (200, 150)] {
        cases.push(Case::new("modalities", format!("3 x {each} tokens, {kept} kept"), move |r| {
            let length = 3 * each;
            let ids = (0..2).flat_map(|_| r.permutation(length)).collect();
            let ids = r.indices(&[2, length], ids);
            let visible = r.indices(&[2], vec![1 + kept as u32, 2]);
            let total = r.indices(&[2], vec![1 + length as u32, kept as u32]);
            let mut outputs = Outputs::default();
            for number in 0..3 {
                let modality = Modality { number, of: 3 };
                let of = ops::kept_of_modality(&mut r.tape, ids, visible, 1, modality, kept);
                let removed = ops::removed_of_modality(&mut r.tape, ids, [visible, total], 1, modality);
                outputs.indices.extend([of.ids, of.places, removed.ids, removed.places]);
                outputs.other.push(removed.weight);
            }
            outputs
        }));
    }
    // Patches read in vectors, and voxel by voxel.
    for (channels, grid, edge, count) in [(1, [16, 8, 24], 8, 5), (2, [4, 6, 8], 2, 9)] {
        let shape = format!("{count} patches of {edge}³, {channels} channels");
        cases.push(Case::new("foreground_weight", shape, move |r| {
            let [x, y, z] = grid;
            let volume = r.tape.input_as(&[2, channels, x, y, z], Dtype::Activation);
            let values = brain(2 * channels * x * y * z).into_iter().map(f32::from).collect();
            r.fill(volume, values);
            let patches = x * y * z / (edge * edge * edge);
            let ids = (0..2).flat_map(|_| r.permutation(patches)[..count].to_vec()).collect();
            let ids = r.indices(&[2, count], ids);
            let factor = r.values(&[2, count], (0..2 * count).map(|i| (i % 3) as f32).collect());
            let plain = ops::foreground_weight(&mut r.tape, volume, ids, None, edge);
            let weighted = ops::foreground_weight(&mut r.tape, volume, ids, Some(factor), edge);
            let shown = r.indices(&[2, 2], vec![0, 1, 2, 0]);
            let states =
                [false, true].map(|brain| ops::token_states(&mut r.tape, volume, shown, edge, brain));
            Outputs { other: vec![plain, weighted], indices: states.to_vec(), ..Outputs::default() }
        }));
    }
    cases
}

/// Voxels of which most are brain.
pub(super) fn brain(count: usize) -> Vec<f16> {
    let mut random = Philox::new(1, Purpose::Test, 1, count as u32);
    let voxel = |_| if random.uniform() < 0.8 { random.normal().clamp(-3.9, 3.9) } else { BACKGROUND };
    (0..count).map(voxel).map(f16::from_f32).collect()
}

/// Where the streams of samples begin.
pub(super) fn streams(r: &mut Recorder, batch: u32) -> Tensor {
    let starts = (0..batch).flat_map(|i| Philox::new(u64::MAX / 3, Purpose::Test, 1 << 40, i).start());
    r.indices(&[batch as usize, STREAM], starts.collect())
}

fn losses() -> Vec<Case> {
    let mut cases = Vec::new();
    for (norm_pix, weights, how) in [
        (true, vec![1.0; 6], "norm_pix"),
        (false, vec![1.0; 6], "raw voxels"),
        (true, vec![0.0, 0.5, 1.0, 0.25, 0.0, 1.0], "norm_pix, weighted by foreground"),
        (true, vec![0.0; 6], "no patch counts"),
    ] {
        cases.push(Case::new("reconstruction_loss", format!("3 of 8 patches, {how}"), move |r| {
            let (pred, volume) = (r.param(&[2, 3, 16]), r.activation(&[2, 2, 4, 4, 4]));
            let ids = (0..2).flat_map(|_| r.permutation(8)[..3].to_vec()).collect();
            let (ids, weight) = (r.indices(&[2, 3], ids), r.values(&[2, 3], weights.clone()));
            let loss = ops::reconstruction_loss(&mut r.tape, pred, volume, ids, weight, 2, norm_pix);
            Outputs { differentiable: vec![loss.loss], other: vec![loss.per_patch], ..Outputs::default() }
        }));
    }
    // One channel, and lines that are whole vectors: half a warp of them, and several warps. Voxel by voxel: a quarter that
    // is not whole; more patches than 32 for each block that the emulator runs at a time.
    for (edge, grid, batch, count) in
        [(8, [1, 2, 2], 2, 3), (16, [2, 1, 2], 1, 3), (6, [2, 1, 2], 2, 3), (2, [16, 16, 16], 2, 2100)]
    {
        for norm_pix in [true, false] {
            let tokens = grid.iter().product();
            let shape = format!("{count} of {tokens} patches of {edge}³, {norm_pix}");
            cases.push(Case::new("reconstruction_loss", shape, move |r| {
                let [x, y, z] = grid.map(|n| n * edge);
                let pred = r.param(&[batch, count, edge * edge * edge]);
                let volume = r.activation(&[batch, 1, x, y, z]);
                let ids = (0..batch).flat_map(|_| r.permutation(tokens)[..count].to_vec()).collect();
                let ids = r.indices(&[batch, count], ids);
                let weight = r.values(&[batch, count], vec![1.0; batch * count]);
                let loss = ops::reconstruction_loss(&mut r.tape, pred, volume, ids, weight, edge, norm_pix);
                Outputs { differentiable: vec![loss.loss], other: vec![loss.per_patch], ..Outputs::default() }
            }));
        }
    }
    let bins = Bins { first: -4.0, step: 0.5, count: 17, sigma: 0.6 };
    for (kind, how) in [
        (AgeLoss::L1, "L1"),
        (AgeLoss::L2, "L2"),
        (AgeLoss::Huber(0.7), "Huber"),
        (AgeLoss::SoftLabel(bins), "soft label"),
        (AgeLoss::SoftLabel(Bins { count: 40, step: 0.25, ..bins }), "soft label over more bins than lanes"),
    ] {
        cases.push(Case::new("age_loss", format!("5 samples, {how}"), move |r| {
            let (pred, age) = (r.param(&[5, kind.outputs()]), r.input(&[5]));
            let loss = ops::age_loss(&mut r.tape, pred, age, kind);
            Outputs { differentiable: vec![loss.loss], other: vec![loss.per_sample], ..Outputs::default() }
        }));
    }
    cases
}

fn optimiser() -> Vec<Case> {
    // More than one block of a sum, and a last one that is not full.
    const N: usize = (1 << 15) + 76;
    let flat = |r: &mut Recorder, name: &str, mean: f32, sd: f32| {
        let t = r.tape.state(name, &[N]);
        r.normal(t, mean, sd);
        t
    };
    vec![
        Case::new("grad_norm", format!("{N}, clipped"), move |r| {
            let grads = flat(r, "grads", 0.0, 1.0);
            let clip = ops::optimiser::grad_norm(&mut r.tape, grads, 1.0);
            Outputs { other: vec![clip.norm, clip.factor], ..Outputs::default() }
        }),
        Case::new("adamw", format!("{N} in three ranges"), move |r| {
            let (params, grads) = (flat(r, "params", 0.0, 1.0), flat(r, "grads", 0.0, 1.0));
            let (m, v) = (flat(r, "m", 0.0, 0.1), flat(r, "v", 1.0, 0.1));
            let factor = r.values(&[], vec![0.5]);
            let schedule = r.values(&[3], vec![1e-2, 0.271, 0.0975]);
            let cut = |from, to, decay, rate| Range { from, to, decay, rate };
            // Between the last two lies what is not trained.
            let ranges = vec![cut(0, 100, 0.05, 1.0), cut(100, 20_000, 0.0, 0.75), cut(20_016, N, 0.05, 0.5)];
            let constants = AdamConstants { betas: [0.9, 0.95], eps: 1e-8 };
            ops::optimiser::adamw(
                &mut r.tape,
                Moments { params, grads, m, v },
                factor,
                schedule,
                constants,
                ranges,
            );
            Outputs { other: vec![params, m, v], ..Outputs::default() }
        }),
        Case::new("ema", format!("{N}"), move |r| {
            let (params, average) = (flat(r, "params", 0.0, 1.0), flat(r, "average", 0.0, 1.0));
            let decay = r.values(&[], vec![0.99]);
            ops::optimiser::ema(&mut r.tape, params, average, decay);
            Outputs { other: vec![average], ..Outputs::default() }
        }),
        Case::new("accumulate", format!("{N}"), move |r| {
            let (grads, sum) = (flat(r, "grads", 0.0, 1.0), flat(r, "sum", 0.0, 1.0));
            let keep = r.values(&[], vec![1.0]);
            ops::optimiser::accumulate(&mut r.tape, grads, sum, keep);
            Outputs { other: vec![sum], ..Outputs::default() }
        }),
    ]
}
