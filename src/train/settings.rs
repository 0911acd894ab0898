//! Settings in layers: defaults, then a TOML file, then `--set key=value`; each knows all keys of the first.
use std::{fs, marker::PhantomData, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use crate::error::{FileError, OnFile};

/// What can be wrong with settings; `at` is "FILE, line N" or the `--set` argument.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not TOML.
    #[error("{at}: not TOML: {problem}")]
    Syntax {
        /// Where.
        at: String,
        /// The parser's complaint.
        problem: String,
    },
    /// `--set` without `=`.
    #[error("--set {0}: expected key=value, e.g. --set train.epochs=50")]
    Form(String),
    /// A key that is no setting.
    #[error("{at}: unknown key `{key}`; {hint}")]
    Key {
        /// Where.
        at: String,
        /// The key as given, with its sections.
        key: String,
        /// The nearest known key, or all of them.
        hint: String,
    },
    /// A value that its setting cannot have.
    #[error("{at}: `{key} = {value}`: {problem}{default}")]
    Value {
        /// Where.
        at: String,
        /// The key with its sections.
        key: String,
        /// The value as given.
        value: String,
        /// What was expected.
        problem: String,
        /// "; the default is ..", where there is one.
        default: String,
    },
}

/// `defaults`, overlaid with `file`, then with each `key=value` of `sets` (a dotted key; the value in TOML, or else a
/// bare string). Unknown keys and wrong values are refused where they stand.
///
/// TOML has no null, so a setting that is `None` is absent from the serialised defaults: `optional` lists the dotted
/// keys of all `Option`s, which may therefore be given though no default shows them.
///
/// # Errors
/// [`Error`], naming the file's line or the `--set` argument.
pub fn layer<T: Serialize + DeserializeOwned>(
    defaults: &T,
    optional: &[&str],
    file: Option<&Path>,
    sets: &[String],
) -> Result<T, Error> {
    let table = Table::try_from(defaults).expect("settings are a struct of TOML's types");
    let mut keys: Vec<String> = optional.iter().map(|&key| key.to_owned()).collect();
    list_keys(&table, "", &mut keys);
    let mut layers = Layers::<T> { table, keys, settings: PhantomData };
    if let Some(path) = file {
        layers.overlay_file(path)?;
    }
    for set in sets {
        layers.overlay_set(set)?;
    }
    Ok(layers.table.try_into().expect("each value was tried when it was set"))
}

struct Layers<T> {
    table: Table,
    /// All known keys, dotted; sections, too.
    keys: Vec<String>,
    settings: PhantomData<T>,
}

impl<T: DeserializeOwned> Layers<T> {
    fn overlay_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = fs::read_to_string(path).on_file("read", path)?;
        let at =
            |offset: usize| format!("{}, line {}", path.display(), text[..offset].matches('\n').count() + 1);
        let syntax = |e: toml::de::Error| {
            let offset = e.span().map_or(0, |span| span.start);
            Error::Syntax { at: at(offset), problem: e.message().to_owned() }
        };
        // Parsed twice: once for the values, once for where their keys stand.
        let values: Table = toml::from_str(&text).map_err(syntax)?;
        let places = DeTable::parse(&text).map_err(syntax)?;
        self.overlay(&values, places.get_ref(), "", &at)
    }

    fn overlay(
        &mut self,
        values: &Table,
        places: &DeTable,
        section: &str,
        at: &dyn Fn(usize) -> String,
    ) -> Result<(), Error> {
        for (name, place) in places {
            let key = join(section, name.get_ref());
            match (&values[name.get_ref().as_ref()], place.get_ref()) {
                (Value::Table(values), DeValue::Table(places)) if self.is_section(&key) => {
                    self.overlay(values, places, &key, at)?;
                }
                (value, _) => self.set(&key, value.clone(), &at(name.span().start))?,
            }
        }
        Ok(())
    }

    fn overlay_set(&mut self, set: &str) -> Result<(), Error> {
        let (key, text) = set.split_once('=').ok_or_else(|| Error::Form(set.to_owned()))?;
        let (key, text) = (key.trim(), text.trim());
        let at = format!("--set {set}");
        let word = Value::String(text.to_owned());
        match text.parse::<Value>() {
            // A setting that is a string takes `--set name=2024`, too.
            Ok(value) => {
                self.set(key, value, &at).or_else(|error| self.set(key, word, &at).map_err(|_| error))
            }
            Err(_) => self.set(key, word, &at),
        }
    }

    /// Sets one value and tries the whole: so what serde says is about this value.
    fn set(&mut self, key: &str, value: Value, at: &str) -> Result<(), Error> {
        if !self.keys.iter().any(|known| known == key) {
            return Err(Error::Key { at: at.to_owned(), key: key.to_owned(), hint: self.hint(key) });
        }
        if let Value::Table(values) = &value
            && self.is_section(key)
        {
            return values.iter().try_for_each(|(name, value)| self.set(&join(key, name), value.clone(), at));
        }
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let table = section.split('.').filter(|s| !s.is_empty()).fold(&mut self.table, |table, name| {
            let section = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
            section.as_table_mut().expect("a known key stands in sections")
        });
        let default = table.insert(name.to_owned(), value.clone());
        self.table.clone().try_into::<T>().map(drop).map_err(|e| Error::Value {
            at: at.to_owned(),
            key: key.to_owned(),
            value: value.to_string(),
            problem: e.message().to_owned(),
            default: default
                .filter(|d| !d.is_table())
                .map_or_else(String::new, |d| format!("; the default is {d}")),
        })
    }

    fn is_section(&self, key: &str) -> bool {
        find(&self.table, key).is_some_and(Value::is_table)
    }

    /// The known key that is most like `key`, compared whole and by last names: `epochs` finds `train.epochs`.
    fn hint(&self, key: &str) -> String {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let likeness = |known: &str| {
            strsim::jaro_winkler(key, known).max(strsim::jaro_winkler(&last(key), &last(known)))
        };
        match self.keys.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))) {
            Some(nearest) if likeness(nearest) > 0.8 => format!("did you mean `{nearest}`?"),
            _ => format!("the keys are: {}", self.keys.join(", ")),
        }
    }
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

fn find<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, rest)) => find(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

fn list_keys(table: &Table, section: &str, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = join(section, name);
        if let Value::Table(inner) = value {
            list_keys(inner, &key, keys);
        }
        keys.push(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Settings {
        name: String,
        resume: Option<String>,
        train: Train,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Train {
        epochs: u32,
        rate: f64,
        axes: Vec<u32>,
        schedule: Schedule,
        clip: Option<f64>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Schedule {
        Cosine,
        Constant,
    }

    fn defaults() -> Settings {
        let train = Train { epochs: 800, rate: 1e-3, axes: vec![0], schedule: Schedule::Cosine, clip: None };
        Settings { name: "run".into(), resume: None, train }
    }

    /// Layers `file` and `sets`; an error's text without the folder.
    fn layered(file: &str, sets: &[&str]) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        fs::write(&path, file).unwrap();
        let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
        layer(&defaults(), &["resume", "train.clip"], Some(&path), &sets)
            .map_err(|e| e.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn without_layers_the_defaults_stand() {
        assert_eq!(layered("", &[]).unwrap(), defaults());
    }

    #[test]
    fn sets_win_over_the_file_and_the_file_over_defaults() {
        let s =
            layered("[train]\nepochs = 100\nrate = 1\naxes = [1, 2]\n", &["train.epochs=50", "resume=a b"])
                .unwrap();
        assert_eq!((s.train.epochs, s.train.rate, s.train.axes), (50, 1.0, vec![1, 2]));
        assert_eq!((s.name.as_str(), s.resume.as_deref()), ("run", Some("a b")));
    }

    #[test]
    fn values_are_toml_or_bare_words() {
        let s = layered(
            "train.schedule = 'constant'",
            &["name=2024", "resume=1", "train.clip=1", "train={axes=[], rate=0.5}"],
        )
        .unwrap();
        assert_eq!((s.name.as_str(), s.resume.as_deref()), ("2024", Some("1")));
        assert_eq!((s.train.clip, s.train.rate), (Some(1.0), 0.5));
        assert_eq!((s.train.axes.len(), s.train.epochs, s.train.schedule), (0, 800, Schedule::Constant));
    }

    #[test]
    fn errors_say_where_what_and_what_instead() {
        for (file, set, text) in [
            (
                "name = 'a'\nepochs = 3\n",
                "name=b",
                "run.toml, line 2: unknown key `epochs`; did you mean `train.epochs`?",
            ),
            (
                "[trian]\nepochs = 3\n",
                "name=b",
                "run.toml, line 1: unknown key `trian`; did you mean `train`?",
            ),
            (
                "\n[train]\n\nepochs = 'many'\n",
                "name=b",
                "run.toml, line 4: `train.epochs = \"many\"`: invalid type: string \"many\", expected u32; the default is 800",
            ),
            (
                "name = \n",
                "name=b",
                "run.toml, line 1: not TOML: string values must be quoted, expected literal string",
            ),
            (
                "",
                "train.epoch=3",
                "--set train.epoch=3: unknown key `train.epoch`; did you mean `train.epochs`?",
            ),
            (
                "",
                "zzz=3",
                "--set zzz=3: unknown key `zzz`; the keys are: resume, train.clip, name, train.epochs, train.rate, \
                 train.axes, train.schedule, train",
            ),
            (
                "",
                "train.epochs=-1",
                "--set train.epochs=-1: `train.epochs = -1`: invalid value: integer `-1`, expected u32; the default is 800",
            ),
            (
                "",
                "train.schedule=linear",
                "--set train.schedule=linear: `train.schedule = \"linear\"`: unknown variant `linear`, expected `cosine` \
                 or `constant`; the default is \"cosine\"",
            ),
            ("", "train=3", "--set train=3: `train = 3`: invalid type: integer `3`, expected struct Train"),
            ("", "train.clip", "--set train.clip: expected key=value, e.g. --set train.epochs=50"),
        ] {
            assert_eq!(layered(file, &[set]).unwrap_err(), text);
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = layer(&defaults(), &[], Some(Path::new("nowhere.toml")), &[]).unwrap_err();
        assert_eq!(error.to_string(), "nowhere.toml: cannot read");
    }
}
