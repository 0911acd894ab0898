//! What `participants.tsv` says of people: age, sex, site, diagnosis and rating, by subject and perhaps session.
use super::{
    Error,
    scan::Scan,
    table::{Ages, Row, Table},
};
use std::{collections::HashMap, path::Path};

/// Rows of one `participants.tsv`, by dataset (where the table has that column), participant and session.
#[derive(Debug, Default)]
pub(super) struct People(HashMap<Key, Person>);

/// Dataset, subject and session without their prefixes.
type Key = (Option<String>, String, Option<String>);

/// What one row says.
#[derive(Clone, Debug, Default)]
struct Person {
    age: Option<f32>,
    sex: Option<super::Sex>,
    quality: Option<f32>,
    site: Option<String>,
    group: Option<String>,
}

impl People {
    /// The people of `path`; none if there is no such file.
    pub(super) fn read(path: &Path, ages: Ages) -> Result<People, Error> {
        if !path.exists() {
            return Ok(People::default());
        }
        let table = Table::read(path, ages)?;
        table.require(&["participant_id"])?;
        let mut people = HashMap::new();
        for row in table.rows() {
            let Some(subject) = row.text("participant_id") else { continue };
            let dataset = row.text("dataset").map(str::to_lowercase);
            let session = row.text("session_id").map(|s| bare(s, "ses").to_owned());
            let person = Person {
                age: row.age()?,
                sex: row.text("sex").and_then(|s| s.parse().ok()),
                quality: row.quality(&["quality_rating", "quality"])?,
                site: site(&row),
                group: group(&row),
            };
            people.insert((dataset, bare(subject, "sub").to_owned(), session), person);
        }
        Ok(People(people))
    }

    /// Fills in what the row of the scan's session says of the person, or else the row of its subject; `subject` is
    /// the name that the table knows. False if there is neither.
    pub(super) fn describe(&self, scan: &mut Scan, dataset: Option<&str>, subject: &str) -> bool {
        let subject = bare(subject, "sub").to_owned();
        let session = scan.session.as_deref().map(|s| bare(s, "ses").to_owned());
        let dataset = dataset.map(str::to_lowercase);
        let keys = [
            (dataset.clone(), subject.clone(), session.clone()),
            (dataset, subject.clone(), None),
            (None, subject.clone(), session),
            (None, subject, None),
        ];
        let Some(person) = keys.iter().find_map(|key| self.0.get(key)) else { return false };
        let Person { age, sex, quality, site, group } = person.clone();
        (scan.age, scan.sex, scan.quality) = (age, sex, quality);
        (scan.site, scan.group) = (site, group);
        true
    }
}

/// An id without its prefix: "01" of "sub-01", "sub_01" and "01".
fn bare<'a>(id: &'a str, prefix: &str) -> &'a str {
    id.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(['-', '_'])).unwrap_or(id)
}

/// Where the row says that the scan was made.
pub(super) fn site(row: &Row<'_>) -> Option<String> {
    ["site", "site_id", "centre", "center"].iter().find_map(|c| row.text(c)).map(str::to_owned)
}

/// The row's diagnosis, in one spelling where it is a common one.
pub(super) fn group(row: &Row<'_>) -> Option<String> {
    let text = ["group", "diagnosis", "dx"].iter().find_map(|c| row.text(c))?;
    let word: String = text.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    Some(match word.as_str() {
        "cn" | "nc" | "hc" | "control" | "controls" | "healthy" | "healthycontrol" | "healthycontrols"
        | "normal" | "normalcontrol" | "cognitivelynormal" => "CN".into(),
        "mci" | "mildcognitiveimpairment" => "MCI".into(),
        "ad" | "alzheimer" | "alzheimers" | "alzheimerdisease" | "alzheimersdisease" => "AD".into(),
        "pd" | "parkinson" | "parkinsons" | "parkinsondisease" | "parkinsonsdisease" => "PD".into(),
        _ => text.to_owned(),
    })
}
