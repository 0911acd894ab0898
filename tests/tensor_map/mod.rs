//! Tensor maps for kernels on the emulator, as cuTensorMapEncodeTiled makes them for a GPU.
use std::ffi::c_void;

unsafe extern "C" {
    fn emu_tensor_map(
        map: *mut TensorMap,
        element_bytes: u32,
        rank: u32,
        tensor: *const c_void,
        extent: *const u64,
        stride: *const u64,
        of_box: *const u32,
        swizzle_128b: u32,
    ) -> i32;
}

/// A map of a tensor of numbers of 16 bits.
#[repr(C, align(128))]
pub(crate) struct TensorMap([u8; 128]);

impl TensorMap {
    /// Of the first `rank` axes of a tensor [z][y][x] of this extent, in rows of `row` numbers, and of boxes cut from
    /// it; extents are given x first.
    pub(crate) fn new(
        tensor: &[u128],
        rank: u32,
        extent: [usize; 3],
        row: usize,
        of_box: [usize; 3],
        swizzled: bool,
    ) -> Self {
        let mut map = TensorMap([0; 128]);
        let stride = [2 * row as u64, 2 * (row * extent[1]) as u64];
        let (extent, of_box) = (extent.map(|n| n as u64), of_box.map(|n| n as u32));
        let (extent, stride, of_box) = (extent.as_ptr(), stride.as_ptr(), of_box.as_ptr());
        let (at, swizzled) = (tensor.as_ptr().cast(), u32::from(swizzled));
        // SAFETY: the arrays are as long as any rank, and the map has room for one.
        let refused = unsafe { emu_tensor_map(&mut map, 2, rank, at, extent, stride, of_box, swizzled) };
        assert_eq!(refused, 0);
        map
    }
}
