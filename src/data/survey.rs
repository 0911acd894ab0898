//! What a dataset holds and what is doubtful about it, before anything is prepared.
use super::{Contents, Scan, Skipped};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What is there: counts, ranges, copies and doubts.
#[derive(Clone, Debug, Serialize)]
pub struct Survey {
    /// Scans of all modalities.
    pub scans: usize,
    /// People, by their names.
    pub subjects: usize,
    /// Subjects' sessions.
    pub visits: usize,
    /// Subjects with more than one session.
    pub several_sessions: usize,
    /// Scans beyond the first of a modality in one visit.
    pub repeats: usize,
    /// Scans by modality.
    pub modalities: BTreeMap<String, usize>,
    /// Ages of visits, in years.
    pub ages: Option<Range>,
    /// Visits without an age.
    pub without_age: usize,
    /// Visits by decade of age, by its first year.
    pub decades: BTreeMap<i64, usize>,
    /// Subjects by sex, site and diagnosis; "unknown" where they are not said.
    pub sexes: BTreeMap<String, usize>,
    /// See `sexes`.
    pub sites: BTreeMap<String, usize>,
    /// See `sexes`.
    pub groups: BTreeMap<String, usize>,
    /// Ratings of scans.
    pub ratings: Option<Range>,
    /// Images whose voxels were read.
    pub images_read: usize,
    /// Files that are the same to the byte, by name.
    pub same_files: Vec<Vec<String>>,
    /// Different files with the same voxels, by name.
    pub same_voxels: Vec<Vec<String>>,
    /// Images that cannot be read, and why.
    pub unreadable: Vec<Skipped>,
    /// What somebody should look at, in words.
    pub doubts: Vec<String>,
}

/// Some numbers in a few.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// How many.
    pub count: usize,
    /// The least.
    pub min: f64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation (by n - 1; 0 of one).
    pub sd: f64,
    /// The greatest.
    pub max: f64,
}

impl Range {
    /// Of some numbers; `None` if there are none.
    pub fn of(numbers: &[f64]) -> Option<Range> {
        let count = numbers.len();
        let (min, max) =
            (numbers.iter().copied().reduce(f64::min)?, numbers.iter().copied().reduce(f64::max)?);
        let mean = numbers.iter().sum::<f64>() / count as f64;
        let squares: f64 = numbers.iter().map(|x| (x - mean).powi(2)).sum();
        let sd = (squares / (count - 1).max(1) as f64).sqrt();
        Some(Range { count, min, mean, sd, max })
    }
}

/// Names in a doubt; more are counted.
const NAMED: usize = 5;
/// Above this an age is no person's.
const OLDEST: f64 = 120.0;

impl Survey {
    /// Of `scans`, with the contents of each image where they were read.
    pub fn new(scans: &[Scan], contents: &[Option<Contents>]) -> Survey {
        let mut subjects: BTreeMap<&str, Vec<&Scan>> = BTreeMap::new();
        let mut visits: BTreeMap<(&str, Option<&str>), Vec<&Scan>> = BTreeMap::new();
        for scan in scans {
            subjects.entry(&scan.subject).or_default().push(scan);
            visits.entry((&scan.subject, scan.session.as_deref())).or_default().push(scan);
        }
        let age = |visit: &Vec<&Scan>| visit.iter().find_map(|s| s.age).map(f64::from);
        let ages: Vec<f64> = visits.values().filter_map(age).collect();
        let several =
            |subject: &Vec<&Scan>| subject.iter().map(|s| &s.session).collect::<BTreeSet<_>>().len() > 1;
        let distinct = |visit: &Vec<&Scan>| visit.iter().map(|s| &s.modality).collect::<BTreeSet<_>>().len();
        let by = |of: &dyn Fn(&Scan) -> Option<String>| {
            let said = |subject: &Vec<&Scan>| subject.iter().find_map(|s| of(s)).unwrap_or("unknown".into());
            count(subjects.values().map(said))
        };
        let name = |i: usize| scans[i].path.display().to_string();
        let read = |i: usize| contents[i].as_ref();
        let files = copies((0..scans.len()).filter_map(|i| Some((read(i)?.file.clone()?, i))));
        let voxels = copies((0..scans.len()).filter_map(|i| Some((read(i)?.voxels.clone().ok()?, i))));
        let one_file = |copies: &Vec<usize>| files.iter().any(|f| copies.iter().all(|i| f.contains(i)));
        let other_files: Vec<Vec<usize>> = voxels.into_iter().filter(|c| !one_file(c)).collect();
        let named = |all: &[Vec<usize>]| -> Vec<Vec<String>> {
            all.iter().map(|copies| copies.iter().map(|&i| name(i)).collect()).collect()
        };
        let unreadable = (0..scans.len()).filter_map(|i| {
            let reason = read(i)?.voxels.clone().err()?;
            Some(Skipped { source: scans[i].path.clone(), reason })
        });
        let ratings: Vec<f64> = scans.iter().filter_map(|s| s.quality).map(f64::from).collect();
        let mut doubts = of_ages(&visits, &ages);
        doubts.extend(of_subjects(&subjects));
        let strangers: BTreeSet<String> = files
            .iter()
            .chain(&other_files)
            .filter(|copies| copies.iter().any(|&i| scans[i].subject != scans[copies[0]].subject))
            .map(|copies| {
                copies
                    .iter()
                    .map(|&i| scans[i].subject.as_str())
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect::<Vec<_>>()
                    .join(" = ")
            })
            .collect();
        if !strangers.is_empty() {
            let names = few(strangers.iter().map(String::as_str));
            doubts.push(format!("subjects of different names share scans, which no split can know: {names}"));
        }
        let unsaid =
            scans.iter().filter(|s| s.modality == super::UNKNOWN).map(|s| s.path.display().to_string());
        let unsaid: Vec<String> = unsaid.collect();
        if !unsaid.is_empty() {
            let names = few(unsaid.iter().map(String::as_str));
            doubts.push(format!("nothing says the modality of {} scans: {names}", unsaid.len()));
        }
        Survey {
            scans: scans.len(),
            subjects: subjects.len(),
            visits: visits.len(),
            several_sessions: subjects.values().filter(|s| several(s)).count(),
            repeats: scans.len() - visits.values().map(distinct).sum::<usize>(),
            modalities: count(scans.iter().map(|s| s.modality.clone())),
            without_age: visits.len() - ages.len(),
            decades: count(ages.iter().map(|a| 10 * (a / 10.0).floor() as i64)),
            ages: Range::of(&ages),
            sexes: by(&|s| s.sex.map(|sex| sex.to_string())),
            sites: by(&|s| s.site.clone()),
            groups: by(&|s| s.group.clone()),
            ratings: Range::of(&ratings),
            images_read: contents.iter().flatten().filter(|c| c.voxels.is_ok()).count(),
            same_files: named(&files),
            same_voxels: named(&other_files),
            unreadable: unreadable.collect(),
            doubts,
        }
    }
}

fn count<T: Ord>(items: impl Iterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    items.for_each(|item| *counts.entry(item).or_default() += 1);
    counts
}

/// Groups of two and more with the same hash, in order of their first.
fn copies(hashes: impl Iterator<Item = (String, usize)>) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    hashes.for_each(|(hash, i)| groups.entry(hash).or_default().push(i));
    let mut groups: Vec<Vec<usize>> = groups.into_values().filter(|g| g.len() > 1).collect();
    groups.sort();
    groups
}

/// The first names, and how many more there are.
fn few<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let shown = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

fn of_ages(visits: &BTreeMap<(&str, Option<&str>), Vec<&Scan>>, ages: &[f64]) -> Vec<String> {
    let mut doubts = Vec::new();
    let odd = |age: f64| !(0.0..=OLDEST).contains(&age);
    let names: Vec<String> = visits
        .iter()
        .filter_map(|((subject, _), visit)| {
            let age = visit.iter().find_map(|s| s.age).map(f64::from).filter(|&a| odd(a))?;
            Some(format!("{subject} ({age})"))
        })
        .collect();
    if !names.is_empty() {
        let shown = few(names.iter().map(String::as_str));
        doubts.push(format!("{} ages are no person's in years: {shown}", names.len()));
    }
    let mut sorted = ages.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(&median) = sorted.get(sorted.len() / 2) else {
        doubts.push("no ages are known".into());
        return doubts;
    };
    // A median person is 10 to 100 years old, in whatever unit.
    for (unit, years) in [("months", 12.0), ("days", 365.25)] {
        if median > OLDEST && (10.0..100.0).contains(&(median / years)) {
            let years = median / years;
            doubts.push(format!("ages seem to be in {unit}: their median would be {years:.0} years"));
            break;
        }
    }
    if sorted.len() > 2 && sorted[0] == sorted[sorted.len() - 1] {
        doubts.push(format!("all {} ages are {median}: a placeholder?", sorted.len()));
    }
    let missing = visits.len() - ages.len();
    if missing > 0 {
        doubts.push(format!("{missing} of {} visits have no age", visits.len()));
    }
    doubts
}

/// People who change sex, or whose ages lie too far apart.
fn of_subjects(subjects: &BTreeMap<&str, Vec<&Scan>>) -> Vec<String> {
    let sexes = |scans: &Vec<&Scan>| {
        let first = scans.iter().find_map(|s| s.sex);
        scans.iter().any(|s| s.sex.is_some() && s.sex != first)
    };
    let apart = |scans: &Vec<&Scan>| {
        let ages: Vec<f64> = scans.iter().filter_map(|s| s.age).map(f64::from).collect();
        Range::of(&ages).is_some_and(|s| s.max - s.min > 30.0)
    };
    let mut doubts = Vec::new();
    type Check<'a> = &'a dyn Fn(&Vec<&Scan>) -> bool;
    let checks: [(&str, Check<'_>); 2] =
        [("are both female and male", &sexes), ("have ages more than 30 years apart", &apart)];
    for (what, check) in checks {
        let names: Vec<&str> =
            subjects.iter().filter(|(_, scans)| check(scans)).map(|(name, _)| *name).collect();
        if !names.is_empty() {
            doubts.push(format!("{} subjects {what}: {}", names.len(), few(names.iter().copied())));
        }
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sex;
    use std::path::PathBuf;

    fn scan(subject: &str, session: &str, age: f32) -> Scan {
        let path = PathBuf::from(format!("{subject}_{session}_T1w.nii.gz"));
        let (subject, session) = (subject.to_owned(), Some(session.to_owned()));
        Scan { subject, session, age: Some(age), sex: Some(Sex::Female), ..Scan::unknown(path) }
    }

    fn doubts(scans: &[Scan]) -> String {
        Survey::new(scans, &vec![None; scans.len()]).doubts.join("\n")
    }

    #[test]
    fn months_days_placeholders_and_odd_people_are_doubted() {
        let people = |ages: &[f32]| -> Vec<Scan> {
            ages.iter().enumerate().map(|(i, &age)| scan(&format!("sub-{i}"), "1", age)).collect()
        };
        assert_eq!(doubts(&people(&[20.0, 41.0, 64.0])), "");
        let months = doubts(&people(&[240.0, 492.0, 768.0]));
        assert!(months.contains("3 ages are no person's") && months.contains("in months: "), "{months}");
        assert!(doubts(&people(&[7300.0, 15000.0, 23000.0])).contains("in days: their median would be 41"));
        assert!(doubts(&people(&[33.0, 33.0, 33.0])).contains("all 3 ages are 33"));
        let mut twice = vec![scan("sub-1", "1", 20.0), scan("sub-1", "2", 61.0)];
        twice[1].sex = Some(Sex::Male);
        let text = doubts(&twice);
        assert!(
            text.contains("both female and male: sub-1") && text.contains("30 years apart: sub-1"),
            "{text}"
        );
        twice[0].age = None;
        assert!(doubts(&twice).contains("1 of 2 visits have no age"));
    }

    #[test]
    fn copies_are_found_once_each_and_strangers_are_named() {
        let scans = [("a", "1"), ("a", "2"), ("b", "1"), ("c", "1")].map(|(s, v)| scan(s, v, 30.0));
        let of =
            |file: &str, voxels: &str| Some(Contents { file: Some(file.into()), voxels: Ok(voxels.into()) });
        let contents = [of("f", "v"), of("f", "v"), of("g", "v"), of("h", "w")];
        let survey = Survey::new(&scans, &contents);
        assert_eq!(survey.same_files, [["a_1_T1w.nii.gz", "a_2_T1w.nii.gz"]]);
        assert_eq!(survey.same_voxels, [["a_1_T1w.nii.gz", "a_2_T1w.nii.gz", "b_1_T1w.nii.gz"]]);
        assert!(survey.doubts.iter().any(|d| d.ends_with("no split can know: a = b")), "{:?}", survey.doubts);
        assert_eq!((survey.several_sessions, survey.visits, survey.images_read), (1, 4, 4));
    }
}
