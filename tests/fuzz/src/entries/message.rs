//! What every message made of foreign bytes must be: one line, short, and no copy of what it complains about.

/// Longer than any message of ours with 200 characters of each of two foreign texts in it.
const MAX_BYTES: usize = 4096;
/// As much of a foreign text as a message may repeat.
const MAX_QUOTED: usize = 300;

/// Checks a message about `input` and hands it back.
///
/// # Panics
/// It breaks a line, is long, or repeats too much.
pub fn checked(message: String, input: &[u8]) -> String {
    assert!(message.len() <= MAX_BYTES, "a message of {} bytes: {:.300}", message.len(), message);
    assert!(!message.chars().any(breaks_line), "a message of several lines: {message:?}");
    not_quoting(&message, input);
    message
}

/// Checks that at most [`MAX_QUOTED`] characters in a row are the input's.
///
/// # Panics
/// There are more.
pub fn not_quoting(message: &str, input: &[u8]) {
    let starts: Vec<usize> = message.char_indices().map(|(at, _)| at).chain([message.len()]).collect();
    if starts.len() <= MAX_QUOTED + 1 {
        return;
    }
    let input = String::from_utf8_lossy(input);
    for ends in starts.windows(MAX_QUOTED + 2) {
        let quoted = &message[ends[0]..ends[MAX_QUOTED + 1]];
        assert!(!input.contains(quoted), "a message repeats more than {MAX_QUOTED} characters: {quoted}");
    }
}

/// Control characters, and the two that some terminals and editors take for the end of a line.
fn breaks_line(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}
