//! Where the brain is: from the mask that is given, else from an image that is skull-stripped already, else the whole
//! head.
use super::{
    Error, Volume,
    affine::{apply, inverse, multiply},
    count, intensity,
    orientation::{Axes, View, to_ras},
    resample::{Taps, resample},
};

/// Which values are inside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Inside {
    /// A mask's: those above.
    Above(f32),
    /// A skull-stripped image's: those that are not the background's.
    Not(f32),
}

impl Inside {
    /// 1 inside, 0 outside.
    #[inline(always)]
    pub(super) fn value(self, v: f32) -> f32 {
        match self {
            Inside::Above(t) => f32::from(u8::from(v > t)),
            Inside::Not(background) => f32::from(u8::from(v != background)),
        }
    }
}

/// Index ranges that hold everything inside, and how many voxels that is.
pub(super) struct Extent {
    pub(super) low: [usize; 3],
    /// One past the last.
    pub(super) high: [usize; 3],
    pub(super) count: usize,
}

/// The bounding box of what is inside; `None` if nothing is.
pub(super) fn extent(view: &View, inside: Inside) -> Option<Extent> {
    match inside {
        Inside::Above(t) => bounds(view, |v| v > t),
        Inside::Not(background) => bounds(view, |v| v != background),
    }
}

fn bounds(view: &View, inside: impl Fn(f32) -> bool + Copy) -> Option<Extent> {
    let [near, middle, far] = view.memory_order();
    let n = view.shape[near];
    let backwards = view.stride[near] < 0;
    let mut low = view.shape;
    let mut high = [0; 3];
    let mut total = 0;
    for f in 0..view.shape[far] {
        for m in 0..view.shape[middle] {
            let mut voxel = [0; 3];
            (voxel[far], voxel[middle], voxel[near]) = (f, m, if backwards { n - 1 } else { 0 });
            let from = view.at(voxel);
            let row = &view.data[from..from + n];
            let here = count(row, inside);
            if here == 0 {
                continue;
            }
            total += here;
            for (r, i) in [(far, f), (middle, m)] {
                low[r] = low[r].min(i);
                high[r] = high[r].max(i + 1);
            }
            let first = row.iter().position(|&v| inside(v)).expect("the row holds one");
            let last = row.iter().rposition(|&v| inside(v)).expect("the row holds one");
            let (first, last) = if backwards { (n - 1 - last, n - 1 - first) } else { (first, last) };
            low[near] = low[near].min(first);
            high[near] = high[near].max(last + 1);
        }
    }
    (total > 0).then_some(Extent { low, high, count: total })
}

/// Holds a given mask against the image: the mask itself if their voxels coincide, else its nearest voxels on the
/// image's grid.
///
/// # Errors
/// A mask of the same shape at another place, or one without a voxel in common with the image.
pub fn fit(mask: Volume, image: &Volume) -> Result<Volume, Error> {
    let (image_axes, mask_axes) = (Axes::of(&image.affine), Axes::of(&mask.affine));
    let ras = |v: &Volume, axes: Axes| {
        let affine = super::orientation::ras_affine(&v.affine, v.shape, axes);
        (axes.from.map(|a| v.shape[a]), affine)
    };
    let ((shape, affine), (mask_shape, mask_affine)) = (ras(image, image_axes), ras(&mask, mask_axes));
    if shape == mask_shape {
        let gap = corner_gap(&affine, &mask_affine, shape);
        let voxel = super::spacing(&affine).into_iter().fold(f64::MAX, f64::min);
        if gap <= 0.25 * voxel {
            return Ok(mask);
        }
        return Err(Error::Mask(format!(
            "both have {} x {} x {} voxels, but their affines place them {gap:.1} mm apart (image {affine:?}, mask \
             {mask_affine:?})",
            shape[0], shape[1], shape[2]
        )));
    }
    let mask = to_ras(mask);
    let from_image = multiply(&inverse(&mask.affine), &affine);
    let mut data = Vec::with_capacity(shape.iter().product());
    for z in 0..shape[2] {
        for y in 0..shape[1] {
            for x in 0..shape[0] {
                // Halves go up in both, so that a mask of doubled voxels covers them evenly.
                let at = apply(&from_image, [x as f64, y as f64, z as f64]).map(|q| (q + 0.5).floor());
                let within = (0..3).all(|r| at[r] >= 0.0 && at[r] < mask.shape[r] as f64);
                let [i, j, k] = at.map(|q| q as usize);
                data.push(if within { mask.data[i + mask.shape[0] * (j + mask.shape[1] * k)] } else { 0.0 });
            }
        }
    }
    if !data.iter().any(|&v| v > 0.5) {
        return Err(Error::Mask(format!(
            "on the image's grid nothing is left of it (image {shape:?} {affine:?}, mask {mask_shape:?} {mask_affine:?})"
        )));
    }
    Ok(Volume { shape, affine, data })
}

/// The greatest distance between the places two affines give a corner, in millimetres.
pub(super) fn corner_gap(a: &[[f64; 4]; 4], b: &[[f64; 4]; 4], shape: [usize; 3]) -> f64 {
    let place =
        |m: &[[f64; 4]; 4], p: [f64; 3], i: usize| m[i][3] + (0..3).map(|c| m[i][c] * p[c]).sum::<f64>();
    (0..8)
        .map(|corner| {
            let p = [0, 1, 2].map(|r| if corner >> r & 1 == 1 { shape[r] as f64 - 1.0 } else { 0.0 });
            (0..3).map(|i| (place(a, p, i) - place(b, p, i)).powi(2)).sum::<f64>().sqrt()
        })
        .fold(0.0, f64::max)
}

/// The background's value, if the image is skull-stripped: at least 30 % of all voxels, and 90 % of each of the six
/// faces, have exactly the value of the first voxel. (A head that is not stripped goes on through the lower face as
/// the neck, and its air is noise.)
pub fn background(volume: &Volume) -> Option<f32> {
    let value = *volume.data.first()?;
    let [nx, ny, nz] = volume.shape;
    let at = |x: usize, y: usize, z: usize| volume.data[x + nx * (y + ny * z)] == value;
    let mostly = |total: usize, face: &dyn Fn(usize) -> bool| {
        (0..total).filter(|&i| face(i)).count() * 10 >= total * 9
    };
    let faces = [0, nz - 1].iter().all(|&z| mostly(nx * ny, &|i| at(i % nx, i / nx, z)))
        && [0, ny - 1].iter().all(|&y| mostly(nx * nz, &|i| at(i % nx, y, i / nx)))
        && [0, nx - 1].iter().all(|&x| mostly(ny * nz, &|i| at(x, i % ny, i / ny)));
    (faces && count(&volume.data, |v| v == value) * 10 >= volume.data.len() * 3).then_some(value)
}

/// Millimetres between the voxels of a head mask.
pub const HEAD_SPACING: f64 = 4.0;

/// The head, at 4 mm over the whole volume: above Otsu's threshold, the largest connected part, holes filled. RAS, x
/// fastest.
pub(super) fn head(view: &View, spacing: [f64; 3]) -> Result<Volume, Error> {
    let shape =
        [0, 1, 2].map(|r| (view.shape[r] as f64 * spacing[r] / HEAD_SPACING).round().max(1.0) as usize);
    let taps = [0, 1, 2].map(|r| Taps::new(view.shape[r], 0.0, HEAD_SPACING / spacing[r], 0..shape[r]));
    let mut data = resample(view, &taps, [0, 1, 2], |v| v);
    let threshold = otsu(&data).ok_or(Error::Constant(data[0]))?;
    let inside: Vec<bool> = data.iter().map(|&v| v > threshold).collect();
    let (labels, sizes) = components(&inside, shape);
    let largest = (0..sizes.len()).max_by_key(|&l| (sizes[l].voxels, std::cmp::Reverse(l)));
    let largest = largest.ok_or(Error::NoBrain("nothing stands out from the background"))?;
    let head: Vec<bool> = labels.iter().map(|&l| l == Some(largest)).collect();
    let air: Vec<bool> = head.iter().map(|h| !h).collect();
    let (labels, parts) = components(&air, shape);
    for (voxel, label) in data.iter_mut().zip(labels) {
        // Head, or a hole in it: air from which no way leads to a face of the volume.
        *voxel = f32::from(u8::from(label.is_none_or(|l| !parts[l].touches_face)));
    }
    let mut affine = [[0.0; 4]; 4];
    (0..3).for_each(|r| affine[r][r] = HEAD_SPACING);
    affine[3][3] = 1.0;
    Ok(Volume { shape, affine, data })
}

/// Lower and upper edge of the head along x, y and z, in voxels of the volume seen as RAS: 0 is the first voxel's outer
/// face. Good to 4 mm, the resolution at which the head is looked for.
///
/// # Errors
/// An image in which nothing stands out.
pub fn head_extent(volume: &Volume) -> Result<[[f64; 2]; 3], Error> {
    let view = View::of(volume);
    let axes = Axes::of(&volume.affine);
    let spacing = axes.from.map(|axis| volume.spacing()[axis]);
    let head = head(&view, spacing)?;
    let inside = extent(&View::of(&head), Inside::Above(0.5)).ok_or(Error::NoBrain("it has no head"))?;
    Ok([0, 1, 2].map(|r| {
        let voxels = HEAD_SPACING / spacing[r];
        let [low, high] = [inside.low[r], inside.high[r]].map(|edge| edge as f64 * voxels);
        [low, high.min(view.shape[r] as f64)]
    }))
}

/// Where the bright half of a volume has its centre, in millimetres.
pub(super) fn centre_of_mass(volume: &Volume) -> [f64; 3] {
    let threshold = otsu(&volume.data).unwrap_or(f32::MIN);
    let [nx, ny, _] = volume.shape;
    let (mut sum, mut count) = ([0.0; 3], 0.0_f64);
    for (i, _) in volume.data.iter().enumerate().filter(|(_, v)| **v > threshold) {
        let voxel = [i % nx, i / nx % ny, i / (nx * ny)];
        (0..3).for_each(|r| sum[r] += voxel[r] as f64);
        count += 1.0;
    }
    apply(&volume.affine, sum.map(|s| s / count.max(1.0)))
}

/// The head of a volume seen as RAS, at [`HEAD_SPACING`] over the whole volume: above Otsu's threshold, the largest
/// connected part, holes filled.
///
/// # Errors
/// An image in which nothing stands out.
pub fn head_mask(volume: &Volume) -> Result<Volume, Error> {
    let axes = Axes::of(&volume.affine);
    head(&View::of(volume), axes.from.map(|axis| volume.spacing()[axis]))
}

/// The threshold that best parts the values in two (Otsu 1979), over 256 bins up to the 99th percentile: a few bright
/// vessels or fat must not decide. `None` when all values are the same.
fn otsu(values: &[f32]) -> Option<f32> {
    let [low, high] = intensity::percentiles(values, [0.0, 99.0]);
    if low >= high {
        return None;
    }
    let width = (f64::from(high) - f64::from(low)) / 256.0;
    let mut counts = [0.0; 256];
    for &v in values {
        counts[(((f64::from(v) - f64::from(low)) / width) as usize).min(255)] += 1.0;
    }
    let total = values.len() as f64;
    let sum: f64 = counts.iter().enumerate().map(|(b, n)| b as f64 * n).sum();
    let (mut below, mut below_sum, mut best) = (0.0, 0.0, (0.0, 0));
    for (b, n) in counts.iter().enumerate() {
        below += n;
        below_sum += b as f64 * n;
        let above = total - below;
        if below > 0.0 && above > 0.0 {
            let between = below * above * (below_sum / below - (sum - below_sum) / above).powi(2);
            if between > best.0 {
                best = (between, b);
            }
        }
    }
    Some((f64::from(low) + width * (best.1 + 1) as f64) as f32)
}

/// One connected part of a mask.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// How many voxels it has.
    pub voxels: usize,
    /// Whether one of them lies on a face of the volume.
    pub touches_face: bool,
}

/// The parts of a mask (x fastest) that are connected through faces; each voxel's part, `None` outside.
pub fn components(inside: &[bool], shape: [usize; 3]) -> (Vec<Option<usize>>, Vec<Part>) {
    let [nx, ny, nz] = shape;
    let steps = [1, nx, nx * ny];
    let mut labels = vec![None; inside.len()];
    let mut parts = Vec::new();
    let mut open = Vec::new();
    for seed in 0..inside.len() {
        if !inside[seed] || labels[seed].is_some() {
            continue;
        }
        let label = parts.len();
        let mut part = Part { voxels: 0, touches_face: false };
        labels[seed] = Some(label);
        open.push(seed);
        while let Some(i) = open.pop() {
            part.voxels += 1;
            let place = [i % nx, i / nx % ny, i / (nx * ny)];
            for r in 0..3 {
                let (first, last) = (place[r] == 0, place[r] + 1 == [nx, ny, nz][r]);
                part.touches_face |= first || last;
                let neighbours = [(!first).then(|| i - steps[r]), (!last).then(|| i + steps[r])];
                for j in neighbours.into_iter().flatten() {
                    if inside[j] && labels[j].is_none() {
                        labels[j] = Some(label);
                        open.push(j);
                    }
                }
            }
        }
        parts.push(part);
    }
    (labels, parts)
}
