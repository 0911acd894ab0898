//! The checks see what they are there to see.
use gyrus::cases::controls::controls;

#[test]
fn every_planted_fault_is_caught() {
    let controls = controls();
    for c in &controls {
        println!("{:60} {:45} {:.1e}", c.fault, c.caught_by, c.error);
    }
    let missed: Vec<_> = controls.iter().filter(|c| !c.caught).collect();
    assert!(missed.is_empty() && controls.len() >= 8, "{missed:#?}");
}
