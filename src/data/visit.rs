//! Which scans belong together: on whose grid each lies, and what was seen at one visit.
use super::scan::Scan;

/// The modality whose brain and grid all others of a visit are brought to.
pub const T1W: &str = "T1w";

/// What a cache has of one subject at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Whose visit it is.
    pub subject: String,
    /// The session of the T1w on whose grid the volumes lie.
    pub session: Option<String>,
    /// The row of each modality (the number of its scan, where there is no cache), in the order of [`super::Cache::modalities`]; `None` where it is missing.
    pub rows: Vec<Option<usize>>,
}

/// Where a scan lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    /// On a grid of its own, around its own brain.
    Own,
    /// On the grid of the T1w `scans[anchor]`, which was taken `days` earlier or later where that is known and not the
    /// same session.
    Onto { anchor: usize, days: Option<f64> },
    /// Nowhere: the subject has no T1w.
    Nowhere,
}

/// Where each scan lies, when `modalities` are wanted: T1w scans alone on their own grids; with others, the first T1w of
/// a session on its own grid and all else of the session on that, or on that of the nearest session that has one.
pub(super) fn places(scans: &[Scan], modalities: &[String]) -> Vec<Place> {
    if modalities == [T1W] {
        return vec![Place::Own; scans.len()];
    }
    let visit = |s: &Scan| (s.subject.clone(), s.session.clone());
    let is_first = |i: usize| {
        scans[i].modality == T1W
            && !scans[..i].iter().any(|s| s.modality == T1W && visit(s) == visit(&scans[i]))
    };
    let anchors: Vec<usize> = (0..scans.len()).filter(|&i| is_first(i)).collect();
    let place = |(i, scan): (usize, &Scan)| {
        if anchors.contains(&i) {
            return Place::Own;
        }
        let mut sessions: Vec<_> =
            scans.iter().filter(|s| s.subject == scan.subject).map(|s| &s.session).collect();
        sessions.sort();
        sessions.dedup();
        let number = |s: &Scan| sessions.binary_search(&&s.session).unwrap_or(0);
        // One age for all of a subject's sessions is no date.
        let days = |a: usize| match (scan.age, scans[a].age) {
            _ if scans[a].session == scan.session => None,
            (Some(x), Some(y)) if x != y => Some(f64::from((x - y).abs()) * 365.25),
            _ => None,
        };
        let distance = |&a: &usize| {
            let same = scans[a].session == scan.session;
            (!same, days(a).unwrap_or(f64::MAX), number(&scans[a]).abs_diff(number(scan)))
        };
        let nearer = |a: usize, b: usize| if distance(&b) < distance(&a) { b } else { a };
        let nearest = anchors.iter().copied().filter(|&a| scans[a].subject == scan.subject).reduce(nearer);
        nearest.map_or(Place::Nowhere, |anchor| Place::Onto { anchor, days: days(anchor) })
    };
    scans.iter().enumerate().map(place).collect()
}

/// The visits that `rows` hold, in the order of their first rows: numbered scans, each with the session of the T1w on
/// whose grid it lies. Of several runs of one modality each makes a visit, with the first run of each other modality.
pub(super) fn visits<'a>(
    rows: impl Iterator<Item = (usize, &'a Scan, Option<&'a str>)>,
    modalities: &[String],
) -> Vec<Visit> {
    struct Seen<'a> {
        subject: &'a str,
        session: Option<&'a str>,
        /// The rows of each modality.
        runs: Vec<Vec<usize>>,
    }
    let mut seen: Vec<Seen<'_>> = Vec::new();
    for (row, scan, session) in rows {
        let at = seen
            .iter()
            .rposition(|v| v.subject == scan.subject && v.session == session)
            .unwrap_or(seen.len());
        if at == seen.len() {
            seen.push(Seen { subject: &scan.subject, session, runs: vec![Vec::new(); modalities.len()] });
        }
        // A cache of one modality has rows of no other, whatever a table calls them.
        let which = modalities.iter().position(|m| *m == scan.modality).unwrap_or(0);
        seen[at].runs[which].push(row);
    }
    let mut visits = Vec::new();
    for Seen { subject, session, runs } in seen {
        let first: Vec<Option<usize>> = runs.iter().map(|r| r.first().copied()).collect();
        let visit = |rows| Visit { subject: subject.to_owned(), session: session.map(str::to_owned), rows };
        visits.push(visit(first.clone()));
        for (which, more) in runs.iter().enumerate() {
            for &row in more.iter().skip(1) {
                let mut rows = first.clone();
                rows[which] = Some(row);
                visits.push(visit(rows));
            }
        }
    }
    visits
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn scan(subject: &str, session: &str, modality: &str, age: Option<f32>) -> Scan {
        Scan {
            subject: subject.into(),
            session: Some(session.into()),
            modality: modality.into(),
            age,
            ..Scan::unknown(PathBuf::from(format!("{subject}_{session}_{modality}.nii")))
        }
    }

    #[test]
    fn scans_lie_on_the_first_t1w_of_their_own_or_the_nearest_session() {
        let several = ["T1w", "PET"].map(str::to_owned);
        let scans = [
            scan("a", "1", "T1w", Some(60.0)),
            scan("a", "1", "T1w", Some(60.0)),
            scan("a", "1", "PET", Some(60.0)),
            scan("a", "2", "PET", Some(61.0)),
            scan("a", "4", "T1w", Some(61.5)),
            scan("b", "1", "T1w", None),
            scan("b", "5", "T1w", None),
            scan("b", "4", "PET", None),
            scan("c", "1", "PET", None),
        ];
        let onto = |anchor, days| Place::Onto { anchor, days };
        let expected = [
            Place::Own,
            onto(0, None),
            onto(0, None),
            onto(4, Some(0.5 * 365.25)),
            Place::Own,
            Place::Own,
            Place::Own,
            // As many sessions away as the other: the earlier.
            onto(5, None),
            Place::Nowhere,
        ];
        assert_eq!(places(&scans, &several), expected);
        assert!(places(&scans, &several[..1]).iter().all(|p| *p == Place::Own));
    }
}
