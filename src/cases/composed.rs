//! Several operations together, where mistakes between them show: blocks, and whole models of few numbers.
use super::table::{brain, streams};
use super::{Case, Outputs, Recorder};
use crate::image::BACKGROUND;
use crate::model::{
    Encoder, Mae, Shape,
    brain_age::BrainAge,
    mae::{Weight, random_masking},
};
use crate::ops::{self, AgeLoss};
use crate::tape::{Role, Tape, Tensor};

/// All of them.
pub(super) fn table() -> Vec<Case> {
    vec![
        Case::new("two transformer blocks", "2 x 7 x 16, 2 heads", |r| {
            let x = r.param(&[2, 7, 16]);
            let y = crate::model::vit::blocks(
                &mut r.tape,
                "blocks",
                x,
                Shape { dim: 16, depth: 2, heads: 2 },
                None,
                &[],
            );
            fill_named(r, 0.2);
            y.into()
        }),
        Case::new("a value read three times", "4 x 6", |r| {
            let (x, w, b) = (r.param(&[4, 6]), r.param(&[6, 6]), r.param(&[6]));
            let h = ops::linear(&mut r.tape, x, w, b);
            let sum = ops::add(&mut r.tape, h, h);
            ops::add(&mut r.tape, sum, h).into()
        }),
        Case::new("a GELU read with and without its slope", "4 x 6", |r| {
            let (x, w, b) = (r.param(&[4, 6]), r.param(&[6, 6]), r.param(&[6]));
            let h = ops::linear_gelu(&mut r.tape, x, w, b);
            let y = ops::linear(&mut r.tape, h, w, b);
            ops::add(&mut r.tape, y, h.value).into()
        }),
        Case::new("a masked autoencoder", "8 x 12 x 8 in 4³, 3 of 12 kept", |r| masked_autoencoder(r, true)),
        Case::new("a masked autoencoder", "the same, no class token, raw voxels", |r| {
            masked_autoencoder(r, false)
        }),
        Case::new("a brain-age model", "4 volumes, drop path", |r| {
            let model = BrainAge { encoder: small_encoder(true), loss: AgeLoss::Huber(1.0) };
            let volume = model.encoder.volume(&mut r.tape, 4);
            let m = model.record(&mut r.tape, volume, true);
            fill_named(r, 0.2);
            for t in [volume, m.age] {
                r.normal(t, 0.0, 1.0);
            }
            for (i, &t) in m.drops.iter().enumerate() {
                r.fill(t, (0..4).map(|b| if (b + i) % 3 == 0 { 0.0 } else { 1.25 }).collect());
            }
            r.fill_indices(m.ids, (0..4).flat_map(|_| 0..12).collect());
            Outputs {
                differentiable: vec![m.loss.loss],
                other: vec![m.pred, m.features],
                ..Outputs::default()
            }
        }),
        Case::new("a masked autoencoder of two modalities", "3 heads, one without the second", |r| {
            two_modalities(r, false)
        }),
        Case::new("a masked autoencoder of two modalities", "only where there is brain", |r| {
            two_modalities(r, true)
        }),
        Case::new("a brain-age model of two modalities", "3 heads, two of which lack one", |r| {
            let model = BrainAge { encoder: pair_encoder(), loss: AgeLoss::L2 };
            let volume = model.encoder.volume(&mut r.tape, 3);
            let m = model.record(&mut r.tape, volume, false);
            fill_named(r, 0.2);
            for t in [volume, m.age] {
                r.normal(t, 0.0, 1.0);
            }
            let shown = [[true, true], [true, false], [false, true]];
            let (ids, lengths): (Vec<_>, Vec<_>) =
                shown.iter().map(|present| model.encoder.all_patches(present)).unzip();
            r.fill_indices(m.ids, ids.concat());
            r.fill_indices(m.length.expect("two modalities differ in length"), lengths);
            Outputs { differentiable: vec![m.loss.loss], other: vec![m.pred], ..Outputs::default() }
        }),
    ]
}

fn small_encoder(cls_token: bool) -> Encoder {
    let shape = Shape { dim: 32, depth: 2, heads: 2 };
    Encoder { modalities: vec!["T1w".into()], grid: [8, 12, 8], patch: 4, shape, cls_token }
}

fn pair_encoder() -> Encoder {
    Encoder { modalities: vec!["T1w".into(), "PET-FDG".into()], ..small_encoder(true) }
}

fn two_modalities(r: &mut Recorder, foreground: bool) -> Outputs {
    let decoder = Shape { dim: 16, depth: 1, heads: 2 };
    let mae = Mae { encoder: pair_encoder(), decoder, mask_ratio: 0.75, norm_pix: true };
    let volume = mae.encoder.volume(&mut r.tape, 3);
    let streams = streams(r, 3);
    // The last lacks the second, and in the second the second is hidden.
    let shown = r.indices(&[3, 2], vec![0, 0, 0, 1, 0, 2]);
    let states = ops::token_states(&mut r.tape, volume, shown, mae.encoder.patch, foreground);
    let weight = if foreground { Weight::Foreground } else { Weight::Uniform };
    let inputs = mae.masked(&mut r.tape, volume, streams, Some(states), weight);
    let m = mae.record(&mut r.tape, &inputs);
    fill_named(r, 0.2);
    r.normal(volume, 0.0, 1.0);
    if foreground {
        // Some patches without any brain.
        let voxels = r.tape.len(volume);
        let values = brain(voxels).into_iter().enumerate();
        let values = values.map(|(i, v)| if i / 128 % 3 == 0 { BACKGROUND } else { v.into() });
        r.fill(volume, values.collect());
    }
    Outputs {
        differentiable: m.losses.iter().map(|l| l.loss).collect(),
        indices: vec![inputs.ids_shuffle],
        ..Outputs::default()
    }
}

fn masked_autoencoder(r: &mut Recorder, plain: bool) -> Outputs {
    let decoder = Shape { dim: 16, depth: 1, heads: 2 };
    let mae = Mae { encoder: small_encoder(plain), decoder, mask_ratio: 0.75, norm_pix: plain };
    let inputs = mae.inputs(&mut r.tape, 2);
    let m = mae.record(&mut r.tape, &inputs);
    fill_named(r, 0.2);
    r.normal(inputs.volume, 0.0, 1.0);
    let masks: Vec<_> = (0..2)
        .map(|_| {
            let noise: Vec<f64> = r.permutation(12).into_iter().map(f64::from).collect();
            random_masking(&noise, 3)
        })
        .collect();
    let target = inputs.targets[0];
    r.fill(target.weight, vec![1.0; 18]);
    r.fill_indices(inputs.visible.ids, masks.iter().flat_map(|m| m.ids_keep().to_vec()).collect());
    r.fill_indices(inputs.ids_shuffle, masks.iter().flat_map(|m| m.ids_shuffle.clone()).collect());
    r.fill_indices(target.ids, masks.iter().flat_map(|m| m.ids_removed().to_vec()).collect());
    Outputs { differentiable: vec![m.losses[0].loss], other: m.preds, ..Outputs::default() }
}

/// Normal values for every named tensor that has none yet.
fn fill_named(r: &mut Recorder, sd: f32) {
    let roles = [Role::Param, Role::Frozen];
    let named = |t: &Tape| -> Vec<Tensor> { roles.iter().flat_map(|&role| t.with_role(role)).collect() };
    for t in named(&r.tape) {
        let ones =
            r.tape.info(t).name.as_deref().is_some_and(|n| n.contains("norm") && n.ends_with("weight"));
        r.normal(t, if ones { 1.0 } else { 0.0 }, sd);
    }
}
