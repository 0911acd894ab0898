//! The scans that arms are pretrained on: who is in which tier, and equal draws from all of them.
use super::arm::{Arm, Kind};
use super::design::Design;
use crate::machine::philox::{Philox, Purpose};
use std::collections::{BTreeMap, BTreeSet};

/// One scan as it is, with its distorted copies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Member {
    /// Number of the sample.
    pub sample: usize,
    /// Whose scan it is.
    pub subject: String,
    /// Age in years, where known.
    pub age: Option<f32>,
    /// Where it was made, where that is known.
    pub site: Option<String>,
    /// Its tier in each grading, if any.
    pub tiers: Vec<Option<usize>>,
    /// The sample of each distorted tier, if there is one.
    pub copies: Vec<Option<usize>>,
}

/// What can be drawn from.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Scans as they are.
    pub members: Vec<Member>,
    /// Number of tiers of each grading.
    pub gradings: Vec<usize>,
}

/// The scans of all arms of one training.
#[derive(Clone, Debug)]
pub struct Draw<'a> {
    pool: &'a Pool,
    /// Members that may be seen, in the order of the draw.
    eligible: Vec<usize>,
    /// The stratum of each member that may be seen.
    stratum: BTreeMap<usize, Stratum>,
    /// Scans of each stratum that each arm has.
    counts: BTreeMap<Stratum, usize>,
}

/// Scans alike in site and age.
type Stratum = (Option<String>, Option<usize>);

impl Pool {
    /// How many people there are.
    pub fn people(&self) -> usize {
        self.members.iter().map(|m| &m.subject).collect::<BTreeSet<_>>().len()
    }

    /// A draw without the people who are `excluded`. All arms have the same number of scans of each site and age: as many
    /// as the smallest tier has, or `design.scans` in the same proportions.
    ///
    /// # Errors
    /// Too few scans for an arm, with what to change.
    pub fn draw(&self, design: &Design, excluded: &BTreeSet<String>, seed: u64) -> Result<Draw<'_>, String> {
        let mut order: Vec<usize> = (0..self.members.len()).collect();
        Philox::new(seed, Purpose::Draw, 0, 0).shuffle(&mut order);
        let eligible: Vec<usize> =
            order.into_iter().filter(|&i| !excluded.contains(&self.members[i].subject)).collect();
        let stratum = self.strata(&eligible, design.age_bins);
        let mut counts: BTreeMap<Stratum, usize> = BTreeMap::new();
        for key in stratum.values().collect::<BTreeSet<_>>() {
            let in_it = |i: &&usize| stratum[*i] == *key;
            let of_tier = |g: usize, t: usize| {
                eligible.iter().filter(in_it).filter(|&&i| self.members[i].tiers[g] == Some(t)).count()
            };
            let tiers = self.gradings.iter().enumerate().flat_map(|(g, &n)| (0..n).map(move |t| (g, t)));
            let fewest = tiers.map(|(g, t)| of_tier(g, t)).min();
            counts.insert(key.clone(), fewest.unwrap_or_else(|| eligible.iter().filter(in_it).count()));
        }
        let most: usize = counts.values().sum();
        let advice = "choose fewer tiers, or a smaller design.age_bins";
        if most < 4 {
            return Err(format!("every tier has only {most} scans alike in age and site: {advice}"));
        }
        if design.scans > most {
            let wanted = design.scans;
            return Err(format!(
                "design.scans = {wanted}, but the tiers have {most} alike in age and site: {advice}"
            ));
        }
        if design.scans > 0 {
            counts = scaled(&counts, design.scans);
        }
        Ok(Draw { pool: self, eligible, stratum, counts })
    }

    /// Site and part of the age range of each of `eligible`.
    fn strata(&self, eligible: &[usize], bins: usize) -> BTreeMap<usize, Stratum> {
        let mut ages: Vec<f32> = eligible.iter().filter_map(|&i| self.members[i].age).collect();
        ages.sort_by(f32::total_cmp);
        let bin = |age: f32| ages.partition_point(|a| *a < age) * bins / ages.len();
        let of = |&i: &usize| (i, (self.members[i].site.clone(), self.members[i].age.map(bin)));
        eligible.iter().map(of).collect()
    }
}

impl Draw<'_> {
    /// Scans that each arm has.
    pub fn scans(&self) -> usize {
        self.counts.values().sum()
    }

    /// The members that `arm` is pretrained on, in ascending order.
    pub fn members(&self, arm: &Arm) -> Vec<usize> {
        let mut members = match arm.kind {
            Kind::Random { share } | Kind::Distorted { share, .. } => self.first(share, |_| true),
            Kind::Tier { grading, tier, share } => {
                self.first(share, |i| self.pool.members[i].tiers[grading] == Some(tier))
            }
            Kind::Mixture { .. } | Kind::Multimodal => self.first(1.0, |_| true),
            Kind::All => self.eligible.clone(),
            Kind::Scratch | Kind::Readout => Vec::new(),
        };
        members.sort_unstable();
        members
    }

    /// The samples that `arm` is pretrained on: those of its members, or their distorted copies.
    ///
    /// # Errors
    /// A scan that has no distorted copy.
    pub fn samples(&self, arm: &Arm) -> Result<Vec<usize>, String> {
        let members = self.members(arm);
        let copy = |i: usize, severity: usize| {
            let member = &self.pool.members[i];
            member.copies[severity]
                .ok_or_else(|| format!("a scan of {} could not be distorted or prepared", member.subject))
        };
        match arm.kind {
            Kind::Distorted { severity, .. } => members.into_iter().map(|i| copy(i, severity)).collect(),
            Kind::Mixture { severity, share } => {
                // In the order of the draw, so that a greater share takes in all of a smaller one.
                let drawn: Vec<usize> =
                    self.eligible.iter().copied().filter(|i| members.contains(i)).collect();
                let distorted = (share * drawn.len() as f64).round() as usize;
                let sample = |(n, &i): (usize, &usize)| {
                    if n < distorted { copy(i, severity) } else { Ok(self.pool.members[i].sample) }
                };
                drawn.iter().enumerate().map(sample).collect()
            }
            _ => Ok(members.into_iter().map(|i| self.pool.members[i].sample).collect()),
        }
    }

    /// Of those that `fit`, the first of each stratum in the order of the draw, `share` of what an arm has.
    fn first(&self, share: f64, fit: impl Fn(usize) -> bool) -> Vec<usize> {
        let total = (share * self.scans() as f64).round() as usize;
        let mut left = scaled(&self.counts, total.max(1));
        let mut take = |i: usize| {
            let left = left.get_mut(&self.stratum[&i]).expect("every stratum has a count");
            let taken = *left > 0;
            *left -= usize::from(taken);
            taken
        };
        self.eligible.iter().copied().filter(|&i| fit(i) && take(i)).collect()
    }
}

/// `counts` in the same proportions with the sum `total`, which is not above theirs: what is left after rounding down goes
/// to the largest remainders.
fn scaled(counts: &BTreeMap<Stratum, usize>, total: usize) -> BTreeMap<Stratum, usize> {
    let sum: usize = counts.values().sum();
    let mut scaled: BTreeMap<Stratum, usize> =
        counts.iter().map(|(key, n)| (key.clone(), n * total / sum)).collect();
    let mut by_remainder: Vec<&Stratum> = counts.keys().collect();
    by_remainder.sort_by_key(|key| std::cmp::Reverse(counts[*key] * total % sum));
    let left = total - scaled.values().sum::<usize>();
    for key in by_remainder.into_iter().take(left) {
        scaled.entry(key.clone()).and_modify(|n| *n += 1);
    }
    scaled
}

/// Tiers of equal size by rank, from the worst: for each value the number of its tier. Equal values are put in an order
/// that the `seed` draws.
pub fn by_rank(values: &[Option<f64>], tiers: usize, seed: u64) -> Vec<Option<usize>> {
    let mut order: Vec<(usize, f64)> =
        values.iter().enumerate().filter_map(|(i, value)| Some((i, (*value)?))).collect();
    Philox::new(seed, Purpose::Draw, 1, 0).shuffle(&mut order);
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut of = vec![None; values.len()];
    let n = order.len();
    order.into_iter().enumerate().for_each(|(rank, (i, _))| of[i] = Some(rank * tiers / n));
    of
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::trial::design::Study;

    /// 60 people; the lower tier is older, and one site has no scan of it beyond a few.
    fn pool() -> Pool {
        let member = |i: usize| Member {
            sample: i,
            subject: format!("sub-{i}"),
            age: Some(20.0 + i as f32),
            site: Some(if i.is_multiple_of(2) { "A" } else { "B" }.into()),
            tiers: vec![Some(usize::from(i * 7 % 60 < 35))],
            copies: vec![Some(100 + i)],
        };
        Pool { members: (0..60).map(member).collect(), gradings: vec![2] }
    }

    fn arm(kind: Kind) -> Arm {
        Arm { name: String::new(), label: String::new(), kind }
    }

    fn tier(tier: usize) -> Arm {
        arm(Kind::Tier { grading: 0, tier, share: 1.0 })
    }

    #[test]
    fn arms_are_alike_in_number_age_and_site() {
        let (pool, design) = (pool(), Study::default().design);
        let draw = pool.draw(&design, &BTreeSet::from(["sub-3".to_owned()]), 1).unwrap();
        let random = arm(Kind::Random { share: 1.0 });
        let make_up = |arm: &Arm| {
            let mut counts = BTreeMap::new();
            draw.members(arm).iter().for_each(|i| *counts.entry(draw.stratum[i].clone()).or_insert(0) += 1);
            counts
        };
        assert_eq!(make_up(&tier(0)), make_up(&tier(1)));
        assert_eq!(make_up(&tier(0)), make_up(&random));
        assert_eq!(draw.members(&random).len(), draw.scans());
        assert!(draw.members(&tier(0)).iter().all(|&i| pool.members[i].tiers[0] == Some(0)));
        assert_eq!(draw.members(&arm(Kind::All)).len(), 59);
        assert!(!draw.members(&arm(Kind::All)).contains(&3));
    }

    #[test]
    fn distorted_arms_are_the_random_scans_and_mixtures_nest() {
        let (pool, design) = (pool(), Study::default().design);
        let draw = pool.draw(&design, &BTreeSet::new(), 2).unwrap();
        let random = draw.samples(&arm(Kind::Random { share: 1.0 })).unwrap();
        let distorted = draw.samples(&arm(Kind::Distorted { severity: 0, share: 1.0 })).unwrap();
        assert_eq!(distorted, random.iter().map(|i| i + 100).collect::<Vec<_>>());
        let mixed = |share| {
            let samples = draw.samples(&arm(Kind::Mixture { severity: 0, share })).unwrap();
            assert_eq!(samples.len(), random.len());
            samples.into_iter().filter(|&s| s >= 100).collect::<BTreeSet<usize>>()
        };
        let [few, many] = [0.25, 0.75].map(mixed);
        assert_eq!(few.len(), (0.25 * random.len() as f64).round() as usize);
        assert!(few.is_subset(&many) && few.len() < many.len());
    }

    #[test]
    fn points_of_a_curve_nest_and_seeds_draw_others() {
        let (pool, design) = (pool(), Study::default().design);
        let [one, two] = [1, 2].map(|seed| pool.draw(&design, &BTreeSet::new(), seed).unwrap());
        let half = one.members(&arm(Kind::Random { share: 0.5 }));
        let whole = one.members(&arm(Kind::Random { share: 1.0 }));
        assert_eq!(half.len(), (one.scans() as f64 / 2.0).round() as usize);
        assert!(half.iter().all(|i| whole.contains(i)));
        assert_ne!(whole, two.members(&arm(Kind::Random { share: 1.0 })));
    }

    #[test]
    fn too_much_asked_for_is_refused() {
        let pool = pool();
        let mut design = Design { scans: 59, ..Study::default().design };
        assert!(pool.draw(&design, &BTreeSet::new(), 1).unwrap_err().contains("design.scans = 59"));
        design = Design { scans: 10, ..design };
        assert_eq!(pool.draw(&design, &BTreeSet::new(), 1).unwrap().scans(), 10);
        let most = (0..58).map(|i| format!("sub-{i}")).collect();
        assert!(pool.draw(&design, &most, 1).unwrap_err().contains("only"));
    }

    #[test]
    fn ranks_make_equal_tiers() {
        let values: Vec<Option<f64>> = (0..10).map(|i| (i != 4).then_some(f64::from(i / 3))).collect();
        let tiers = by_rank(&values, 3, 0);
        assert_eq!(tiers[4], None);
        assert!((0..3).all(|t| tiers.iter().filter(|&&of| of == Some(t)).count() == 3));
        assert!(tiers[0] == Some(0) && tiers[9] == Some(2));
    }
}
