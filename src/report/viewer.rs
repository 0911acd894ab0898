//! The viewer of volumes in a page: several side by side under one crosshair.
//!
//! Volumes stand in the page as gzipped NIfTI of bytes, black to white as in the pictures of [`montage`]; 0 is kept for
//! what was hidden from a model. Such a page brings NiiVue along, which unpacks itself when the viewer comes into sight.
use super::{
    html::{details, escape},
    montage::{self, Sample},
};
use crate::study::trial::results::Example;
use flate2::{Compression, write::GzEncoder};
use std::{fmt::Write as _, io::Write as _};

/// NiiVue, and how it was made: page/niivue/bundle.mjs.
const NIIVUE: &[u8] = include_bytes!("page/niivue/niivue.min.js.gz");
const LICENCES: &str = include_str!("page/niivue/LICENCES.txt");
const SCRIPT: &str = include_str!("page/viewer.js");
/// How a viewer begins; pages with this bring the script.
pub(super) const FIGURE: &str = "<figure class=\"viewer\"";

/// The columns of a viewer of reconstructions.
pub const COLUMNS: [&str; 3] = ["Original", "What the model saw", "Reconstruction"];

/// The viewer of `examples`; nothing without one. `caption` is plain text.
pub fn figure(examples: &[&Example], caption: &str) -> String {
    if examples.is_empty() {
        return String::new();
    }
    let (mut options, mut panes, mut volumes, mut slices) =
        (String::new(), String::new(), String::new(), String::new());
    for column in COLUMNS {
        let _ = writeln!(
            panes,
            "<div class=\"pane\"><h3>{column}</h3><div class=\"stage\"><canvas tabindex=\"0\" role=\"img\" \
             aria-label=\"{column}: slices; arrow keys and page keys move the crosshair\"></canvas></div></div>"
        );
    }
    for (i, example) in examples.iter().enumerate() {
        let name = escape(&example.label);
        let _ = writeln!(options, "<option value=\"{i}\">{name}</option>");
        let Example { original, masked, reconstruction, .. } = example;
        let window = montage::window(original);
        for (column, volume) in [original, masked, reconstruction].into_iter().enumerate() {
            let packed = base64(&nifti(volume, window, example.grid, example.spacing));
            let _ = writeln!(
                volumes,
                "<script type=\"application/gzip\" data-scan=\"{i}\" data-column=\"{column}\">{packed}</script>"
            );
        }
        let sample = Sample { original, masked, reconstruction };
        let picture = base64(&montage::png(&montage::draw(&[sample], example.grid, 1)));
        let _ = writeln!(
            slices,
            "<figure data-scan=\"{i}\"><img alt=\"Slices of {name}: original, what the model saw, reconstruction and \
             difference\" src=\"data:image/png;base64,{picture}\"><figcaption>{name}</figcaption></figure>"
        );
    }
    let caption = escape(caption);
    format!(
        "{FIGURE}>\n<div class=\"controls\"><label>Scan <select class=\"scan\">\n{options}</select></label> \
         <label>Planes <select class=\"plane\"><option value=\"3\">all</option><option value=\"0\">axial</option>\
         <option value=\"1\">coronal</option><option value=\"2\">sagittal</option></select></label> \
         <output aria-live=\"off\"></output></div>\n<div class=\"panes\">\n{panes}</div>\n<p class=\"hint moving\">Click, \
         tap or drag to move the crosshair; arrow keys and page keys move it by a voxel; the wheel turns slices once a \
         picture was clicked.</p>\n<p class=\"hint unable\" role=\"status\"></p>\n<div class=\"slices\">\n{slices}</div>\n\
         <noscript><p class=\"hint\">The viewer needs JavaScript.</p></noscript>\n<figcaption>{caption}</figcaption>\n\
         {volumes}</figure>\n"
    )
}

/// What a page with a viewer needs at its end.
pub(super) fn script() -> String {
    let niivue = base64(NIIVUE);
    format!(
        "<script type=\"application/gzip\" id=\"niivue\">{niivue}</script>\n<script>\n{SCRIPT}</script>\n"
    )
}

/// What its licences ask for.
pub(super) fn licences() -> String {
    let body = format!("<pre>{}</pre>\n", escape(LICENCES));
    details("The viewer is NiiVue; its licences", &body).replace("<details>", "<details class=\"licences\">")
}

/// A gzipped NIfTI-1 file of bytes around the origin: 0 is hidden, 1 to 255 black to white.
fn nifti(volume: &[f32], [low, high]: [f32; 2], grid: [usize; 3], spacing: f64) -> Vec<u8> {
    let [nx, ny, nz] = grid;
    let mut file = vec![0_u8; 352];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &348_i32.to_le_bytes());
    for (i, n) in [3, nx, ny, nz, 1, 1, 1, 1].into_iter().enumerate() {
        let n = i16::try_from(n).expect("a prepared grid has at most 1024 voxels an axis");
        put(40 + 2 * i, &n.to_le_bytes());
    }
    // 2: unsigned bytes, of eight bits.
    put(70, &2_i16.to_le_bytes());
    put(72, &8_i16.to_le_bytes());
    let mm = spacing as f32;
    for i in 0..4 {
        put(76 + 4 * i, &(if i == 0 { 1.0 } else { mm }).to_le_bytes());
    }
    put(108, &352_f32.to_le_bytes());
    put(112, &1_f32.to_le_bytes());
    put(124, &255_f32.to_le_bytes());
    // Millimetres, in a space of its own (sform code 2).
    put(123, &[2]);
    put(254, &2_i16.to_le_bytes());
    for (row, n) in grid.into_iter().enumerate() {
        put(280 + 16 * row + 4 * row, &mm.to_le_bytes());
        put(280 + 16 * row + 12, &(-0.5 * mm * (n - 1) as f32).to_le_bytes());
    }
    put(344, b"n+1\0");
    let grey =
        |v: f32| if v.is_nan() { 0 } else { 1 + ((v - low) / (high - low) * 254.0).clamp(0.0, 254.0) as u8 };
    // NIfTI's first axis is the fastest.
    for (z, y) in (0..nz).flat_map(|z| (0..ny).map(move |y| (z, y))) {
        file.extend((0..nx).map(|x| grey(volume[(x * ny + y) * nz + z])));
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&file).and_then(|()| gzip.finish()).expect("memory takes all bytes")
}

/// As RFC 4648 has it, with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or_default());
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= three.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_packed_volume_is_a_nifti_with_its_voxels_in_place() {
        let grid = [4, 3, 2];
        let mut volume: Vec<f32> = (0..24).map(|i| i as f32).collect();
        volume[5] = f32::NAN; // x 0, y 2, z 1
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.nii.gz");
        std::fs::write(&path, nifti(&volume, [0.0, 23.0], grid, 2.0)).unwrap();
        let (header, read) = crate::image::read(&path).unwrap();
        let _ = header;
        assert_eq!(read.shape, grid);
        assert_eq!(read.spacing(), [2.0; 3]);
        assert_eq!(read.affine[0][3], -3.0);
        let at = |x: usize, y: usize, z: usize| read.data[x + 4 * (y + 3 * z)];
        assert_eq!([at(0, 0, 0), at(3, 2, 1), at(0, 2, 1)], [1.0, 255.0, 0.0]);
        assert_eq!(at(1, 0, 0), 1.0 + (6.0_f32 / 23.0 * 254.0).floor());
    }

    #[test]
    fn a_viewer_holds_three_volumes_a_scan_and_escapes_names() {
        let volume = vec![0.5; 8 * 8 * 8];
        let example = Example {
            label: "sub-1 <x>".into(),
            original: volume.clone(),
            masked: volume.clone(),
            reconstruction: volume,
            grid: [8; 3],
            spacing: 2.0,
        };
        let html = figure(&[&example, &example], "A & B");
        assert_eq!(html.matches("data-column=").count(), 6);
        assert!(html.contains("sub-1 &lt;x&gt;") && !html.contains("<x>") && html.contains("A &amp; B"));
        assert_eq!(figure(&[], ""), "");
    }
}
