//! Which parts of a benchmark are run.

/// Those among `names` that the arguments name, or all of them. None once a name that is no part has been told.
pub(crate) fn chosen<'a>(names: &[&'a str]) -> Option<Vec<&'a str>> {
    // cargo adds flags of its own.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if let Some(unknown) = wanted.iter().find(|wanted| !names.contains(&wanted.as_str())) {
        eprintln!("there is no part {unknown}; there are: {}", names.join(", "));
        return None;
    }
    let is_chosen = |name: &&str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    Some(names.iter().copied().filter(is_chosen).collect())
}
