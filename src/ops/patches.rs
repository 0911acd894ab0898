//! How a volume falls into patches: tokens run with the last axis fastest.
use crate::machine::Real;
use crate::tape::{Tape, Tensor};

/// The geometry of cubic patches in a volume `[.., C, X, Y, Z]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patches {
    /// Channels of the volume.
    pub channels: usize,
    /// Voxels along each axis.
    pub volume: [usize; 3],
    /// Voxels along a patch's edge.
    pub edge: usize,
}

impl Patches {
    /// Of the recorded `volume: [B, C, X, Y, Z]`.
    ///
    /// # Panics
    /// When an axis is not a whole number of patches.
    #[track_caller]
    pub fn of(t: &Tape, volume: Tensor, edge: usize) -> Self {
        let &[_, channels, x, y, z] = t.shape(volume) else {
            panic!("a volume is [B, C, X, Y, Z], not {:?}", t.shape(volume))
        };
        Self::new(channels, [x, y, z], edge)
    }
    /// Of a volume with these extents.
    ///
    /// # Panics
    /// When an axis is not a whole number of patches.
    #[track_caller]
    pub fn new(channels: usize, volume: [usize; 3], edge: usize) -> Self {
        assert!(
            volume.iter().all(|n| n.is_multiple_of(edge)),
            "{volume:?} is not a whole number of {edge}³ patches"
        );
        Patches { channels, volume, edge }
    }
    /// Patches along each axis.
    pub fn grid(&self) -> [usize; 3] {
        self.volume.map(|n| n / self.edge)
    }
    /// Patches in the volume, L.
    pub fn tokens(&self) -> usize {
        self.grid().iter().product()
    }
    /// Values in a patch, `edge³ C`.
    pub fn values(&self) -> usize {
        self.edge.pow(3) * self.channels
    }
    /// Values in a volume.
    pub fn volume_len(&self) -> usize {
        self.channels * self.volume.iter().product::<usize>()
    }
    /// Where the lines (along the last axis) of `token` begin in one sample's volume, by (channel, p0, p1).
    pub fn lines(&self, token: usize) -> impl Iterator<Item = usize> + use<> {
        let [_, gy, gz] = self.grid();
        let (p, [_, y, z]) = (self.edge, self.volume);
        let from = [token / (gy * gz) * p, token / gz % gy * p, token % gz * p];
        let plane = self.volume_len() / self.channels;
        (0..self.channels * p * p).map(move |i| {
            let (c, p0, p1) = (i / (p * p), i / p % p, i % p);
            c * plane + ((from[0] + p0) * y + from[1] + p1) * z + from[2]
        })
    }
    /// Copies `token` of one sample's volume as `[p0, p1, p2, C]`, channel fastest: the order of predictions.
    pub fn patchify<F: Real>(&self, volume: &[F], token: usize, patch: &mut [F]) {
        let (p, c) = (self.edge, self.channels);
        if c == 1 {
            let lines = self.lines(token).zip(patch.chunks_exact_mut(p));
            return lines.for_each(|(line, to)| to.copy_from_slice(&volume[line..line + p]));
        }
        for (i, line) in self.lines(token).enumerate() {
            let (channel, row) = (i / (p * p), i % (p * p));
            for (k, v) in volume[line..line + p].iter().enumerate() {
                patch[(row * p + k) * c + channel] = *v;
            }
        }
    }
    /// The inverse of [`patchify`](Self::patchify).
    pub fn unpatchify<F: Real>(&self, patch: &[F], token: usize, volume: &mut [F]) {
        let (p, c) = (self.edge, self.channels);
        for (i, line) in self.lines(token).enumerate() {
            let (channel, row) = (i / (p * p), i % (p * p));
            for (k, v) in volume[line..line + p].iter_mut().enumerate() {
                *v = patch[(row * p + k) * c + channel];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A one-hot voxel must appear in the one token and place that its coordinates say.
    #[test]
    fn each_voxel_lands_in_its_patch() {
        let patches = Patches::new(2, [4, 6, 8], 2);
        assert_eq!((patches.grid(), patches.tokens(), patches.values()), ([2, 3, 4], 24, 16));
        for (c, x, y, z) in [(0, 0, 0, 0), (1, 3, 2, 5), (0, 2, 5, 7), (1, 1, 4, 2)] {
            let mut volume = vec![0.0_f32; patches.volume_len()];
            volume[((c * 4 + x) * 6 + y) * 8 + z] = 1.0;
            let mut back = vec![0.0_f32; volume.len()];
            for token in 0..patches.tokens() {
                let mut patch = vec![0.0_f32; 16];
                patches.patchify(&volume, token, &mut patch);
                patches.unpatchify(&patch, token, &mut back);
                let here = token == ((x / 2) * 3 + y / 2) * 4 + z / 2;
                let at = (((x % 2) * 2 + y % 2) * 2 + z % 2) * 2 + c;
                assert!(patch.iter().enumerate().all(|(i, &v)| (v == 1.0) == (here && i == at)));
            }
            assert_eq!(back, volume);
        }
    }
}
