//! Affine maps of points: 4 x 4 matrices whose last row is 0 0 0 1.
use super::orientation::determinant;

/// Maps (x, y, z, 1).
pub type Affine = [[f64; 4]; 4];

/// Every point stays where it is.
pub const IDENTITY: Affine =
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]];

/// First `b`, then `a`.
pub(super) fn multiply(a: &Affine, b: &Affine) -> Affine {
    std::array::from_fn(|i| std::array::from_fn(|j| (0..4).map(|k| a[i][k] * b[k][j]).sum()))
}

/// The inverse of an affine that the reader has found not to be singular (by cofactors).
pub(super) fn inverse(m: &Affine) -> Affine {
    let det = determinant(m);
    let cofactor = |i: usize, j: usize| {
        let (a, b, c, d) = ((j + 1) % 3, (j + 2) % 3, (i + 1) % 3, (i + 2) % 3);
        (m[a][c] * m[b][d] - m[a][d] * m[b][c]) / det
    };
    std::array::from_fn(|i| match i {
        3 => [0.0, 0.0, 0.0, 1.0],
        _ => {
            let row = [0, 1, 2].map(|j| cofactor(i, j));
            [row[0], row[1], row[2], -(0..3).map(|j| row[j] * m[j][3]).sum::<f64>()]
        }
    })
}

/// Where `p` goes.
#[inline(always)]
pub(super) fn apply(m: &Affine, p: [f64; 3]) -> [f64; 3] {
    [0, 1, 2].map(|r| m[r][3] + (m[r][0] * p[0] + m[r][1] * p[1] + m[r][2] * p[2]))
}

/// Turns by `angles` (radians) about x, then y, then z, around the point `centre`, and then moves by `shift`.
pub(super) fn rigid(angles: [f64; 3], shift: [f64; 3], centre: [f64; 3]) -> Affine {
    let [(sx, cx), (sy, cy), (sz, cz)] = angles.map(f64::sin_cos);
    let turn = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ];
    let mut m = IDENTITY;
    for r in 0..3 {
        m[r][..3].copy_from_slice(&turn[r]);
        m[r][3] = centre[r] + shift[r] - (0..3).map(|c| turn[r][c] * centre[c]).sum::<f64>();
    }
    m
}
