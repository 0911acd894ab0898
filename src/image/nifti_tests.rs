//! Streams made byte by byte: what is odd is read right, what is wrong is refused, and nothing panics.
use super::*;
use crate::image::AffineSource;
use std::{fs, io::Write as _};

/// A NIfTI-1 single file of 3 x 2 x 2 voxels counting from 0, in `i16`.
fn image() -> Vec<u8> {
    let mut b = vec![0; 352];
    put(&mut b, 0, 348_i32.to_le_bytes());
    for (i, d) in [3_i16, 3, 2, 2, 1, 1, 1, 1].into_iter().enumerate() {
        put(&mut b, 40 + 2 * i, d.to_le_bytes());
    }
    put(&mut b, 70, 4_i16.to_le_bytes());
    put(&mut b, 72, 16_i16.to_le_bytes());
    for (i, p) in [1.0_f32, 2.0, 3.0, 4.0].into_iter().enumerate() {
        put(&mut b, 76 + 4 * i, p.to_le_bytes());
    }
    put(&mut b, 108, 352_f32.to_le_bytes());
    put(&mut b, 344, *b"n+1\0");
    b.extend((0..12_i16).flat_map(i16::to_le_bytes));
    b
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, field: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&field);
}

/// What [`read`] does to a single file, on bytes in memory.
fn parse(bytes: &[u8]) -> Result<(Header, Vec<f32>), Fault> {
    let mut source = Source { bytes, limit: bytes.len() as u128 };
    let header = read_header(&mut source.bytes)?;
    if header.pair {
        return Err(lonely());
    }
    one_frame(&header)?;
    let data = read_voxels(source, &header, header.offset, &[1.0])?;
    Ok((header, data))
}

fn refusal(bytes: &[u8]) -> String {
    parse(bytes).expect_err("a refusal").to_string()
}

fn counting() -> Vec<f32> {
    (0..12).map(|i| i as f32).collect()
}

/// The same image with another data type, in either byte order.
fn stored<const N: usize>(code: i16, big_endian: bool, stored: impl Fn(i8) -> [u8; N]) -> Vec<u8> {
    let mut b = image();
    put(&mut b, 70, code.to_le_bytes());
    put(&mut b, 72, (8 * N as i16).to_le_bytes());
    b.truncate(352);
    let order = |mut field: [u8; N]| {
        if big_endian {
            field.reverse();
        }
        field
    };
    if big_endian {
        let fields = [(0, 4, 1), (40, 2, 8), (70, 2, 2), (76, 4, 8), (108, 4, 3), (252, 2, 2), (256, 4, 18)];
        for (at, size, count) in fields {
            b[at..at + size * count].chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
    }
    b.extend((0..12).flat_map(|i| order(stored(i))));
    b
}

#[test]
fn every_data_type_reads_the_same_in_both_byte_orders() {
    for big in [false, true] {
        let files = [
            stored(2, big, |i| (i as u8).to_le_bytes()),
            stored(256, big, i8::to_le_bytes),
            stored(512, big, |i| (i as u16).to_le_bytes()),
            stored(4, big, |i| i16::from(i).to_le_bytes()),
            stored(768, big, |i| (i as u32).to_le_bytes()),
            stored(8, big, |i| i32::from(i).to_le_bytes()),
            stored(1280, big, |i| (i as u64).to_le_bytes()),
            stored(1024, big, |i| i64::from(i).to_le_bytes()),
            stored(16, big, |i| f32::from(i).to_le_bytes()),
            stored(64, big, |i| f64::from(i).to_le_bytes()),
        ];
        for file in files {
            let (header, data) = parse(&file).unwrap();
            assert_eq!((data, header.big_endian), (counting(), big), "{}", header.datatype);
            assert_eq!(header.spacing, [2.0, 3.0, 4.0]);
        }
    }
}

#[test]
fn scaling_is_applied_or_refused() {
    let scaled = |slope: f32, inter: f32| {
        let mut b = image();
        put(&mut b, 112, slope.to_le_bytes());
        put(&mut b, 116, inter.to_le_bytes());
        parse(&b)
    };
    assert_eq!(scaled(0.5, -3.0).unwrap().1[4], -1.0);
    for slope in [0.0, f32::NAN, f32::INFINITY] {
        assert_eq!(scaled(slope, 7.0).unwrap().1, counting());
    }
    assert!(scaled(2.0, f32::NAN).unwrap_err().to_string().contains("scl_inter"));
}

#[test]
fn voxels_begin_where_vox_offset_says() {
    let mut b = image();
    put(&mut b, 108, 384_f32.to_le_bytes());
    let extension = [[1, 0, 0, 0].as_slice(), &16_i32.to_le_bytes(), &[6; 12], &[0; 16]].concat();
    b.splice(348..352, extension);
    let (header, data) = parse(&b).unwrap();
    assert_eq!((data, header.extensions), (counting(), 1));
    put(&mut b, 348, [0]);
    assert_eq!(parse(&b).unwrap().0.extensions, 0);
    let mut at_zero = image();
    put(&mut at_zero, 108, 0_f32.to_le_bytes());
    assert_eq!(parse(&at_zero).unwrap().1, counting(), "0 means right behind the header");
}

#[test]
fn qform_comes_after_sform_and_before_pixdim() {
    let mut b = image();
    assert_eq!(parse(&b).unwrap().0.affine[0], [-2.0, 0.0, 0.0, 2.0], "centred, x to the left");
    put(&mut b, 252, 1_i16.to_le_bytes());
    put(&mut b, 76, 0_f32.to_le_bytes());
    put(&mut b, 264, 1.00006_f32.to_le_bytes());
    let header = parse(&b).unwrap().0;
    assert_eq!(header.affine_source, AffineSource::Qform);
    assert_eq!(header.orientation, "LPS", "a half turn about z, renormalised; pixdim[0] = 0 is +1");
    put(&mut b, 76, (-1_f32).to_le_bytes());
    assert_eq!(parse(&b).unwrap().0.orientation, "LPI");
    put(&mut b, 254, 2_i16.to_le_bytes());
    assert!(refusal(&b).contains("sform is singular"));
    put(&mut b, 280, 1_f32.to_le_bytes());
    put(&mut b, 300, 1_f32.to_le_bytes());
    put(&mut b, 320, f32::NAN.to_le_bytes());
    assert!(refusal(&b).contains("not finite"));
    put(&mut b, 320, 1_f32.to_le_bytes());
    let header = parse(&b).unwrap().0;
    assert_eq!((header.affine_source, header.orientation.as_str()), (AffineSource::Sform, "RAS"));
}

#[test]
fn wrong_headers_are_refused_with_the_reason() {
    let with = |at: usize, value: i16| {
        let mut b = image();
        put(&mut b, at, value.to_le_bytes());
        refusal(&b)
    };
    for (at, value, words) in [
        (0, 7, "does not begin"),
        (40, 0, "dim[0]"),
        (40, 8, "dim[0]"),
        (42, 0, "at least one voxel"),
        (44, -2, "at least one voxel"),
        (46, 9, "voxels take"),
        (70, 1792, "complex128"),
        (70, 1536, "float128"),
        (70, 2304, "RGBA"),
        (72, 8, "bitpix"),
        (344, 0x696e, "pair"),
        (344, 0x7777, "does not begin"),
    ] {
        assert!(with(at, value).contains(words), "{at} {value}: {}", with(at, value));
    }
    let mut series = image();
    put(&mut series, 40, 4_i16.to_le_bytes());
    assert_eq!(parse(&series).unwrap().1, counting(), "4-D with one frame is an image");
    put(&mut series, 48, 2_i16.to_le_bytes());
    assert!(refusal(&series).contains("[3, 2, 2, 2]"));
    put(&mut series, 40, 5_i16.to_le_bytes());
    put(&mut series, 50, 2_i16.to_le_bytes());
    assert!(refusal(&series).contains("[3, 2, 2, 2, 2]"));
    let mut analyze = image();
    put(&mut analyze, 344, [0; 4]);
    assert!(refusal(&analyze).contains("ANALYZE"));
    for offset in [-5.0, f32::NAN, 1e30, 100.0, 352.5] {
        let mut b = image();
        put(&mut b, 108, f32::to_le_bytes(offset));
        assert!(refusal(&b).contains("vox_offset"), "{offset}");
    }
}

#[test]
fn frames_are_averaged_by_their_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dynamic.nii");
    let mut series = image();
    put(&mut series, 40, 4_i16.to_le_bytes());
    put(&mut series, 48, 3_i16.to_le_bytes());
    // Voxel i of frame f is i + 12 f.
    series.extend((12..36_i16).flat_map(i16::to_le_bytes));
    fs::write(&path, &series).unwrap();
    let (header, volume) = read_mean(&path, |h| Ok(vec![1.0, 1.0, 2.0][..h.frames].to_vec())).unwrap();
    assert_eq!((header.frames, header.shape), (3, [3, 2, 2]));
    assert_eq!(volume.data, counting().iter().map(|v| v + 15.0).collect::<Vec<_>>());
    let text = crate::error::chain(&super::read(&path).unwrap_err());
    assert!(text.contains("[3, 2, 2, 3]"), "{text}");
    fs::write(&path, &series[..series.len() - 2]).unwrap();
    let cut = crate::error::chain(&read_mean(&path, |h| Ok(vec![1.0; h.frames])).unwrap_err());
    assert!(cut.contains("ends early"), "{cut}");
}

#[test]
fn cut_files_are_refused_at_every_length() {
    let whole = image();
    for n in 0..whole.len() {
        assert!(parse(&whole[..n]).is_err(), "{n} bytes");
    }
}

#[test]
fn gzip_is_told_by_content_and_checked_to_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("named-plain.nii");
    let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    w.write_all(&image()).unwrap();
    // More than one read buffer behind the voxels, so that the checksum is only met by reading on.
    w.write_all(&vec![1; 3 << 20]).unwrap();
    let mut bytes = w.finish().unwrap();
    bytes.extend([0; 64]);
    fs::write(&path, &bytes).unwrap();
    let (header, volume) = super::read(&path).unwrap();
    assert_eq!((volume.data, header.gzip), (counting(), true));
    let checksum = bytes.len() - 64 - 8;
    bytes[checksum] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let text = crate::error::chain(&super::read(&path).unwrap_err());
    assert!(text.contains("named-plain.nii") && text.contains("decompressed"), "{text}");
    let missing = super::read(&folder.path().join("none.nii")).unwrap_err().to_string();
    assert!(missing.contains("none.nii"), "{missing}");
}

#[test]
fn a_pair_is_found_from_either_half() {
    let folder = tempfile::tempdir().unwrap();
    let [hdr, img] = ["a.hdr", "a.img"].map(|name| folder.path().join(name));
    let mut b = image();
    put(&mut b, 344, *b"ni1\0");
    put(&mut b, 108, 0_f32.to_le_bytes());
    fs::write(&hdr, &b[..348]).unwrap();
    let text = crate::error::chain(&super::read(&hdr).unwrap_err());
    assert!(text.contains(".img"), "{text}");
    fs::write(&img, &b[352..]).unwrap();
    for path in [&hdr, &img] {
        let (header, volume) = super::read(path).unwrap();
        assert_eq!((volume.data, header.pair), (counting(), true));
    }
}

/// Damaged headers and streams: an error or an image, never a panic or a large allocation.
#[test]
fn no_mutation_panics() {
    use crate::machine::philox::{Philox, Purpose};
    let single = image();
    let mut two = vec![0; 544];
    put(&mut two, 0, 540_i32.to_le_bytes());
    put(&mut two, 4, *b"n+2\0\r\n\x1a\n");
    put(&mut two, 12, 4_i16.to_le_bytes());
    put(&mut two, 14, 16_i16.to_le_bytes());
    for (i, d) in [3_i64, 3, 2, 2, 1, 1, 1, 1].into_iter().enumerate() {
        put(&mut two, 16 + 8 * i, d.to_le_bytes());
        put(&mut two, 104 + 8 * i, 1_f64.to_le_bytes());
    }
    put(&mut two, 168, 544_i64.to_le_bytes());
    two.extend((0..12_i16).flat_map(i16::to_le_bytes));
    assert_eq!(parse(&two).unwrap().1, counting());
    let mut r = Philox::new(1, Purpose::Test, 0, 0);
    let mut read = 0;
    for round in 0..400_000 {
        let mut bytes = if round % 2 == 0 { single.clone() } else { two.clone() };
        for _ in 0..=r.below(5) {
            let at = r.below(bytes.len());
            bytes[at] = r.word() as u8;
        }
        if r.below(10) == 0 {
            bytes.truncate(r.below(bytes.len()));
        }
        read += usize::from(parse(&bytes).is_ok());
    }
    assert!(read > 10_000, "most single-byte changes leave an image: {read}");
}
