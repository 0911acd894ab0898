//! A score fitted to ratings: ridge regression on the standardised measures. Every prediction is of a subject that the
//! fit has not seen.
use super::{MEASURES, Measures};
use crate::machine::{Mat, ridge::Ridge};

/// A rated scan.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    /// Its measures.
    pub measures: &'a Measures,
    /// What it was rated.
    pub rating: f64,
    /// The fold its subject is held out in.
    pub fold: usize,
}

/// What ratings were predicted, and from what.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// Of each member, by the fit that its fold was held out of.
    pub ratings: Vec<f64>,
    /// How often each measure was used, and its mean weight in standard deviations; the heaviest first.
    pub weights: Vec<(&'static str, f64)>,
}

/// Strengths of the penalty, in units of the number of scans; which one is chosen inside each fit.
const PENALTIES: [f64; 9] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];
/// A measure that fewer scans have is left out.
const KNOWN: f64 = 0.9;
/// Standardised measures are cut here: one broken scan must not set a weight.
const LARGEST: f64 = 3.0;

/// Predicts each member's rating from the others' ratings. Means, deviations, the penalty and the weights are found
/// without the fold that is predicted; the penalty by generalised cross-validation within the rest.
///
/// `None` when there is nothing to fit: fewer than two folds, or ratings that are all alike.
pub fn calibrate(members: &[Member<'_>]) -> Option<Prediction> {
    let folds = members.iter().map(|m| m.fold).max()? + 1;
    let mut ratings = vec![0.0; members.len()];
    let mut weights = vec![0.0; MEASURES.len()];
    for fold in 0..folds {
        let train: Vec<&Member> = members.iter().filter(|m| m.fold != fold).collect();
        let fit = Fit::new(&train)?;
        for (i, member) in members.iter().enumerate().filter(|(_, m)| m.fold == fold) {
            ratings[i] = fit.predict(member.measures);
        }
        for (column, w) in fit.columns.iter().zip(&fit.weights) {
            weights[column.index] += w / folds as f64;
        }
    }
    let mut weights: Vec<_> =
        MEASURES.iter().map(|m| m.name).zip(weights).filter(|(_, w)| *w != 0.0).collect();
    weights.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    Some(Prediction { ratings, weights })
}

/// One standardised measure.
struct Column {
    index: usize,
    middle: f64,
    spread: f64,
}

impl Column {
    /// Standard deviations from the mean; 0 where the measure is absent.
    fn value(&self, measures: &Measures) -> f64 {
        measures.at(self.index).map_or(0.0, |v| ((v - self.middle) / self.spread).clamp(-LARGEST, LARGEST))
    }
}

struct Fit {
    columns: Vec<Column>,
    weights: Vec<f64>,
    mean: f64,
}

impl Fit {
    fn new(train: &[&Member]) -> Option<Fit> {
        let columns: Vec<Column> = (0..MEASURES.len()).filter_map(|i| column(train, i)).collect();
        let n = train.len() as f64;
        let mean = train.iter().map(|m| m.rating).sum::<f64>() / n;
        let y: Vec<f64> = train.iter().map(|m| m.rating - mean).collect();
        let total = y.iter().map(|y| y * y).sum::<f64>();
        if columns.is_empty() || train.len() < 3 || total <= 0.0 {
            return None;
        }
        let rows: Vec<f64> = train.iter().flat_map(|m| columns.iter().map(|c| c.value(m.measures))).collect();
        let ridge = Ridge::new(Mat::rows(&rows, [train.len(), columns.len()]));
        let y = Mat::rows(&y, [train.len(), 1]);
        let mut best: Option<(f64, Vec<f64>)> = None;
        for penalty in PENALTIES {
            let fit = ridge.penalised(penalty * n)?;
            let error: f64 = fit.residuals(y).iter().map(|r| r * r).sum();
            // The share of the scans that no weight has used up.
            let freedom = fit.freedom().iter().sum::<f64>() / n;
            let gcv = error / freedom.max(1e-3).powi(2);
            if best.as_ref().is_none_or(|(least, _)| gcv < *least) {
                best = Some((gcv, fit.weights(y)));
            }
        }
        best.map(|(_, weights)| Fit { columns, weights, mean })
    }

    fn predict(&self, measures: &Measures) -> f64 {
        let terms = self.columns.iter().zip(&self.weights).map(|(c, w)| c.value(measures) * w);
        self.mean + terms.sum::<f64>()
    }
}

/// The measure `index`, if enough scans have it and it differs among them.
fn column(train: &[&Member], index: usize) -> Option<Column> {
    let known: Vec<f64> = train.iter().filter_map(|m| m.measures.at(index)).collect();
    if (known.len() as f64) < KNOWN * train.len() as f64 {
        return None;
    }
    let (middle, spread) = super::mean_and_sd(known.into_iter());
    (spread > 1e-9 * middle.abs()).then_some(Column { index, middle, spread })
}
