//! Measures against images whose answers are known.
use super::*;
use crate::machine::philox::{Philox, Purpose};

fn random() -> Philox {
    Philox::new(11, Purpose::Test, 0, 0)
}

fn volume(shape: [usize; 3], mm: f64, mut value: impl FnMut([usize; 3]) -> f32) -> Volume {
    let mut affine = [[0.0; 4]; 4];
    (0..3).for_each(|r| affine[r][r] = mm);
    affine[3][3] = 1.0;
    let at = |i: usize| [i % shape[0], i / shape[0] % shape[1], i / (shape[0] * shape[1])];
    Volume { shape, affine, data: (0..shape.iter().product()).map(|i| value(at(i))).collect() }
}

const HEAD: [usize; 3] = [60, 70, 80];

fn ball(p: [usize; 3], radii: [f64; 3]) -> bool {
    let centre = [29.5, 34.5, 54.5];
    (0..3).map(|r| ((p[r] as f64 - centre[r]) / radii[r]).powi(2)).sum::<f64>() <= 1.0
}

fn within(p: [usize; 3], ranges: [std::ops::Range<usize>; 3]) -> bool {
    (0..3).all(|r| ranges[r].contains(&p[r]))
}

fn brain(p: [usize; 3]) -> bool {
    ball(p, [21.0, 26.0, 19.0])
}

/// A head of 3 mm voxels: tissues of 30, 70 and 100 with an SD of 5, a scalp of 60, and air of Rayleigh noise as magnitude images
/// have it: normal noise with an SD of 2 in both channels.
fn head(face: bool) -> Volume {
    let mut r = random();
    volume(HEAD, 3.0, |p| {
        let n = r.normal();
        let tissue = [30.0, 30.0, 70.0, 70.0, 70.0, 70.0, 100.0, 100.0, 100.0, 100.0];
        let neck = within(p, [20..40, 20..45, 0..40]);
        let nose = face && within(p, [20..40, 40..66, 24..42]);
        if brain(p) {
            tissue[r.below(10)] + 5.0 * n
        } else if ball(p, [25.0, 30.0, 23.0]) || neck || nose {
            60.0 + 5.0 * n
        } else {
            2.0 * n.hypot(r.normal())
        }
    })
}

fn mask() -> Volume {
    volume(HEAD, 3.0, |p| f32::from(u8::from(brain(p))))
}

fn get(m: &Measured, name: &str) -> f64 {
    m.measures.get(name).unwrap_or_else(|| panic!("{name} is undefined"))
}

#[test]
fn tissues_have_the_ratios_they_were_made_with() {
    let m = measure(&head(true), Some(mask())).unwrap();
    assert_eq!((m.state, m.region), (State::WholeHead, Region::Mask));
    let expected = [
        ("snr_csf", 6.0),
        ("snr_gm", 14.0),
        ("snr_wm", 20.0),
        ("cjv", 10.0 / 30.0),
        ("contrast", 0.3),
        ("cnr_tissue", 30.0 / 50.0_f64.sqrt()),
        ("cnr", 30.0 / (50.0 + (2.0 * RAYLEIGH_SD).powi(2)).sqrt()),
        ("fraction_gm", 0.4),
        ("air_sd", 0.02 * RAYLEIGH_SD),
        ("snr_dietrich", RAYLEIGH_SD / (2.0 * RAYLEIGH_MAD) * 100.0),
    ];
    for (name, value) in expected {
        approx::assert_relative_eq!(get(&m, name), value, max_relative = 0.04);
    }
    assert!(get(&m, "air_coherence") < 0.02 && get(&m, "qi1") < 1e-3);
}

/// SD, and median distance from the median, of Rayleigh noise that came from normal noise of SD 1.
const RAYLEIGH_SD: f64 = 0.655_136_4;
const RAYLEIGH_MAD: f64 = 0.448_453;

#[test]
fn what_was_normalised_is_refused() {
    let mut shifted = head(true);
    shifted.data.iter_mut().for_each(|v| *v -= 50.0);
    let refused = measure(&shifted, Some(mask())).unwrap_err().to_string();
    assert!(refused.contains("of the voxels are below 0: the image was normalised"), "{refused}");
}

#[test]
fn a_head_without_a_face_is_defaced_and_one_without_a_mask_is_measured_in_its_core() {
    let m = measure(&head(false), None).unwrap();
    assert_eq!((m.state, m.region), (State::Defaced, Region::HeadCore));
    assert_eq!(["qi1", "fber", "extent_off", "volume_off"].map(|n| m.measures.get(n)), [None; 4]);
    approx::assert_relative_eq!(get(&m, "snr_wm"), 20.0, max_relative = 0.1);
}

#[test]
fn a_stripped_head_has_no_air() {
    let whole = head(true);
    let stripped =
        volume(HEAD, 3.0, |p| if brain(p) { whole.data[p[0] + 60 * (p[1] + 70 * p[2])] } else { 0.0 });
    let m = measure(&stripped, None).unwrap();
    assert_eq!((m.state, m.region), (State::SkullStripped, Region::Stripped));
    let of_air = ["air_sd", "air_structure", "snr_dietrich", "fber", "qi1", "cnr"];
    assert_eq!(of_air.map(|n| m.measures.get(n)), [None; 6]);
    approx::assert_relative_eq!(get(&m, "cjv"), 1.0 / 3.0, max_relative = 0.04);
}

#[test]
fn entropy_is_most_in_a_constant_and_least_in_a_point() {
    approx::assert_relative_eq!(tissue::efc(&[3.0; 1000]), 1.0, max_relative = 1e-9);
    let mut point = vec![0.0; 1000];
    point[17] = -5.0;
    assert_eq!(tissue::efc(&point).abs(), 0.0);
}

/// A box of brain on a dark ground, with a mask.
fn boxed(value: impl FnMut([usize; 3]) -> f32, inside: impl Fn([usize; 3]) -> bool) -> Measured {
    let shape = [50, 60, 70];
    measure(&volume(shape, 2.0, value), Some(volume(shape, 2.0, |p| f32::from(u8::from(inside(p)))))).unwrap()
}

#[test]
fn cuts_gaps_holes_and_sides_are_as_large_as_they_are() {
    let mut r = random();
    // From the left face on, with a hole, and 4 slices of 40 that are dark.
    let solid = |p| within(p, [0..30, 10..50, 20..60]);
    let hole = |p| within(p, [10..15, 20..25, 30..36]);
    let inside = |p| solid(p) && !hole(p);
    let m = boxed(
        |p| if inside(p) && !(40..44).contains(&p[2]) { 100.0 + r.normal() } else { 0.2 * r.normal().abs() },
        inside,
    );
    assert_eq!(get(&m, "cut_left"), 40.0 * 40.0 * 0.04);
    assert_eq!(get(&m, "cut_area"), get(&m, "cut_left"));
    assert_eq!(get(&m, "missing_slices"), 0.1);
    approx::assert_relative_eq!(get(&m, "holes"), 5.0 * 5.0 * 6.0 * 0.008, max_relative = 1e-9);
    assert_eq!(["extent_x", "extent_y", "extent_z"].map(|n| get(&m, n)), [60.0, 80.0, 80.0]);
    assert_eq!(get(&m, "extent_off"), 78.0);
    // A box is its own mirror image; with a fourth of one side gone it is not.
    let m = boxed(|p| if solid(p) { 100.0 + r.normal() } else { 0.0 }, solid);
    assert_eq!(get(&m, "asymmetry"), 0.0);
    let bitten = |p: [usize; 3]| solid(p) && !(p[0] >= 15 && p[1] < 20);
    let m = boxed(|p| if bitten(p) { 100.0 + r.normal() } else { 0.0 }, bitten);
    assert!((0.1..0.35).contains(&get(&m, "asymmetry")), "{}", get(&m, "asymmetry"));
}

#[test]
fn noise_in_flat_tissue_is_its_deviation() {
    let mut r = random();
    let solid = |p| within(p, [5..45, 5..55, 5..65]);
    let m = boxed(|p| if solid(p) { 100.0 + 4.0 * r.normal() } else { 0.0 }, solid);
    // Three distributions share the one there is: white matter is somewhat brighter than the mean.
    approx::assert_relative_eq!(get(&m, "noise"), 0.04, max_relative = 0.06);
}

#[test]
fn a_field_along_one_axis_has_the_deviation_of_a_slope() {
    let mut r = random();
    let all = |p| within(p, [1..49, 1..59, 1..69]);
    let m = boxed(
        |p| {
            let field = (0.15 * (2.0 * p[0] as f32 / 50.0 - 1.0)).exp();
            if all(p) { field * [20.0, 60.0, 100.0][r.below(3)] * (1.0 + 0.02 * r.normal()) } else { 0.0 }
        },
        all,
    );
    approx::assert_relative_eq!(get(&m, "bias"), 0.15 / 3.0_f64.sqrt(), max_relative = 0.06);
}

#[test]
fn smoothed_noise_has_the_width_of_its_kernel() {
    let (shape, sigma) = ([50, 60, 70], 1.5_f64);
    let mut r = random();
    let mut data: Vec<f32> = (0..50 * 60 * 70).map(|_| r.normal()).collect();
    let weight = |d: i32| (-0.5 * (f64::from(d) / sigma).powi(2)).exp() as f32;
    for (axis, step) in [1, 50, 3000].into_iter().enumerate() {
        let old = data.clone();
        for (i, v) in data.iter_mut().enumerate() {
            let at = (i / step % shape[axis]) as i32;
            // Round the field of view, so that all voxels are alike.
            let of = |d: i32| {
                let j = (at + d).rem_euclid(shape[axis] as i32) as usize;
                old[i - at as usize * step + j * step] * weight(d)
            };
            *v = (-6..=6).map(of).sum();
        }
    }
    let all = |p| within(p, [2..48, 2..58, 2..68]);
    let m = boxed(|p| if all(p) { 1000.0 + 10.0 * data[p[0] + 50 * (p[1] + 60 * p[2])] } else { 0.0 }, all);
    for name in ["fwhm_x", "fwhm_y", "fwhm_z"] {
        approx::assert_relative_eq!(get(&m, name), 2.354_82 * sigma * 2.0, max_relative = 0.04);
    }
}

#[test]
fn thresholds_are_read_as_they_are_printed_and_refused_by_name() {
    let text = toml::to_string(&Thresholds::default()).unwrap();
    assert_eq!(Thresholds::read(&text).unwrap(), Thresholds::default());
    let changed = Thresholds::read("poor = 30\n[limits]\nnoise = { good = 1, bad = 2 }").unwrap();
    assert_eq!((changed.poor, changed.limits["noise"].bad, changed.limits["cjv"].bad), (30.0, 2.0, 1.5));
    for (text, words) in [
        ("[limits]\nnoize = { good = 1, bad = 2 }", "did you mean noise?"),
        ("[limits]\nnoise = { good = 1, bad = 1 }", "limits.noise.bad is 1"),
        ("poor = 80", "poor <= acceptable"),
        ("pour = 3", "not a table of thresholds"),
    ] {
        let error = Thresholds::read(text).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn ranks_become_grades() {
    use Grade::*;
    let grades = grade_by_quantiles(&[5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0, 10.0], [10.0, 30.0, 70.0]);
    let expected = [
        Acceptable, Exclude, Acceptable, Poor, Poor, Acceptable, Acceptable, Excellent, Excellent, Excellent,
    ];
    assert_eq!(grades, expected);
}

#[test]
fn held_out_ratings_are_predicted_where_measures_tell_and_not_where_they_do_not() {
    let mut r = random();
    let scans: Vec<Measures> = (0..200)
        .map(|_| {
            let mut m = Measures::default();
            MEASURES.iter().take(30).for_each(|measure| m.set(measure.name, f64::from(r.normal())));
            m
        })
        .collect();
    let told: Vec<f64> = scans
        .iter()
        .map(|m| 2.0 * m.at(3).unwrap() - m.at(7).unwrap() + 0.5 * f64::from(r.normal()))
        .collect();
    let untold: Vec<f64> = scans.iter().map(|_| f64::from(r.normal())).collect();
    let correlation = |ratings: &[f64]| {
        let members: Vec<Member> = scans
            .iter()
            .zip(ratings)
            .enumerate()
            .map(|(i, (measures, &rating))| Member { measures, rating, fold: i % 10 })
            .collect();
        let fit = calibrate(&members).unwrap();
        let (a, b) = (mean_and_sd(fit.ratings.iter().copied()), mean_and_sd(ratings.iter().copied()));
        let products: f64 = fit.ratings.iter().zip(ratings).map(|(x, y)| (x - a.0) * (y - b.0)).sum();
        (products / 199.0 / (a.1 * b.1).max(1e-12), fit.weights)
    };
    let (r, weights) = correlation(&told);
    assert!(r > 0.95, "{r}");
    assert_eq!([weights[0].0, weights[1].0], [MEASURES[3].name, MEASURES[7].name]);
    assert!(correlation(&untold).0 < 0.2);
}
