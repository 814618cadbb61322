//! The prompt of a request, which goes before each of its texts.

use std::borrow::Cow;

/// What goes before every text of a request.
pub(super) struct Lead<'p> {
    pub(super) prompt: &'p str,
    /// Tokens at the start of a row that pooling leaves out.
    pub(super) skip: usize,
}

impl Lead<'_> {
    pub(super) fn before<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.prompt.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(format!("{}{text}", self.prompt)) }
    }
}
