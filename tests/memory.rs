//! What memory refuses: it holds operations to what they declared.
use gyrus::machine::Mem;
use gyrus::machine::cpu::{Permit, Slot, Span};

#[derive(Clone, Copy)]
struct At(usize);

impl Slot for At {
    fn slot(self) -> usize {
        self.0
    }
}

/// Three tensors of two `f32`; the operation reads 0 and 1, writes 2, and updates 1 in place.
fn memory() -> Mem<f32> {
    let spans = (0..3).map(|i| Span { at: 64 * i, len: 8 }).collect();
    let mut m = Mem::new(192, spans, vec![Permit { reads: vec![0, 1], writes: vec![1, 2] }]);
    m.begin(0);
    m
}

#[test]
fn what_was_declared_is_allowed() {
    let mut m = memory();
    m.host_mut::<f32>(At(0)).copy_from_slice(&[1.0, 2.0]);
    m.write(At(2)).copy_from_slice(m.read(At(0)));
    m.write(At(1))[0] = 3.0;
    assert_eq!((m.host::<f32>(At(2)), m.host::<f32>(At(1))), (&[1.0, 2.0][..], &[3.0, 0.0][..]));
    m.begin(0);
    m.write(At(2))[0] = 5.0; // once more, in the next run
    m.poison(At(2));
    assert!(m.host::<f32>(At(2)).iter().all(|x| x.is_nan()));
}

#[test]
#[should_panic(expected = "slot 2 is not among what the operation reads")]
fn reading_what_was_not_declared_is_refused() {
    memory().read(At(2));
}

#[test]
#[should_panic(expected = "slot 2 is not among what the operation reads")]
fn reading_indices_that_were_not_declared_is_refused() {
    memory().read_indices(At(2));
}

#[test]
#[should_panic(expected = "slot 0 is not among what the operation writes")]
fn writing_what_was_not_declared_is_refused() {
    memory().write(At(0));
}

#[test]
#[should_panic(expected = "slot 2 is written twice by one operation")]
fn writing_twice_is_refused() {
    let m = memory();
    m.write(At(2));
    m.write(At(2));
}

#[test]
#[should_panic(expected = "slot 1 is updated in place: ask for it with `write`")]
fn reading_what_is_updated_in_place_is_refused() {
    memory().read(At(1));
}

#[test]
#[should_panic(expected = "operation 0: slots 1 and 0 share memory")]
fn an_operation_whose_output_lies_over_its_input_is_refused() {
    let spans = vec![Span { at: 0, len: 8 }, Span { at: 4, len: 8 }];
    Mem::<f32>::new(64, spans, vec![Permit { reads: vec![0], writes: vec![1] }]);
}

#[test]
#[should_panic(expected = "share memory")]
fn two_outputs_over_one_another_are_refused() {
    let spans = vec![Span { at: 0, len: 8 }, Span { at: 0, len: 8 }];
    Mem::<f32>::new(64, spans, vec![Permit { reads: vec![], writes: vec![0, 1] }]);
}

#[test]
#[should_panic(expected = "is out of bounds")]
fn a_tensor_past_the_end_is_refused() {
    Mem::<f32>::new(64, vec![Span { at: 64, len: 4 }], vec![]);
}

#[test]
#[should_panic(expected = "is misaligned")]
fn a_tensor_between_two_numbers_is_refused() {
    Mem::<f64>::new(64, vec![Span { at: 4, len: 8 }], vec![]);
}
