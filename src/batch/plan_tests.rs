//! Properties of the planner over random backlogs, and its fairness in two exact cases.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    request: usize,
    index: usize,
    tokens: usize,
    wanted: bool,
}

impl Planned for Row {
    fn n_tokens(&self) -> usize {
        self.tokens
    }

    fn is_wanted(&self) -> bool {
        self.wanted
    }
}

fn backlog(requests: &[Vec<(usize, bool)>]) -> Backlog<Row> {
    let mut backlog = Backlog::default();
    for (request, rows) in requests.iter().enumerate() {
        let rows = rows.iter().enumerate();
        backlog.push(rows.map(|(index, &(tokens, wanted))| Row { request, index, tokens, wanted }).collect());
    }
    backlog
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    // every row is planned exactly once or dropped as unwanted, budgets hold, and nothing starves.
    #[test]
    fn every_row_is_planned_once_within_budget(
        requests in prop::collection::vec(prop::collection::vec((1_usize..=16, prop::bool::weighted(0.8)), 0..12), 0..8),
        rows in 1_usize..6,
        tokens in 16_usize..40,
    ) {
        let budget = Budget { rows, tokens };
        let total: usize = requests.iter().map(Vec::len).sum();
        let mut backlog = backlog(&requests);
        let (mut seen, mut plans) = (Vec::new(), 0);
        while !backlog.is_empty() {
            let oldest = backlog.requests.iter().flatten().find(|row| row.wanted).cloned();
            let plan = backlog.plan(budget);
            plans += 1;
            prop_assert!(plans <= total, "a plan that takes nothing loops for ever");
            prop_assert!(plan.batch.len() <= rows);
            prop_assert!(plan.batch.iter().map(|row| row.tokens).sum::<usize>() <= tokens);
            prop_assert!(plan.batch.iter().all(|row| row.wanted));
            prop_assert!(plan.unwanted.iter().all(|row| !row.wanted));
            if let Some(oldest) = oldest {
                prop_assert!(plan.batch.contains(&oldest), "the row in front is never passed over");
            }
            seen.extend(plan.batch);
            seen.extend(plan.unwanted);
            let waiting: Vec<&Row> = backlog.requests.iter().flatten().collect();
            prop_assert_eq!(backlog.rows(), waiting.len());
            prop_assert_eq!(backlog.tokens(), waiting.iter().map(|row| row.tokens).sum::<usize>());
        }
        seen.sort_by_key(|row| (row.request, row.index));
        let expected = requests.iter().enumerate().flat_map(|(request, rows)| {
            rows.iter().enumerate().map(move |(index, &(tokens, wanted))| Row { request, index, tokens, wanted })
        });
        prop_assert_eq!(seen, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_sweep_removes_exactly_the_unwanted_rows(
        requests in prop::collection::vec(prop::collection::vec((1_usize..=16, any::<bool>()), 0..12), 0..8),
    ) {
        let mut backlog = backlog(&requests);
        let unwanted = backlog.sweep();
        let expected = requests.iter().flatten().filter(|(_, wanted)| !wanted).count();
        prop_assert_eq!(unwanted.len(), expected);
        prop_assert!(backlog.requests.iter().flatten().all(|row| row.wanted));
        prop_assert_eq!(backlog.rows(), backlog.requests.iter().flatten().count());
    }
}

// a single row behind a large request rides in the next batch.
#[test]
fn a_single_row_does_not_wait_behind_a_large_request() {
    let mut backlog = backlog(&[vec![(4, true); 100], vec![(4, true)]]);
    let plan = backlog.plan(Budget { rows: 8, tokens: 1000 });
    assert!(plan.batch.iter().any(|row| row.request == 1));
    assert_eq!(plan.batch.len(), 8, "the rest of the batch is filled from the large request");
}

#[test]
fn a_long_row_that_did_not_fit_is_first_in_the_next_plan() {
    let mut backlog = backlog(&[vec![(10, true)], vec![(16, true)], vec![(2, true); 50]]);
    let first = backlog.plan(Budget { rows: 100, tokens: 16 });
    assert_eq!(first.batch.iter().map(|row| row.request).collect::<Vec<_>>(), [0, 2, 2, 2]);
    assert_eq!(backlog.plan(Budget { rows: 100, tokens: 16 }).batch[0].request, 1);
}
