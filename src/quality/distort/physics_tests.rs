//! Each distortion does what physics says, and nothing depends on how a file orders its axes.
use super::{
    canvas::{
        Canvas,
        tests::{at, canvas},
    },
    draw::{Pose, Source, Spike},
    *,
};
use std::f64::consts::{PI, TAU};

fn values(canvas: &Canvas) -> impl Iterator<Item = f64> + '_ {
    canvas.data.iter().map(|&v| f64::from(v))
}

fn energy(canvas: &Canvas) -> f64 {
    values(canvas).map(|v| v * v).sum()
}

fn mean_and_sd(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
    values.for_each(|v| (n, sum, squares) = (n + 1.0, sum + v, squares + v * v));
    (sum / n, (squares / n - (sum / n).powi(2)).sqrt())
}

/// A box of 1 from `low` to `high` along `axis`, 0 elsewhere.
fn bar(axis: usize, low: usize, high: usize) -> impl Fn([usize; 3]) -> f32 {
    move |p| f32::from(u8::from((low..high).contains(&p[axis])))
}

/// How strong the wave of `cycles` over the line is in `line`.
fn wave(line: &[f64], cycles: usize) -> f64 {
    let n = line.len() as f64;
    let part = |f: fn(f64) -> f64| {
        line.iter().enumerate().map(|(i, v)| v * f(TAU * cycles as f64 * i as f64 / n)).sum::<f64>()
    };
    2.0 / n * part(f64::cos).hypot(part(f64::sin))
}

#[test]
fn ghosts_lie_a_part_of_the_field_of_view_apart_and_have_their_share_of_the_head() {
    for axis in 0..3 {
        let mut shape = [3, 3, 3];
        shape[axis] = 60;
        let mut c = canvas(shape, [1.0; 3], bar(axis, 20, 25));
        kspace::ghosting(&mut c, axis, 0.4, 5, 0.0);
        for i in 0..60 {
            let mut place = [1, 2, 1];
            place[axis] = i;
            let expected = match i {
                20..25 => 1.0 - 0.4 / 5.0,
                _ if (i + 4) % 12 < 5 => 0.4 / 5.0,
                _ => 0.0,
            };
            assert!((at(&c, place) - expected).abs() < 1e-5, "axis {axis}, voxel {i}: {}", at(&c, place));
        }
    }
}

#[test]
fn ghosts_that_do_not_divide_the_grid_lie_between_voxels() {
    let blob = |p: [usize; 3]| (-((p[0] as f32 - 10.0) / 3.0).powi(2)).exp();
    let mut c = canvas([64, 1, 1], [1.0; 3], blob);
    kspace::ghosting(&mut c, 0, 0.5, 3, 0.0);
    // The next one is 64 / 3 voxels away.
    let (weight, moment) = (24..40)
        .map(|i| (f64::from(c.data[i]), f64::from(c.data[i]) * i as f64))
        .fold((0.0, 0.0), |(w, m), (v, vi)| (w + v, m + vi));
    assert!((moment / weight - (10.0 + 64.0 / 3.0)).abs() < 0.05, "{}", moment / weight);
}

#[test]
fn noise_is_rayleigh_in_air_and_gaussian_in_signal() {
    let mut c = canvas([40, 40, 40], [1.0; 3], |p| if p[0] < 20 { 0.0 } else { 100.0 });
    c.bright = 50.0;
    space::noise(&mut c, 0.04, Source::new(1, "a"));
    let half = |air: bool| c.data.iter().enumerate().filter(move |(i, _)| (i % 40 < 20) == air);
    let (mean, sd) = mean_and_sd(half(true).map(|(_, &v)| f64::from(v)));
    assert!((mean - 2.0 * (PI / 2.0).sqrt()).abs() < 0.03, "mean of air {mean}");
    assert!((sd - 2.0 * (2.0 - PI / 2.0).sqrt()).abs() < 0.03, "SD of air {sd}");
    let (mean, sd) = mean_and_sd(half(false).map(|(_, &v)| f64::from(v)));
    assert!((mean - 100.0).abs() < 0.1 && (sd - 2.0).abs() < 0.04, "signal {mean} ± {sd}");
}

fn pose(until: f64, rotation_degrees: [f64; 3], translation_mm: [f64; 3]) -> Pose {
    Pose { until, rotation_degrees, translation_mm }
}

/// A smooth blob at `centre`, in voxels.
fn blob(centre: [f32; 3], width: f32) -> impl Fn([usize; 3]) -> f32 {
    move |p| (-(0..3).map(|a| ((p[a] as f32 - centre[a]) / width).powi(2)).sum::<f32>()).exp()
}

fn centroid(c: &Canvas) -> [f64; 3] {
    let [nx, ny, _] = c.shape;
    let total: f64 = values(c).sum();
    let place = |i: usize| [i % nx, i / nx % ny, i / (nx * ny)];
    [0, 1, 2].map(|a| values(c).enumerate().map(|(i, v)| v * place(i)[a] as f64).sum::<f64>() / total)
}

#[test]
fn a_head_that_does_not_move_is_left_as_it_is() {
    let mut c = canvas([20, 18, 16], [1.0; 3], blob([9.0, 8.0, 7.0], 4.0));
    let before = c.data.clone();
    kspace::motion(&mut c, 1, &[pose(0.3, [0.0; 3], [0.0; 3]), pose(1.0, [0.0; 3], [0.0; 3])]);
    assert!(c.data == before);
}

#[test]
fn a_head_that_lies_elsewhere_all_the_time_is_seen_elsewhere() {
    let spacing = [1.0, 2.0, 1.5];
    for axis in 0..3 {
        let mut c = canvas([41, 31, 31], spacing, blob([20.0, 15.0, 15.0], 3.0));
        kspace::motion(&mut c, axis, &[pose(1.0, [0.0; 3], [2.5, -3.0, 4.0])]);
        let moved = centroid(&c);
        for (a, expected) in [22.5, 13.5, 15.0 + 4.0 / 1.5].into_iter().enumerate() {
            assert!((moved[a] - expected).abs() < 0.02, "{moved:?}");
        }
        // A quarter turn about z takes what lies on the right to the front.
        let mut c = canvas([41, 31, 31], spacing, blob([28.0, 15.0, 15.0], 3.0));
        kspace::motion(&mut c, axis, &[pose(1.0, [0.0, 0.0, 90.0], [0.0; 3])]);
        let moved = centroid(&c);
        for (a, expected) in [20.0, 19.0, 15.0].into_iter().enumerate() {
            assert!((moved[a] - expected).abs() < 0.02, "{moved:?}");
        }
    }
}

#[test]
fn shifts_turn_phases_and_keep_energy() {
    let mut c = canvas([64, 20, 20], [1.0; 3], blob([30.0, 9.0, 10.0], 2.0));
    let before = energy(&c);
    let still = c.data.clone();
    kspace::motion(&mut c, 0, &[pose(0.4, [0.0; 3], [6.0, 0.0, 0.0]), pose(1.0, [0.0; 3], [0.0; 3])]);
    assert!((energy(&c) / before - 1.0).abs() < 1e-5, "{} of {before}", energy(&c));
    let changed = c.data.iter().zip(&still).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(changed > 0.1, "{changed}");
}

#[test]
fn a_spike_adds_a_wave_of_its_frequency() {
    let shape = [40, 30, 20];
    let mut c = canvas(shape, [1.0, 2.0, 3.0], |_| 10.0);
    // 8 cycles in 40 mm, 6 in 60 mm back, 3 in 60 mm.
    let spike = Spike { intensity: 0.05, cycles_per_mm: [0.2, -0.1, 0.05], phase: 0.7 };
    kspace::spikes(&mut c, &[spike]);
    let projected = |cycles: [f64; 3]| {
        let (mut real, mut imaginary) = (0.0, 0.0);
        for (i, v) in values(&c).enumerate() {
            let place = [i % 40, i / 40 % 30, i / 1200];
            let turns: f64 = (0..3).map(|a| cycles[a] * place[a] as f64 / shape[a] as f64).sum();
            real += v * (TAU * turns).cos();
            imaginary += v * (TAU * turns).sin();
        }
        2.0 * real.hypot(imaginary) / c.data.len() as f64
    };
    assert!((projected([8.0, -6.0, 3.0]) - 0.5).abs() < 0.01);
    assert!(projected([8.0, 6.0, 3.0]) < 1e-3 && projected([7.0, -6.0, 3.0]) < 1e-3);
    // In air a wave has no stripes: its magnitude is even.
    let mut air = canvas(shape, [1.0; 3], |p| if p[0] == 0 { 40.0 } else { 0.0 });
    kspace::spikes(&mut air, &[spike]);
    assert!((at(&air, [20, 3, 3]) - 0.05).abs() < 1e-4 && (at(&air, [33, 9, 7]) - 0.05).abs() < 1e-4);
}

#[test]
fn k_space_that_ends_early_rings_by_nine_hundredths_of_an_edge() {
    // Between 1 and 2, so that the magnitude hides nothing.
    let mut c = canvas([2, 512, 2], [1.0; 3], |p| if (128..384).contains(&p[1]) { 2.0 } else { 1.0 });
    kspace::gibbs(&mut c, 1, 16.0);
    let line: Vec<f64> = (0..512).map(|y| f64::from(at(&c, [1, y, 1]))).collect();
    let most = line.iter().copied().fold(f64::MIN, f64::max);
    let least = line.iter().copied().fold(f64::MAX, f64::min);
    assert!((most - 2.0895).abs() < 0.004 && (1.0 - least - 0.0895).abs() < 0.004, "{least} {most}");
    // 512 mm at 16 mm: 16 cycles are the last.
    assert!(wave(&line, 15) > 0.03);
    assert!((17..256).all(|cycles| wave(&line, cycles) < 1e-5));
    // A resolution the grid does not have is not taken from it.
    let before = c.data.clone();
    kspace::gibbs(&mut c, 1, 1.0);
    assert!(c.data == before);
}

#[test]
fn a_bias_field_is_smooth_and_as_strong_as_asked() {
    for seed in 0..5 {
        let mut recipe = Recipe::none();
        recipe.bias_field.sd = 0.3.into();
        let drawn = draw::distortions(&recipe, Source::new(seed, "a"));
        let Distortion::BiasField { coefficients, .. } = &drawn[0] else { panic!("{drawn:?}") };
        let mut c = canvas([48, 40, 44], [2.0; 3], |_| 1.0);
        c.head = [[8.0, 40.0], [4.0, 36.0], [6.0, 38.0]];
        space::bias_field(&mut c, coefficients);
        let inside = (0..c.data.len()).filter(|i| {
            let p = [i % 48, i / 48 % 40, i / 1920];
            (0..3).all(|a| (c.head[a][0]..c.head[a][1]).contains(&(p[a] as f64)))
        });
        let (mean, sd) = mean_and_sd(inside.map(|i| f64::from(c.data[i]).ln()));
        assert!(mean.abs() < 0.01 && (sd - 0.3).abs() < 0.01, "log field {mean} ± {sd}");
        // A field of the same strength without smoothness would change by 0.42.
        let steps = c.data.windows(2).enumerate().filter(|(i, _)| (8..39).contains(&(i % 48)));
        let (_, step) = mean_and_sd(steps.map(|(_, w)| f64::from(w[1] / w[0]).ln()));
        assert!(step < 0.08, "{step} from voxel to voxel");
    }
}

#[test]
fn blur_has_its_width_in_millimetres_along_every_axis() {
    let spacing = [1.0, 2.0, 0.8];
    let shape = [61, 41, 61];
    let centre = [30, 20, 30];
    // At 1 mm the Gaussian is narrower than a voxel.
    for fwhm in [6.0, 1.0] {
        let mut c = canvas(shape, spacing, |p| if p == centre { 1.0 } else { 0.0 });
        space::blur(&mut c, fwhm);
        assert!((values(&c).sum::<f64>() - 1.0).abs() < 1e-4);
        for a in 0..3 {
            let [nx, ny, _] = shape;
            let place = |i: usize| [i % nx, i / nx % ny, i / (nx * ny)][a] as f64;
            let variance: f64 = values(&c)
                .enumerate()
                .map(|(i, v)| v * ((place(i) - centre[a] as f64) * spacing[a]).powi(2))
                .sum();
            let width = variance.sqrt() * (8.0 * 2.0_f64.ln()).sqrt();
            assert!((width - fwhm).abs() < 0.01 * fwhm, "axis {a}: {width} mm");
        }
    }
    let mut c = canvas(shape, spacing, |p| if p == centre { 1.0 } else { 0.0 });
    space::blur(&mut c, 6.0);
    let half = f64::from(at(&c, [33, 20, 30]) / at(&c, centre));
    // The discrete Gaussian is a little more pointed than the continuous one.
    assert!((half - 0.5).abs() < 0.03, "3 mm from the centre: {half}");
}

#[test]
fn thick_slices_lose_detail_along_one_axis_alone() {
    for axis in 0..3 {
        let fine = |a: usize| move |p: [usize; 3]| (p[a] % 2) as f32;
        for factor in [2.0, 2.6, 4.0] {
            let mut across = canvas([24, 20, 28], [1.0; 3], fine(axis));
            space::anisotropy(&mut across, axis, factor);
            let (_, sd) = mean_and_sd(values(&across));
            assert!(sd < 0.2, "factor {factor}: {sd} of 0.5 is left");
            let other = (axis + 1) % 3;
            let mut along = canvas([24, 20, 28], [1.0; 3], fine(other));
            let before = along.data.clone();
            space::anisotropy(&mut along, axis, factor);
            assert!(along.data.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
    // A slow change comes through, but for its ends.
    let mut ramp = canvas([24, 1, 1], [1.0; 3], |p| p[0] as f32);
    space::anisotropy(&mut ramp, 0, 3.0);
    assert!((2..22).all(|i| (ramp.data[i] - i as f32).abs() < 1e-4), "{:?}", ramp.data);
}

#[test]
fn a_lost_slab_is_a_part_of_the_head() {
    let mut c = canvas([4, 50, 4], [1.0, 2.0, 1.0], |_| 1.0);
    c.head[1] = [5.0, 45.0];
    // 8 of the head's 40 voxels, half-way between its ends.
    space::slab_loss(&mut c, 1, 0.2, 0.5);
    let lost: Vec<usize> = (0..50).filter(|&y| at(&c, [2, y, 3]) == 0.0).collect();
    assert_eq!(lost, (21..29).collect::<Vec<_>>());
}

#[test]
fn a_field_of_view_that_ends_in_the_head_loses_it_or_shows_it_at_the_other_end() {
    let number = |p: [usize; 3]| (p[2] + 1) as f32;
    let new = || {
        let mut c = canvas([2, 2, 30], [1.0, 1.0, 2.0], number);
        c.head[2] = [0.0, 25.0];
        c
    };
    let line = |c: &Canvas| (0..c.shape[2]).map(|z| at(c, [1, 0, z])).collect::<Vec<_>>();
    // 10 mm of the head are 5 voxels: the field of view ends at 20.
    let mut cut = new();
    space::truncation(&mut cut, Side::Top, 10.0);
    assert_eq!((line(&cut), cut.kept[2].clone()), ((1..=20).map(|v| v as f32).collect(), 0..20));
    let mut wrapped = new();
    space::wrap_around(&mut wrapped, Side::Top, 10.0);
    let expected: Vec<f32> = (1..=20).map(|v| if v <= 10 { 2 * v + 20 } else { v } as f32).collect();
    assert_eq!((line(&wrapped), wrapped.kept[2].clone()), (expected, 0..20));
    let mut wrapped = new();
    space::wrap_around(&mut wrapped, Side::Bottom, 10.0);
    let expected: Vec<f32> = (6..=30).map(|v| if v > 25 { 2 * v - 25 } else { v } as f32).collect();
    assert_eq!((line(&wrapped), wrapped.kept[2].clone()), (expected, 5..30));
    // More than half of a head is never lost, but for a voxel cut in two.
    let mut cut = new();
    space::truncation(&mut cut, Side::Top, 200.0);
    assert_eq!(cut.kept[2], 0..12);
}

/// An ellipsoid with structure in noise, of `mm` voxels.
fn head(mm: f64) -> Volume {
    let shape = [180.0, 210.0, 200.0].map(|n| (n / mm) as usize);
    let affine = [[mm, 0.0, 0.0, -80.0], [0.0, mm, 0.0, -90.0], [0.0, 0.0, mm, -70.0], [0.0, 0.0, 0.0, 1.0]];
    let value = |p: [usize; 3]| {
        let r: f64 = (0..3)
            .map(|a| ((p[a] as f64 + 0.5) * mm - shape[a] as f64 * mm / 2.0) / [70.0, 85.0, 78.0][a])
            .map(|u| u * u)
            .sum();
        let texture = (p[0] * 7 + p[1] * 3 + p[2] * 5) % 11;
        if r < 1.0 { 60.0 + 3.0 * texture as f32 } else { (texture % 3) as f32 }
    };
    let c = canvas(shape, [mm; 3], value);
    Volume { shape, affine, data: c.data }
}

/// All distortions at once.
fn everything() -> Recipe {
    let mut recipe = Recipe::level(LEVELS);
    recipe.wrap_around.mm = 10.0.into();
    recipe.gibbs.mm = 20.0.into();
    recipe.blur.fwhm_mm = 9.0.into();
    recipe
}

#[test]
fn another_axis_order_changes_nothing() {
    let volume = head(8.0);
    let whole = distort(volume.clone(), &everything(), 3, "sub-01_T1w").unwrap();
    assert_eq!(whole.applied.len(), 11);
    assert_ne!(whole.volume.shape, volume.shape);
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for flips in 0..8 {
            let flip = [0, 1, 2].map(|r| flips >> r & 1 == 1);
            let axes = Axes { from: order, flip };
            let turn = |v: &Volume| {
                let mut shape = [0; 3];
                let mut affine = v.affine;
                for r in 0..3 {
                    shape[order[r]] = v.shape[r];
                    for (row, old) in affine.iter_mut().zip(v.affine).take(3) {
                        row[order[r]] = if flip[r] { -old[r] } else { old[r] };
                        row[3] += if flip[r] { old[r] * (v.shape[r] - 1) as f64 } else { 0.0 };
                    }
                }
                Volume { shape, affine, data: from_ras(&v.data, v.shape, axes) }
            };
            let turned = distort(turn(&volume), &everything(), 3, "sub-01_T1w").unwrap();
            assert_eq!((&turned.kept, &turned.applied), (&whole.kept, &whole.applied));
            assert!(turned.volume == turn(&whole.volume), "{order:?} {flip:?}");
            let mask = keep(&turn(&volume), volume.shape, &whole.kept).unwrap();
            assert_eq!((mask.shape, mask.affine), (turned.volume.shape, turned.volume.affine));
        }
    }
}

#[test]
fn a_scan_has_its_own_distortions_and_always_the_same() {
    for level in 1..=LEVELS {
        let bits = |seed, scan| distort(head(8.0), &Recipe::level(level), seed, scan).unwrap().volume;
        let one = bits(1, "sub-01_T1w");
        assert!(one == bits(1, "sub-01_T1w"));
        assert!(one != bits(1, "sub-02_T1w") && one != bits(2, "sub-01_T1w"));
    }
    let untouched = distort(head(8.0), &Recipe::none(), 1, "sub-01_T1w").unwrap();
    assert!(untouched.volume == head(8.0) && untouched.applied.is_empty());
}

#[test]
fn smaller_voxels_lose_as_many_millimetres() {
    let mut recipe = Recipe::none();
    recipe.truncation.mm = 24.0.into();
    let lost = |mm: f64| {
        let cut = distort(head(mm), &recipe, 1, "a").unwrap();
        let before = head(mm).shape;
        (0..3).map(|a| (before[a] - cut.volume.shape[a]) as f64 * mm).sum::<f64>()
    };
    assert!((lost(2.0) - lost(4.0)).abs() <= 4.0, "{} and {} mm", lost(2.0), lost(4.0));
}

#[test]
fn what_is_outside_a_stripped_scan_stays_outside() {
    let mut volume = head(8.0);
    volume.data.iter_mut().for_each(|v| *v = if *v < 60.0 { -5.0 } else { *v });
    let distorted = distort(volume.clone(), &everything(), 3, "a").unwrap();
    let before = keep(&volume, volume.shape, &distorted.kept).unwrap();
    assert!(before.data.iter().zip(&distorted.volume.data).all(|(b, d)| *b != -5.0 || *d == -5.0));
    assert_eq!(image::background(&distorted.volume), image::background(&before));
}

#[test]
fn images_without_numbers_or_without_a_head_are_refused() {
    let refusal =
        |volume: Volume| distort(volume, &Recipe::level(1), 0, "a").map(|_| ()).unwrap_err().to_string();
    let mut volume = head(8.0);
    volume.data[7] = f32::NAN;
    assert!(refusal(volume).contains("1 of"));
    let mut volume = head(8.0);
    volume.data.fill(3.0);
    assert!(refusal(volume).contains("all have the value 3"));
}
