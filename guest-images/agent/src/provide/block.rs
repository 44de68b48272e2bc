//! The part of a text file that is fief's.

const BEGIN: &str = "# fief: begin";
/// What a reader should know, behind [`BEGIN`].
const ADVICE: &str = " (written by fief at every start; what is outside stays)";
const END: &str = "# fief: end";

/// `text` with `lines` as its one block: where it was, else at the end. Without lines there is no block.
pub fn replace(text: &str, lines: &[String]) -> String {
    let old: Vec<&str> = text.lines().collect();
    let begin = old.iter().position(|line| line.starts_with(BEGIN));
    let end = begin.and_then(|begin| {
        let rest = old.get(begin..)?;
        Some(begin + rest.iter().position(|line| line.trim_end() == END)?)
    });
    let (before, after) = match (begin, end) {
        (Some(begin), Some(end)) => (&old[..begin], &old[end + 1..]),
        // Somebody took a mark away: everything is theirs, but a stray mark would confuse the next time.
        (Some(begin), None) => (&old[..begin], &old[begin + 1..]),
        _ => (&old[..], &[][..]),
    };
    let begin = format!("{BEGIN}{ADVICE}");
    let mut new: Vec<&str> = before.to_vec();
    if !lines.is_empty() {
        new.push(&begin);
        new.extend(lines.iter().map(String::as_str));
        new.push(END);
    }
    new.extend(after);
    if new == old {
        return text.to_owned();
    }
    new.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn block(text: &str) -> String {
        replace("", &lines(text))
    }

    #[test]
    fn a_block_is_added_replaced_where_it_is_and_taken_away() {
        let text = replace("mine", &lines("a b"));
        assert_eq!(text, format!("mine\n{}", block("a b")));
        let text = format!("{text}also mine\n");
        let text = replace(&text, &lines("c"));
        assert_eq!(text, format!("mine\n{}also mine\n", block("c")));
        assert_eq!(replace(&text, &[]), "mine\nalso mine\n");
    }

    #[test]
    fn nothing_changes_what_is_right_already() {
        for text in ["", "mine", "mine\n\n# x\n"] {
            assert_eq!(replace(text, &[]), text);
        }
        let text = format!("mine\n{}", block("a"));
        assert_eq!(replace(&text, &lines("a")), text);
    }

    #[test]
    fn a_lost_mark_costs_nobody_a_line() {
        let text = block("a b").replace(&format!("{END}\n"), "") + "mine\n";
        let text = replace(&text, &lines("c"));
        assert_eq!(text, format!("{}a\nb\nmine\n", block("c")));
    }
}
