//! Modality ids: BIDS's suffixes ("T1w"), one for each PET tracer ("PET-FDG"), and how names and tables spell them.

/// The modality of a scan of which nothing says it.
pub const UNKNOWN: &str = "unknown";

/// Ids, and their spellings in lower case without signs between.
const MODALITIES: [(&str, &[&str]); 12] = [
    ("T1w", &["t1", "t1w", "t1weighted", "mprage", "t1mprage", "mpr", "t1mpr", "spgr", "t1spgr", "bravo"]),
    (
        "T1w-CE",
        &["t1c", "t1ce", "t1gd", "t1gad", "t1post", "t1wc", "t1wce", "t1wgd", "t1wpost", "t1contrast"],
    ),
    ("T2w", &["t2", "t2w", "t2weighted", "t2tse"]),
    ("FLAIR", &["flair", "t2flair", "t2wflair", "flairw"]),
    ("PDw", &["pd", "pdw", "protondensity"]),
    ("T2starw", &["t2star", "t2starw", "t2s"]),
    ("SWI", &["swi"]),
    ("dwi", &["dwi", "dti"]),
    ("ADC", &["adc"]),
    ("angio", &["angio", "mra", "tof"]),
    ("CT", &["ct"]),
    ("PET", &["pet"]),
];

/// Tracers, and their spellings in lower case without signs between or the isotope in front.
const TRACERS: [(&str, &[&str]); 7] = [
    ("FDG", &["fdg", "18fdg", "fluorodeoxyglucose", "fludeoxyglucose"]),
    ("AV45", &["av45", "florbetapir", "fbp", "amyvid"]),
    ("FBB", &["fbb", "florbetaben", "neuraceq"]),
    ("PIB", &["pib", "pittsburghcompoundb"]),
    ("FMM", &["fmm", "flutemetamol", "vizamyl"]),
    ("AV1451", &["av1451", "flortaucipir", "ftp", "t807", "tauvid"]),
    ("MK6240", &["mk6240"]),
];

fn lookup(table: &[(&'static str, &[&str])], spelling: &str) -> Option<&'static str> {
    table.iter().find(|(_, spellings)| spellings.contains(&spelling)).map(|(id, _)| *id)
}

/// Lower case, without signs; the star of T2* is a letter.
fn bare(text: &str) -> String {
    text.to_lowercase().replace('*', "star").chars().filter(char::is_ascii_alphanumeric).collect()
}

/// The id of PET with `tracer`, as BIDS's `trc-` or `TracerName` write it ("18FFDG", "[11C]PIB").
pub(super) fn pet(tracer: Option<&str>) -> String {
    let tracer = tracer.map(bare).filter(|t| !["", "na", "unknown", "none"].contains(&t.as_str()));
    let Some(tracer) = tracer else { return "PET".into() };
    let known = lookup(&TRACERS, &tracer);
    let name = without_isotope(&tracer);
    match known.or_else(|| lookup(&TRACERS, name)) {
        Some(known) => format!("PET-{known}"),
        None => format!("PET-{}", name.to_uppercase()),
    }
}

/// "18ffdg" and "f18fdg" without the isotope; a tracer that is nothing but an isotope stays.
fn without_isotope(tracer: &str) -> &str {
    let elements = ['f', 'c', 'o', 'n'];
    let after_digits = tracer.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = match after_digits.len() < tracer.len() {
        true => after_digits.strip_prefix(elements),
        false => {
            let two = |t: &&str| t.len() >= 2 && t.as_bytes()[..2].iter().all(u8::is_ascii_digit);
            tracer.strip_prefix(elements).filter(two).map(|t| &t[2..])
        }
    };
    rest.filter(|r| !r.is_empty()).unwrap_or(tracer)
}

/// The id that a table's cell or a file named after its modality ("t1", "T2-FLAIR", "pet_fdg") says; `None` for words
/// that name none.
pub(super) fn of_label(label: &str) -> Option<String> {
    let text = bare(label);
    let signs = |c: char| !c.is_ascii_alphanumeric();
    let tracer = match label.split_once(signs) {
        Some((first, rest)) if bare(first) == "pet" => Some(rest),
        _ => label.rsplit_once(signs).filter(|(_, last)| bare(last) == "pet").map(|(rest, _)| rest),
    };
    if let Some(tracer) = tracer {
        return Some(pet(Some(tracer)));
    }
    let modality = lookup(&MODALITIES, &text).map(str::to_owned);
    modality.or_else(|| lookup(&TRACERS, &text).map(|_| pet(Some(&text))))
}

/// The id that the pieces of a file's name say, if they agree: "IXI002_T1", "p7-t2_flair-brain".
pub(super) fn of_name(stem: &str) -> Option<String> {
    let pieces: Vec<String> = stem.split(['_', '-', '.', ' ']).map(bare).collect();
    if pieces.iter().any(|p| p == "pet") {
        let tracer = pieces.iter().find(|p| lookup(&TRACERS, without_isotope(p)).is_some());
        return Some(pet(tracer.map(String::as_str)));
    }
    // Two pieces together say more than each: "t2_flair" is no T2w.
    let pairs = pieces.windows(2).filter_map(|w| lookup(&MODALITIES, &w.concat()));
    let singles = pieces.iter().filter_map(|p| lookup(&MODALITIES, p));
    let only = |mut said: Vec<&'static str>| {
        said.dedup();
        said.len() == 1
    };
    let (pairs, singles): (Vec<_>, Vec<_>) = (pairs.collect(), singles.collect());
    let said = if pairs.is_empty() { singles } else { pairs };
    only(said.clone()).then(|| said[0].to_owned())
}

/// The id of a BIDS image: its suffix, and whether a contrast agent (`ce-`) was given.
pub(super) fn of_suffix(suffix: &str, contrast: bool) -> String {
    if suffix.is_empty() {
        return UNKNOWN.into();
    }
    if contrast { format!("{suffix}-CE") } else { suffix.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracers_are_told_from_isotopes_and_synonyms() {
        for (text, id) in [
            ("18FFDG", "PET-FDG"),
            ("18FDG", "PET-FDG"),
            ("[18F]FDG", "PET-FDG"),
            ("F18-florbetapir", "PET-AV45"),
            ("18FAV45", "PET-AV45"),
            ("11CPIB", "PET-PIB"),
            ("[11C]DASB", "PET-DASB"),
            ("15O", "PET-15O"),
            ("n/a", "PET"),
        ] {
            assert_eq!(pet(Some(text)), id, "{text}");
        }
        assert_eq!(pet(None), "PET");
    }

    #[test]
    fn labels_and_names_say_their_modality_or_nothing() {
        for (label, id) in [
            ("T1", "T1w"),
            ("t2*", "T2starw"),
            ("T2-FLAIR", "FLAIR"),
            ("t1_gd", "T1w-CE"),
            ("pet_fdg", "PET-FDG"),
            ("FDG-PET", "PET-FDG"),
            ("PET-XY12", "PET-XY12"),
            ("av45", "PET-AV45"),
        ] {
            assert_eq!(of_label(label).as_deref(), Some(id), "{label}");
        }
        assert_eq!((of_label("scan"), of_label("peter")), (None, None));
        let name = |stem| of_name(stem);
        assert_eq!(name("IXI002-Guys-0828-T1").as_deref(), Some("T1w"));
        assert_eq!(name("p7_t2_flair_brain").as_deref(), Some("FLAIR"));
        assert_eq!(name("p7_fdg_pet").as_deref(), Some("PET-FDG"));
        assert_eq!((name("t1_to_t2"), name("brain")), (None, None));
    }
}
