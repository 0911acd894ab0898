//! Matrix products, `c = a b` or `c += a b`, by the `gemm` crate on views of slices.
use super::{Real, scratch};
use rayon::prelude::*;
use std::{any::TypeId, marker::PhantomData};

/// A matrix laid over a slice: element (i, j) is `data[i * strides[0] + j * strides[1]]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, F> {
    data: &'a [F],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a, F> Mat<'a, F> {
    /// `shape[0]` rows that follow one another in `data`.
    #[track_caller]
    pub fn rows(data: &'a [F], shape: [usize; 2]) -> Self {
        Self::strided(data, shape, shape[1])
    }
    /// Rows that start `row_stride` elements apart.
    #[track_caller]
    pub fn strided(data: &'a [F], shape: [usize; 2], row_stride: usize) -> Self {
        assert!(
            extent(shape, [row_stride, 1]) <= data.len(),
            "a {shape:?} matrix with row stride {row_stride} does not fit in {} elements",
            data.len()
        );
        Mat { data, shape, strides: [row_stride, 1] }
    }
    /// Rows `from` to `to`.
    #[track_caller]
    pub fn sub_rows(self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.shape[0]);
        let data = &self.data[(from * self.strides[0]).min(self.data.len())..];
        Mat { data, shape: [to - from, self.shape[1]], strides: self.strides }
    }
    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }
    /// Row `i` of a matrix that is not transposed.
    #[track_caller]
    pub fn row(self, i: usize) -> &'a [F] {
        assert!(i < self.shape[0] && self.strides[1] == 1);
        &self.data[i * self.strides[0]..][..self.shape[1]]
    }
    /// The transpose, as a view.
    pub fn t(self) -> Self {
        let ([m, n], [r, c]) = (self.shape, self.strides);
        Mat { data: self.data, shape: [n, m], strides: [c, r] }
    }
}

/// How many elements of a slice a view reaches over.
fn extent(shape: [usize; 2], strides: [usize; 2]) -> usize {
    if shape.contains(&0) { 0 } else { (shape[0] - 1) * strides[0] + (shape[1] - 1) * strides[1] + 1 }
}

/// A matrix that is written: rows of contiguous elements, `row_stride` apart.
#[derive(Debug)]
pub struct MatMut<'a, F> {
    first: *mut F,
    shape: [usize; 2],
    row_stride: usize,
    life: PhantomData<&'a mut [F]>,
}

// SAFETY: a `MatMut` is an exclusive reference to its elements, like `&mut [F]`.
unsafe impl<F: Send> Send for MatMut<'_, F> {}

impl<'a, F> MatMut<'a, F> {
    /// `shape[0]` rows that follow one another in `data`.
    #[track_caller]
    pub fn rows(data: &'a mut [F], shape: [usize; 2]) -> Self {
        Self::strided(data, shape, shape[1])
    }
    /// Rows that start `row_stride` elements apart.
    #[track_caller]
    pub fn strided(data: &'a mut [F], shape: [usize; 2], row_stride: usize) -> Self {
        assert!(extent(shape, [row_stride, 1]) <= data.len() && (shape[0] < 2 || shape[1] <= row_stride));
        MatMut { first: data.as_mut_ptr(), shape, row_stride, life: PhantomData }
    }
    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }
    /// Row `i`.
    #[track_caller]
    pub fn row(&mut self, i: usize) -> &mut [F] {
        assert!(i < self.shape[0]);
        // SAFETY: the row is in bounds of the slice this was made from, and borrowed from `self`.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(i * self.row_stride), self.shape[1]) }
    }
    /// Rows `from` to `to`, borrowed.
    #[track_caller]
    pub fn sub_rows(&mut self, from: usize, to: usize) -> MatMut<'_, F> {
        assert!(from <= to && to <= self.shape[0]);
        let first = self.first.wrapping_add(from * self.row_stride);
        MatMut { first, shape: [to - from, self.shape[1]], row_stride: self.row_stride, life: PhantomData }
    }
}

/// Runs `f` in parallel on every head of a packed tensor `[batch, length, P, heads, width]`: with the sample, the
/// head, its `P` matrices of `length` rows and `width` columns, and its share of `rows` (`[batch, heads, ..]`).
pub fn for_each_head<F: Real, const P: usize>(
    data: &mut [F],
    rows: &mut [F],
    [batch, length, heads, width]: [usize; 4],
    f: impl Fn(usize, usize, [MatMut<F>; P], &mut [F]) + Sync,
) {
    let stride = P * heads * width;
    assert_eq!(data.len(), batch * length * stride, "packed heads");
    struct Base<F>(*mut F);
    // SAFETY: the tasks below reach disjoint elements through it.
    unsafe impl<F: Send> Sync for Base<F> {}
    let base = Base(data.as_mut_ptr());
    let base = &base;
    let one = |i: usize, rows: &mut [F]| {
        let (b, h) = (i / heads, i % heads);
        let parts = std::array::from_fn(|p| MatMut {
            first: base.0.wrapping_add(b * length * stride + (p * heads + h) * width),
            shape: [length, width],
            row_stride: stride,
            life: PhantomData,
        });
        f(b, h, parts, rows);
    };
    if rows.is_empty() {
        (0..batch * heads).into_par_iter().for_each(|i| one(i, &mut []));
    } else {
        let share = rows.len() / (batch * heads);
        rows.par_chunks_mut(share).enumerate().for_each(|(i, rows)| one(i, rows));
    }
}

/// Rows and columns of a tile. Measured on Zen 4: columns are a whole number of the vectors that a product is computed
/// in, and half the columns of the narrowest layer; fewer rows cost speed, since each tile packs its operands anew.
const TILE: [usize; 2] = [512, 96];

/// Runs `f` in parallel on the tiles of row-major matrices of one `shape`: with the tile's first row and column, and
/// its part of each matrix.
#[track_caller]
pub fn for_each_tile<F: Real, const P: usize>(
    matrices: [&mut [F]; P],
    shape: [usize; 2],
    f: impl Fn([usize; 2], [MatMut<F>; P]) + Sync,
) {
    let [rows, cols] = shape;
    struct Base<F>(*mut F);
    // SAFETY: the tasks below reach disjoint elements through it.
    unsafe impl<F: Send> Sync for Base<F> {}
    let bases = matrices.map(|m| {
        assert_eq!(m.len(), rows * cols, "a {shape:?} matrix");
        Base(m.as_mut_ptr())
    });
    let bases = &bases;
    // Down a column of tiles first: they share an operand.
    let down = rows.div_ceil(TILE[0]);
    (0..down * cols.div_ceil(TILE[1])).into_par_iter().for_each(|i| {
        let (row, col) = (i % down * TILE[0], i / down * TILE[1]);
        let tile = [TILE[0].min(rows - row), TILE[1].min(cols - col)];
        let parts = bases.each_ref().map(|base| MatMut {
            first: base.0.wrapping_add(row * cols + col),
            shape: tile,
            row_stride: cols,
            life: PhantomData,
        });
        f([row, col], parts);
    });
}

/// Calls `f` with `m`, or with a copy whose rows lie an odd number of cache lines apart.
///
/// Rows a multiple of 1 KiB apart fall into few sets of the first-level cache, so that a product with the transpose,
/// which reads them side by side, evicts each line before it is used up: 32 GFLOP/s against 95 at 4096 columns.
pub fn spread<F: Real>(m: Mat<F>, f: impl FnOnce(Mat<F>)) {
    let [rows, cols] = m.shape;
    let line = 64 / size_of::<F>();
    if !(m.strides[0] * size_of::<F>()).is_multiple_of(1024) {
        return f(m);
    }
    let apart = (cols / line + 1) * line;
    scratch(rows * apart, |copy: &mut [F]| {
        copy.chunks_exact_mut(apart).enumerate().for_each(|(i, to)| to[..cols].copy_from_slice(m.row(i)));
        f(Mat::strided(copy, m.shape, apart));
    });
}

/// Who computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread.
    One,
    /// All of rayon's.
    All,
}

/// What becomes of the values that are in `c` before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// `c = a b`.
    Replace,
    /// `c += a b`.
    Add,
}

/// `c = scale · a b`, or `c += scale · a b`.
///
/// The result has the same bits whatever the number of threads.
#[track_caller]
pub fn gemm<F: Real>(c: MatMut<F>, a: Mat<F>, b: Mat<F>, scale: F, into: Into, threads: Threads) {
    let ([m, k], [k2, n]) = (a.shape, b.shape);
    assert!(k == k2 && c.shape == [m, n], "{:?} = {:?} x {:?}", c.shape, a.shape, b.shape);
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(rayon::current_num_threads()),
    };
    let read = into == Into::Add;
    let keep = if read { F::ONE } else { F::ZERO };
    assert!(TypeId::of::<F>() == TypeId::of::<f32>() || TypeId::of::<F>() == TypeId::of::<f64>());
    let [ar, ac] = a.strides.map(|s| s as isize);
    let [br, bc] = b.strides.map(|s| s as isize);
    let (ap, bp, cr) = (a.data.as_ptr(), b.data.as_ptr(), c.row_stride as isize);
    // SAFETY: the views reach over no more than their slices (asserted where they are made), `c` is exclusive, and
    // `F` is one of the two types the crate is called for, so pointers and strides are those of valid matrices.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.first,
            1,
            cr,
            read,
            ap,
            ac,
            ar,
            bp,
            bc,
            br,
            keep,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
