//! What kernels may expect of a device, primitive by primitive: kernels/conformance.cu and
//! conformance_sm90.cu write down every result of `ptx.cuh`, and here is what the manuals of PTX and CUDA say
//! it is, bit for bit.
use crate::machine::cuda::{self, Arg, Launch, Ptr, Stream};
use crate::machine::driver::{Boxed, Driver, Memory};
use half::{bf16, f16};
use std::rc::Rc;

/// One kernel and what it is to write. Its parameters are, as far as it has them, a tensor map, where its input and its
/// output are, and numbers.
struct Conformance {
    kernel: &'static str,
    blocks: usize,
    threads: usize,
    /// Bytes of dynamic shared memory.
    shared: usize,
    map: Option<Mapped>,
    /// What it reads; nothing for one that makes its inputs.
    input: Vec<u32>,
    numbers: Vec<i32>,
    expected: Vec<u32>,
}

/// What a map describes: all of the input or the output, which then is no parameter, as a matrix of 16-bit elements, and
/// boxes.
struct Mapped {
    output: bool,
    shape: Vec<usize>,
    of_box: [usize; 2],
}

/// What became of one kernel.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Conformed {
    /// Its name.
    pub kernel: &'static str,
    /// Words compared; 0 where the device has no such kernel, as it is older.
    pub words: usize,
    /// Words that differ.
    pub wrong: usize,
    /// Of the first of them: index, what was written, what is right.
    pub first: Option<(usize, u32, u32)>,
}

/// Runs all of them.
///
/// # Errors
/// What the driver says.
pub fn conformance(driver: &Rc<dyn Driver>) -> cuda::Result<Vec<Conformed>> {
    let mut stream = Stream::new(Rc::clone(driver), Vec::new(), Vec::new());
    let conformances = [
        made("conform_mma", 32, 0, mma()),
        made("conform_ldmatrix", 32, 32 * 16, ldmatrix()),
        cp_async(),
        made("conform_barrier", 64, 32 * 4, barrier()),
        made("conform_warp", 32, 0, warp()),
        made("conform_integer", 32, 32 * 4, integer()),
        float(),
        made("conform_mbarrier", 128, 2 * 8 + 32 * 4, mbarrier()),
        wgmma("conform_wgmma_n32", 32, false, false),
        wgmma("conform_wgmma_n64", 64, false, false),
        wgmma("conform_wgmma_n128", 128, false, false),
        wgmma("conform_wgmma_n256", 256, false, false),
        wgmma("conform_wgmma_n128_trans_b", 128, false, true),
        wgmma("conform_wgmma_n128_trans", 128, true, true),
        wgmma("conform_wgmma_n256_trans", 256, true, true),
        wgmma("conform_wgmma_n8_trans_a", 8, true, false),
        wgmma("conform_wgmma_from_registers", 64, false, true),
        made("conform_stmatrix", 128, 4 * 512, stmatrix()),
        tma_store(),
        multicast(),
    ];
    let run = |conformance: &Conformance, stream: &mut Stream| run(conformance, driver, stream);
    conformances.iter().map(|c| run(c, &mut stream)).collect()
}

fn run(conformance: &Conformance, driver: &Rc<dyn Driver>, stream: &mut Stream) -> cuda::Result<Conformed> {
    let Conformance { kernel, blocks, threads, shared, map, input, numbers, expected } = conformance;
    let bytes = 4 * expected.len();
    let out = Memory::new(driver, bytes)?;
    driver.fill(out.at(), 0xCD, bytes)?;
    let source = Memory::new(driver, 4 * input.len())?;
    if !input.is_empty() {
        driver.upload(source.at(), bytemuck::cast_slice(input))?;
    }
    let mut args = Vec::new();
    if let Some(Mapped { output, shape, of_box }) = map {
        if !driver.hopper() {
            return Ok(Conformed { kernel, words: 0, wrong: 0, first: None });
        }
        let at = if *output { out.at() } else { source.at() };
        let mapped = Boxed { at, shape: shape.clone(), of_box: *of_box };
        args.push(Arg::bytes(&driver.tensor_map(&mapped)?));
    }
    let mapped = |output| map.as_ref().is_some_and(|map| map.output == output);
    if !input.is_empty() && !mapped(false) {
        args.push(Arg::from(Ptr(source.at())));
    }
    if !mapped(true) {
        args.push(Ptr(out.at()).into());
    }
    args.extend(numbers.iter().map(|&n| Arg::Int(n)));
    let launch = Launch { kernel, grid: [*blocks, 1, 1], block: *threads, shared: *shared };
    // A new stream only compares arguments; from `begin` on it launches.
    for _ in 0..2 {
        match stream.launch(launch, &args) {
            Err(cuda::Error::NoKernel { .. } | cuda::Error::NoCodeFor { .. }) => {
                return Ok(Conformed { kernel, words: 0, wrong: 0, first: None });
            }
            other => other?,
        }
        stream.begin(Vec::new(), Ptr::NULL);
    }
    let mut written = vec![0_u32; expected.len()];
    driver.download(out.at(), bytemuck::cast_slice_mut(&mut written))?;
    let mut wrong = written.iter().zip(expected).enumerate().filter(|(_, (w, e))| w != e);
    let first = wrong.next().map(|(i, (&w, &e))| (i, w, e));
    let count = usize::from(first.is_some()) + wrong.count();
    Ok(Conformed { kernel, words: expected.len(), wrong: count, first })
}

/// A kernel that makes its own inputs.
fn made(kernel: &'static str, threads: usize, shared: usize, expected: Vec<u32>) -> Conformance {
    let (blocks, map, input, numbers) = (1, None, Vec::new(), Vec::new());
    Conformance { kernel, blocks, threads, shared, map, input, numbers, expected }
}

/// An integer from -8 to 7, as the kernels make them.
fn small(i: usize) -> f32 {
    let bits = (i as u32).wrapping_mul(2_654_435_761) >> 28;
    bits as f32 - 8.0
}

/// `rows` registers of `lanes` threads each, one register after the other.
fn registers(rows: usize, lanes: usize, register: impl Fn(usize, usize) -> u32) -> Vec<u32> {
    (0..rows * lanes).map(|i| register(i / lanes, i % lanes)).collect()
}

/// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": of fragment element i, where two
/// elements share a register, the row is lane / 4 plus 8 where said, and the column 2 (lane % 4) + i % 2 plus
/// 8 where said.
fn mma() -> Vec<u32> {
    let mut c = [[0.0_f32; 8]; 16];
    for lane in 0..32 {
        for i in 0..4 {
            c[lane / 4 + if i < 2 { 0 } else { 8 }][lane % 4 * 2 + i % 2] = small(1000 + i * 32 + lane);
        }
    }
    for step in 0..2 {
        let (mut a, mut b) = ([[0.0; 16]; 16], [[0.0; 8]; 16]);
        for lane in 0..32 {
            for i in 0..8 {
                let row = lane / 4 + if i < 2 || (4..6).contains(&i) { 0 } else { 8 };
                let column = lane % 4 * 2 + i % 2 + if i < 4 { 0 } else { 8 };
                a[row][column] = small(2 * (2000 + step * 500 + i / 2 * 32 + lane) + i % 2);
            }
            for i in 0..4 {
                let row = lane % 4 * 2 + i % 2 + if i < 2 { 0 } else { 8 };
                b[row][lane / 4] = small(2 * (3000 + step * 500 + i / 2 * 32 + lane) + i % 2);
            }
        }
        for (c, a) in c.iter_mut().zip(&a) {
            for (n, c) in c.iter_mut().enumerate() {
                *c += a.iter().zip(&b).map(|(a, b)| a * b[n]).sum::<f32>();
            }
        }
    }
    registers(4, 32, |i, lane| c[lane / 4 + if i < 2 { 0 } else { 8 }][lane % 4 * 2 + i % 2].to_bits())
}

/// Element (row, column) of matrix m is the eight times row plus column of the row that lane 8 m + row has
/// named.
fn ldmatrix() -> Vec<u32> {
    let element = |matrix: usize, row: usize, column: usize| {
        let named = (8 * matrix + row) * 11 % 32;
        (named * 8 + column) as u32
    };
    registers(12, 32, |register, lane| {
        let (matrix, transposed) = match register {
            0..4 => (register, false),
            4..8 => (register - 4, true),
            8..10 => (register - 8, false),
            _ => (register - 10, true),
        };
        let (row, column) = (lane / 4, lane % 4 * 2);
        let pair =
            |i| if transposed { element(matrix, column + i, row) } else { element(matrix, row, column + i) };
        pair(0) | pair(1) << 16
    })
}

/// The inverse: lane 3 p of 32 has named row p, which is row lane % 8 of matrix lane / 8, and its elements come from the
/// lanes that would get them.
fn stmatrix() -> Vec<u32> {
    registers(4 * 32, 4, |row, pair| {
        let (warp, lane) = (row / 32, row % 32 * 3 % 32);
        let holder = lane % 8 * 4 + pair;
        let low = (warp * 256 + 2 * (lane / 8 * 32 + holder)) as u32;
        low | (low + 1) << 16
    })
}

/// Boxes of 16 x 64 over the right and the lower edge of the second of two matrices; with 128-byte swizzle the chunk of
/// 16 bytes in column c of row r lies in column c ^ (r % 8).
fn tma_store() -> Conformance {
    let (shape @ [matrices, rows, columns], of_box, [z, y, x]) = ([2, 40, 72], [16, 64], [1, 3, 16]);
    let elements: Vec<u16> = (0..3 * 16 * 64).collect();
    let mut written = vec![0xCDCD_u16; matrices * rows * columns];
    for (i, element) in elements.iter().enumerate() {
        let (row, column) = (i / 64, ((i % 64 / 8) ^ (i / 64 % 8)) * 8 + i % 8);
        if y + row < rows && x + column < columns {
            written[((z * rows + y) + row) * columns + x + column] = *element;
        }
    }
    let bytes = 16 * 64 * 2;
    Conformance {
        map: Some(Mapped { output: true, shape: shape.to_vec(), of_box }),
        input: bytemuck::pod_collect_to_vec(&elements),
        numbers: [x, y, z, 16, bytes].map(|n| n as i32).to_vec(),
        ..made("conform_tma_store", 128, 2 * bytes, bytemuck::pod_collect_to_vec(&written))
    }
}

/// In each round each block has both halves of the tile, of 16 x 64 with 128-byte swizzle, which either has loaded.
fn multicast() -> Conformance {
    let (blocks, rounds, half) = (4, 3, 16 * 64);
    let elements: Vec<u16> = (0..(rounds * 2 * half) as u16).collect();
    let mut expected = Vec::new();
    for (block, round) in (0..blocks).flat_map(|block| (0..rounds).map(move |round| (block, round))) {
        let element =
            |i: usize| (round * 2 * half + i / 64 * 64 + ((i % 64 / 8) ^ (i / 64 % 8)) * 8 + i % 8) as u32;
        expected.extend((0..half).map(|pair| element(2 * pair) | element(2 * pair + 1) << 16));
        expected.push(block as u32 % 2);
    }
    Conformance {
        blocks,
        map: Some(Mapped { output: false, shape: vec![rounds * 2 * 16, 64], of_box: [16, 64] }),
        input: bytemuck::pod_collect_to_vec(&elements),
        ..made("conform_multicast", 128, 2 * half * 2 + 16, expected)
    }
}

/// The first bytes of each copy are the source's, the others zero.
fn cp_async() -> Conformance {
    let input: Vec<u32> = (0..224_u32).map(|i| i.wrapping_mul(0x9E37_79B9) | 0x0101_0101).collect();
    let mut bytes: Vec<u8> = bytemuck::cast_slice(&input).to_vec();
    let mut end = 0;
    for size in [16, 8, 4] {
        for lane in 0..32 {
            end += size;
            bytes[end - size + lane % (size + 1)..end].fill(0);
        }
    }
    let expected = bytes.as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
    Conformance { input, ..made("conform_cp_async", 32, 224 * 4, expected) }
}

fn barrier() -> Vec<u32> {
    registers(4, 32, |round, lane| (round * 100 + (lane ^ 1)) as u32)
}

fn mbarrier() -> Vec<u32> {
    registers(4, 96, |round, thread| (round * 100 + ((thread % 32) ^ 1)) as u32)
}

/// CUDA C++ Programming Guide, "Warp Shuffle Functions": a lane that reads outside its group gets its own
/// value, except that xor may reach into an earlier group.
fn warp() -> Vec<u32> {
    let number = |lane: usize| (lane * lane + 1) as u32;
    let ballot = |vote: &dyn Fn(usize) -> bool| (0..32).filter(|&l| vote(l)).map(|l| 1 << l).sum::<u32>();
    registers(13, 32, |result, lane| {
        let width = if result % 2 == 0 { 32 } else { 8 };
        let (begin, end) = (lane / width * width, lane / width * width + width);
        match result {
            0 | 1 => number(begin + lane * 7 % width),
            2 | 3 => number(if lane ^ 21 < end { lane ^ 21 } else { lane }),
            4 | 5 => number(if lane >= begin + 3 { lane - 3 } else { lane }),
            6 | 7 => number(if lane + 3 < end { lane + 3 } else { lane }),
            8 => ballot(&|l| number(l) % 3 == 1),
            9 => 1,
            10 => 0,
            11 if lane % 2 == 0 => number(lane ^ 2),
            12 if lane % 2 == 0 => ballot(&|l| l % 2 == 0 && l > 9),
            _ => 0,
        }
    })
}

fn integer() -> Vec<u32> {
    registers(12, 32, |result, lane| {
        let (a, b) = (0x9E37_79B9_u32.wrapping_mul(lane as u32 + 1), 0x85EB_CA6B_u32 >> lane);
        let (signed_a, signed_b) = (a.cast_signed(), b.cast_signed());
        let counted = if lane >= 20 { 0 } else { lane as u32 + 1 };
        let swapped = if counted == 7 { 70 } else { counted };
        match result {
            0 => ((u64::from(a) * u64::from(b)) >> 32) as u32,
            1 => ((i64::from(signed_a) * i64::from(signed_b)) >> 32) as u32,
            2 => a.count_ones(),
            3 => match b << lane {
                0 => 0,
                bits => bits.trailing_zeros() + 1,
            },
            4 => b.leading_zeros(),
            5 => a.min(b),
            6 => signed_a.max(signed_b).cast_unsigned(),
            7 => a,
            8 => a.wrapping_add(b),
            9 => lane as u32,
            10 => counted,
            _ => swapped,
        }
    })
}

/// Numbers of every kind, and random bits; no signalling NaN, of which a processor may make a quiet one.
fn float_bits() -> Vec<u32> {
    const QUIET: u32 = 0x0040_0000;
    let kinds = [
        0,
        0x8000_0000,
        1,
        0x8000_0001,
        0x007F_FFFF,
        0x0080_0000,
        0x3F80_0000,
        0x3F80_7FFF,
        0x3F80_8000,
        0x3F80_8001,
        0x3F81_8000,
        0x7F7F_FFFF,
        0x7F7F_7FFF,
        0x7F80_0000,
        0xFF80_0000,
        0x7FC0_0000,
        0x7FFF_FFFF,
        0x0000_7C00,
        0x0000_03FF,
        0x0000_FBFF,
    ];
    let random =
        (1..237_u32).map(|i| i.wrapping_mul(0x9E37_79B9) ^ i.wrapping_mul(0x85EB_CA6B).rotate_left(13));
    let quiet = |bits: u32| if f32::from_bits(bits).is_nan() { bits | QUIET } else { bits };
    kinds.into_iter().chain(random).map(quiet).collect()
}

fn float() -> Conformance {
    let input = float_bits();
    let n = input.len();
    let one_nan = |x: f32| if x.is_nan() { 0x7FFF_FFFF } else { x.to_bits() };
    let rounded = |x: f32| if x.is_nan() { 0x7FFF } else { u32::from(bf16::from_f32(x).to_bits()) };
    let expected = registers(9, n, |result, i| {
        let [x, y, z] = [0, 1, 2].map(|j| f32::from_bits(input[(i + j) % n]));
        let low = (input[i] & 0xFFFF) as u16;
        match result {
            0 => rounded(x),
            1 => rounded(x) | rounded(y) << 16,
            2 => one_nan(bf16::from_bits(low).to_f32()),
            3 => one_nan(f16::from_bits(low).to_f32()),
            4 => one_nan(x + y),
            5 => one_nan(x * y),
            6 => one_nan(x.mul_add(y, z)),
            7 => one_nan(x.sqrt()),
            _ => one_nan(x.max(y) + 0.0),
        }
    });
    Conformance { input, numbers: vec![n as i32], ..made("conform_float", 32, 0, expected) }
}

/// PTX ISA, "Register Fragments and Shared Memory Matrix Layouts" of wgmma; a transposed operand lies with
/// its other axis contiguous, in columns of 64.
fn wgmma(kernel: &'static str, n: usize, trans_a: bool, trans_b: bool) -> Conformance {
    let element = |tile: usize, row: usize, k: usize, trans: bool| {
        small(tile + if trans { row / 64 * 4096 + k * 64 + row % 64 } else { row * 64 + k })
    };
    let product = |row: usize, column: usize| -> f32 {
        let term = |k| element(0, row, k, trans_a) * element(4096, column, k, trans_b);
        (0..64).map(term).sum()
    };
    let expected = registers(n / 2, 128, |i, thread| {
        let (warp, lane) = (thread / 32, thread % 32);
        let row = warp * 16 + lane / 4 + if i % 4 < 2 { 0 } else { 8 };
        let column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        product(row, column).to_bits()
    });
    made(kernel, 128, (64 + n) * 64 * 2, expected)
}
