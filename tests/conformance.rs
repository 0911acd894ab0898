//! The emulator does what the manuals of PTX and CUDA say: primitive by primitive, under several schedules.
#![cfg(feature = "emulator")]
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::cases::conformance;
use gyrus::machine::driver::Extent;
use gyrus::machine::{Driver, Emulator, cuda};
use std::ffi::c_void;
use std::rc::Rc;

mod schedules;
mod tensor_map;

use schedules::SCHEDULES;
use tensor_map::TensorMap;

#[test]
fn primitives_do_what_the_manuals_say() {
    for schedule in SCHEDULES {
        let driver: Rc<dyn Driver> = Rc::new(Emulator::new(schedule));
        for conformed in conformance(&driver).unwrap() {
            assert!(conformed.words > 0 && conformed.wrong == 0, "{schedule:?}: {conformed:?}");
        }
    }
}

/// A tensor [z][y][x] in rows that are longer than its extent, and how a box is cut from it.
struct Boxed {
    extent: [usize; 3],
    row: usize,
    r#box: [usize; 3],
    at: [i32; 3],
    swizzled: bool,
}

impl Boxed {
    /// The tensor's memory, aligned: each element is its own index, padding is 0xFFFF.
    fn tensor(&self) -> Vec<u128> {
        let [x, y, z] = self.extent;
        let element = |i: usize| if i % self.row < x { i as u16 } else { 0xFFFF };
        let elements: Vec<u16> = (0..self.row * y * z).map(element).collect();
        let words = elements.chunks(8).map(|c| c.iter().rev().fold(0_u128, |w, &e| w << 16 | u128::from(e)));
        words.collect()
    }

    /// What is in shared memory after the load. With swizzle, the chunk of 16 bytes in column c of a row r of
    /// 128 bytes lies in column c ^ (r % 8).
    fn expected(&self) -> Vec<u16> {
        let [bx, by, bz] = self.r#box;
        let mut shared = vec![0; bx * by * bz];
        for i in 0..shared.len() {
            let [x, y, z] = [i % bx, i / bx % by, i / bx / by];
            let at = [x, y, z].map(|n| n as i64);
            let at: [i64; 3] = std::array::from_fn(|axis| at[axis] + i64::from(self.at[axis]));
            let inside = (0..3).all(|axis| (0..self.extent[axis] as i64).contains(&at[axis]));
            let index = (at[2] * self.extent[1] as i64 + at[1]) * self.row as i64 + at[0];
            let place =
                if self.swizzled { i / 64 * 64 + ((i % 64 / 8) ^ (i / 64 % 8)) * 8 + i % 8 } else { i };
            shared[place] = if inside { index as u16 } else { 0 };
        }
        shared
    }

    fn load(&self, emulator: &Emulator, rank: usize) -> cuda::Result<Vec<u16>> {
        let tensor = self.tensor();
        let mut map = TensorMap::new(&tensor, rank as u32, self.extent, self.row, self.r#box, self.swizzled);
        let elements: usize = self.r#box.iter().product();
        let mut out = vec![0xCDCD_u16; elements];
        let (mut out_at, mut bytes, mut at) = (out.as_mut_ptr(), 2 * elements as i32, self.at);
        let mut args: Vec<*mut c_void> = vec![(&raw mut map).cast()];
        args.extend(at[..rank].iter_mut().map(|c| std::ptr::from_mut(c).cast::<c_void>()));
        args.extend([(&raw mut bytes).cast::<c_void>(), (&raw mut out_at).cast()]);
        let kernel = emulator.kernel(if rank == 2 { "conform_tma_2d" } else { "conform_tma_3d" })?;
        let extent = Extent { grid: [1, 1, 1], block: 128, shared: bytes as u32 + 8 };
        // SAFETY: the arguments are those of the kernel, and `out` has room for the box.
        unsafe { emulator.launch(&kernel, extent, &mut args)? };
        Ok(out)
    }

    /// Writes three boxes.
    fn store(&self, emulator: &Emulator, tensor: &mut [u128], boxes: &[u16]) -> cuda::Result<()> {
        let mut map = TensorMap::new(tensor, 3, self.extent, self.row, self.r#box, self.swizzled);
        let [mut x, mut y, mut z] = self.at;
        let (mut rows, mut boxes_at) = (self.r#box[1] as i32, boxes.as_ptr());
        let mut bytes = 2 * boxes.len() as i32 / 3;
        let mut args: [*mut c_void; 7] = [
            (&raw mut map).cast(),
            (&raw mut boxes_at).cast(),
            (&raw mut x).cast(),
            (&raw mut y).cast(),
            (&raw mut z).cast(),
            (&raw mut rows).cast(),
            (&raw mut bytes).cast(),
        ];
        let kernel = emulator.kernel("conform_tma_store")?;
        let extent = Extent { grid: [1, 1, 1], block: 128, shared: 2 * bytes as u32 };
        // SAFETY: the arguments are those of the kernel, which writes no more than the tensor.
        unsafe { emulator.launch(&kernel, extent, &mut args) }
    }
}

/// Three boxes that follow each other downwards, inside and over each edge: nothing else is written.
#[test]
fn boxes_are_stored_within_the_tensor() {
    const X: usize = 75;
    const Y: usize = 60;
    const ROW: usize = 80;
    for schedule in SCHEDULES {
        let emulator = Emulator::new(schedule);
        for at in [[0, 0], [8, 3], [30, 20], [-5, -3], [100, 0], [11, -40]] {
            for swizzled in [false, true] {
                let boxed = Boxed {
                    extent: [X, Y, 2],
                    row: ROW,
                    r#box: [64, 16, 1],
                    at: [at[0], at[1], 1],
                    swizzled,
                };
                let mut tensor = vec![0_u128; 2 * ROW * Y / 8];
                let boxes: Vec<u16> = (1..=3 * 64 * 16).collect();
                let mut expected = vec![0_u16; 2 * ROW * Y];
                for (i, &element) in boxes.iter().enumerate() {
                    let place = i / 64 * 64 + if swizzled { (i % 64) ^ ((i / 64 % 8) * 8) } else { i % 64 };
                    let (x, y) = (at[0] as i64 + (place % 64) as i64, at[1] as i64 + (place / 64) as i64);
                    if (0..X as i64).contains(&x) && (0..Y as i64).contains(&y) {
                        expected[(Y + y as usize) * ROW + x as usize] = element;
                    }
                }
                boxed.store(&emulator, &mut tensor, &boxes).unwrap();
                assert_eq!(bytemuck::cast_slice::<_, u16>(&tensor), expected, "{at:?} {swizzled}");
            }
        }
    }
}

/// Boxes inside, over each edge, and quite outside; rows longer than the tensor's.
#[test]
fn boxes_arrive_with_zeros_round_the_tensor() {
    let boxed = |at, swizzled| Boxed { extent: [75, 20, 3], row: 80, r#box: [64, 16, 2], at, swizzled };
    for schedule in SCHEDULES {
        let emulator = Emulator::new(schedule);
        for at in [[0, 0, 0], [8, 3, 1], [30, 10, 2], [-5, -3, -1], [100, 0, 0], [11, 4, -7]] {
            for swizzled in [false, true] {
                let boxed = boxed(at, swizzled);
                assert_eq!(boxed.load(&emulator, 3).unwrap(), boxed.expected(), "{at:?} {swizzled}");
                let flat = Boxed { extent: [75, 20, 1], r#box: [64, 16, 1], at: [at[0], at[1], 0], ..boxed };
                assert_eq!(flat.load(&emulator, 2).unwrap(), flat.expected(), "{at:?} {swizzled}");
            }
        }
    }
}
