//! The ways to pretrain that a study compares.
use super::design::{Severity, Study};

impl Study {
    /// The arms, the one that others are compared with first.
    pub fn arms(&self) -> Vec<Arm> {
        let arm = |name: String, label: String, kind| Arm { name, label, kind };
        let mut arms =
            vec![arm("random".into(), "random scans, as they are".into(), Kind::Random { share: 1.0 })];
        for (g, grading) in self.grading.iter().enumerate() {
            for (t, tier) in grading.tiers.iter().enumerate() {
                let (name, label) = (format!("{}-{tier}", grading.name), format!("{}: {tier}", grading.name));
                arms.push(arm(name, label, Kind::Tier { grading: g, tier: t, share: 1.0 }));
            }
        }
        let severities: Vec<String> = self.distortion.tiers.iter().map(Severity::name).collect();
        for (severity, name) in severities.iter().enumerate() {
            let label = format!("the random scans, distorted: {name}");
            arms.push(arm(name.clone(), label, Kind::Distorted { severity, share: 1.0 }));
        }
        let mixed = self.distortion.mixed_with.as_ref().and_then(|m| severities.iter().position(|s| s == m));
        if let Some(severity) = mixed.or(severities.len().checked_sub(1)) {
            for &share in &self.distortion.mixtures {
                let percent = 100.0 * share;
                let name = format!("{}-{percent}%", severities[severity]);
                let label = format!("the random scans, {percent} % of them {}", severities[severity]);
                arms.push(arm(name, label, Kind::Mixture { severity, share }));
            }
        }
        arms.push(arm("all".into(), "all scans, as they are".into(), Kind::All));
        if self.prepare.modalities.len() > 1 {
            let label = format!("the random people: {}", self.prepare.modalities.join(", "));
            arms.push(arm("multimodal".into(), label, Kind::Multimodal));
        }
        arms.push(arm("scratch".into(), "no pretraining".into(), Kind::Scratch));
        arms.push(arm("readout".into(), "no network: ridge on regional intensities".into(), Kind::Readout));
        let points: Vec<Arm> =
            self.design.curve.iter().flat_map(|&share| curve_points(&arms, share)).collect();
        arms.extend(points);
        arms
    }
}

/// Every tier among `arms` once more, with `share` of its scans.
fn curve_points(arms: &[Arm], share: f64) -> Vec<Arm> {
    let point = |arm: &Arm| {
        let kind = match arm.kind {
            Kind::Random { .. } => Kind::Random { share },
            Kind::Tier { grading, tier, .. } => Kind::Tier { grading, tier, share },
            Kind::Distorted { severity, .. } => Kind::Distorted { severity, share },
            _ => return None,
        };
        let percent = 100.0 * share;
        let (name, label) =
            (format!("{}@{percent}%", arm.name), format!("{}, {percent} % of them", arm.label));
        Some(Arm { name, label, kind })
    };
    arms.iter().filter_map(point).collect()
}

/// One way to pretrain.
#[derive(Clone, Debug, PartialEq)]
pub struct Arm {
    /// A short name, of which a folder is made.
    pub name: String,
    /// What it is, for people.
    pub label: String,
    /// What it is pretrained on.
    pub kind: Kind,
}

/// What an arm is pretrained on. A `share` below 1 is a point of a learning curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Scans of all tiers.
    Random {
        /// Of the scans that the others have.
        share: f64,
    },
    /// Scans of one tier.
    Tier {
        /// Number of the grading.
        grading: usize,
        /// Number of its tier.
        tier: usize,
        /// Of the scans that the others have.
        share: f64,
    },
    /// The random scans, distorted.
    Distorted {
        /// Number of the distorted tier.
        severity: usize,
        /// Of the scans that the others have.
        share: f64,
    },
    /// The random scans, some of them distorted.
    Mixture {
        /// Number of the distorted tier.
        severity: usize,
        /// How many of them.
        share: f64,
    },
    /// All scans that there are.
    All,
    /// All modalities of the random people.
    Multimodal,
    /// Nothing.
    Scratch,
    /// Nothing, and there is no network either.
    Readout,
}

impl Kind {
    /// Whether it is a point of a learning curve, which is probed but not fine-tuned.
    pub fn is_curve_point(self) -> bool {
        match self {
            Kind::Random { share } | Kind::Tier { share, .. } | Kind::Distorted { share, .. } => share < 1.0,
            _ => false,
        }
    }
    /// Whether anything is pretrained.
    pub fn pretrains(self) -> bool {
        !matches!(self, Kind::Scratch | Kind::Readout)
    }
    /// Whether there is a network at all.
    pub fn has_network(self) -> bool {
        self != Kind::Readout
    }
    /// The arm that a point of a learning curve is of; any other itself.
    pub fn whole(self) -> Kind {
        match self {
            Kind::Random { .. } => Kind::Random { share: 1.0 },
            Kind::Tier { grading, tier, .. } => Kind::Tier { grading, tier, share: 1.0 },
            Kind::Distorted { severity, .. } => Kind::Distorted { severity, share: 1.0 },
            other => other,
        }
    }
}
