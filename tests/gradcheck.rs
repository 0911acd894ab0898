//! Every case of the table: gradients against central differences, and `f32` against `f64`.
use gyrus::cases::{check, table};

#[test]
fn every_case_is_within_its_bounds() {
    let mut failed = Vec::new();
    for case in table() {
        let outcome = check(&case);
        println!(
            "{:40} {:45} {:>9.1e} {:>5} {:>9.1e}",
            outcome.name,
            outcome.shape,
            outcome.gradient.unwrap_or(0.0),
            outcome.derivatives,
            outcome.f32
        );
        if !outcome.passed() {
            failed.push(outcome);
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
