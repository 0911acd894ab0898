//! Preprocessing on made heads, and on a real one where the data is at hand.
use super::*;
use crate::image::{nifti, orientation::ras_affine};
use std::{
    io::Read,
    path::{Path, PathBuf},
};

const IDENTITY: [[f64; 4]; 4] =
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]];

fn small() -> Preprocessing {
    Preprocessing { grid: [20, 24, 20], spacing: Some(2.0), clip: [0.5, 99.5] }
}

/// An ellipsoid in a volume of 1 mm voxels; `value` inside, `air` outside.
fn ball(air: impl Fn(usize) -> f32, value: impl Fn([usize; 3]) -> f32) -> (Volume, Volume) {
    let shape = [40, 44, 36];
    let (mut image, mut mask) = (Vec::new(), Vec::new());
    for z in 0..shape[2] {
        for y in 0..shape[1] {
            for x in 0..shape[0] {
                let d = |p: usize, c: f64, r: f64| ((p as f64 - c) / r).powi(2);
                let inside = d(x, 21.5, 14.0) + d(y, 20.0, 16.5) + d(z, 17.0, 13.0) <= 1.0;
                image.push(if inside { value([x, y, z]) } else { air(image.len()) });
                mask.push(f32::from(u8::from(inside)));
            }
        }
    }
    (Volume { shape, affine: IDENTITY, data: image }, Volume { shape, affine: IDENTITY, data: mask })
}

fn wavy([x, y, z]: [usize; 3]) -> f32 {
    500.0 + 20.0 * x as f32 + 3.0 * y as f32 - 7.0 * z as f32
}

/// A head and its brain mask of the IXI data; `None`, with a printed line, where it is not at hand.
fn real_head() -> Option<[PathBuf; 2]> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = std::env::var_os("GYRUS_SHARED").map_or_else(beside, PathBuf::from).join("data/ixi-2mm");
    let files = [
        folder.join("sub-IXI013/anat/sub-IXI013_T1w.nii.gz"),
        folder.join("derivatives/dlmuse/sub-IXI013/anat/sub-IXI013_desc-brain_mask.nii.gz"),
    ];
    if !files.iter().all(|f| f.is_file()) {
        println!("skipped: {} is not there", folder.display());
        return None;
    }
    Some(files)
}

/// The same voxels stored with other axes.
fn turned(ras: &Volume, axes: Axes) -> Volume {
    let mut view = View::of(ras);
    let flat = view;
    for r in 0..3 {
        let axis = axes.from[r];
        view.shape[axis] = flat.shape[r];
        view.stride[axis] = if axes.flip[r] { -flat.stride[r] } else { flat.stride[r] };
        view.start += if axes.flip[r] { (flat.shape[r] - 1) * flat.stride[r] as usize } else { 0 };
    }
    let mut affine = ras.affine;
    for (own, ras) in affine.iter_mut().zip(&ras.affine) {
        for r in 0..3 {
            own[axes.from[r]] = if axes.flip[r] { -ras[r] } else { ras[r] };
            own[3] += if axes.flip[r] { ras[r] * (flat.shape[r] as f64 - 1.0) } else { 0.0 };
        }
    }
    Volume { shape: view.shape, affine, data: view.copy([0, 1, 2], |v| v) }
}

fn all_axes() -> impl Iterator<Item = Axes> {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let flips = |from| (0..8).map(move |f| Axes { from, flip: [0, 1, 2].map(|r| f >> r & 1 == 1) });
    orders.into_iter().flat_map(flips)
}

#[test]
fn a_real_head_in_all_48_orientations_gives_the_same_bits() {
    let Some([image, mask]) = real_head() else { return };
    let [image, mask] = [image, mask].map(|f| orientation::to_ras(nifti::read(&f).unwrap().1));
    // 1.7 mm makes every weight a rounded number; 2.6 mm also exercises the widened triangle.
    for (spacing, with_mask) in [(1.7, true), (2.6, true), (2.6, false)] {
        let settings = Preprocessing { grid: [64, 80, 64], spacing: Some(spacing), ..Default::default() };
        let prepare = |axes| {
            let mask = with_mask.then(|| turned(&mask, axes));
            preprocess(turned(&image, axes), mask, &settings).unwrap()
        };
        let first = prepare(Axes { from: [0, 1, 2], flip: [false; 3] });
        for axes in all_axes() {
            let other = prepare(axes);
            assert!(first.data == other.data, "{axes:?} at {spacing} mm");
            for (a, b) in first.affine.iter().flatten().zip(other.affine.iter().flatten()) {
                assert!((a - b).abs() < 1e-6, "{axes:?}");
            }
        }
    }
}

#[test]
fn a_real_head_in_other_data_types_and_byte_orders_gives_the_same_bits() {
    let Some([image, mask]) = real_head() else { return };
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(&image).unwrap()).read_to_end(&mut bytes).unwrap();
    let header = nifti::header(&image).unwrap();
    let (stored, start) = (header.datatype.size(), header.offset as usize);
    assert_eq!(stored, 1, "the heads are stored in bytes");
    let prepare = |path: &Path| {
        let mask = nifti::read(&mask).unwrap().1;
        preprocess(nifti::read(path).unwrap().1, Some(mask), &Preprocessing::default()).unwrap()
    };
    let first = prepare(&image);
    assert!(first.foreground > 0.2 && first.stats.warnings.is_empty(), "{:?}", first.stats);
    let folder = tempfile::tempdir().unwrap();
    for (code, size) in [(4_i16, 2_i16), (16, 4), (64, 8)] {
        for big in [false, true] {
            let mut file = bytes[..start].to_vec();
            file[70..72].copy_from_slice(&code.to_le_bytes());
            file[72..74].copy_from_slice(&(8 * size).to_le_bytes());
            if big {
                for (at, size, count) in
                    [(0, 4, 1), (40, 2, 8), (70, 2, 2), (76, 4, 8), (108, 4, 3), (252, 2, 2), (256, 4, 18)]
                {
                    file[at..at + size * count].chunks_exact_mut(size).for_each(<[u8]>::reverse);
                }
            }
            for &v in &bytes[start..] {
                let mut voxel = match code {
                    4 => i16::from(v).to_le_bytes().to_vec(),
                    16 => f32::from(v).to_le_bytes().to_vec(),
                    _ => f64::from(v).to_le_bytes().to_vec(),
                };
                if big {
                    voxel.reverse();
                }
                file.extend(voxel);
            }
            let path = folder.path().join("head.nii");
            std::fs::write(&path, file).unwrap();
            assert!(prepare(&path).data == first.data, "code {code}, big-endian {big}");
        }
    }
}

#[test]
fn equal_voxels_are_copied_and_the_affine_leads_back() {
    let (image, mask) = ball(|_| 7.0, wavy);
    let settings = Preprocessing { grid: [40, 40, 40], spacing: Some(1.0), clip: [0.0, 100.0] };
    let p = preprocess(image.clone(), Some(mask.clone()), &settings).unwrap();
    let brain = mask.data.iter().filter(|&&m| m > 0.5).count();
    assert_eq!(p.data.iter().filter(|&&v| v > BACKGROUND).count(), brain, "no voxel is lost or invented");
    let mut seen = Vec::new();
    for (i, &v) in p.data.iter().enumerate().filter(|(_, v)| **v > BACKGROUND) {
        let voxel = [i / 1600, i / 40 % 40, i % 40];
        let [x, y, z] = [0, 1, 2].map(|r| (voxel[r] as f64 + p.affine[r][3]) as usize);
        seen.push((image.data[x + 40 * (y + 44 * z)], v));
    }
    seen.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(seen.windows(2).all(|w| w[0].1 <= w[1].1 + 1e-6), "z-scores are in the order of the intensities");
    let mean = seen.iter().map(|s| f64::from(s.1)).sum::<f64>() / seen.len() as f64;
    assert!(mean.abs() < 1e-4, "{mean}");
    assert_eq!(p.stats.brain_ml, brain as f64 / 1000.0);
}

#[test]
fn the_rim_is_not_darkened_by_what_lies_outside() {
    let (image, mask) = ball(|_| 0.0, |_| 0.0);
    let mut bright = image;
    // Brain and surroundings carry the same ramp: after masking, the rim must follow the ramp.
    for z in 0..36 {
        for y in 0..44 {
            for x in 0..40 {
                bright.data[x + 40 * (y + 44 * z)] = x as f32;
            }
        }
    }
    let p = preprocess(bright, Some(mask), &Preprocessing { clip: [0.0, 100.0], ..small() }).unwrap();
    for plane in p.data.chunks(24 * 20) {
        let brain: Vec<f32> = plane.iter().copied().filter(|&v| v > BACKGROUND).collect();
        assert!(brain.iter().all(|v| (v - brain[0]).abs() < 1e-5), "{brain:?}");
    }
}

#[test]
fn a_stripped_image_is_its_own_mask() {
    let (image, mask) = ball(|_| 0.0, wavy);
    let with = preprocess(image.clone(), Some(mask), &small()).unwrap();
    let without = preprocess(image, None, &small()).unwrap();
    assert!(with.data == without.data);
    assert!(!without.stats.warnings.iter().any(|w| w.contains("skull")));
}

#[test]
fn a_whole_head_is_found_with_a_warning() {
    let noise = |i: usize| (i * 7919 % 61) as f32;
    let (image, mask) = ball(noise, |p| if p == [21, 20, 17] { 0.0 } else { wavy(p) });
    let p = preprocess(image, None, &small()).unwrap();
    assert!(p.stats.warnings[0].contains("skull"), "{:?}", p.stats.warnings);
    let truth = mask.data.iter().sum::<f32>() / 1000.0;
    assert!((p.stats.brain_ml / f64::from(truth) - 1.0).abs() < 0.25, "{} {truth}", p.stats.brain_ml);
}

#[test]
fn what_does_not_fit_is_reported_with_its_share() {
    let (image, mask) = ball(|_| 1.0, wavy);
    let settings = Preprocessing { grid: [8, 24, 20], ..small() };
    let p = preprocess(image, Some(mask), &settings).unwrap();
    let warning = p.stats.warnings.iter().find(|w| w.contains("does not fit")).expect("a warning");
    // An ellipsoid of half-width 14 keeps 1.5 h - 0.5 h^3 of itself in a slab of half-width 8; h = 8 / 14.
    let share: f64 = warning.split("mm: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((share - 23.6).abs() < 3.0, "{warning}");
}

#[test]
fn masks_on_another_grid_are_carried_over_and_foreign_ones_refused() {
    let (image, mask) = ball(|_| 1.0, wavy);
    let mut shifted = mask.clone();
    shifted.affine[1][3] = 30.0;
    let text = preprocess(image.clone(), Some(shifted), &small()).unwrap_err().to_string();
    assert!(text.contains("30.0 mm apart"), "{text}");
    let whole = preprocess(image.clone(), Some(mask.clone()), &small()).unwrap();
    // The same mask in a larger field of view.
    let mut wide = Volume { shape: [60, 44, 36], affine: IDENTITY, data: vec![0.0; 60 * 44 * 36] };
    wide.affine[0][3] = -10.0;
    for (i, &m) in mask.data.iter().enumerate() {
        wide.data[i % 40 + 10 + 60 * (i / 40)] = m;
    }
    let carried = preprocess(image.clone(), Some(wide.clone()), &small()).unwrap();
    assert!(whole.data == carried.data);
    wide.affine[0][3] = 500.0;
    let text = preprocess(image, Some(wide), &small()).unwrap_err().to_string();
    assert!(text.contains("nothing is left"), "{text}");
}

#[test]
fn images_that_show_nothing_are_refused() {
    let (image, mask) = ball(|_| 1.0, wavy);
    let refused =
        |image: Volume, mask: Option<Volume>| preprocess(image, mask, &small()).unwrap_err().to_string();
    let flat = Volume { data: vec![3.0; image.data.len()], ..image.clone() };
    assert!(refused(flat.clone(), Some(mask.clone())).contains("all have the value 3"));
    assert!(refused(flat, None).contains("no voxel"), "background touching all faces, and nothing else");
    let empty = Volume { data: vec![0.0; image.data.len()], ..mask.clone() };
    assert!(refused(image.clone(), Some(empty)).contains("mask is empty"));
    let mut broken = image.clone();
    broken.data[5] = f32::NAN;
    broken.data[9] = f32::INFINITY;
    assert!(refused(broken, Some(mask)).contains("2 of 63360"));
    for (key, settings) in [
        ("grid", Preprocessing { grid: [0, 1, 1], ..small() }),
        ("spacing", Preprocessing { spacing: Some(f64::NAN), ..small() }),
        ("clip", Preprocessing { clip: [60.0, 40.0], ..small() }),
    ] {
        assert!(settings.check().unwrap_err().to_string().contains(key));
    }
}

#[test]
fn obliquity_is_kept() {
    let (mut image, mut mask) = ball(|_| 1.0, wavy);
    let straight = preprocess(image.clone(), Some(mask.clone()), &small()).unwrap();
    let (s, c) = 0.5_f64.sin_cos();
    image.affine = [[c, -s, 0.0, 3.0], [s, c, 0.0, -5.0], [0.0, 0.0, 1.0, 8.0], [0.0, 0.0, 0.0, 1.0]];
    mask.affine = image.affine;
    let axes = Axes::of(&image.affine);
    assert_eq!(ras_affine(&image.affine, image.shape, axes), image.affine);
    let oblique = preprocess(image, Some(mask), &small()).unwrap();
    let close = straight.data.iter().zip(&oblique.data).all(|(a, b)| (a - b).abs() < 1e-4);
    assert!(close, "the same voxels");
    assert!((oblique.affine[0][0] - 2.0 * c).abs() < 1e-9, "{:?}", oblique.affine);
}

/// Without a spacing, heads of different size fill the same box, and the affine leads back to the scan.
#[test]
fn a_fitted_brain_fills_the_grid_whatever_its_size() {
    let settings = Preprocessing { spacing: None, ..small() };
    for scale in [0.8, 1.0, 1.3] {
        let (head, mask) = phantom_box(scale);
        let p = preprocess(head, Some(mask), &settings).unwrap();
        let brain = |x: usize, y: usize, z: usize| p.data[(x * 24 + y) * 20 + z] > BACKGROUND;
        assert!(brain(2, 12, 10) && brain(17, 12, 10) && brain(10, 2, 10) && brain(10, 21, 10));
        assert!(!brain(1, 12, 10) && !brain(18, 12, 10) && !brain(10, 1, 10) && !brain(10, 22, 10));
        assert!((p.spacing[0] * 16.0 - p.stats.box_mm[0]).abs() < 1e-9);
    }
}

/// A box of varied brightness, `scale` times 20 x 24 x 20 mm, in a volume of 1 mm voxels.
fn phantom_box(scale: f64) -> (Volume, Volume) {
    let inside = |c: [usize; 3]| {
        let half = [10.0, 12.0, 10.0].map(|h: f64| (h * scale).round());
        (0..3).all(|r| (c[r] as f64 + 0.5 - 20.0).abs() < half[r])
    };
    let affine =
        [[1.0, 0.0, 0.0, -20.0], [0.0, 1.0, 0.0, -20.0], [0.0, 0.0, 1.0, -20.0], [0.0, 0.0, 0.0, 1.0]];
    let make = |f: &dyn Fn([usize; 3]) -> f32| {
        let data = (0..40 * 40 * 40).map(|i| f([i % 40, i / 40 % 40, i / 1600])).collect();
        Volume { shape: [40; 3], affine, data }
    };
    (make(&|c| if inside(c) { 100.0 + c[0] as f32 } else { 5.0 }), make(&|c| f32::from(inside(c))))
}
