//! What a study's numbers say, in words.
use super::arm::Kind;
use super::results::{Arm, Compared, Outcome, Results};
use super::setup::Setup;
use crate::study::bootstrap::Estimate;

/// The answer in two sentences: whether bad scans were worse to pretrain on, and what pretraining was worth.
pub(super) fn answer(setup: &Setup, results: &Results) -> String {
    if results.comparisons.is_empty() {
        let [done, all] = results.done;
        return format!("Nothing can be compared yet: {done} of {all} trainings are done.");
    }
    let provisional = match results.done {
        [done, all] if done < all => format!("Provisional, after {done} of {all} trainings: "),
        _ => String::new(),
    };
    format!("{provisional}{} {}", of_quality(setup, results), of_pretraining(setup, results))
}

/// The kind of the arm that is called `name`.
fn kind_of(setup: &Setup, name: &str) -> Option<Kind> {
    setup.arms.iter().find(|arm| arm.name == name).map(|arm| arm.kind)
}

/// Comparisons of an outcome in which `arm` is the worse data by its name.
fn of_bad_data<'a>(setup: &'a Setup, results: &'a Results, outcome: Outcome) -> Vec<&'a Compared> {
    let is_about_quality = |c: &&Compared| {
        c.outcome == outcome
            && match kind_of(setup, &c.arm) {
                Some(Kind::Distorted { .. } | Kind::Mixture { .. }) => true,
                // The worst tier of a grading against its best.
                Some(Kind::Tier { .. }) => c.with != setup.arms[0].name,
                _ => false,
            }
    };
    results.comparisons.iter().filter(is_about_quality).collect()
}

/// What was found of the quality of scans, in fine-tuned networks and in frozen features.
fn of_quality(setup: &Setup, results: &Results) -> String {
    let outcomes = [
        (Outcome::FineTuned, "brain age as fine-tuned networks tell it"),
        (Outcome::Frozen, "brain age as frozen features tell it"),
    ];
    let found = |(outcome, what)| {
        let about = of_bad_data(setup, results, outcome);
        (!about.is_empty()).then(|| effect(&about, what))
    };
    let found: Vec<String> = outcomes.into_iter().filter_map(found).collect();
    if found.is_empty() {
        return "No tiers of quality were compared.".into();
    }
    format!("Pretraining on worse scans {}.", found.join(", and "))
}

/// What pretraining on worse scans did to `what`.
fn effect(about: &[&Compared], what: &str) -> String {
    let said = |c: &Compared| {
        let Estimate { value, low, high } = c.comparison.difference;
        format!("{} against {}: {value:+.2} years, {low:+.2} to {high:+.2}", c.arm, c.with)
    };
    let shown = |worse: bool| -> Option<String> {
        let of = |c: &&&Compared| c.shown && (c.comparison.difference.value > 0.0) == worse;
        let all: Vec<String> = about.iter().filter(of).map(|c| said(c)).collect();
        (!all.is_empty()).then(|| all.join("; "))
    };
    match (shown(true), shown(false)) {
        (Some(harm), None) => format!("harmed {what} ({harm})"),
        (None, Some(help)) => format!("helped {what} ({help})"),
        (Some(harm), Some(help)) => {
            format!("harmed {what} in some arms ({harm}) and helped in others ({help})")
        }
        (None, None) => {
            let size = |c: &&&Compared| c.comparison.difference.value.abs();
            let largest = about.iter().max_by(|a, b| size(a).total_cmp(&size(b))).expect("there are some");
            let count = about.len();
            let s = if count == 1 { "" } else { "s, the largest difference" };
            format!("could not be shown to harm or help {what} ({count} comparison{s}: {})", said(largest))
        }
    }
}

fn of_pretraining(setup: &Setup, results: &Results) -> String {
    let mae = |arm: &Arm| arm.fine_tuned.as_ref().map(|s| s.mae);
    let network = |arm: &&Arm| kind_of(setup, &arm.name).is_some_and(Kind::has_network) && mae(arm).is_some();
    let value = |arm: &Arm| mae(arm).map_or(f64::INFINITY, |e| e.value);
    let best = results.arms.iter().filter(network).min_by(|a, b| value(a).total_cmp(&value(b)));
    let Some(best) = best else { return String::new() };
    let Estimate { value, low, high } = mae(best).expect("only such arms were looked at");
    let mean = results.mean_predictor.as_ref().map_or(String::new(), |mean| {
        format!(", where predicting the mean age is {:.1} years off", mean.mae.value)
    });
    let scratch = results
        .comparisons
        .iter()
        .find(|c| c.outcome == Outcome::FineTuned && kind_of(setup, &c.arm) == Some(Kind::Scratch));
    let scratch = scratch.map_or(String::new(), |c| {
        let Estimate { value, low, high } = c.comparison.difference;
        let verdict = match (c.shown, value > 0.0) {
            (true, true) => "was worse",
            (true, false) => "was better",
            (false, _) => "could not be told apart",
        };
        let what = if c.shown { "than" } else { "from" };
        format!("; a network without pretraining {verdict} {what} the reference ({value:+.2} years, {low:+.2} to {high:+.2})")
    });
    let name = &best.name;
    format!("The best network ({name}) is {value:.1} years off ({low:.1} to {high:.1}){mean}{scratch}.")
}

/// What the numbers allow one to say and what they do not.
pub(super) fn reading(setup: &Setup, results: &Results) -> Vec<String> {
    let mut all = Vec::new();
    let primary: Vec<&Compared> =
        results.comparisons.iter().filter(|c| c.outcome == Outcome::FineTuned).collect();
    let mut widths: Vec<f64> =
        primary.iter().map(|c| 0.5 * (c.comparison.difference.high - c.comparison.difference.low)).collect();
    widths.sort_by(f64::total_cmp);
    if let Some(middle) = widths.get(widths.len() / 2) {
        all.push(format!(
            "A difference is called shown when it holds over people and over trainings (the largest of the p values of a \
             permutation over people, a t test over trainings, and one that takes both at once) after Holm's correction \
             over the {} comparisons of its family. What is not shown is not thereby absent: the intervals reach about \
             {middle:.1} years to either side, so smaller differences cannot be seen with these people and trainings.",
            primary.len()
        ));
    }
    let reference = results.arms.first();
    let of_reference =
        reference.and_then(|arm| Some((arm.fine_tuned.as_ref()?.mae, arm.frozen.as_ref()?.mae)));
    if let Some((tuned, frozen)) = of_reference.filter(|(tuned, frozen)| tuned.value > frozen.value) {
        all.push(format!(
            "Fine-tuned networks of the reference are worse than ridge regression on its frozen features ({:.1} and {:.1} \
             years off): fine-tuning does not get out of these encoders what is in them. Give it more epochs or higher \
             rates before arms are judged by it.",
            tuned.value, frozen.value
        ));
    }
    let design = &setup.study.design;
    let runs = primary.iter().map(|c| c.comparison.runs).max().unwrap_or(0);
    if (1..5).contains(&runs) {
        all.push(format!(
            "There are only {runs} independent pretrainings of each arm. A test over trainings has little power with so \
             few: raise design.seeds before concluding that nothing differs."
        ));
    }
    if !setup.study.grading.is_empty() {
        all.push(format!(
            "Tiers of real scans were matched by site and by age in {} parts, and have the same number of scans and of \
             updates. Whatever else goes with quality (illness, motion of a kind of person, scanner software) was not \
             matched and may stand behind a difference between them.",
            design.age_bins
        ));
    }
    if !setup.study.distortion.tiers.is_empty() {
        all.push(
            "Distorted arms are the very scans of the reference, made worse by known amounts: only the distortion differs. \
             Distortions of k-space start from magnitude images, an approximation, and real bad scans may be bad in other \
             ways."
                .into(),
        );
    }
    if setup.arms.iter().any(|arm| arm.kind == Kind::All) {
        all.push(
            "The arm of all scans has more scans than the others and as many updates: its difference from the reference \
             is one of variety, not of quality."
                .into(),
        );
    }
    all.push(
        "Errors are of uncorrected predictions. Corrections of the brain-age gap were fitted to other people than those \
         they are applied to; that of Beheshti uses the true age and makes errors look smaller than they are, so arms are \
         never compared by it."
            .into(),
    );
    if setup.study.pretrain.model.norm_pix && !results.reconstruction.is_empty() {
        all.push(
            "The models were trained with norm_pix: in reconstructions each removed patch is given its true mean and \
             spread, so errors of reconstruction are of patterns within patches."
                .into(),
        );
    }
    if !results.failed.is_empty() {
        let missing = results.failed.len();
        all.push(format!("{missing} training(s) failed and are missing from every number here."));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::comparison::{Comparison, Unit};

    fn compared(arm: &str, value: f64, shown: bool) -> Compared {
        let difference = Estimate { value, low: value - 1.0, high: value + 1.0 };
        let p = if shown { 0.01 } else { 0.6 };
        let comparison = Comparison {
            subjects: 9,
            pairs: 9,
            unpaired: 0,
            unit: Unit::Seed,
            runs: 3,
            difference,
            p_subjects: p,
            p_runs: p,
            p_crossed: p,
            p,
        };
        let (arm, with) = (arm.to_owned(), "random".to_owned());
        Compared { arm, with, outcome: Outcome::Frozen, comparison, p_holm: p, shown }
    }

    #[test]
    fn what_is_shown_is_said_and_of_the_rest_the_largest() {
        let said = |all: &[&Compared]| effect(all, "ages");
        let (harm, help) = (compared("bad", 2.0, true), compared("odd", -1.5, true));
        let (small, large) = (compared("low", 0.5, false), compared("lower", -3.0, false));
        let harmed = said(&[&harm, &large]);
        assert_eq!(harmed, "harmed ages (bad against random: +2.00 years, +1.00 to +3.00)");
        assert_eq!(said(&[&help]), "helped ages (odd against random: -1.50 years, -2.50 to -0.50)");
        let both = said(&[&harm, &help]);
        assert!(both.starts_with("harmed ages in some arms (bad"), "{both}");
        assert!(both.contains("and helped in others (odd"), "{both}");
        let neither = said(&[&small, &large]);
        assert!(neither.starts_with("could not be shown to harm or help ages (2 comparisons"), "{neither}");
        assert!(neither.contains("lower against random: -3.00"), "{neither}");
        assert!(said(&[&small]).contains("(1 comparison: low"));
    }
}
