//! Real files in all the ways NIfTI can be odd: each is read as nibabel 5.4 reads it, or refused with a reason.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::{
    error::chain,
    image::{self, orientation::to_ras},
};
use std::path::PathBuf;

/// The folder of odd files, or `None` with a printed line.
fn odd() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = std::env::var_os("GYRUS_SHARED").map_or_else(beside, PathBuf::from).join("data/nifti-odd");
    if !folder.is_dir() {
        println!("skipped: {} is not there", folder.display());
        return None;
    }
    Some(folder)
}

#[test]
fn all_48_orientations_agree_voxel_for_voxel_in_ras() {
    let Some(folder) = odd() else { return };
    let read = |name: &str| image::read(&folder.join("orient48").join(name)).unwrap();
    let ras = read("RAS.nii.gz").1;
    let mut files = 0;
    for entry in std::fs::read_dir(folder.join("orient48")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (header, volume) = read(&name);
        assert_eq!(name, format!("{}.nii.gz", header.orientation));
        let volume = to_ras(volume);
        assert_eq!(volume.shape, ras.shape, "{name}");
        assert!(volume.data == ras.data, "{name}");
        for (a, b) in volume.affine.iter().flatten().zip(ras.affine.iter().flatten()) {
            // The files' offsets are floats, and they were computed from other corners.
            assert!((a - b).abs() < 1e-4, "{name}: {:?} {:?}", volume.affine, ras.affine);
        }
        files += 1;
    }
    assert_eq!(files, 48);
}

/// What nibabel says: shape, orientation, sum, middle voxel (in file order), first row of the affine.
struct Read {
    shape: [usize; 3],
    orientation: &'static str,
    sum: f64,
    middle: f64,
    x: [f64; 4],
}

/// An image, or the words its refusal must hold.
type Expected = Result<Read, &'static str>;

fn seen(shape: [usize; 3], orientation: &'static str, sum: f64, middle: f64, x: [f64; 4]) -> Expected {
    Ok(Read { shape, orientation, sum, middle, x })
}

#[test]
fn every_odd_file_is_read_right_or_refused() {
    let Some(folder) = odd() else { return };
    let ras = || seen([62, 41, 34], "RAS", 15_024_169.0, 0.0, [2.3852, 0.0, 0.0, -73.3773]);
    let air = || seen([79, 67, 64], "AIR", 11_398_461.247, 0.0, [0.0, 0.0, 2.3852, -75.7625]);
    let mni = || seen([91, 109, 91], "LAS", 74_825_382.0, 121.0, [-2.0, 0.0, 0.0, 90.0]);
    let time = || seen([64, 64, 21], "LAS", 11_648.372, 0.0, [-4.0, 0.0, 0.0, 0.0]);
    let table = [
        ("niivue/AIL.nii.gz", seen([79, 67, 64], "AIL", 11_398_461.144, 0.0, [0.0, 0.0, -2.3852, 74.5071])),
        ("niivue/V1.nii.gz", Err("[84, 92, 56, 3]")),
        ("niivue/aal.nii.gz", seen([181, 217, 181], "RAS", 76_656_511.0, 0.0, [1.0, 0.0, 0.0, -90.0])),
        ("niivue/complex.nii.gz", Err("complex64")),
        ("niivue/ct_perfusion.nii.gz", Err("RGB")),
        ("niivue/low_res.nii.gz", seen([7, 5, 3], "RAS", 53.0, 1.0, [2.0, 0.0, 0.0, 0.0])),
        ("niivue/minimal.nii.gz", seen([64, 64, 10], "LAS", 1_290_240.0, 0.0, [-3.0, 0.0, 0.0, 94.5])),
        // A surface's 163,842 vertices, folded because NIfTI-1 has no axis that long; nibabel unfolds them.
        (
            "niivue/pval.LH.nii.gz",
            seen([27_307, 1, 6], "LAS", 2_190_282.615, 25.440_031, [-2.0, 0.0, 0.0, 90.0]),
        ),
        ("niivue/ras.hdr", ras()),
        ("niivue/ras.img", ras()),
        (
            "niivue/shear.nii.gz",
            seen([306, 422, 54], "RAS", -5_577_896_244.733, 227.325_531, [0.4824, 0.0, 0.0, -94.3794]),
        ),
        ("niivue/stats.nv_demo_mskd.nii.gz", Err("[77, 92, 77, 2]")),
        ("reader_js/5D_small.nii", Err("[1, 2, 3, 1, 3]")),
        ("reader_js/5D_zeros.nii.gz", Err("[256, 256, 170, 1, 3]")),
        ("reader_js/air.hdr.gz", air()),
        ("reader_js/air.img.gz", air()),
        ("reader_js/air2.hdr.gz", air()),
        ("reader_js/air2.img.gz", air()),
        ("reader_js/avg152T1_LR_nifti.nii", mni()),
        ("reader_js/avg152T1_LR_nifti.nii.gz", mni()),
        ("reader_js/avg152T1_LR_nifti2.nii.gz", mni()),
        ("reader_js/big.nii.gz", time()),
        ("reader_js/little.nii.gz", time()),
        ("reader_js/not-nifti.nii", Err("does not begin with")),
        (
            "reader_js/with_extension.nii.gz",
            seen([161, 191, 151], "LPI", 1_472_871.0, 1.0, [-1.0, 0.0, 0.0, 80.0]),
        ),
    ];
    for (name, expected) in table {
        match (image::read(&folder.join(name)), expected) {
            (Ok((header, volume)), Ok(want)) => {
                assert_eq!(
                    (header.shape, header.orientation.as_str()),
                    (want.shape, want.orientation),
                    "{name}"
                );
                let sum: f64 = volume.data.iter().map(|&v| f64::from(v)).sum();
                assert!((sum - want.sum).abs() <= 1e-6 * want.sum.abs(), "{name}: sum {sum}");
                let middle = f64::from(volume.data[volume.data.len() / 2]);
                assert!(
                    (middle - want.middle).abs() < 1e-5 * want.middle.abs().max(1.0),
                    "{name}: middle {middle}"
                );
                for (a, b) in volume.affine[0].iter().zip(want.x) {
                    assert!((a - b).abs() < 1e-3, "{name}: {:?}", volume.affine);
                }
                assert_eq!(image::nifti::header(&folder.join(name)).unwrap(), header, "{name}");
            }
            (Err(e), Err(words)) => {
                let text = chain(&e);
                assert!(text.contains(words) && text.contains(name), "{name}: {text}");
            }
            (Ok(_), Err(words)) => panic!("{name} was read; expected a refusal with {words:?}"),
            (Err(e), Ok(_)) => panic!("{}", chain(&e)),
        }
    }
    let extended = image::nifti::header(&folder.join("reader_js/with_extension.nii.gz")).unwrap();
    assert_eq!(extended.extensions, 1);
}
