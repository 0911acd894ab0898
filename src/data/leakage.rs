//! Whether two sets of scans share people or images.
use serde::Serialize;
use std::collections::BTreeMap;

/// What identifies each scan of a set, with the name to show for it; `None` where a set cannot say.
#[derive(Clone, Debug, Default)]
pub struct Identities {
    /// People.
    pub subjects: Vec<(String, String)>,
    /// Hashes of files.
    pub files: Option<Vec<(String, String)>>,
    /// Hashes of voxels, comparable with the other set's.
    pub voxels: Option<Vec<(String, String)>>,
}

/// What two sets share, as pairs of names; `None` where they cannot be compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Leakage {
    /// People.
    pub subjects: Vec<(String, String)>,
    /// Files that are the same to the byte.
    pub files: Option<Vec<(String, String)>>,
    /// Images of the same voxels.
    pub voxels: Option<Vec<(String, String)>>,
}

impl Leakage {
    /// What `a` and `b` share.
    pub fn between(a: &Identities, b: &Identities) -> Leakage {
        let both = |a: &Option<Vec<_>>, b: &Option<Vec<_>>| Some(shared(a.as_ref()?, b.as_ref()?));
        Leakage {
            subjects: shared(&a.subjects, &b.subjects),
            files: both(&a.files, &b.files),
            voxels: both(&a.voxels, &b.voxels),
        }
    }

    /// Nothing that could be compared is shared.
    pub fn is_none(&self) -> bool {
        let images = [&self.files, &self.voxels];
        self.subjects.is_empty() && images.into_iter().flatten().all(Vec::is_empty)
    }
}

/// The names of everything in both, each once and in order.
fn shared(a: &[(String, String)], b: &[(String, String)]) -> Vec<(String, String)> {
    let mut there: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    b.iter().for_each(|(key, name)| there.entry(key).or_default().push(name));
    let pairs = a.iter().flat_map(|(key, name)| {
        let others = there.get(key.as_str()).into_iter().flatten();
        others.map(move |other| (name.clone(), (*other).to_owned()))
    });
    let mut pairs: Vec<(String, String)> = pairs.collect();
    pairs.sort();
    pairs.dedup();
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharing_is_named_and_what_cannot_be_compared_is_not_none() {
        let named = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(key, name)| ((*key).to_owned(), (*name).to_owned())).collect()
        };
        let a = Identities {
            subjects: named(&[("p", "sub-1"), ("p", "sub-1"), ("q", "sub-2")]),
            files: Some(named(&[("f", "x.nii"), ("g", "y.nii")])),
            voxels: None,
        };
        let b = Identities {
            subjects: named(&[("p", "s9")]),
            files: Some(named(&[("g", "z.nii")])),
            ..a.clone()
        };
        let leakage = Leakage::between(&a, &b);
        assert_eq!(leakage.subjects, named(&[("sub-1", "s9")]));
        assert_eq!(leakage.files, Some(named(&[("y.nii", "z.nii")])));
        assert_eq!((leakage.voxels.clone(), leakage.is_none()), (None, false));
        let apart = Identities { subjects: named(&[("r", "s9")]), files: None, voxels: None };
        assert!(Leakage::between(&a, &apart).is_none());
    }
}
