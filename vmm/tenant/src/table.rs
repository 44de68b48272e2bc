//! Tables for people.

use comfy_table::{Table, TableStyle};

/// Lines up columns under a header, with nothing drawn around them: easy to read, easy to cut with awk(1).
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(
        header
            .iter()
            .copied()
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    );
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A time span as one number, as in "5 minutes".
pub fn ago(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_line_ends_in_spaces() {
        let text = table(
            &["NAME", "STATUS"],
            [
                vec!["a".to_owned(), "running".to_owned()],
                vec!["longer-name".to_owned(), String::new()],
            ],
        );
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "NAME          STATUS",
                "a             running",
                "longer-name"
            ]
        );
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(table(&["A"], []), "A\n");
    }

    #[test]
    fn spans_have_one_unit() {
        assert_eq!(ago(0), "0 seconds");
        assert_eq!(ago(1), "1 second");
        assert_eq!(ago(119), "1 minute");
        assert_eq!(ago(7200), "2 hours");
        assert_eq!(ago(86_400 * 3), "3 days");
    }
}
