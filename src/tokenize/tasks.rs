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
