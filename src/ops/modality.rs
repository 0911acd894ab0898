//! Which of the tokens of a masked sequence are of one modality, where several are masked together: their patches go
//! through an embedding and a prediction head of their own.
//!
//! Of L tokens each of M modalities has L / M, one after the other. The lists have the longest length that can occur;
//! what a sample lacks of it is filled up with tokens whose place is [`ABSENT`] and that count for nothing.
use super::tokens::ABSENT;
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Define, Io, Op, Tape, Tensor};

/// One modality of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modality {
    /// Which.
    pub number: usize,
    /// Of how many, M.
    pub of: usize,
}

/// The kept tokens of a modality.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Their patches, `[B, C]`, C the lesser of K and L / M.
    pub ids: Tensor,
    /// For each kept token of all modalities its place among these, or [`ABSENT`]; `[B, K]`.
    pub places: Tensor,
}

/// The removed tokens of a modality.
#[derive(Clone, Copy, Debug)]
pub struct Removed {
    /// Its patches, `[B, L / M]`.
    pub ids: Tensor,
    /// For each of them its place in `ids_shuffle`, or [`ABSENT`] where it is not removed; `[B, L / M]`.
    pub places: Tensor,
    /// 1 for the removed ones, else 0; `[B, L / M]`.
    pub weight: Tensor,
}

/// Records the kept tokens of a modality, of the first `kept`, K, of `ids_shuffle: [B, L]`; `visible: [B]` says how many
/// of a sample's count, including `prefix` rows.
#[track_caller]
pub fn kept_of_modality(
    t: &mut Tape,
    ids_shuffle: Tensor,
    visible: Tensor,
    prefix: usize,
    modality: Modality,
    kept: usize,
) -> Kept {
    let &[batch, length] = t.shape(ids_shuffle) else { panic!("ids_shuffle is [B, L]") };
    let each = modality.tokens(length);
    let lists =
        Kept { ids: t.temp_indices(&[batch, kept.min(each)]), places: t.temp_indices(&[batch, kept]) };
    t.push(KeptOfModality { ids_shuffle, visible, prefix, modality, kept, batch, length, lists });
    lists
}

/// Records the removed tokens of a modality: those of `ids_shuffle: [B, L]` from `visible: [B]` to `total: [B]`, both of
/// which include `prefix` rows.
#[track_caller]
pub fn removed_of_modality(
    t: &mut Tape,
    ids_shuffle: Tensor,
    [visible, total]: [Tensor; 2],
    prefix: usize,
    modality: Modality,
) -> Removed {
    let &[batch, length] = t.shape(ids_shuffle) else { panic!("ids_shuffle is [B, L]") };
    let each = modality.tokens(length);
    let lists = Removed {
        ids: t.temp_indices(&[batch, each]),
        places: t.temp_indices(&[batch, each]),
        weight: t.temp(&[batch, each]),
    };
    t.push(RemovedOfModality { ids_shuffle, visible, total, prefix, modality, batch, length, lists });
    lists
}

impl Modality {
    /// How many of `length` tokens are its own.
    #[track_caller]
    fn tokens(self, length: usize) -> usize {
        let Modality { number, of } = self;
        assert!(number < of && length.is_multiple_of(of), "modality {number} of {of} in {length} tokens");
        length / of
    }
    /// The places in `ids_shuffle` of its tokens, in order.
    fn places(self, ids_shuffle: &[u32]) -> impl Iterator<Item = usize> {
        let each = self.tokens(ids_shuffle.len());
        (0..ids_shuffle.len()).filter(move |&p| ids_shuffle[p] as usize / each == self.number)
    }
}

/// The launch of a kernel that gives each place of `batch` sequences a thread.
fn a_thread_a_place(kernel: &'static str, length: usize, batch: usize) -> Launch {
    const THREADS: usize = 256;
    Launch { kernel, grid: [length.div_ceil(THREADS), batch, 1], block: THREADS, shared: 0 }
}

#[derive(Debug)]
struct KeptOfModality {
    ids_shuffle: Tensor,
    visible: Tensor,
    prefix: usize,
    modality: Modality,
    kept: usize,
    batch: usize,
    length: usize,
    lists: Kept,
}

impl Op for KeptOfModality {
    fn io(&self) -> Io {
        Io::new([self.ids_shuffle, self.visible], [self.lists.ids, self.lists.places])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { ids_shuffle, visible, prefix, modality, kept, batch, length, lists } = self;
        s.launch(
            a_thread_a_place("kept_of_modality", length, batch),
            &[
                s.indices(ids_shuffle).into(),
                s.indices(visible).into(),
                s.indices(lists.ids).into(),
                s.indices(lists.places).into(),
                prefix.into(),
                modality.number.into(),
                modality.tokens(length).into(),
                kept.into(),
                length.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for KeptOfModality {
    fn define(&self, m: &Mem<F>) {
        let &Self { prefix, modality, kept, length, lists, .. } = self;
        let (shuffle, visible) = (m.read_indices(self.ids_shuffle), m.read_indices(self.visible));
        let (ids, places) = (m.write_indices(lists.ids), m.write_indices(lists.places));
        places.fill(ABSENT);
        let most = kept.min(modality.tokens(length));
        for (b, shuffle) in shuffle.chunks_exact(length).enumerate() {
            let stay = visible[b] as usize - prefix;
            for (rank, place) in modality.places(shuffle).enumerate() {
                if rank < most {
                    ids[b * most + rank] = shuffle[place];
                }
                if place < stay {
                    places[b * kept + place] = rank as u32;
                }
            }
        }
    }
}

#[derive(Debug)]
struct RemovedOfModality {
    ids_shuffle: Tensor,
    visible: Tensor,
    total: Tensor,
    prefix: usize,
    modality: Modality,
    batch: usize,
    length: usize,
    lists: Removed,
}

impl Op for RemovedOfModality {
    fn io(&self) -> Io {
        let Removed { ids, places, weight } = self.lists;
        Io::new([self.ids_shuffle, self.visible, self.total], [ids, places, weight])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { ids_shuffle, visible, total, prefix, modality, batch, length, lists } = self;
        s.launch(
            a_thread_a_place("removed_of_modality", length, batch),
            &[
                s.indices(ids_shuffle).into(),
                s.indices(visible).into(),
                s.indices(total).into(),
                s.indices(lists.ids).into(),
                s.indices(lists.places).into(),
                s.f32(lists.weight).into(),
                prefix.into(),
                modality.number.into(),
                modality.tokens(length).into(),
                length.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for RemovedOfModality {
    fn define(&self, m: &Mem<F>) {
        let &Self { prefix, modality, length, lists, .. } = self;
        let (shuffle, visible) = (m.read_indices(self.ids_shuffle), m.read_indices(self.visible));
        let total = m.read_indices(self.total);
        let (ids, places, weight) =
            (m.write_indices(lists.ids), m.write_indices(lists.places), m.write(lists.weight));
        let each = modality.tokens(length);
        for (b, shuffle) in shuffle.chunks_exact(length).enumerate() {
            let removed = visible[b] as usize - prefix..total[b] as usize - prefix;
            for (rank, place) in modality.places(shuffle).enumerate() {
                let (at, here) = (b * each + rank, removed.contains(&place));
                ids[at] = shuffle[place];
                places[at] = if here { place as u32 } else { ABSENT };
                weight[at] = if here { F::ONE } else { F::ZERO };
            }
        }
    }
}
