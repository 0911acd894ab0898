//! Who is one person under several names: in two datasets, or twice in one.
use super::{
    Error,
    table::{Ages, Table},
};
use std::{collections::HashMap, path::Path};

/// Names that belong to one person. A subject nobody says anything of is a person by that name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Persons(HashMap<String, String>);

impl Persons {
    /// Reads a table of either kind:
    ///
    /// - `person`, `subject` and perhaps `dataset`: a line for each name, with any id for the person;
    /// - `subject_1`, `subject_2` and perhaps `dataset_1`, `dataset_2`: a line for each two names of one person.
    ///
    /// A dataset is called by its folder.
    ///
    /// # Errors
    /// A table that cannot be read, lacks these columns or has an empty cell in one.
    pub fn read(path: &Path) -> Result<Persons, Error> {
        let table = Table::read(path, Ages::Kept)?;
        let pairs = table.require(&["subject_1", "subject_2"]).is_ok();
        if !pairs {
            table.require(&["person", "subject"])?;
        }
        let mut links = Links::default();
        for row in table.rows() {
            let name = |subject, dataset| {
                let subject =
                    row.text(subject).ok_or_else(|| row.refuse(subject, "the name of a subject"))?;
                Ok::<_, Error>((row.text(dataset), subject))
            };
            if pairs {
                let [first, second] = [name("subject_1", "dataset_1")?, name("subject_2", "dataset_2")?];
                let [first, second] = [first, second].map(|(dataset, subject)| links.add(dataset, subject));
                links.join(&first, &second);
            } else {
                let person = row.text("person").ok_or_else(|| row.refuse("person", "an id"))?;
                let (dataset, subject) = name("subject", "dataset")?;
                let subject = links.add(dataset, subject);
                // A line break is in no name that a table has.
                links.join(&format!("\n{person}"), &subject);
            }
        }
        Ok(Persons(links.groups()))
    }

    /// One name for the person who is `subject` of `dataset`, the same for all names of that person.
    pub fn of(&self, dataset: Option<&str>, subject: &str) -> String {
        let full = dataset.and_then(|dataset| self.0.get(&qualified(dataset, subject)));
        full.or_else(|| self.0.get(subject)).map_or(subject, String::as_str).to_owned()
    }
}

fn qualified(dataset: &str, subject: &str) -> String {
    format!("{dataset}\n{subject}")
}

/// Names, each pointing to another of the same person or to itself.
#[derive(Default)]
struct Links(HashMap<String, String>);

impl Links {
    /// The key of a name. In a tree of several datasets subjects are called after theirs, so that is another name.
    fn add(&mut self, dataset: Option<&str>, subject: &str) -> String {
        let Some(dataset) = dataset else { return subject.to_owned() };
        let key = qualified(dataset, subject);
        self.join(&key, &format!("{dataset}_{subject}"));
        key
    }

    fn join(&mut self, a: &str, b: &str) {
        let (a, b) = (self.root(a), self.root(b));
        self.0.insert(b.clone(), a.clone());
        self.0.insert(a.clone(), a);
    }

    fn root(&self, name: &str) -> String {
        let mut name = name;
        while let Some(next) = self.0.get(name).filter(|next| *next != name) {
            name = next;
        }
        name.to_owned()
    }

    /// The name of each name's person: the first of them all that is no id and has no dataset, so that it does not
    /// depend on the order of lines.
    fn groups(&self) -> HashMap<String, String> {
        let mut first: HashMap<String, &str> = HashMap::new();
        for name in self.0.keys().filter(|name| !name.contains('\n')) {
            let least = first.entry(self.root(name)).or_insert(name);
            *least = (*least).min(name);
        }
        let person = |name: &String| first.get(&self.root(name)).map(|p| (*p).to_owned());
        self.0.keys().filter_map(|name| Some((name.clone(), person(name)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(text: &str) -> Result<Persons, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("same.tsv");
        fs::write(&path, text).unwrap();
        Persons::read(&path)
    }

    #[test]
    fn both_kinds_of_tables_say_who_is_who() {
        let by_id =
            read("person\tdataset\tsubject\n1\tOASIS\tsub-3\n1\tADNI\tsub-9\n2\tADNI\tsub-3\n").unwrap();
        let by_pair =
            read("dataset_1\tsubject_1\tdataset_2\tsubject_2\nADNI\tsub-9\tOASIS\tsub-3\n").unwrap();
        for persons in [by_id, by_pair] {
            let person = persons.of(Some("OASIS"), "sub-3");
            assert_eq!(persons.of(Some("ADNI"), "sub-9"), person);
            assert_eq!(persons.of(None, "ADNI_sub-9"), person);
            assert_ne!(persons.of(Some("ADNI"), "sub-3"), person);
            assert_eq!(persons.of(None, "sub-3"), "sub-3");
        }
    }

    #[test]
    fn names_are_linked_over_several_lines() {
        let persons = read("subject_1\tsubject_2\nc\td\na\tb\nb\tc\n").unwrap();
        assert!(["a", "b", "c", "d"].iter().all(|name| persons.of(None, name) == "a"));
        assert!(read("subject\nx\n").unwrap_err().to_string().contains("no column \"person\""));
        assert!(read("person\tsubject\n1\t\n").is_err());
    }
}
