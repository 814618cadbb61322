//! An operator's catalogue. U-07

use std::collections::BTreeSet;
use std::sync::Arc;

use embedserve::catalog::{self, CatalogError, Names, schema};

use super::Verdict;
use super::message;

/// More than are ever listed.
const MAX_PROBLEMS: usize = 101;

pub fn check(data: &[u8]) -> Verdict {
    let text = std::str::from_utf8(data).map_err(|_| "not UTF-8, which reading the file refuses".to_owned())?;
    match schema::parse("models.toml", text) {
        Ok(models) => {
            let mut taken = BTreeSet::new();
            for model in &models {
                assert!(!model.sources.is_empty(), "a model without a source: {}", model.id);
                assert!(model.max_file_bytes > 0, "a model whose files must be empty: {}", model.id);
                for name in model.aliases.iter().chain([&model.id]) {
                    assert!((1..=200).contains(&name.len()), "a name of {} bytes", name.len());
                    assert!(taken.insert(name.to_ascii_lowercase()), "two models are called {name}");
                    let found = catalog::resolve(name, &models).expect("a catalogued name is found");
                    assert_eq!(found.id, model.id, "{name} means another model");
                }
            }
            if !models.is_empty() {
                let models = models.into_iter().map(Arc::new).collect();
                Names::new(models, Vec::new(), 0, false).expect("all of them can be served together");
            }
            Ok(())
        }
        Err(CatalogError::Invalid { problems }) => {
            assert!((1..=MAX_PROBLEMS).contains(&problems.len()), "{} problems", problems.len());
            let lines = text.split('\n').count();
            for problem in &problems {
                assert!((1..=lines).contains(&problem.line) && problem.column > 0, "{problem:?} of {lines} lines");
                message::checked(problem.message.clone(), data);
            }
            let places: Vec<_> = problems.iter().map(|problem| (problem.line, problem.column)).collect();
            assert!(places.is_sorted(), "{places:?}");
            Err(problems[0].message.clone())
        }
        Err(other) => panic!("text alone cannot fail like this: {other}"),
    }
}
