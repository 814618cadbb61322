//! Foreign text in messages: of what a file, a server or a person has written, as much as it takes to recognise it, on one
//! line, with nothing in it that a terminal would obey.

use std::path::Path;

/// As much of a text as a message shows.
const CHARS: usize = 200;
/// As much of a text as a line shows that says more than this.
const QUOTED_CHARS: usize = 40;

/// The beginning of a text. Quotation marks and backslashes stay what they are: they end no line, and JSON is full of them.
pub fn excerpt(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(CHARS) {
        if matches!(c, '"' | '\'' | '\\') { out.push(c) } else { out.extend(c.escape_debug()) }
    }
    if text.chars().nth(CHARS).is_some() {
        out.push_str("...");
    }
    out
}

/// The beginning of a text, in quotation marks.
pub fn quoted(text: &str) -> String {
    let head: String = text.chars().take(QUOTED_CHARS).collect();
    let dots = if text.chars().nth(QUOTED_CHARS).is_some() { "..." } else { "" };
    format!("{head:?}{dots}")
}

/// Of a long path, the beginning and the end: where it lies, and its name. Only cut: what files name has passed
/// `catalog::id` before it is part of a path.
pub fn path_excerpt(path: &Path) -> String {
    const ENDS: usize = CHARS / 2;
    let path = path.display().to_string();
    let n_chars = path.chars().count();
    if n_chars <= 2 * ENDS {
        return path;
    }
    let (start, end) = (path.chars().take(ENDS), path.chars().skip(n_chars - ENDS));
    start.chain("...".chars()).chain(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shown_on_one_line_and_cut() {
        assert_eq!(excerpt(r#"{"it's": "a\b"}"#), r#"{"it's": "a\b"}"#);
        assert_eq!(excerpt("a\nb\u{1b}[2J\u{202e}"), r"a\nb\u{1b}[2J\u{202e}");
        assert_eq!(excerpt(&"ä".repeat(CHARS)), "ä".repeat(CHARS));
        assert_eq!(excerpt(&"ä".repeat(CHARS + 1)), "ä".repeat(CHARS) + "...");
    }

    #[test]
    fn a_quoted_text_says_that_it_goes_on() {
        assert_eq!(quoted("say \"hi\"\n"), r#""say \"hi\"\n""#);
        assert_eq!(quoted(&"ä".repeat(QUOTED_CHARS + 1)), format!("\"{}\"...", "ä".repeat(QUOTED_CHARS)));
    }

    #[test]
    fn a_long_path_keeps_its_ends() {
        assert_eq!(path_excerpt(Path::new("/models/a")), "/models/a");
        let long = format!("/models/{}/config.json", "x".repeat(CHARS));
        let shown = path_excerpt(Path::new(&long));
        assert!(shown.starts_with("/models/x") && shown.ends_with("x/config.json"), "{shown}");
        assert_eq!(shown.chars().count(), CHARS + 3);
    }
}
