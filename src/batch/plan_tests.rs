//! Properties of the planner over random backlogs, and its fairness in exact cases.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    request: usize,
    index: usize,
    tokens: usize,
    wanted: bool,
}

/// A request's flow and its rows: tokens, and whether somebody waits.
type Request = (u32, Vec<(usize, bool)>);

impl Planned for Row {
    fn n_tokens(&self) -> usize {
        self.tokens
    }

    fn is_wanted(&self) -> bool {
        self.wanted
    }
}

fn rows(request: usize, rows: &[(usize, bool)]) -> VecDeque<Row> {
    let rows = rows.iter().enumerate();
    rows.map(|(index, &(tokens, wanted))| Row { request, index, tokens, wanted }).collect()
}

fn backlog(batch: Budget, requests: &[Request]) -> Backlog<Row> {
    let mut backlog = Backlog::new(batch);
    for (request, (flow, tokens)) in requests.iter().enumerate() {
        backlog.push_for(Flow(*flow), rows(request, tokens));
    }
    backlog
}

fn waiting(backlog: &Backlog<Row>) -> Vec<&Row> {
    let flows = backlog.lanes.iter().flat_map(|lane| &lane.flows);
    flows.flat_map(|queued| &queued.requests).flatten().collect()
}

fn sizes() -> impl Strategy<Value = Vec<(usize, bool)>> {
    prop::collection::vec((1_usize..=16, prop::bool::weighted(0.8)), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    // every row is planned exactly once or dropped as unwanted, and budgets hold.
    #[test]
    fn every_row_is_planned_once_within_budget(
        requests in prop::collection::vec((0_u32..3, sizes()), 0..8),
        n_rows in 1_usize..6,
        tokens in 16_usize..80,
    ) {
        let budget = Budget { rows: n_rows, tokens };
        let total: usize = requests.iter().map(|(_, rows)| rows.len()).sum();
        let mut backlog = backlog(budget, &requests);
        let (mut seen, mut plans) = (Vec::new(), 0);
        while !backlog.is_empty() {
            let wanted = waiting(&backlog).iter().any(|row| row.wanted);
            let plan = backlog.plan(budget);
            plans += 1;
            prop_assert!(plans <= total, "a plan that takes nothing loops for ever");
            prop_assert_eq!(plan.batch.is_empty(), !wanted);
            prop_assert!(plan.batch.len() <= n_rows);
            prop_assert!(plan.batch.iter().map(|row| row.tokens).sum::<usize>() <= tokens);
            prop_assert!(plan.batch.iter().all(|row| row.wanted));
            prop_assert!(plan.unwanted.iter().all(|row| !row.wanted));
            seen.extend(plan.batch);
            seen.extend(plan.unwanted);
            let waiting = waiting(&backlog);
            prop_assert_eq!(backlog.rows(), waiting.len());
            prop_assert_eq!(backlog.tokens(), waiting.iter().map(|row| row.tokens).sum::<usize>());
            let flows = backlog.lanes.iter().flat_map(|lane| &lane.flows);
            prop_assert_eq!(backlog.tokens(), flows.map(|queued| queued.tokens).sum::<usize>());
        }
        seen.sort_by_key(|row| (row.request, row.index));
        let expected = requests.iter().enumerate().flat_map(|(request, (_, tokens))| rows(request, tokens));
        prop_assert_eq!(seen, expected.collect::<Vec<_>>());
    }

    // nothing starves, although others send more than a batch of the largest rows before every plan.
    #[test]
    fn nothing_starves_under_a_flood(
        requests in prop::collection::vec((0_u32..3, sizes()), 1..6),
        n_rows in 1_usize..6,
        tokens in 16_usize..80,
    ) {
        let budget = Budget { rows: n_rows, tokens };
        let mut backlog = backlog(budget, &requests);
        let mut left: usize = requests.iter().map(|(_, rows)| rows.len()).sum();
        // Each row may see a turn of both lanes and of the four flows in each before its own, and one overdue row.
        let bound = left * 12 + 12;
        let (mut plans, mut singles, mut several) = (0, 0, 0);
        while left > 0 {
            while singles < n_rows {
                backlog.push_for(Flow(9), rows(SINGLE, &[(16, true)]));
                singles += 1;
            }
            while several < n_rows {
                backlog.push_for(Flow(9), rows(SEVERAL, &[(16, true); 6]));
                several += 6;
            }
            let plan = backlog.plan(budget);
            singles -= of_request(&plan, SINGLE);
            several -= of_request(&plan, SEVERAL);
            left -= plan.batch.iter().chain(&plan.unwanted).filter(|row| row.request < SEVERAL).count();
            plans += 1;
            prop_assert!(plans <= bound, "{left} rows still wait after {plans} plans");
        }
    }

    // What is predicted for a request is what is computed when nobody else comes, give or take one row of each that
    // shares with it: turns are whole rows.
    #[test]
    fn a_request_is_done_when_it_was_predicted(
        requests in prop::collection::vec((0_u32..3, prop::collection::vec(1_usize..=16, 1..12)), 0..8),
        flow in 0_u32..3,
        own in prop::collection::vec(1_usize..=16, 1..12),
    ) {
        let budget = Budget { rows: 1, tokens: 64 };
        let all_wanted = |(flow, rows): (u32, Vec<usize>)| (flow, rows.into_iter().map(|tokens| (tokens, true)).collect());
        let requests: Vec<Request> = requests.into_iter().map(all_wanted).collect();
        let mut backlog = backlog(budget, &requests);
        let (last, tokens) = (requests.len(), own.iter().sum::<usize>());
        let ahead = backlog.ahead(Flow(flow), own.len(), tokens);
        backlog.push_for(Flow(flow), rows(last, &own.iter().map(|tokens| (*tokens, true)).collect::<Vec<_>>()));
        let (mut computed, mut started, mut left) = (0, None, own.len());
        while left > 0 {
            let row = &backlog.plan(budget).batch[0];
            if row.request == last {
                started.get_or_insert(computed);
                left -= 1;
            }
            computed += row.tokens;
        }
        // Two other flows in its lane, three in the other: a row of each, and one of the request itself, may go either
        // way; in the bulk lane the turns of up to eight requests are known by their mean alone.
        let turns = if own.len() == 1 || tokens <= 16 { 6 * 16 } else { 14 * 16 };
        prop_assert!(started.unwrap() <= ahead.start + turns, "started after {started:?}, predicted {ahead:?}");
        prop_assert!(computed <= ahead.finish + turns, "done after {computed}, predicted {ahead:?}");
    }

    #[test]
    fn a_sweep_removes_exactly_the_unwanted_rows(
        requests in prop::collection::vec((0_u32..3, sizes()), 0..8),
    ) {
        let mut backlog = backlog(Budget { rows: 6, tokens: 64 }, &requests);
        let gone = backlog.sweep();
        let expected = requests.iter().flat_map(|(_, rows)| rows).filter(|(_, wanted)| !wanted).count();
        prop_assert_eq!(gone.len(), expected);
        prop_assert!(waiting(&backlog).iter().all(|row| row.wanted));
        prop_assert_eq!(backlog.rows(), waiting(&backlog).len());
        let kept = backlog.rows();
        prop_assert_eq!(backlog.drain().len(), kept);
        prop_assert!(backlog.is_empty());
    }
}

/// The requests of a flood.
const SINGLE: usize = usize::MAX;
const SEVERAL: usize = usize::MAX - 1;

fn of_request(plan: &Plan<Row>, request: usize) -> usize {
    plan.batch.iter().filter(|row| row.request == request).count()
}

// whatever large requests wait, one text rides in the next batch, and they fill the rest of it.
#[test]
fn a_single_row_does_not_wait_behind_large_requests() {
    let batch = Budget { rows: usize::MAX, tokens: 2048 };
    for n_large in [1, 8, 100] {
        let mut requests: Vec<Request> = vec![(0, vec![(512, true); 2048]); n_large];
        requests.push((0, vec![(512, true)]));
        let mut backlog = backlog(batch, &requests);
        let plan = backlog.plan(batch);
        assert_eq!(of_request(&plan, n_large), 1, "behind {n_large} large requests");
        assert_eq!(plan.batch.len(), 4);
    }
}

// the other way round, a flood of single texts leaves a large request its half.
#[test]
fn a_large_request_gets_half_of_every_batch() {
    let batch = Budget { rows: usize::MAX, tokens: 400 };
    let mut backlog = backlog(batch, &[(0, vec![(10, true); 1000])]);
    for _ in 0..10 {
        for _ in 0..100 {
            backlog.push(rows(1, &[(10, true)]));
        }
        let plan = backlog.plan(batch);
        assert_eq!((of_request(&plan, 0), of_request(&plan, 1)), (20, 20));
    }
}

// a caller with a thousand requests gets no more of a batch than one with ten.
#[test]
fn flows_share_by_tokens_and_not_by_requests() {
    let batch = Budget { rows: usize::MAX, tokens: 200 };
    let mut requests: Vec<Request> = vec![(1, vec![(10, true)]); 1000];
    requests.extend(vec![(2, vec![(5, true)]); 40]);
    let mut backlog = backlog(batch, &requests);
    for _ in 0..2 {
        let plan = backlog.plan(batch);
        let second = plan.batch.iter().filter(|row| row.request >= 1000).map(|row| row.tokens).sum::<usize>();
        assert_eq!(second, 100, "half of the tokens for each");
    }
    // What one leaves, the other takes; whoever comes back has saved up nothing.
    assert_eq!(backlog.plan(batch).batch.len(), 20);
    backlog.push_for(Flow(2), rows(1000, &[(10, true); 4]));
    let plan = backlog.plan(batch);
    assert_eq!((plan.batch.len(), of_request(&plan, 1000)), (20, 4));
    assert!(plan.batch[..5].iter().any(|row| row.request < 1000), "{:?}", &plan.batch[..5]);
}

#[test]
fn a_long_row_that_did_not_fit_is_first_in_the_next_plan() {
    let batch = Budget { rows: 100, tokens: 16 };
    let mut requests: Vec<Request> = vec![(0, vec![(10, true)]), (0, vec![(16, true)])];
    requests.resize(52, (0, vec![(2, true)]));
    let mut backlog = backlog(batch, &requests);
    let first = backlog.plan(batch);
    assert_eq!(first.batch.iter().map(|row| row.request).collect::<Vec<_>>(), [0, 2, 3, 4]);
    assert_eq!(backlog.plan(batch).batch[0].request, 1);
}

#[test]
fn a_plan_ends_with_the_row_that_makes_it_enough() {
    let batch = Budget { rows: usize::MAX, tokens: 100 };
    let mut backlog = backlog(batch, &[(0, vec![(10, true); 20]), (0, vec![(60, true), (60, true)])]);
    let plan_of = |backlog: &mut Backlog<Row>, enough| {
        backlog.plan_enough(batch, enough).batch.iter().map(|row| row.tokens).collect::<Vec<_>>()
    };
    assert_eq!(plan_of(&mut backlog, 25), [10, 60], "requests take turns, and the last row is whole");
    assert_eq!(plan_of(&mut backlog, 10), [10]);
    assert_eq!(plan_of(&mut backlog, 1), [60], "a row longer than what is enough is a batch by itself");
    assert_eq!(plan_of(&mut backlog, usize::MAX), [10; 10], "the budget still holds");
}
