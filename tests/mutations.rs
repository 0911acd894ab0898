//! Damaged images by the million: none makes the reader panic, give back an impossible image, or set aside more
//! memory than a file of its size can hold. `GYRUS_MUTATIONS=10000000` asks for more than the usual few.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use flate2::{Compression, Crc, write::GzEncoder};
use gyrus::image::{nifti, orientation::to_ras};
use rayon::prelude::*;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::Write,
    panic::catch_unwind,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

/// Remembers the largest piece of memory that a thread asks for, and all it asks for.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    static TOTAL: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    LARGEST.set(LARGEST.get().max(size));
    TOTAL.set(TOTAL.get() + size);
}

// SAFETY: every call goes on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(p, layout, size) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// SplitMix64: fast, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

/// A header's fields: where each begins, its width in bytes, and how many there are in a row.
type Fields = &'static [(usize, usize, usize)];

/// nifti1.h: sizeof_hdr, dim, datatype, bitpix, pixdim, vox_offset, scl_slope, scl_inter, xyzt_units, qform_code,
/// sform_code, quaternion and offsets, srow, magic.
const FIELDS_1: Fields = &[
    (0, 4, 1),
    (40, 2, 8),
    (70, 2, 1),
    (72, 2, 1),
    (76, 4, 8),
    (108, 4, 1),
    (112, 4, 2),
    (123, 1, 1),
    (252, 2, 2),
    (256, 4, 6),
    (280, 4, 12),
    (344, 1, 4),
];
/// The same of nifti2.h.
const FIELDS_2: Fields = &[
    (0, 4, 1),
    (4, 1, 8),
    (12, 2, 1),
    (14, 2, 1),
    (16, 8, 8),
    (104, 8, 8),
    (168, 8, 1),
    (176, 8, 2),
    (344, 4, 2),
    (352, 8, 6),
    (400, 8, 12),
    (500, 4, 1),
];

/// An image that is read, and what is known of it for mutating.
struct Seed {
    bytes: Vec<u8>,
    fields: Fields,
    header: usize,
    big_endian: bool,
}

/// Valid images of 3 x 2 x 2 voxels: both versions and byte orders, all data types, each source of the affine, with and
/// without extensions.
fn seeds() -> Vec<Seed> {
    let types: [(i16, usize); 10] =
        [(2, 1), (4, 2), (8, 4), (16, 4), (64, 8), (256, 1), (512, 2), (768, 4), (1024, 8), (1280, 8)];
    let mut seeds = Vec::new();
    for (number, (code, size)) in types.into_iter().enumerate() {
        for big_endian in [false, true] {
            for version in [1, 2] {
                for extended in [false, true] {
                    seeds.push(seed(code, size, big_endian, version, extended, number % 3));
                }
            }
        }
    }
    seeds
}

fn seed(code: i16, size: usize, big_endian: bool, version: u8, extended: bool, affine: usize) -> Seed {
    let header = if version == 1 { 348 } else { 540 };
    let mut bytes = vec![0; header];
    let mut put = |at: usize, value: &[u8]| {
        let mut value = value.to_vec();
        if big_endian {
            value.reverse();
        }
        bytes[at..at + value.len()].copy_from_slice(&value);
    };
    let offset = header + 4 + if extended { 32 } else { 0 };
    let real =
        |v: f64| if version == 1 { (v as f32).to_le_bytes().to_vec() } else { v.to_le_bytes().to_vec() };
    let whole =
        |v: i64| if version == 1 { (v as i16).to_le_bytes().to_vec() } else { v.to_le_bytes().to_vec() };
    let form =
        |v: i32| if version == 1 { (v as i16).to_le_bytes().to_vec() } else { v.to_le_bytes().to_vec() };
    let (dim, pixdim, rows) = if version == 1 { (40, 76, 280) } else { (16, 104, 400) };
    let (wide, narrow) = if version == 1 { (4, 2) } else { (8, 8) };
    put(0, &(header as i32).to_le_bytes());
    for (i, n) in [3, 3, 2, 2, 1, 1, 1, 1].into_iter().enumerate() {
        put(dim + narrow * i, &whole(n));
        put(pixdim + wide * i, &real(1.0 + i as f64));
    }
    for i in 0..3 {
        put(rows + wide * (4 * i + i), &real(1.5));
    }
    let (forms, types) = if version == 1 { ([252, 254], [70, 72]) } else { ([344, 348], [12, 14]) };
    put(forms[0], &form(i32::from(affine == 1)));
    put(forms[1], &form(i32::from(affine == 2)));
    put(types[0], &code.to_le_bytes());
    put(types[1], &(8 * size as i16).to_le_bytes());
    let scaling = if version == 1 { 112 } else { 176 };
    put(scaling, &real(if size == 2 { 0.5 } else { 0.0 }));
    if version == 1 {
        put(108, &(offset as f32).to_le_bytes());
        bytes[344..348].copy_from_slice(b"n+1\0");
    } else {
        put(168, &(offset as i64).to_le_bytes());
        bytes[4..12].copy_from_slice(b"n+2\0\r\n\x1a\n");
    }
    bytes.extend([u8::from(extended), 0, 0, 0]);
    if extended {
        let head = [32_i32, 4].map(|v| if big_endian { v.to_be_bytes() } else { v.to_le_bytes() });
        bytes.extend(head.concat());
        bytes.extend([b'x'; 24]);
    }
    bytes.extend((0..12 * size).map(|i| (i * 7) as u8));
    Seed { bytes, fields: if version == 1 { FIELDS_1 } else { FIELDS_2 }, header, big_endian }
}

/// Numbers that are at the edge of something, in `width` bytes, least significant first.
fn edge(r: &mut Random, width: usize) -> Vec<u8> {
    let whole =
        [0, 1, -1, 2, 3, 7, 8, 16, 348, 352, 540, 544, 32_767, -32_768, 65_535, 1 << 31, (1 << 31) - 1];
    let wide = [i64::MAX, i64::MIN, 1 << 32, 1 << 53, 1 << 62];
    let real =
        [0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, f64::MAX, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 351.5];
    let bytes = match (r.below(4), width) {
        (0, _) => r.next().to_le_bytes(),
        (1, 4) => {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&(r.pick(&real) as f32).to_le_bytes());
            bytes
        }
        (1, 8) => r.pick(&real).to_le_bytes(),
        (2, 8) => r.pick(&wide).to_le_bytes(),
        _ => i64::from(r.pick(&whole.map(|v: i64| v as i32))).to_le_bytes(),
    };
    bytes[..width].to_vec()
}

/// `seed` with one to four things wrong: fields, extensions, single bits, its length.
fn mutated_header(seed: &Seed, r: &mut Random) -> Vec<u8> {
    let mut bytes = seed.bytes.clone();
    for _ in 0..1 + r.below(4) {
        match r.below(8) {
            0 => {
                let at = r.below(bytes.len());
                bytes[at] ^= 1 << r.below(8);
            }
            1 => {
                // The chain of extensions: its flag, a size, or more of them.
                let at = seed.header + r.pick(&[0, 4, 8]);
                let mut size = edge(r, 4);
                if seed.big_endian {
                    size.reverse();
                }
                if at + 4 <= bytes.len() {
                    bytes[at..at + 4].copy_from_slice(&size);
                }
            }
            2 => bytes.truncate(r.below(bytes.len()).max(1)),
            3 => bytes.extend(std::iter::repeat_n(r.next() as u8, r.below(64))),
            _ => {
                let (start, width, count) = r.pick(seed.fields);
                let at = start + width * r.below(count);
                let mut value = edge(r, width);
                if seed.big_endian {
                    value.reverse();
                }
                if at + width <= bytes.len() {
                    bytes[at..at + width].copy_from_slice(&value);
                }
            }
        }
    }
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut w = GzEncoder::new(Vec::new(), Compression::default());
    w.write_all(bytes).unwrap();
    w.finish().unwrap()
}

/// A gzip member around `bytes` without compressing them.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut member = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    let length = bytes.len() as u16;
    member.extend([length.to_le_bytes(), (!length).to_le_bytes()].concat());
    member.extend(bytes);
    let mut crc = Crc::new();
    crc.update(bytes);
    member.extend([crc.sum().to_le_bytes(), crc.amount().to_le_bytes()].concat());
    member
}

/// A gzip stream of an image, with the image or the stream damaged.
fn mutated_stream(seed: &Seed, packed: &[u8], r: &mut Random) -> Vec<u8> {
    let mut stream = match r.below(3) {
        0 => return stored(&mutated_header(seed, r)),
        1 => {
            // Cut into two members, of which either may be damaged.
            let at = r.below(seed.bytes.len());
            [stored(&seed.bytes[..at]), stored(&seed.bytes[at..])].concat()
        }
        _ => packed.to_vec(),
    };
    for _ in 0..r.below(4) {
        let length = stream.len();
        match r.below(6) {
            // The member's header: flags ask for names, comments and extra fields that are not there.
            0 => stream[2 + r.below(8)] = r.next() as u8,
            1 => stream[length - 1 - r.below(8)] ^= 1 << r.below(8),
            2 => stream.truncate(r.below(length).max(12)),
            3 => stream.extend(std::iter::repeat_n(r.pick(&[0, 0x1f, 0xff]), r.below(40))),
            _ => {
                let at = r.below(length);
                stream[at] = r.next() as u8;
            }
        }
    }
    stream
}

/// Reads `bytes`; whether that gave an image. Panics if the image is impossible or took too much memory.
fn read(bytes: &[u8]) -> bool {
    LARGEST.set(0);
    TOTAL.set(0);
    let outcome = nifti::from_bytes(bytes);
    let (largest, total) = (LARGEST.get(), TOTAL.get());
    // A byte in the file is at most 1032 decompressed, and a byte decompressed at most one voxel of four. What does not
    // depend on the file are pieces of 64 KiB and the decompressor's tables, for each member.
    let members = bytes.windows(2).filter(|w| *w == [0x1f, 0x8b]).count();
    let can_hold = bytes.len() * if members > 0 && bytes.starts_with(&[0x1f, 0x8b]) { 1032 } else { 1 };
    assert!(
        largest <= (128 << 10).max(4 * can_hold),
        "{largest} bytes at once for a file of {}",
        bytes.len()
    );
    let most = (256 << 10) + members * (128 << 10) + 8 * can_hold;
    assert!(total <= most, "{total} bytes for a file of {}", bytes.len());
    let Ok((header, volume)) = outcome else { return false };
    assert_eq!(volume.shape, header.shape);
    assert_eq!(volume.data.len(), volume.shape.iter().product::<usize>());
    assert!(volume.affine.iter().flatten().all(|x| x.is_finite()));
    assert!(header.spacing.iter().all(|&mm| mm > 0.0) && header.orientation.len() == 3);
    assert_eq!(to_ras(volume).data.len(), header.shape.iter().product::<usize>());
    true
}

#[test]
fn no_mutation_panics_or_takes_more_memory_than_its_file_can_hold() {
    let count = std::env::var("GYRUS_MUTATIONS").map_or(100_000, |n| n.parse().expect("a number"));
    let seeds = seeds();
    let packed: Vec<Vec<u8>> = seeds.iter().map(|seed| gzip(&seed.bytes)).collect();
    for (seed, packed) in seeds.iter().zip(&packed) {
        assert!(read(&seed.bytes) && read(packed) && read(&stored(&seed.bytes)));
    }
    let begun = Instant::now();
    let [images, refused] = [AtomicU64::new(0), AtomicU64::new(0)];
    // Seven in ten are plain files, the rest streams.
    let failed = (0..count).into_par_iter().find_any(|&case: &u64| {
        let mut r = Random(case);
        let i = r.below(seeds.len());
        let plain = r.below(10) < 7;
        let bytes = match plain {
            true => mutated_header(&seeds[i], &mut r),
            false => mutated_stream(&seeds[i], &packed[i], &mut r),
        };
        match catch_unwind(|| read(&bytes)) {
            Ok(true) => images.fetch_add(1, Relaxed),
            Ok(false) => refused.fetch_add(1, Relaxed),
            Err(_) => {
                eprintln!("case {case}: {bytes:?}");
                return true;
            }
        };
        false
    });
    assert_eq!(failed, None, "a case that fails, printed above");
    let seconds = begun.elapsed().as_secs_f64();
    println!("{count} mutations in {seconds:.1} s: {images:?} still images, {refused:?} refused");
}
