//! How a request's inputs are cut into tasks for the workers.

use crate::request::Input;

/// One task tokenises about this many bytes: long enough to be worth a hand-over, short enough that a large request
/// spreads over all workers and a small one does not wait long behind it.
const TASK_BYTES: usize = 32 * 1024;

/// Splits the inputs into tasks of about [`TASK_BYTES`], in order. Each text is read behind a prompt of `prompt_bytes`.
pub(super) fn of(inputs: Vec<Input>, prompt_bytes: usize) -> Vec<Vec<Input>> {
    let (mut tasks, mut task, mut bytes) = (Vec::new(), Vec::new(), 0);
    for input in inputs {
        bytes += match &input {
            Input::Text(text) => prompt_bytes + text.len() + 16,
            Input::Tokens(ids) => ids.len() * 4 + 16,
        };
        task.push(input);
        if bytes >= TASK_BYTES {
            tasks.push(std::mem::take(&mut task));
            bytes = 0;
        }
    }
    if !task.is_empty() {
        tasks.push(task);
    }
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    // V-06: what is read is what counts, and a prompt is read before every text.
    #[test]
    fn a_prompt_counts_for_every_text_that_it_goes_before() {
        let texts = || vec![Input::Text("a".to_owned()); 2048];
        assert_eq!(of(texts(), 0).len(), 2);
        let tasks = of(texts(), 4096);
        assert!(tasks.iter().all(|task| task.len() <= 8), "{}", tasks[0].len());
        assert_eq!(tasks.into_iter().flatten().count(), 2048);
    }
}
