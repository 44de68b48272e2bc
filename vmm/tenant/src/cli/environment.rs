//! `-e`: variables for a command.

use std::str::FromStr;

/// `NAME=VALUE`, or `NAME` for the value that this process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    name: String,
    value: Option<String>,
}

/// A word that names no variable.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' names no variable; write NAME=VALUE, or NAME alone to pass this shell's value on")]
pub struct VariableError(String);

impl FromStr for Variable {
    type Err = VariableError;

    fn from_str(text: &str) -> Result<Self, VariableError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(VariableError(text.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            value,
        })
    }
}

/// Names and values. A name without a value here is left out, as docker does.
pub fn resolve(variables: &[Variable]) -> Vec<(String, String)> {
    variables
        .iter()
        .filter_map(|variable| {
            let value = variable
                .value
                .clone()
                .or_else(|| std::env::var(&variable.name).ok())?;
            Some((variable.name.clone(), value))
        })
        .collect()
}

/// `more` over `base`: each name once, with its last value.
pub fn over(base: &[(String, String)], more: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for (name, value) in base.iter().cloned().chain(more) {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => all.push((name, value)),
        }
    }
    all
}

/// Those whose values come from this process: a process that is to resolve them elsewhere needs them.
pub fn inherited(variables: &[Variable]) -> Vec<(String, String)> {
    let named: Vec<_> = variables
        .iter()
        .filter(|variable| variable.value.is_none())
        .cloned()
        .collect();
    resolve(&named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_values_the_later_one_counts() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        let base = pairs(&[("A", "1"), ("B", "2")]);
        assert_eq!(
            over(&base, pairs(&[("A", "3"), ("C", "4"), ("A", "5")])),
            pairs(&[("A", "5"), ("B", "2"), ("C", "4")])
        );
    }

    #[test]
    fn values_are_given_or_inherited_or_left_out() {
        let parse = |text: &str| text.parse::<Variable>().unwrap();
        let variables = [
            parse("A=b=c"),
            parse("E="),
            parse("PATH"),
            parse("FIEF_NO_SUCH_VARIABLE"),
        ];
        let path = std::env::var("PATH").unwrap();
        let expected = [("A", "b=c"), ("E", ""), ("PATH", path.as_str())]
            .map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(resolve(&variables), expected);
        assert_eq!(inherited(&variables), expected[2..]);
        assert!("=x".parse::<Variable>().is_err());
        assert!("".parse::<Variable>().is_err());
    }
}
