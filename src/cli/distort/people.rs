//! `participants.tsv` of a distorted dataset: that of its source, and who was distorted.
use std::collections::BTreeSet;

/// The column that says how severely a subject's scans were distorted; 0 is not at all.
pub(super) const COLUMN: &str = "distortion_level";

/// `table` with [`COLUMN`] filled by `level` of "sub-..", or a table of `subjects` alone where there is none.
pub(super) fn with_levels(
    table: Option<&str>,
    subjects: &BTreeSet<&str>,
    level: impl Fn(&str) -> String,
) -> String {
    let Some(table) = table else {
        let rows = subjects.iter().map(|s| format!("{s}\t{}\n", level(s)));
        return format!("participant_id\t{COLUMN}\n{}", rows.collect::<String>());
    };
    let mut lines = table.trim_start_matches('\u{feff}').lines().filter(|line| !line.trim().is_empty());
    let header: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
    let find = |name: &str| header.iter().position(|h| h.trim().eq_ignore_ascii_case(name));
    // Distorting what was distorted before: only the last level is told here, the sidecars tell all.
    let (id, old) = (find("participant_id"), find(COLUMN));
    let row = |cells: &[&str], last: &str| {
        let kept = cells.iter().enumerate().filter(|(i, _)| Some(*i) != old).map(|(_, c)| *c);
        kept.chain([last]).collect::<Vec<_>>().join("\t") + "\n"
    };
    let mut text = row(&header, COLUMN);
    for line in lines {
        let cells: Vec<&str> = line.split('\t').collect();
        let name = id.and_then(|i| cells.get(i)).map_or("", |c| c.trim());
        let name = if name.starts_with("sub-") { name.to_owned() } else { format!("sub-{name}") };
        let level = if subjects.contains(name.as_str()) { level(&name) } else { "n/a".into() };
        text += &row(&cells, &level);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_go_into_a_column_of_their_own() {
        let subjects = BTreeSet::from(["sub-01", "sub-02"]);
        let level = |s: &str| if s == "sub-02" { "3".to_owned() } else { "0".to_owned() };
        let table = "\u{feff}participant_id\tage\r\nsub-02\t60\r\n01\t5\r\nsub-09\t7\r\n";
        let expected = "participant_id\tage\tdistortion_level\nsub-02\t60\t3\n01\t5\t0\nsub-09\t7\tn/a\n";
        let once = with_levels(Some(table), &subjects, level);
        assert_eq!(once, expected);
        assert_eq!(with_levels(Some(&once), &subjects, level), expected);
        assert_eq!(
            with_levels(None, &subjects, level),
            "participant_id\tdistortion_level\nsub-01\t0\nsub-02\t3\n"
        );
    }
}
