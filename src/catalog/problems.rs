//! What is wrong with an operator's file: everything at once, each with its line and column, up to a bound.

use crate::catalog::CatalogError;

/// Enough for whoever mends a file; finding line and column of a million would take hours.
const MAX_PROBLEMS: usize = 100;

/// One thing wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Characters, counted from 1.
    pub column: usize,
    pub message: String,
}

/// Collects problems while a file is read to its end.
#[derive(Debug)]
pub(crate) struct Problems<'t> {
    file: &'t str,
    text: &'t str,
    found: Vec<Problem>,
}

impl<'t> Problems<'t> {
    /// None so far; `file` is only its name for messages.
    pub(crate) const fn of(file: &'t str, text: &'t str) -> Self {
        Self { file, text, found: Vec::new() }
    }

    pub(crate) const fn text(&self) -> &'t str {
        self.text
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// At a byte offset.
    pub(crate) fn add(&mut self, offset: usize, message: String) {
        if self.found.len() < MAX_PROBLEMS {
            let (line, column) = self.place(offset);
            self.found.push(Problem { file: self.file.to_owned(), line, column, message });
        }
    }

    /// Line and column, from 1, of a byte offset.
    pub(crate) fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count();
        (line + 1, before.get(line_start..).map_or(0, |rest| rest.chars().count()) + 1)
    }

    /// All of them from top to bottom, and whether there may be more.
    pub(crate) fn into_error(self) -> CatalogError {
        let mut problems = self.found;
        problems.sort_by_key(|problem| (problem.line, problem.column));
        if problems.len() == MAX_PROBLEMS
            && let Some(last) = problems.last().cloned()
        {
            problems.push(Problem { message: "what else is wrong is not listed".to_owned(), ..last });
        }
        CatalogError::Invalid { problems }
    }
}
