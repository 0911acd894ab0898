use super::*;
use crate::data::Sex;
use proptest::prelude::*;
use std::{fs, path::PathBuf};

/// `people` subjects with one to three scans, of three sites of different sizes and both sexes.
fn cohort(people: usize) -> Vec<Scan> {
    let scans = |i: usize| {
        let sex = Some(if i.is_multiple_of(2) { Sex::Female } else { Sex::Male });
        let scan = Scan {
            subject: format!("sub-{i:03}"),
            age: (i % 10 != 9).then_some(20.0 + (i * 37 % 61) as f32),
            sex,
            site: Some(["A", "A", "A", "B", "B", "C"][i * 7 % 6].to_owned()),
            ..Scan::unknown(PathBuf::from(format!("{i}.nii")))
        };
        vec![scan; 1 + i % 3]
    };
    (0..people).flat_map(scans).collect()
}

fn members(scans: &[Scan]) -> Vec<Member<'_>> {
    scans.iter().enumerate().map(|(row, s)| Member { row, subject: &s.subject, age: s.age }).collect()
}

proptest! {
    #[test]
    fn folds_share_nobody_and_are_alike_in_site_and_sex(people in 12usize..150, k in 2usize..6, seed: u64) {
        let scans = cohort(people);
        let a = Assignment::new(&scans, None, &Persons::default(), Parts::Folds(k), seed).unwrap();
        let split = a.split(&members(&scans), Path::new("split.tsv")).unwrap();
        prop_assert_eq!(split.parts().len(), k);
        let counts = |of: &dyn Fn(&Scan) -> String| {
            let mut counts = BTreeMap::<(String, usize), BTreeSet<&str>>::new();
            for part in 0..k {
                for row in split.rows(part) {
                    counts.entry((of(&scans[row]), part)).or_default().insert(&scans[row].subject);
                }
            }
            counts.into_iter().map(|(key, subjects)| (key, subjects.len())).collect::<BTreeMap<_, _>>()
        };
        let sizes = counts(&|_| String::new());
        prop_assert!(sizes.values().all(|&n| n == people / k || n == people / k + 1), "{:?}", sizes);
        let strata = |s: &Scan| format!("{:?}{:?}", s.site, s.sex);
        let by_stratum = counts(&strata);
        let all = scans.iter().map(|s| (strata(s), s.subject.as_str())).collect::<BTreeSet<_>>();
        for ((stratum, _), n) in &by_stratum {
            let whole = all.iter().filter(|(s, _)| s == stratum).count();
            // Whole blocks are dealt evenly; of those left over, fewer than k, one part may get all but few.
            prop_assert!(*n >= whole / k && *n < whole / k + k, "{} of {}", n, whole);
        }
        let subjects: BTreeSet<&str> = scans.iter().map(|s| s.subject.as_str()).collect();
        prop_assert_eq!(a.subjects.len(), subjects.len());
    }
}

#[test]
fn holdouts_are_alike_in_everything_and_follow_their_seed() {
    let scans = cohort(120);
    let make = |seed| Assignment::new(&scans, None, &Persons::default(), Parts::Holdout(0.25), seed).unwrap();
    let a = make(1);
    let share = |is: &dyn Fn(&Scan) -> bool| {
        let of = |part: &str| {
            let there: BTreeSet<&str> = scans
                .iter()
                .filter(|s| is(s) && a.part_of(&s.subject) == Some(part))
                .map(|s| s.subject.as_str())
                .collect();
            there.len() as f64
        };
        of(TEST) / (of(TEST) + of(TRAIN))
    };
    for is in [
        &(|_: &Scan| true) as &dyn Fn(&Scan) -> bool,
        &|s| s.sex == Some(Sex::Female),
        &|s| s.site.as_deref() == Some("B"),
        &|s| s.age.is_some_and(|a| a > 50.0),
    ] {
        assert!((share(is) - 0.25).abs() < 0.05, "{}", share(is));
    }
    assert_eq!((a.hash() == make(1).hash(), a.hash() == make(2).hash()), (true, false));
}

#[test]
fn one_person_is_in_one_part_under_all_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("same.tsv");
    fs::write(&path, "person\tsubject\n1\tsub-001\n1\tsub-008\n1\tsub-030\n").unwrap();
    let persons = Persons::read(&path).unwrap();
    for seed in 0..20 {
        let a = Assignment::new(&cohort(40), None, &persons, Parts::Folds(5), seed).unwrap();
        let part = a.part_of("sub-001");
        assert!(part.is_some() && part == a.part_of("sub-008") && part == a.part_of("sub-030"));
    }
}

#[test]
fn files_come_back_and_faults_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("split.tsv");
    let scans = cohort(30);
    let a = Assignment::new(&scans, None, &Persons::default(), Parts::Folds(11), 4).unwrap();
    a.write(&path).unwrap();
    let back = Assignment::read(&path).unwrap();
    assert_eq!((back.hash(), back.parts().len(), back.is_folds()), (a.hash(), 11, true));
    assert_eq!(back.parts()[10], "fold-11");
    let refused = |text: &str| {
        fs::write(&path, text).unwrap();
        Assignment::read(&path).unwrap_err().to_string()
    };
    assert!(refused("subject\tpart\na\ttrain\nb\ttest\na\ttest\n").ends_with("in two parts: a"));
    assert!(refused("subject\tpart\na\ttrain\nb\tfold-1\n").contains("not both"));
    assert!(refused("subject\tpart\na\tfold-1\nb\tfold-3\n").contains("folds 1 to K"));
    assert!(refused("subject\tpart\na\ttrain\nb\trest\n").contains("line 3: part is \"rest\""));
    fs::write(&path, "subject\tpart\nsub-000\ttrain\nsub-001\ttest\n").unwrap();
    let few = Assignment::read(&path).unwrap();
    let error = few.split(&members(&scans), &path).unwrap_err().to_string();
    assert!(error.contains("part of sub-002, sub-003") && error.contains("and 18 more"), "{error}");
    let few = few.split(&members(&scans[..1]), &path).unwrap_err().to_string();
    assert!(few.contains("none of the scans is in part test"), "{few}");
    assert!("folds:1".parse::<Parts>().is_err() && "holdout:1".parse::<Parts>().is_err());
    assert_eq!("holdout:0.2".parse(), Ok(Parts::Holdout(0.2)));
}
