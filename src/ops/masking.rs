//! Which patches are removed, and what each of them counts for in the loss.
use super::Patches;
use crate::image::BACKGROUND;
use crate::machine::cuda::{Arg, Launch, Result, Stream};
use crate::machine::philox::{Philox, STREAM};
use crate::machine::{Mem, Real, scratch};
use crate::tape::{Define, Dtype, Io, Op, Tape, Tensor};
use rayon::prelude::*;

/// What may become of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TokenState {
    /// It may be kept.
    Free = 0,
    /// It is removed: to be predicted, never seen.
    Hidden = 1,
    /// It does not exist: its modality is missing, or it holds no brain.
    Absent = 2,
}

/// Records the states of the tokens of `volume: [B, 1, X, Y, Z]`, M modalities one after the other along x: those that
/// `modalities: [B, M]` say ([`TokenState`] as indices), but absent where, with `foreground`, no voxel of the patch is
/// brain. Returns `[B, L]`, indices.
#[track_caller]
pub fn token_states(
    t: &mut Tape,
    volume: Tensor,
    modalities: Tensor,
    edge: usize,
    foreground: bool,
) -> Tensor {
    let patches = Patches::of(t, volume, edge);
    let &[batch, kinds] = t.shape(modalities) else { panic!("modalities are [B, M]") };
    assert_eq!((t.shape(volume)[0], t.info(modalities).dtype), (batch, Dtype::Index));
    assert!(patches.tokens().is_multiple_of(kinds), "{} tokens of {kinds} kinds", patches.tokens());
    let states = t.temp_indices(&[batch, patches.tokens()]);
    t.push(TokenStates { volume, modalities, states, patches, batch, kinds, foreground });
    states
}

#[derive(Debug)]
struct TokenStates {
    volume: Tensor,
    modalities: Tensor,
    states: Tensor,
    patches: Patches,
    batch: usize,
    kinds: usize,
    foreground: bool,
}

impl Op for TokenStates {
    fn io(&self) -> Io {
        Io::new([self.volume, self.modalities], [self.states])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { volume, modalities, states, patches, batch, kinds, foreground } = self;
        let all = batch * patches.tokens();
        let pointers = [s.bf16(volume).into(), s.indices(modalities).into(), s.indices(states).into()];
        let counts = [all, patches.tokens(), kinds, usize::from(foreground)].map(Arg::from);
        let arguments = [&pointers[..], &counts, &geometry(patches), &[BACKGROUND.into()]].concat();
        s.launch(a_warp_a_patch("token_states", all), &arguments)
    }
}

impl<F: Real> Define<F> for TokenStates {
    fn define(&self, m: &Mem<F>) {
        let &Self { patches, kinds, foreground, .. } = self;
        let (volume, modalities) = (m.read(self.volume), m.read_indices(self.modalities));
        let states = m.write_indices(self.states);
        let tokens = patches.tokens();
        states.par_iter_mut().enumerate().for_each(|(i, state)| {
            let (b, id) = (i / tokens, i % tokens);
            let volume = &volume[b * patches.volume_len()..][..patches.volume_len()];
            let of_modality = modalities[b * kinds + id / (tokens / kinds)];
            let empty = foreground && brain_voxels(patches, volume, id) == 0;
            *state = if empty { TokenState::Absent as u32 } else { of_modality };
        });
    }
}

/// Which patches of each volume are kept; all are indices.
#[derive(Clone, Copy, Debug)]
pub struct Masks {
    /// The kept patches, `[B, K]`.
    pub ids_keep: Tensor,
    /// The removed ones, `[B, L - K]`.
    pub ids_removed: Tensor,
    /// The kept patches, then the removed ones, `[B, L]`.
    pub ids_shuffle: Tensor,
    /// How many of them there are, where that differs from sample to sample.
    pub lengths: Option<Lengths>,
}

/// Lengths of the sequences of each sample, prefix included; `[B]`, indices.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// Of the kept patches.
    pub visible: Tensor,
    /// Of the kept and the removed.
    pub total: Tensor,
}

/// Records masks of `tokens` patches, L, of which `kept`, K, stay: those with the smallest noise, in that order. The
/// noise of patch i is the upper 24 bits of word i of the sample's Philox stream (the uniform numbers of
/// [`Philox`]); of equals the first is the smaller. `streams: [B, 6]`, of indices, say where streams begin.
///
/// With `states: [B, L]` ([`TokenState`]), n free patches of a sample are first, of which `n K / L` are kept (rounded
/// down, but one at least), then the hidden, then the absent ones; what stands after a sample's own in `ids_keep` and
/// `ids_shuffle` does not count, as [`Masks::lengths`] says, which include `prefix` rows before the patches.
#[track_caller]
pub fn random_masking(
    t: &mut Tape,
    streams: Tensor,
    states: Option<Tensor>,
    prefix: usize,
    tokens: usize,
    kept: usize,
) -> Masks {
    let batch = t.shape(streams)[0];
    t.expect_shape("streams", streams, &[batch, STREAM]);
    assert!(t.info(streams).dtype == Dtype::Index && kept <= tokens, "{kept} of {tokens}");
    if let Some(states) = states {
        t.expect_shape("states", states, &[batch, tokens]);
    }
    let masks = Masks {
        ids_keep: t.temp_indices(&[batch, kept]),
        ids_removed: t.temp_indices(&[batch, tokens - kept]),
        ids_shuffle: t.temp_indices(&[batch, tokens]),
        lengths: states
            .map(|_| Lengths { visible: t.temp_indices(&[batch]), total: t.temp_indices(&[batch]) }),
    };
    t.push(RandomMasking { streams, states, masks, batch, prefix, tokens, kept });
    masks
}

#[derive(Debug)]
struct RandomMasking {
    streams: Tensor,
    states: Option<Tensor>,
    masks: Masks,
    batch: usize,
    prefix: usize,
    tokens: usize,
    kept: usize,
}

impl Op for RandomMasking {
    fn io(&self) -> Io {
        let Masks { ids_keep, ids_removed, ids_shuffle, lengths } = self.masks;
        let mut io = Io::new([Some(self.streams), self.states], [ids_keep, ids_removed, ids_shuffle]);
        io.writes.extend(lengths.into_iter().flat_map(|l| [l.visible, l.total]));
        io
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        const MOST: usize = 12_032;
        let &Self { streams, states, masks, batch, prefix, tokens, kept } = self;
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
                states.map(|t| s.indices(t)).into(),
                s.indices(masks.ids_keep).into(),
                s.indices(masks.ids_removed).into(),
                s.indices(masks.ids_shuffle).into(),
                masks.lengths.map(|l| s.indices(l.visible)).into(),
                masks.lengths.map(|l| s.indices(l.total)).into(),
                prefix.into(),
                tokens.into(),
                kept.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for RandomMasking {
    fn define(&self, m: &Mem<F>) {
        let &Self { streams, states, masks, prefix, tokens, kept, .. } = self;
        let keep = m.write_indices(masks.ids_keep);
        let removed = m.write_indices(masks.ids_removed);
        let shuffle = m.write_indices(masks.ids_shuffle);
        let states = states.map(|t| m.read_indices(t));
        let mut lengths = masks.lengths.map(|l| (m.write_indices(l.visible), m.write_indices(l.total)));
        for (b, start) in m.read_indices(streams).chunks_exact(STREAM).enumerate() {
            let states = states.map(|states| &states[b * tokens..][..tokens]);
            let mut random = Philox::from_start(start);
            scratch::<u64, _>(tokens, |order| {
                for (i, key) in order.iter_mut().enumerate() {
                    let state = states.map_or(TokenState::Free as u32, |states| states[i]);
                    *key = u64::from(state) << 56 | u64::from(random.word() >> 8) << 32 | i as u64;
                }
                order.sort_unstable();
                for (place, &key) in order.iter().enumerate() {
                    let id = key as u32;
                    shuffle[b * tokens + place] = id;
                    match place.checked_sub(kept) {
                        None => keep[b * kept + place] = id,
                        Some(place) => removed[b * (tokens - kept) + place] = id,
                    }
                }
            });
            if let (Some(states), Some((visible, total))) = (states, &mut lengths) {
                let count = |state| states.iter().filter(|&&s| s == state as u32).count();
                let free = count(TokenState::Free);
                let stay = (free * kept / tokens.max(1)).max(free.min(1).min(kept));
                visible[b] = (prefix + stay) as u32;
                total[b] = (prefix + free + count(TokenState::Hidden)) as u32;
            }
        }
    }
}

/// Records the share of brain voxels in each of the patches `ids: [B, M]` of `volume: [B, C, X, Y, Z]`, times
/// `factor: [B, M]` where there is one. Returns `[B, M]`.
#[track_caller]
pub fn foreground_weight(
    t: &mut Tape,
    volume: Tensor,
    ids: Tensor,
    factor: Option<Tensor>,
    edge: usize,
) -> Tensor {
    let patches = Patches::of(t, volume, edge);
    let &[batch, count] = t.shape(ids) else { panic!("ids are [B, M], not {:?}", t.shape(ids)) };
    assert_eq!((t.shape(volume)[0], t.info(ids).dtype), (batch, Dtype::Index));
    if let Some(factor) = factor {
        t.expect_shape("factor", factor, &[batch, count]);
    }
    let weight = t.temp(&[batch, count]);
    t.push(ForegroundWeight { volume, ids, factor, weight, patches, batch, count });
    weight
}

#[derive(Debug)]
struct ForegroundWeight {
    volume: Tensor,
    ids: Tensor,
    factor: Option<Tensor>,
    weight: Tensor,
    patches: Patches,
    batch: usize,
    count: usize,
}

/// The launch of a kernel that gives each of `patches` a warp.
fn a_warp_a_patch(kernel: &'static str, patches: usize) -> Launch {
    const WARPS: usize = 8;
    Launch { kernel, grid: [patches.div_ceil(WARPS), 1, 1], block: 32 * WARPS, shared: 0 }
}

/// What kernels are told of the patches.
fn geometry(Patches { channels, volume: [x, y, z], edge }: Patches) -> [Arg; 5] {
    [channels, x, y, z, edge].map(Arg::from)
}

/// The voxels of patch `id` that are brain.
fn brain_voxels<F: Real>(patches: Patches, volume: &[F], id: usize) -> usize {
    let background = F::of(BACKGROUND.into());
    let lines = patches.lines(id).map(|at| &volume[at..at + patches.edge]);
    lines.map(|line| line.iter().filter(|&&v| v > background).count()).sum()
}

impl Op for ForegroundWeight {
    fn io(&self) -> Io {
        Io::new([Some(self.volume), Some(self.ids), self.factor], [self.weight])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { volume, ids, factor, weight, patches, batch, count } = self;
        let pointers = [
            s.bf16(volume).into(),
            s.indices(ids).into(),
            factor.map(|t| s.f32(t)).into(),
            s.f32(weight).into(),
        ];
        let counts = [batch * count, count].map(Arg::from);
        let arguments = [&pointers[..], &counts, &geometry(patches), &[BACKGROUND.into()]].concat();
        s.launch(a_warp_a_patch("foreground_weight", batch * count), &arguments)
    }
}

impl<F: Real> Define<F> for ForegroundWeight {
    fn define(&self, m: &Mem<F>) {
        let &Self { patches, count, .. } = self;
        let (volume, ids, weight) = (m.read(self.volume), m.read_indices(self.ids), m.write(self.weight));
        let factor = self.factor.map(|t| m.read(t));
        weight.par_iter_mut().zip(ids).enumerate().for_each(|(i, (weight, &id))| {
            let volume = &volume[i / count * patches.volume_len()..];
            let brain = brain_voxels(patches, volume, id as usize);
            let share = F::of(brain as f64) / F::of(patches.values() as f64);
            *weight = factor.map_or(share, |f| share * f[i]);
        });
    }
}
