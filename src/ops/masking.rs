//! Which patches are removed, and what each of them counts for in the loss.
use super::Patches;
use crate::image::BACKGROUND;
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::philox::{Philox, STREAM};
use crate::machine::{Mem, Real, scratch};
use crate::tape::{Define, Dtype, Io, Op, Tape, Tensor};
use rayon::prelude::*;

/// Which patches of each volume are kept; all are indices.
#[derive(Clone, Copy, Debug)]
pub struct Masks {
    /// The kept patches, `[B, K]`.
    pub ids_keep: Tensor,
    /// The removed ones, `[B, L - K]`.
    pub ids_removed: Tensor,
    /// For each patch its place among the kept and then the removed, `[B, L]`.
    pub ids_restore: Tensor,
}

/// Records masks of `tokens` patches, L, of which `kept`, K, stay: those with the smallest noise, in that order. The
/// noise of patch i is the upper 24 bits of word i of the sample's Philox stream (the uniform numbers of
/// [`Philox`]); of equals the first is the smaller. `streams: [B, 6]`, of indices, say where streams begin.
#[track_caller]
pub fn random_masking(t: &mut Tape, streams: Tensor, tokens: usize, kept: usize) -> Masks {
    let batch = t.shape(streams)[0];
    t.expect_shape("streams", streams, &[batch, STREAM]);
    assert!(t.info(streams).dtype == Dtype::Index && kept <= tokens, "{kept} of {tokens}");
    let masks = Masks {
        ids_keep: t.temp_indices(&[batch, kept]),
        ids_removed: t.temp_indices(&[batch, tokens - kept]),
        ids_restore: t.temp_indices(&[batch, tokens]),
    };
    t.push(RandomMasking { streams, masks, batch, tokens, kept });
    masks
}

#[derive(Debug)]
struct RandomMasking {
    streams: Tensor,
    masks: Masks,
    batch: usize,
    tokens: usize,
    kept: usize,
}

impl Op for RandomMasking {
    fn io(&self) -> Io {
        let Masks { ids_keep, ids_removed, ids_restore } = self.masks;
        Io::new([self.streams], [ids_keep, ids_removed, ids_restore])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        const MOST: usize = 12_288;
        let &Self { streams, masks, batch, tokens, kept } = self;
        assert!(tokens <= MOST, "on a GPU random_masking takes up to {MOST} patches, not {tokens}");
        s.launch(
            Launch {
                kernel: "random_masking",
                grid: [tokens.div_ceil(256), batch, 1],
                block: 256,
                shared: 4 * tokens.next_multiple_of(4),
            },
            &[
                s.indices(streams).into(),
                s.indices(masks.ids_keep).into(),
                s.indices(masks.ids_removed).into(),
                s.indices(masks.ids_restore).into(),
                tokens.into(),
                kept.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for RandomMasking {
    fn define(&self, m: &Mem<F>) {
        let &Self { streams, masks, tokens, kept, .. } = self;
        let keep = m.write_indices(masks.ids_keep);
        let removed = m.write_indices(masks.ids_removed);
        let restore = m.write_indices(masks.ids_restore);
        for (b, start) in m.read_indices(streams).chunks_exact(STREAM).enumerate() {
            let mut random = Philox::from_start(start);
            scratch::<u64, _>(tokens, |order| {
                for (i, key) in order.iter_mut().enumerate() {
                    *key = u64::from(random.word() >> 8) << 32 | i as u64;
                }
                order.sort_unstable();
                for (place, &key) in order.iter().enumerate() {
                    let id = key as u32;
                    restore[b * tokens + id as usize] = place as u32;
                    match place.checked_sub(kept) {
                        None => keep[b * kept + place] = id,
                        Some(place) => removed[b * (tokens - kept) + place] = id,
                    }
                }
            });
        }
    }
}

/// Records the share of brain voxels in each of the patches `ids: [B, M]` of `volume: [B, C, X, Y, Z]`. Returns
/// `[B, M]`.
#[track_caller]
pub fn foreground_weight(t: &mut Tape, volume: Tensor, ids: Tensor, edge: usize) -> Tensor {
    let patches = Patches::of(t, volume, edge);
    let &[batch, count] = t.shape(ids) else { panic!("ids are [B, M], not {:?}", t.shape(ids)) };
    assert_eq!((t.shape(volume)[0], t.info(ids).dtype), (batch, Dtype::Index));
    let weight = t.temp(&[batch, count]);
    t.push(ForegroundWeight { volume, ids, weight, patches, batch, count });
    weight
}

#[derive(Debug)]
struct ForegroundWeight {
    volume: Tensor,
    ids: Tensor,
    weight: Tensor,
    patches: Patches,
    batch: usize,
    count: usize,
}

impl Op for ForegroundWeight {
    fn io(&self) -> Io {
        Io::new([self.volume, self.ids], [self.weight])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        const WARPS: usize = 8;
        let &Self { volume, ids, weight, patches: Patches { channels, volume: [x, y, z], edge }, .. } = self;
        let patches = self.batch * self.count;
        s.launch(
            Launch {
                kernel: "foreground_weight",
                grid: [patches.div_ceil(WARPS), 1, 1],
                block: 32 * WARPS,
                shared: 0,
            },
            &[
                s.bf16(volume).into(),
                s.indices(ids).into(),
                s.f32(weight).into(),
                patches.into(),
                self.count.into(),
                channels.into(),
                x.into(),
                y.into(),
                z.into(),
                edge.into(),
                BACKGROUND.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for ForegroundWeight {
    fn define(&self, m: &Mem<F>) {
        let &Self { patches, count, .. } = self;
        let (volume, ids, weight) = (m.read(self.volume), m.read_indices(self.ids), m.write(self.weight));
        let background = F::of(BACKGROUND.into());
        weight.par_iter_mut().zip(ids).enumerate().for_each(|(i, (weight, &id))| {
            let volume = &volume[i / count * patches.volume_len()..];
            let lines = patches.lines(id as usize).map(|at| &volume[at..at + patches.edge]);
            let brain: usize = lines.map(|line| line.iter().filter(|&&v| v > background).count()).sum();
            *weight = F::of(brain as f64) / F::of(patches.values() as f64);
        });
    }
}
